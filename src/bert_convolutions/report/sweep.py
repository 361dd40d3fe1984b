"""``bertconv report``: a sweep's answer as one HTML file that needs nothing else, and the PNG and CSV behind it."""

import base64
import csv
import html
import io
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from matplotlib.figure import Figure

from bert_convolutions import files
from bert_convolutions.convert.options import ConvertOptions
from bert_convolutions.errors import UsageError
from bert_convolutions.report import sweep_figures
from bert_convolutions.report.kernels import plot_kernels
from bert_convolutions.report.options import PlotKernelsOptions, ReportOptions
from bert_convolutions.report.style import save_png
from bert_convolutions.report.sweep_results import (
    LOSS,
    Run,
    SweepResults,
    as_json,
    larger_is_better,
    loss_at_equal_flops,
    read_sweep,
    token_savings,
)
from bert_convolutions.schemas import read_json
from bert_convolutions.sweep.cells import LOCAL_ORDER, MINIMAL_PAIRS, plan_cells
from bert_convolutions.sweep.statistics import SEEDS_FOR_INTERVAL, SEEDS_FOR_TEST, Comparison, Interval, compare
from bert_convolutions.terminal import duration

_PACKAGES = ("bert_convolutions", "torch", "transformers", "numpy", "scipy", "sentencepiece")
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 56rem; margin: 1rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
img { max-width: 100%; height: auto; } figure { margin: 1rem 0; } figcaption, .note { color: #555; font-size: .9rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; white-space: nowrap; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; } code { font-size: .85rem; white-space: pre-wrap; }
"""
Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def write_report(options: ReportOptions) -> Path:
    """Write ``report.html``, its pictures and tables.

    Returns:
        The HTML file.

    Raises:
        UsageError: the folder is no sweep, or nothing in it is finished.
    """
    results = read_sweep(options.sweep)
    folder = options.output_dir or options.sweep / "report"
    folder.mkdir(parents=True, exist_ok=True)
    page = _Page(folder)
    page.parts.append(f"<h1>{html.escape(results.experiment.question or 'Experiment')}</h1>")
    _add_savings(page, results)
    _add_metrics(page, results)
    _add_probes(page, results)
    _add_kernels(page, results)
    _add_what_was_run(page, results, options.sweep)
    files.write_text(folder / "runs.json", as_json(results))
    files.write_text(folder / "report.html", page.html(results.experiment.question or "Experiment"))
    return folder / "report.html"


def run_plot_kernels(options: PlotKernelsOptions) -> Path:
    """Draw the kernels of a checkpoint, the original's included.

    Raises:
        UsageError: it is no model, or has no kernels.
    """
    with tempfile.TemporaryDirectory() as temporary:
        model = options.checkpoint
        if (model / "pytorch_model.bin").is_file() and not (model / "model.safetensors").is_file():
            from bert_convolutions.convert.original import run_convert

            model = Path(temporary) / "converted"
            run_convert(ConvertOptions(input=options.checkpoint, output_dir=model))
        if not plot_kernels(model, options.output):
            raise UsageError(f"{options.checkpoint} has no convolution kernels in its attention: nothing to draw")
    return options.output


class _Page:
    """Collects the parts of the page; what is shown is also a file beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts: list[str] = []

    def heading(self, text: str, note: str = "") -> None:
        """A heading, and a sentence below it."""
        self.parts.append(
            f"<h2>{html.escape(text)}</h2>" + (f'<p class="note">{html.escape(note)}</p>' if note else "")
        )

    def figure(self, figure: Figure, name: str, caption: str) -> None:
        """A picture."""
        save_png(figure, self.folder / f"{name}.png")
        self.picture(name, caption)

    def picture(self, name: str, caption: str) -> None:
        """A picture that has been written."""
        data = base64.b64encode((self.folder / f"{name}.png").read_bytes()).decode()
        text = html.escape(caption)
        self.parts.append(
            f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'
        )

    def table(self, table: Table, name: str, bold: Sequence[bool] = ()) -> None:
        """A table; rows that are true in ``bold`` are set so."""
        header, rows = table
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
        files.write_text(self.folder / f"{name}.csv", buffer.getvalue())
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        body = []
        for number, row in enumerate(rows):
            cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
            strong = number < len(bold) and bold[number]
            body.append(f'<tr style="font-weight:bold">{cells}</tr>' if strong else f"<tr>{cells}</tr>")
        self.parts.append(f'<div class="wide"><table><tr>{head}</tr>{"".join(body)}</table></div>')

    def html(self, title: str) -> str:
        """The whole page."""
        head = (
            f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
        )
        return (
            f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n'
            + "\n".join(self.parts)
            + "\n</body></html>\n"
        )


def _add_savings(page: _Page, results: SweepResults) -> None:
    baseline = results.experiment.baseline
    rows = []
    for variant in results.experiment.variants:
        for saving in token_savings(results, variant) if variant != baseline else []:
            factor = "not reached" if saving.factor is None else f"{'≥ ' if saving.at_least else ''}{saving.factor:.2f}"
            needed = [f"{tokens / 1e6:.2f}" if tokens else "" for tokens in saving.tokens]
            rows.append(
                (variant, f"{saving.level:.2f}", *needed, factor, _interval(saving.interval, 2), str(saving.seeds))
            )
    if not rows:
        return
    page.heading(
        f"Tokens to a given loss, against {baseline}",
        "By what factor the variant needs fewer tokens than the baseline until its held-out loss first falls to the "
        "given one: geometric mean over seeds and 95 % bootstrap interval. Losses are those that every run of the "
        "baseline passes through; ≥: the variant was there at its first evaluation.",
    )
    header = (
        "variant",
        "loss",
        f"{baseline}: million tokens",
        "variant: million tokens",
        "factor",
        "interval",
        "seeds",
    )
    page.table((header, rows), "token_savings")
    page.figure(
        sweep_figures.loss_curves(results), "loss", "Held-out loss; the band spans the seeds, the line is their mean."
    )


def _add_metrics(page: _Page, results: SweepResults) -> None:
    flops, equal = loss_at_equal_flops(results)
    baseline = results.experiment.baseline
    metrics = [(metric, results.values(metric)) for metric in results.metrics]
    metrics.insert(1, (f"{LOSS} at {flops:.3g} training FLOPs", equal))
    page.heading(
        "Scores",
        f"Mean and standard deviation over seeds, 95 % bootstrap interval over them (none below {SEEDS_FOR_INTERVAL}), "
        f"paired difference to {baseline}; p by exact permutation of signs, corrected by Holm (none below "
        f"{SEEDS_FOR_TEST} seeds, where it can't reach 0.05). Bold: the interval of the difference leaves out zero.",
    )
    for number, (metric, values) in enumerate(metrics):
        compared = compare(values, baseline, larger_is_better(metric))
        table, bold = _score_table(metric, compared, results)
        page.parts.append(f"<h3>{html.escape(metric)}</h3>")
        page.table(table, f"score_{number}_{_file_name(metric)}", bold)
        if metric in results.metrics:
            unit = metric if "loss" in metric else f"{metric} (share)"
            figure = sweep_figures.dots(metric, compared, results, unit)
            page.figure(figure, f"score_{number}_{_file_name(metric)}", f"{metric}: mean, interval and single seeds.")


def _score_table(metric: str, compared: Mapping[str, Comparison], results: SweepResults) -> tuple[Table, list[bool]]:
    digits = 3 if "loss" in metric else 4
    rows = []
    for variant, summary in compared.items():
        run = results.of(variant)[0]
        deviation = f" ± {summary.deviation:.{digits}f}" if summary.seeds > 1 else ""
        difference = "" if summary.difference is None else f"{summary.difference:+.{digits}f}"
        few = "" if summary.difference is None else "too few seeds"
        p_value = few if summary.p_holm is None else f"{summary.p_holm:.3f}"
        rows.append(
            (
                variant,
                str(summary.seeds),
                f"{summary.mean:.{digits}f}{deviation}",
                _interval(summary.interval, digits) or "too few seeds",
                f"{summary.best:.{digits}f}",
                difference,
                _interval(summary.difference_interval, digits) or few,
                p_value,
                f"{run.parameters / 1e6:.2f} M",
                f"{run.flops[-1]:.3g}",
                f"{run.tokens_per_second:,.0f}",
            )
        )
    header = ("variant", "seeds", "mean ± sd", "interval", "best", "difference", "its interval", "p (Holm)")
    costs = ("parameters", "training FLOPs", "tokens/s")
    return ((*header, *costs), rows), [summary.differs for summary in compared.values()]


def _add_probes(page: _Page, results: SweepResults) -> None:
    asked = [(name, MINIMAL_PAIRS) for name in results.experiment.evaluate.minimal_pairs]
    if results.experiment.evaluate.local_order is not None:
        asked.append(("local_order", LOCAL_ORDER))
    for name, command in asked:
        if command == LOCAL_ORDER:
            figure = sweep_figures.order_lines(results, name)
            caption = "Local order: right pairs by how far a word was moved; 50 % is chance. The band spans the seeds."
        else:
            figure = sweep_figures.difference_map(results, name)
            caption = f"{name}: difference of mean accuracy to {results.experiment.baseline}, by phenomenon."
        if figure is not None:
            page.heading(name.replace("_", " "))
            page.figure(figure, name, caption)


def _add_kernels(page: _Page, results: SweepResults) -> None:
    first: dict[str, Run] = {}
    for run in results.runs:
        first.setdefault(run.variant, run)
    drawn = False
    for variant, run in first.items():
        if plot_kernels(run.folder, page.folder / f"kernels_{variant}.png"):
            if not drawn:
                page.heading("Learned kernels")
            drawn = True
            page.picture(f"kernels_{variant}", f"Kernels of {variant}, seed {run.seed}, by layer and head.")


def _add_what_was_run(page: _Page, results: SweepResults, sweep: Path) -> None:
    page.heading("What was run")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    lines = [
        f"reported with {versions}, Python {platform.python_version()}",
        f"commit {commit.stdout.strip() or 'unknown'}; {platform.machine()} {platform.system()}, {_processor()}",
        f"data: {_data_hashes(results)}",
    ]
    page.parts += [f"<p>{html.escape(line)}</p>" for line in lines]
    finished = {(run.variant, run.seed) for run in results.runs}
    rows = []
    for cell in plan_cells(results.experiment, sweep):
        if (cell.variant, cell.seed) in finished and (record := cell.record()) is not None:
            command = shlex.join(["bertconv", *record.command])
            rows.append((cell.label, duration(record.seconds), str(record.exit_code), command))
    if rows:
        page.table((("cell", "wall time", "exit code", "command"), rows), "commands")


def _data_hashes(results: SweepResults) -> str:
    """Of the shards that a build-dataset folder's manifest names."""
    found = []
    for flag in ("train_data_file", "eval_data_file"):
        value = results.experiment.base.get(flag)
        for path in value if isinstance(value, list) else [value]:
            manifest = Path(str(path)) / "manifest.json"
            if manifest.is_file():
                shards = ", ".join(str(shard["sha256"])[:16] for shard in read_json(manifest)["shards"])
                found.append(f"{flag} {path} (SHA-256 {shards})")
    return "; ".join(found) or "not at hand any more"


def _processor() -> str:
    for line in (
        Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n") if Path("/proc/cpuinfo").is_file() else []
    ):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def _interval(interval: Interval | None, digits: int) -> str:
    return "" if interval is None else f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


def _file_name(text: str) -> str:
    return "".join(character if character.isalnum() else "_" for character in text).strip("_")
