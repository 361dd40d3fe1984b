"""``bertconv report`` and ``plot-kernels``: statistics and figures of a sweep, in one self-contained page."""

import csv
import gzip
import json
import math
import re
import shutil
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from bert_convolutions.attention.terms import TERMS
from bert_convolutions.cli.main import main
from bert_convolutions.data.build.pipeline import build_dataset
from bert_convolutions.data.loading import load_tokenizer
from bert_convolutions.data.options import BuildDatasetOptions
from bert_convolutions.data.store import ArrowStore
from bert_convolutions.errors import UsageError
from bert_convolutions.report.options import ReportOptions
from bert_convolutions.report.page import Page
from bert_convolutions.report.sweep import _add_metrics, _data_hashes, _held_out, _progress_note, _score_table, _texts
from bert_convolutions.report.sweep_figures import difference_map, differences, loss_curves
from bert_convolutions.report.sweep_results import (
    LOSS,
    MASKED_ACCURACY,
    at_equal_flops,
    larger_is_better,
    read_sweep,
    token_savings,
)
from bert_convolutions.schemas import CellRecord
from bert_convolutions.sweep.cells import plan_cells
from bert_convolutions.sweep.statistics import compare
from bert_convolutions.training.setup import HELD_OUT_SEED
from tests.report import browser
from tests.report.conftest import KERNEL, TEXT


def test_values_and_curves_are_those_of_the_files(sweep: Path) -> None:
    results = read_sweep(sweep)
    assert len(results.runs) == 6
    assert results.values(LOSS)["composite"] == pytest.approx({1: 5.01, 2: 5.02, 3: 5.03})
    assert results.values("zorro")["absolute"] == pytest.approx({1: 0.635, 2: 0.645, 3: 0.655})
    run = results.runs[0]
    assert (run.steps, run.tokens) == ([10, 20, 30, 40], [1e4, 2e4, 3e4, 4e4])
    assert run.flops[-1] == pytest.approx(4 * run.flops[0]) and run.parameters > 0


def test_tokens_to_a_loss_equal_values_by_hand(sweep: Path) -> None:
    savings = token_savings(read_sweep(sweep), "composite")
    assert savings[0].level == pytest.approx(8.01) and savings[-1].level == pytest.approx(6.53)
    assert savings[0].at_least and savings[0].factor == pytest.approx(1.0, abs=0.02)
    last = savings[-1]  # absolute reaches it after 4 x 10^4 tokens, composite between the second and third evaluations
    expected = []
    for seed in (1, 2, 3):
        share = (7 + seed / 100 - last.level) / 1.0
        base = (7 + seed / 100 - last.level) / 0.5
        reached = math.exp(math.log(3e4) + base * math.log(4 / 3)) / (2e4 * 1.5**share)
        expected.append(math.log(reached))
    assert last.factor == pytest.approx(math.exp(sum(expected) / 3), rel=1e-6)
    assert last.interval and last.interval[0] <= last.factor <= last.interval[1]
    assert token_savings(read_sweep(sweep), "unfinished") == []


def test_runs_evaluated_once_have_no_losses_in_common(sweep: Path) -> None:
    results = read_sweep(sweep)
    results = replace(results, runs=[replace(run, tokens=[4e4], losses=run.losses[-1:]) for run in results.runs])
    assert token_savings(results, "composite") == []


def test_differences_are_of_the_tasks_that_all_runs_have(sweep: Path) -> None:
    results = read_sweep(sweep)
    first, *others = results.runs
    part = replace(results, runs=[first, *(replace(run, glue={"CoLA mcc": run.glue["CoLA mcc"]}) for run in others)])
    found = differences(part, lambda run: run.glue)
    assert found is not None and found[0] == ["CoLA mcc"]
    assert found[2].item() == pytest.approx(100 * (0.5 / 4))


def test_differences_are_over_common_seeds(sweep: Path) -> None:
    """As in the tables: the seeds alone make a difference of a point."""
    results = read_sweep(sweep)
    part = [run for run in results.runs if (run.variant, run.seed) not in (("absolute", 1), ("composite", 3))]
    found = differences(replace(results, runs=part), lambda run: run.glue)
    assert found is not None and found[2].ravel() == pytest.approx([100 * (0.5 / 4)] * 2)
    assert differences(replace(results, runs=[part[0], part[2]]), lambda run: run.glue) is None


