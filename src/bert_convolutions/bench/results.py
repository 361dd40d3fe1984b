"""Converts reports to medians and ratios, for ``results.json``, tables and a figure."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.text import Text

from bert_convolutions.bench.options import BenchOptions
from bert_convolutions.bench.plan import CONTESTANTS, Group, Job
from bert_convolutions.bench.worker import Report
from bert_convolutions.environment import machine_facts
from bert_convolutions.report.style import OKABE_ITO, save_figure
from bert_convolutions.terminal import make_table

SCHEMA = "bert_convolutions.bench/2"
"""Changes when the meaning of a field changes, not when fields are added."""
Entry = Mapping[str, Any]
"""An entry of ``results.json``: a job with its measurements or the reason why there are none."""
_COLORS = {"float32": OKABE_ITO[0], "bf16": OKABE_ITO[1]}
_COLUMNS: dict[str, Callable[[Entry], str]] = {
    "real tokens/s": lambda entry: f"{entry['medians']['real_tokens_per_second']:,.0f}",
    "examples/s": lambda entry: f"{entry['medians']['examples_per_second']:,.1f}",
    "ms/step": lambda entry: f"{entry['medians']['ms_per_step']:,.1f}",
    "ms forward": lambda entry: f"{entry['medians']['forward_ms_per_step']:,.1f}",
    "x baseline": lambda entry: f"{entry['ratios']['speed']['median']:.2f}",
    "peak MiB": lambda entry: f"{entry['peak_memory_bytes'] / 2**20:,.0f}",
    "x memory": lambda entry: f"{entry['ratios']['memory']['median']:.2f}",
    "time x dot product": lambda entry: f"{entry['ratios']['step_time']['median']:.3f}",
    "model FLOPs used": lambda entry: f"{entry['model_flops_utilisation']:.1%}",
}
"""Functions that format a table cell, by heading; an entry may lack some of the values."""


def group_results(
    group: Group, reports: Mapping[Job, list[Report]], failures: Mapping[Job, str], peak: float | None
) -> list[dict[str, Any]]:
    """The entries of a group's jobs in ``results.json``.

    Each job was measured in all rounds or is in ``failures``; ``peak`` is the device's bf16 FLOP/s, if known.
    """
    entries = []
    for job in (*group.jobs, *group.left_out):
        entry = {"name": job.name, **dataclasses.asdict(job), "description": CONTESTANTS[job.contestant].description}
        figures = _figures(group, job, reports, peak) if job in reports else {}
        entries.append({**entry, "failure": failures.get(job), **figures})
    return entries


def _figures(group: Group, job: Job, measured: Mapping[Job, list[Report]], peak: float | None) -> dict[str, Any]:
    median, reports = statistics.median, measured[job]
    figures: dict[str, Any] = {
        "rounds": [
            {"seconds": report.seconds, "steps": report.steps, **dataclasses.asdict(report.work)} for report in reports
        ],
        "medians": {
            "ms_per_step": 1000 * median(report.seconds / report.steps for report in reports),
            "examples_per_second": median(report.work.examples / report.seconds for report in reports),
            "real_tokens_per_second": median(report.work.tokens / report.seconds for report in reports),
        },
        "peak_memory_bytes": max(report.peak_memory for report in reports),
        "memory_before_bytes": reports[0].memory_before,
        "ratios": _ratios(group, job, measured),
    }
    if reports[0].forward_seconds is not None:
        forward = [(report.forward_seconds or 0.0) / report.steps for report in reports]
        figures["medians"]["forward_ms_per_step"] = 1000 * median(forward)
    if peak is not None and job.precision == "bf16" and reports[0].work.flops:
        rates = [(report.work.flops or 0.0) / report.seconds for report in reports]
        figures["model_flops_utilisation"] = median(rates) / peak
    return figures


def _ratios(group: Group, job: Job, reports: Mapping[Job, list[Report]]) -> dict[str, Any]:
    """Ratios to the jobs it is compared with, per round, since a disturbance in a round affects both jobs."""

    def ratio(other: Job, figure: Callable[[Report], float]) -> dict[str, Any]:
        rounds = [figure(own) / figure(their) for own, their in zip(reports[job], reports[other], strict=True)]
        return {"to": other.name, "median": statistics.median(rounds), "rounds": rounds}

    ratios = {}
    baseline, dot_product = job.baseline(group.jobs), job.own_dot_product(group.jobs)
    if baseline is not None and baseline in reports:
        own, their = (max(report.peak_memory for report in reports[each]) for each in (job, baseline))
        ratios["speed"] = ratio(baseline, lambda report: report.work.tokens / report.seconds)
        ratios["memory"] = {"to": baseline.name, "median": own / their}
    if dot_product is not None and dot_product in reports and CONTESTANTS[job.contestant].is_ours:
        ratios["step_time"] = ratio(dot_product, lambda report: report.seconds / report.steps)
    return ratios


def fastest_setting(entries: Sequence[dict[str, Any]]) -> str | None:
    """The flags and the speed of the fastest job of the task ``settings``, or None if none was measured."""
    measured = [entry for entry in entries if entry["task"] == "settings" and "medians" in entry]
    if not measured:
        return None
    best = max(measured, key=lambda entry: entry["medians"]["real_tokens_per_second"])
    flags = f"--per_device_train_batch_size {best['batch_size']} --attn_implementation {best['backend']}"
    flags += " --bf16" if best["precision"] == "bf16" else ""
    return f"{flags}: {best['medians']['real_tokens_per_second']:,.0f} real tokens/s at S = {best['length']}"


def document(options: BenchOptions, peak: float | None) -> dict[str, Any]:
    """The content of ``results.json`` without measurements: the machine and the options."""
    return {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "complete": False,
        "machine": machine_facts() | ({"threads": options.threads} if options.threads else {}),
        "options": dataclasses.asdict(options),
        "peak_tflops": None if peak is None else peak / 1e12,
        "measurements": [],
    }


def group_table(title: str, entries: Sequence[Entry]) -> RenderableType:
    """A row per job of a group: medians, and medians over the rounds' ratios."""
    measured = [entry for entry in entries if "medians" in entry]
    columns = {heading: [_cell(cell, entry) for entry in measured] for heading, cell in _COLUMNS.items()}
    shown = {heading: cells for heading, cells in columns.items() if set(cells) - {"-"}}
    to = next((entry["ratios"]["speed"]["to"] for entry in measured if "speed" in entry["ratios"]), None)
    table = make_table(f"\n{title}" + (f" (baseline: {to})" if to else ""), "contestant", *shown)
    for row, entry in enumerate(measured):
        table.add_row(entry["name"], *(cells[row] for cells in shown.values()))
    failures = [f"{entry['name']} is not measured: {entry['failure']}" for entry in entries if entry["failure"]]
    return Lines(table, *(Text(failure, style="red") for failure in failures))


