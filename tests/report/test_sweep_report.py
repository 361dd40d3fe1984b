"""``bertconv report`` and ``plot-kernels``: figures from a sweep's files, and a page that needs nothing else."""

import csv
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bert_convolutions import CompositeBertConfig, CompositeBertForMaskedLM
from bert_convolutions.cli.main import main
from bert_convolutions.errors import UsageError
from bert_convolutions.report.sweep_results import LOSS, loss_at_equal_flops, read_sweep, token_savings
from bert_convolutions.schemas import Experiment

KERNEL = "qk_convfixed_convq_convk 2"
ACCURACY = {"interval": [0.4, 0.9], "accuracy_within_word": 0.5, "interval_within_word": [0.4, 0.9], "pairs": 10}


def leave_run(folder: Path, config: CompositeBertConfig, losses: list[float], accuracy: float) -> None:
    """What ``pretrain`` and ``minimal-pairs`` leave in the folder of a seed; 1,000 tokens a step."""
    model = folder / "pretrain"
    CompositeBertForMaskedLM(config).save_pretrained(model)
    log = [{"step": 10 * number, "eval_loss": loss} for number, loss in enumerate(losses, 1)]
    steps = 10 * len(losses)
    state = {"global_step": steps, "num_input_tokens_seen": 1000 * steps, "log_history": log}
    (model / "trainer_state.json").write_text(json.dumps(state))
    (model / "eval_results.json").write_text(json.dumps({"eval_loss": losses[-1], "eval_masked_accuracy": accuracy}))
    (model / "train_results.json").write_text(json.dumps({"real_tokens_per_second": 500.0}))
    for name, command, paradigms in (("zorro", "minimal_pairs", ["a", "b"]), ("local_order", "local_order", ["by_1"])):
        figures = {"accuracy": accuracy, **ACCURACY}
        results = {
            "model": "m",
            "model_sha256": "0",
            "paradigms": {p: {**figures, "phenomenon": "p", "field": "", "sha256": "0"} for p in paradigms},
            "phenomena": {"p": figures} if command == "minimal_pairs" else {},
            "fields": {},
            "all": figures,
        }
        (folder / name).mkdir()
        (folder / name / f"{command}.json").write_text(json.dumps(results))
        (folder / name / f"{command}.csv").write_text("")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Absolute positions fall by 0.5 in ten steps, composite attention by 1.0; three seeds."""
    folder = tmp_path_factory.mktemp("sweep")
    experiment = Experiment.model_validate(
        {
            "question": "Which <positions>?",
            "base": {"max_steps": 40, "config_name": "bert_small", "per_device_train_batch_size": 4},
            "baseline": "absolute",
            "variants": {"absolute": {}, "composite": {"attention_kernel": KERNEL}, "unfinished": {"remove_qk": True}},
            "seeds": [1, 2, 3],
            "evaluate": {"minimal_pairs": {"zorro": {"data_dir": "z"}}, "local_order": {"text": "t"}},
        }
    )
    (folder / "experiment.json").write_text(experiment.model_dump_json())
    sizes = {"hidden_size": 16, "embedding_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    for variant, kernel, fall in (("absolute", "dot_product", 0.5), ("composite", KERNEL, 1.0)):
        config = CompositeBertConfig(vocab_size=50, intermediate_size=32, attention_kernel=kernel, **sizes)
        for seed in (1, 2, 3):
            losses = [8 + seed / 100 - fall * number for number in range(4)]
            leave_run(folder / variant / f"seed{seed}", config, losses, 0.5 + fall / 4 + seed / 100)
    return folder


def test_values_and_curves_are_those_of_the_files(sweep: Path) -> None:
    results = read_sweep(sweep)
    assert len(results.runs) == 6
    assert results.values(LOSS)["composite"] == pytest.approx({1: 5.01, 2: 5.02, 3: 5.03})
    assert results.values("zorro")["absolute"] == pytest.approx({1: 0.635, 2: 0.645, 3: 0.655})
    run = results.runs[0]
    assert (run.steps, run.tokens) == ([10, 20, 30, 40], [1e4, 2e4, 3e4, 4e4])
    assert run.flops[-1] == pytest.approx(4 * run.flops[0]) and run.parameters > 0


def test_tokens_to_a_loss_by_hand(sweep: Path) -> None:
    savings = token_savings(read_sweep(sweep), "composite")
    assert savings[0].level == pytest.approx(8.01) and savings[-1].level == pytest.approx(6.53)
    assert savings[0].at_least and savings[0].factor == pytest.approx(1.0, abs=0.02)
    last = savings[-1]  # absolute is there after 4 x 10^4 tokens, composite between the second and the third evaluation
    expected = []
    for seed in (1, 2, 3):
        share = (7 + seed / 100 - last.level) / 1.0
        base = (7 + seed / 100 - last.level) / 0.5
        reached = math.exp(math.log(3e4) + base * math.log(4 / 3)) / (2e4 * 1.5**share)
        expected.append(math.log(reached))
    assert last.factor == pytest.approx(math.exp(sum(expected) / 3), rel=1e-6)
    assert last.interval and last.interval[0] <= last.factor <= last.interval[1]
    assert token_savings(read_sweep(sweep), "unfinished") == []


def test_equal_flops_compare_at_the_cheapest_runs_end(sweep: Path) -> None:
    results = read_sweep(sweep)
    flops, losses = loss_at_equal_flops(results)
    assert flops == min(run.flops[-1] for run in results.runs)
    assert losses["absolute"][1] == pytest.approx(6.51)
    assert 5.01 < losses["composite"][1] < 5.2  # its convolutions cost FLOPs, so it is compared before its end


class Sources(HTMLParser):
    """Everything a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "object")
        self.found += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]


def test_the_report_is_one_page_that_fetches_nothing(sweep: Path, tmp_path: Path) -> None:
    assert main(["report", str(sweep), "--output_dir", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    sources = Sources()
    sources.feed(page)
    assert len(sources.found) > 4 and all(source.startswith("data:") for source in sources.found)
    assert "url(" not in page and "@import" not in page
    assert "Which &lt;positions&gt;?" in page and "<positions>" not in page
    for name in ("loss", "zorro", "local_order", "kernels_composite"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "kernels_absolute.png").exists()
    with (tmp_path / "score_0_held_out_loss.csv").open() as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"absolute", "composite"}
    assert rows["composite"]["mean ± sd"] == "5.020 ± 0.010"
    assert rows["composite"]["difference"] == "-1.500" and rows["composite"]["p (Holm)"] == "too few seeds"
    assert re.search(r'<tr style="font-weight:bold"><td>composite</td>', page)
    assert json.loads((tmp_path / "runs.json").read_text())[0]["variant"] == "absolute"


def test_folders_that_are_no_sweep(sweep: Path, tmp_path: Path) -> None:
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
    with pytest.raises(UsageError, match="holds no whole run"):
        read_sweep(tmp_path)


def test_kernels_of_one_checkpoint(sweep: Path, tmp_path: Path) -> None:
    output = tmp_path / "k.png"
    assert main(["plot-kernels", str(sweep / "composite/seed1/pretrain"), "--output", str(output)]) == 0
    assert output.read_bytes().startswith(b"\x89PNG")
    assert main(["plot-kernels", str(sweep / "absolute/seed1/pretrain"), "--output", str(output)]) == 2