def test_the_curve_of_runs_of_different_lengths_ends_at_the_mean_of_their_ends(sweep: Path) -> None:
    """Runs of ``--train_minutes``: one is evaluated at steps 10, 20 and 24, the others at 10, 20, 30 and 40."""
    results = read_sweep(sweep)
    one, two, three = results.by_variant["absolute"]
    short = replace(three, steps=[10, 20, 24], tokens=[1e4, 2e4, 2.4e4], flops=three.flops[:3], losses=[8.0, 7.5, 7.4])
    line = loss_curves(replace(results, runs=[one, two, short])).axes[0].lines[0]
    assert list(line.get_xdata()) == pytest.approx([10, 20, (40 + 40 + 24) / 3])
    assert list(line.get_ydata())[2] == pytest.approx((one.losses[-1] + two.losses[-1] + 7.4) / 3)


def test_where_a_group_has_no_difference_nothing_is_written_on_the_map() -> None:
    figure = difference_map((["a", "b"], ["one", "two"], np.array([[1.0, 2.0], [3.0, np.nan]])), "base")
    assert [text.get_text() for text in figure.axes[0].texts] == ["+1.0", "+2.0", "+3.0", ""]


def test_the_label_of_a_narrow_map_is_within_the_figure() -> None:
    """One variant beside the baseline, and a phenomenon of BLiMP with a long name."""
    figure = difference_map((["determiner noun agreement"], ["composite"], np.array([[1.0]])), "composite_absolute")
    figure.draw_without_rendering()
    label = figure.axes[1].xaxis.label.get_window_extent()
    assert label.x0 >= 0 and label.x1 <= figure.bbox.x1


def test_tables_have_the_same_names_in_a_later_report(sweep: Path, tmp_path: Path) -> None:
    results = read_sweep(sweep)
    for times in (1, 2):
        of_loss = [
            {"scores": {LOSS: run.scores[LOSS]}, "flops": [times * flops for flops in run.flops]}
            for run in results.runs
        ]
        runs = [replace(run, **changes) for run, changes in zip(results.runs, of_loss, strict=True)]
        _add_metrics(Page(tmp_path), replace(results, runs=runs))
    assert sorted(path.name for path in tmp_path.glob("*.csv")) == [
        "score_held_out_loss.csv",
        "score_held_out_loss_at_equal_FLOPs.csv",
    ]


def test_without_a_baseline_nothing_is_compared(sweep: Path, tmp_path: Path) -> None:
    results, page = read_sweep(sweep), Page(tmp_path)
    experiment = results.experiment.model_copy(update={"baseline": None})
    runs = [replace(run, scores={LOSS: run.scores[LOSS]}) for run in results.runs]
    _add_metrics(page, replace(results, experiment=experiment, runs=runs))
    assert "95 % bootstrap" in "".join(page.parts) and "None" not in "".join(page.parts)


def test_at_equal_flops_runs_are_compared_at_the_end_of_the_cheapest(sweep: Path) -> None:
    results = read_sweep(sweep)
    flops, found = at_equal_flops(results)
    losses = found[LOSS]
    assert flops == min(run.flops[-1] for run in results.runs)
    assert losses["absolute"][1] == pytest.approx(6.51)
    assert 5.01 < losses["composite"][1] < 5.2  # its convolutions cost FLOPs, so it is compared before its end
    assert 1 / 6.01 < found[MASKED_ACCURACY]["composite"][1] < 0.76
    added_later = replace(results, runs=sorted(results.runs, key=lambda run: run.variant, reverse=True))
    assert list(at_equal_flops(added_later)[1][LOSS]) == ["absolute", "composite"], "as in the other tables"


def test_runs_evaluated_only_at_their_end_have_no_values_at_equal_flops(sweep: Path, tmp_path: Path) -> None:
    results = read_sweep(sweep)
    ends = [replace(run, flops=run.flops[-1:], losses=run.losses[-1:]) for run in results.runs]
    assert at_equal_flops(replace(results, runs=ends))[1] == {}
    page = Page(tmp_path)
    _add_metrics(page, replace(results, runs=ends))
    assert "training FLOPs</h3>" not in "".join(page.parts) and "equal FLOPs" not in "".join(page.parts)