def _cell(cell: Callable[[Entry], str], entry: Entry) -> str:
    try:
        return cell(entry)
    except KeyError:
        return "-"


def draw(groups: Mapping[str, Sequence[Entry]], machine: Mapping[str, Any], path: Path) -> None:
    """Write ``results.png``: a panel for each group (by title) with measurements."""
    measured = {title: [entry for entry in entries if "medians" in entry] for title, entries in groups.items()}
    panels = {title: entries for title, entries in measured.items() if entries}
    heights = [0.9 + 0.25 * len(entries) for entries in panels.values()]
    figure = Figure(figsize=(9, sum(heights) + 0.8), layout="constrained")
    figure.suptitle(f"bertconv bench: {machine['gpu'] or machine['cpu']}, torch {machine['torch']}")
    panels_axes = figure.subplots(len(panels), squeeze=False, gridspec_kw={"height_ratios": heights}).ravel()
    for axes, (title, entries) in zip(panels_axes, panels.items(), strict=True):
        _draw_speeds(axes, title, entries)
    save_figure(figure, path)


def _draw_speeds(axes: Axes, title: str, entries: Sequence[Entry]) -> None:
    """A bar per job: its speed as a multiple of the baseline's, or in tokens/s without a baseline."""
    relative = all("speed" in entry["ratios"] for entry in entries)
    speeds = [entry["medians"]["real_tokens_per_second"] for entry in entries]
    values = [entry["ratios"]["speed"]["median"] for entry in entries] if relative else speeds
    bars = axes.barh(range(len(entries)), values, color=[_COLORS[entry["precision"]] for entry in entries])
    axes.bar_label(bars, [f"{value:.2f} ×" if relative else f"{value:,.0f}" for value in values], padding=3, fontsize=8)
    axes.set_yticks(range(len(entries)), [f"{entry['name']}, S = {entry['length']}" for entry in entries])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("real tokens/s" + (f", as a multiple of {entries[0]['ratios']['speed']['to']}" if relative else ""))
    axes.set_title(title, loc="left", fontsize=11)
