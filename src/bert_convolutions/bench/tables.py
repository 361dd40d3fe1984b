"""The results as tables for the terminal and as a picture: a panel for each group, bars of speeds or their ratios."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Group
from rich.text import Text

from bert_convolutions.report.style import OKABE_ITO, save_figure
from bert_convolutions.terminal import make_table

_COLORS = {"float32": OKABE_ITO[0], "bf16": OKABE_ITO[1]}
_FIGURES: dict[str, Callable[[dict[str, Any]], str]] = {
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
"""A column's heading to its cell for an entry of ``results.json``; not each entry has each."""


def group_table(title: str, entries: Sequence[dict[str, Any]]) -> Group:
    """A row for each job of a group: medians, and medians of the rounds' ratios."""
    measured = [entry for entry in entries if "medians" in entry]
    columns = {heading: [_cell(cell, entry) for entry in measured] for heading, cell in _FIGURES.items()}
    shown = {heading: cells for heading, cells in columns.items() if set(cells) - {"-"}}
    to = next((entry["ratios"]["speed"]["to"] for entry in measured if "speed" in entry["ratios"]), None)
    table = make_table(f"\n{title}" + (f" (baseline: {to})" if to else ""), "contestant", *shown)
    table.title_style = "bold"
    for row, entry in enumerate(measured):
        table.add_row(entry["name"], *(cells[row] for cells in shown.values()))
    failures = [f"{entry['name']} is not measured: {entry['failure']}" for entry in entries if entry["failure"]]
    return Group(table, *(Text(failure, style="red") for failure in failures))


def _cell(cell: Callable[[dict[str, Any]], str], entry: dict[str, Any]) -> str:
    try:
        return cell(entry)
    except KeyError:
        return "-"


def draw(groups: Mapping[str, Sequence[dict[str, Any]]], machine: Mapping[str, Any], path: Path) -> None:
    """Write ``results.png``; groups of which nothing was measured are left out.

    Args:
        groups: title to the entries of ``results.json``.
        machine: of ``results.json``.
        path: the PNG.
    """
    measured = {title: [entry for entry in entries if "medians" in entry] for title, entries in groups.items()}
    panels = [(title, entries) for title, entries in measured.items() if entries]
    pairs = [panels[start : start + 2] for start in range(0, len(panels), 2)]
    heights = [0.9 + 0.25 * max(len(entries) for _, entries in pair) for pair in pairs]
    columns = min(2, len(panels))
    figure = Figure(figsize=(6.5 * columns, sum(heights) + 0.8), layout="constrained")
    figure.suptitle(f"bertconv bench: {machine['gpu'] or machine['cpu']}, torch {machine['torch']}")
    all_axes = figure.subplots(len(pairs), columns, squeeze=False, gridspec_kw={"height_ratios": heights}).ravel()
    for axes, (title, entries) in zip(all_axes, panels, strict=False):
        _draw_speeds(axes, title, entries)
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()
    save_figure(figure, path)


def _draw_speeds(axes: Axes, title: str, entries: Sequence[dict[str, Any]]) -> None:
    """A bar a job: its speed as a multiple of the baseline's, or as it is where there is no baseline."""
    relative = all("speed" in entry["ratios"] for entry in entries)
    speeds = [entry["medians"]["real_tokens_per_second"] for entry in entries]
    values = [entry["ratios"]["speed"]["median"] for entry in entries] if relative else speeds
    names = [f"{entry['name']}, S = {entry['length']}" for entry in entries]
    bars = axes.barh(range(len(entries)), values, color=[_COLORS[entry["precision"]] for entry in entries])
    axes.bar_label(bars, [f"{value:.2f} ×" if relative else f"{value:,.0f}" for value in values], padding=3, fontsize=8)
    axes.set_yticks(range(len(entries)), names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    if relative:
        axes.axvline(1, color="#bbbbbb", linewidth=0.8, zorder=0)
    to = f", as a multiple of {entries[0]['ratios']['speed']['to']}" if relative else ""
    axes.set_xlabel(f"real tokens/s{to}")
    axes.set_title(title, loc="left", fontsize=11)