def test_flops_are_those_of_the_share_of_masked_tokens(sweep: Path, tmp_path: Path) -> None:
    shutil.copytree(sweep, tmp_path / "sweep")
    experiment = json.loads((sweep / "experiment.json").read_text())
    experiment["variants"]["composite"]["mlm_probability"] = 0.6
    (tmp_path / "sweep" / "experiment.json").write_text(json.dumps(experiment))
    folders = sweep, tmp_path / "sweep"
    before, after = ({run.variant: run.flops[-1] for run in read_sweep(folder).runs} for folder in folders)
    assert after["absolute"] == before["absolute"] and after["composite"] > before["composite"]


def test_losses_of_glue_are_in_nats_and_no_percentage_points(report: Path, sweep: Path) -> None:
    """What a variant loses is not drawn beside what it scores, nor taken for a loss by its name."""
    assert {row[""] for row in rows_of(report, "glue")} == {"CoLA mcc", "STS-B pearson"}
    assert "CoLA eval_loss" in read_sweep(sweep).metrics and not larger_is_better("CoLA eval_loss")
    assert larger_is_better("glosses eval_acc") and larger_is_better("lossless")
    drawn = "".join(path.read_text() for path in report.glob("score_*.svg"))
    assert drawn.count("nats per masked token") == 1


def test_glue_of_an_earlier_model_is_not_reported(sweep: Path, tmp_path: Path) -> None:
    shutil.copytree(sweep, tmp_path / "sweep")
    record = {"command": ["glue"], "seconds": 1.0, "exit_code": 2, "model": "0" * 64}
    (tmp_path / "sweep" / "composite" / "seed1" / "glue.cell.json").write_text(json.dumps(record))
    assert read_sweep(tmp_path / "sweep").values("CoLA mcc")["composite"].keys() == {2, 3}


def test_cells_that_failed_are_named(sweep: Path, tmp_path: Path) -> None:
    shutil.copytree(sweep, tmp_path / "sweep")
    results = read_sweep(tmp_path / "sweep")
    cells = {cell.label: cell for cell in plan_cells(results.experiment, tmp_path / "sweep")}
    assert "Failed" not in _progress_note(results, list(cells.values()))
    for label, code in (
        ("unfinished/seed1/pretrain", 3),
        ("unfinished/seed2/pretrain", 75),
        ("absolute/seed1/glue", 2),
    ):
        cells[label].folder.parent.mkdir(parents=True, exist_ok=True)
        record = CellRecord(command=cells[label].argv, seconds=1.0, exit_code=code)
        cells[label].record_path.write_text(record.model_dump_json())
    note = _progress_note(results, list(cells.values()))
    assert note.endswith(" Failed: absolute/seed1/glue, unfinished/seed1/pretrain.")


def test_a_single_task_is_not_counted_again_beside_its_rounds(sweep: Path, tmp_path: Path) -> None:
    """Glue writes a single task into its output folder, and several tasks or rounds, added later, below it."""
    shutil.copytree(sweep, tmp_path / "sweep")
    glue = tmp_path / "sweep" / "composite" / "seed1" / "glue"
    state = {"task": "CoLA", "settings": {}, "dev": {"CoLA": {"mcc": -1.0}}}
    (glue / "glue_state.json").write_text(json.dumps(state))
    results, before = (read_sweep(folder).values("CoLA mcc")["composite"] for folder in (tmp_path / "sweep", sweep))
    assert results == before
    shutil.rmtree(glue / "CoLA")
    shutil.rmtree(glue / "STS-B")
    assert read_sweep(tmp_path / "sweep").values("CoLA mcc")["composite"][1] == -1.0


