"""The results as tables for the terminal and as a picture: a panel for each group, bars of speeds or their ratios."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Group
from rich.table import Table
from rich.text import Text

from bert_convolutions.report.style import OKABE_ITO, save_figure

_COLORS = {"float32": OKABE_ITO[0], "bf16": OKABE_ITO[1]}
_COLUMNS = 2
_BAR = 0.38


def group_table(title: str, entries: Sequence[dict[str, Any]]) -> Group:
    """A row for each job of a group: medians, and medians of the rounds' ratios."""
    measured = [entry for entry in entries if "medians" in entry]
    columns: dict[str, list[str]] = {
        "real tokens/s": [f"{entry['medians']['real_tokens_per_second']:,.0f}" for entry in measured],
        "examples/s": [f"{entry['medians']['examples_per_second']:,.1f}" for entry in measured],
        "ms/step": [f"{entry['medians']['ms_per_step']:,.1f}" for entry in measured],
        "x baseline": [_times(entry, "speed") for entry in measured],
        "peak MiB": [f"{entry['peak_memory_bytes'] / 2**20:,.0f}" for entry in measured],
        "x memory": [_times(entry, "memory") for entry in measured],
        "time x dot product": [_times(entry, "step_time", digits=3) for entry in measured],
        "model FLOPs used": [
            f"{entry['model_flops_utilisation']:.1%}" if "model_flops_utilisation" in entry else "-"
            for entry in measured
        ],
    }
    to = next((entry["ratios"]["speed"]["to"] for entry in measured if "speed" in entry["ratios"]), None)
    table = Table(
        title=f"\n{title}" + (f" (baseline: {to})" if to else ""),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
    )
    shown = {heading: cells for heading, cells in columns.items() if set(cells) - {"-"}}
    table.add_column("contestant")
    for heading in shown:
        table.add_column(heading, justify="right")
    for row, entry in enumerate(measured):
        table.add_row(entry["name"], *(cells[row] for cells in shown.values()))
    failures = [entry for entry in entries if entry["failure"]]
    return Group(table, *(Text(f"{entry['name']} failed: {entry['failure']}", style="red") for entry in failures))


def draw(groups: Mapping[str, Sequence[dict[str, Any]]], machine: Mapping[str, Any], path: Path) -> None:
    """Write ``results.png``; groups of which nothing was measured are left out.

    Args:
        groups: title to the entries of ``results.json``.
        machine: of ``results.json``.
        path: the PNG.
    """
    measured = {title: [entry for entry in entries if "medians" in entry] for title, entries in groups.items()}
    panels = {title: entries for title, entries in measured.items() if entries}
    if not panels:
        return
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    counts = [len({_label(entry) for entry in entries}) for entries in panels.values()]
    heights = [0.9 + 0.42 * max(counts[row * columns : (row + 1) * columns]) for row in range(rows)]
    figure = Figure(figsize=(6.5 * columns, sum(heights) + 0.8), layout="constrained")
    figure.suptitle(f"bertconv bench: {machine['gpu'] or machine['cpu']}, torch {machine['torch']}")
    all_axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"height_ratios": heights}).ravel()
    for axes, (title, entries) in zip(all_axes, panels.items(), strict=False):
        _draw_speeds(axes, title, entries)
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()
    save_figure(figure, path)


def _draw_speeds(axes: Axes, title: str, entries: Sequence[dict[str, Any]]) -> None:
    """Speed as a multiple of the baseline's, or as it is where there is no baseline; a bar a job."""
    labels = list(dict.fromkeys(map(_label, entries)))
    precisions = list(dict.fromkeys(entry["precision"] for entry in entries))
    relative = all("speed" in entry["ratios"] for entry in entries)
    for number, precision in enumerate(precisions):
        chosen = [entry for entry in entries if entry["precision"] == precision]
        speeds = [entry["medians"]["real_tokens_per_second"] for entry in chosen]
        values = [entry["ratios"]["speed"]["median"] for entry in chosen] if relative else speeds
        offset = (number - (len(precisions) - 1) / 2) * _BAR
        places = [labels.index(_label(entry)) + offset for entry in chosen]
        bars = axes.barh(places, values, height=_BAR * 0.92, color=_COLORS[precision], label=precision)
        shown = [f"{value:.2f} ×" if relative else f"{value:,.0f}" for value in values]
        axes.bar_label(bars, shown, padding=3, fontsize=8)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    if relative:
        axes.axvline(1, color="#bbbbbb", linewidth=0.8, zorder=0)
    to = f", as a multiple of {entries[0]['ratios']['speed']['to']}" if relative else ""
    axes.set_xlabel(f"real tokens/s{to}")
    axes.set_title(title, loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _label(entry: dict[str, Any]) -> str:
    """A job's name without its precision, which the colour tells."""
    return str(entry["name"]).replace(f" {entry['precision']}", "").replace(f"{entry['precision']}, ", "")


def _times(entry: dict[str, Any], ratio: str, digits: int = 2) -> str:
    return f"{entry['ratios'][ratio]['median']:.{digits}f}" if ratio in entry["ratios"] else "-"