class Sources(HTMLParser):
    """Everything that a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "object")
        self.found += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with (folder / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_report_is_one_page_that_loads_nothing(report: Path) -> None:
    page = (report / "report.html").read_text()
    sources = Sources()
    sources.feed(page)
    assert len(sources.found) > 4 and all(source.startswith("data:") for source in sources.found)
    assert "url(" not in page and "@import" not in page
    assert "Which &lt;positions&gt;?" in page and "<positions>" not in page
    names = ("loss", "token_factors", "zorro", "glue", "local_order", "kernels_composite", "attention_absolute")
    for name in (*names, "attention_composite", "variance", "sentence_absolute", "sentence_composite"):
        assert (report / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (report / f"{name}.svg").read_text().startswith("<?xml")
        assert name == "token_factors" or rows_of(report, name), "its table is token_savings.csv"
    assert not (report / "kernels_absolute.png").exists()
    savings = rows_of(report, "token_savings")
    assert [row["absolute: million tokens"] for row in savings][::4] == ["0.0101", "0.0398"], (
        "three digits of small runs"
    )
    with (report / "score_held_out_loss.csv").open() as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"absolute", "composite"}
    assert rows["composite"]["mean ± sd"] == "5.020 ± 0.010"
    assert rows["composite"]["difference"] == "-1.500" and rows["composite"]["p (Holm)"] == "too few seeds"
    assert re.search(r'<tr style="font-weight:bold"><td>composite</td>', page)
    assert json.loads((report / "runs.json").read_text())[0]["variant"] == "absolute"


def test_folders_that_are_no_sweep_are_refused(sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no experiment\.json"):
        read_sweep(tmp_path)
    (tmp_path / "experiment.json").write_bytes((sweep / "experiment.json").read_bytes())
    with pytest.raises(UsageError, match="no run is finished"):
        read_sweep(tmp_path)
    broken = tmp_path / "absolute" / "seed1" / "pretrain"
    broken.mkdir(parents=True)
    (broken / "eval_results.json").write_text("{}")
    (broken / "trainer_state.json").write_text('{"log_history": []}')
    (broken / "train_results.json").write_text("{}")
    with pytest.raises(UsageError, match="holds no complete run"):
        read_sweep(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_kernels_of_one_checkpoint_are_drawn_in_the_format_of_the_suffix(
    sweep: Path, tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / f"k{suffix}"
    assert main(["plot-kernels", str(sweep / "composite/seed1/pretrain"), "--output", str(output)]) == 0
    assert output.read_bytes().startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix])


def test_models_without_kernels_and_unknown_suffixes_are_refused(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plot-kernels", str(sweep / "absolute/seed1/pretrain"), "--output", str(tmp_path / "k.png")]) == 2
    assert "has no convolution kernels" in capsys.readouterr().err
    assert main(["plot-kernels", str(sweep / "composite/seed1/pretrain"), "--output", str(tmp_path / "k.jpeg")]) == 2
    assert ".png, .svg, .pdf" in capsys.readouterr().err


OURS = sorted((Path(__file__).parents[1] / "parity" / "fixtures").glob("composite"))
THEIRS = sorted(Path(__file__).parents[3].glob("shared/golden/model/*conv*"))


@pytest.mark.parametrize("original", [*OURS, *THEIRS], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_kernels_of_the_originals_checkpoints_are_drawn(original: Path, tmp_path: Path) -> None:
    """Made-up checkpoints in its format, and its own where they are available."""
    before = sorted(path.name for path in original.iterdir())
    weights = torch.load(original / "pytorch_model.bin", weights_only=True)
    names = {name for name in TERMS if any(key.endswith(f"{name}_param") for key in weights)}
    output = tmp_path / "k.svg"
    assert main(["plot-kernels", str(original), "--output", str(output)]) == (0 if names else 2)
    drawn = output.read_text() if names else ""
    assert {name for name in TERMS if f"({name})" in drawn} == names
    assert sorted(path.name for path in original.iterdir()) == before and sorted(tmp_path.iterdir()) == (
        [output] if names else []
    )


def test_the_report_has_versions_machine_data_and_options(report: Path) -> None:
    page = (report / "report.html").read_text()
    for words in ("18 of 36 cells", "reported: versions Python", "reported: commit", "reported: machine", "data: "):
        assert words in page
    options = {row["option"]: row for row in rows_of(report, "options")}
    assert options["attention_kernel"]["composite"] == f'"{KERNEL}"'
    assert options["learning_rate"]["absolute"] == "0.001"


def test_a_variant_that_is_worse_is_not_bold(sweep: Path, tmp_path: Path) -> None:
    """With composite attention as the baseline, absolute positions are worse beyond their interval."""
    shutil.copytree(sweep, tmp_path / "turned")
    experiment = json.loads((sweep / "experiment.json").read_text()) | {"baseline": "composite"}
    (tmp_path / "turned" / "experiment.json").write_text(json.dumps(experiment))
    results = read_sweep(tmp_path / "turned")
    assert compare(results.values(LOSS), "composite", larger_is_better(LOSS))["absolute"].differs
    assert not any(_score_table(LOSS, compare(results.values(LOSS), "composite", False), results)[1])


def test_attention_is_measured_on_the_evaluation_text_of_the_runs_in_any_form(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    results, options = read_sweep(sweep), ReportOptions(sweep)
    tokenizer = load_tokenizer(results.runs[0].folder)
    assert _texts(results, options, tokenizer, 128, partial(_held_out, results.experiment.base)) == []
    for given in (tmp_path, tmp_path / "text.txt.gz"):
        base = results.experiment.base | {"eval_data_file": str(given), "line_by_line": True}
        of_text = replace(results, experiment=results.experiment.model_copy(update={"base": base}))
        assert len(_texts(of_text, options, tokenizer, 128, partial(_held_out, base))) == 3
        assert max(map(len, _texts(of_text, options, tokenizer, 4, partial(_held_out, base)))) == 4


def test_attention_is_measured_on_the_documents_that_the_runs_held_out(sweep: Path, tmp_path: Path) -> None:
    results, text, folder = read_sweep(sweep), tmp_path / "text.txt", tmp_path / "pairs"
    text.write_text("the old books\nwere hers\n\n" * 40)
    tokenizer = load_tokenizer(results.runs[0].folder)
    build_dataset(BuildDatasetOptions(str(results.runs[0].folder), [str(text)], output_dir=str(folder)))
    base = results.experiment.base | {"train_data_file": str(folder), "eval_fraction": 0.2}
    held_out = replace(results, experiment=results.experiment.model_copy(update={"base": base}))
    _, expected = ArrowStore(folder).split_by_document(0.2, HELD_OUT_SEED)
    found = _texts(held_out, ReportOptions(sweep), tokenizer, 128, partial(_held_out, base))
    assert found == [expected[number].tolist() for number in range(len(expected))]
    variants = {"absolute": {}, "composite": {"train_data_file": [str(folder)]}}
    of_variants = replace(results, experiment=results.experiment.model_copy(update={"variants": variants}))
    assert f"train_data_file {folder} (SHA-256 " in _data_hashes(of_variants), "also of the text of one variant"
    next(folder.glob("*.arrow")).unlink()
    assert _texts(held_out, ReportOptions(sweep), tokenizer, 128, partial(_held_out, base)) == [], (
        "the report can do without"
    )


# The report in a real browser, at the widths of a desktop and of a phone

in_chromium = pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium here")
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="


@in_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser_every_picture_is_shown_and_nothing_requested(report: Path, tmp_path: Path, width: int) -> None:
    found = browser.look_at(report / "report.html", tmp_path, width)
    assert found["width"] == width and found["overflow"] <= 0, "wide pictures and tables scroll within themselves"
    assert len(found["pictures"]) > 10
    for picture in found["pictures"]:
        assert picture["shown"] and picture["pixels"] > 10_000 and picture["width"] > 200 and picture["height"] > 50
    assert found["console"] == [] and found["requests"] == []


@in_chromium
def test_the_browser_reports_hidden_pictures_overflow_errors_and_requests(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    pictures = f'<img src="{PIXEL}" hidden><img src="http://example.invalid/x.png">'
    wrong = f'{pictures}<div style="width: 2000px">.</div><script>console.error("no")</script>'
    page.write_text(f"<html><body>{wrong}</body></html>")
    found = browser.look_at(page, tmp_path, 390)
    assert [picture["shown"] for picture in found["pictures"]] == [False, True]
    assert found["pictures"][1]["pixels"] == 0 and found["overflow"] > 1000
    assert any("no" in line for line in found["console"]) and found["requests"] == ["http://example.invalid/x.png"]
