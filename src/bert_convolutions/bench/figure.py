"""The results as a picture: a panel for each group, bars of ratios, and where the time of a step goes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bert_convolutions.bench.breakdown import PARTS
from bert_convolutions.report.style import OKABE_ITO, save_png

_COLORS = {"float32": OKABE_ITO[0], "bf16": OKABE_ITO[1]}
_PART_COLORS = ("#999999", *OKABE_ITO, "#dddddd")
_COLUMNS = 2
_BAR = 0.38
_LEGEND_BARS = 2
"""Room for the breakdown's legend, in bars."""


def draw(groups: Mapping[str, Sequence[dict[str, Any]]], machine: Mapping[str, Any], path: Path) -> None:
    """Write ``results.png``; groups of which nothing was measured are left out.

    Args:
        groups: title to the entries of ``results.json``.
        machine: of ``results.json``.
        path: the PNG.
    """
    panels = {
        title: [entry for entry in entries if "medians" in entry]
        for title, entries in groups.items()
        if any("medians" in entry for entry in entries)
    }
    if not panels:
        return
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    heights = [
        max(0.9 + 0.42 * _num_bars(entries) for entries in list(panels.values())[row * columns : (row + 1) * columns])
        for row in range(rows)
    ]
    figure = Figure(figsize=(6.5 * columns, sum(heights) + 0.8), layout="constrained")
    figure.suptitle(f"bertconv bench: {machine['gpu'] or machine['cpu']}, torch {machine['torch']}")
    all_axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"height_ratios": heights}).ravel()
    for axes, (title, entries) in zip(all_axes, panels.items(), strict=False):
        (_draw_breakdown if entries[0]["task"] == "breakdown" else _draw_speeds)(axes, title, entries)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()
    save_png(figure, path)


def _num_bars(entries: Sequence[dict[str, Any]]) -> int:
    if entries[0]["task"] == "breakdown":
        return len(entries) + _LEGEND_BARS
    return len({_label(entry) for entry in entries})


def _label(entry: dict[str, Any]) -> str:
    if entry["glue_task"] is None:
        return str(entry["contestant"])
    return f"padded to {entry['length']}" if entry["padded"] else "batched by length"


def _draw_speeds(axes: Axes, title: str, entries: Sequence[dict[str, Any]]) -> None:
    """Speed as a multiple of the baseline's, or as it is where there is no baseline; a bar a contestant."""
    labels = list(dict.fromkeys(_label(entry) for entry in entries))
    precisions = list(dict.fromkeys(entry["precision"] for entry in entries))
    glue = entries[0]["glue_task"] is not None
    relative = all("speed" in entry["ratios"] for entry in entries)
    unit = "examples_per_second" if glue else "real_tokens_per_second"
    for number, precision in enumerate(precisions):
        chosen = [entry for entry in entries if entry["precision"] == precision]
        values = [entry["ratios"]["speed"]["median"] if relative else entry["medians"][unit] for entry in chosen]
        offset = (number - (len(precisions) - 1) / 2) * _BAR
        places = [labels.index(_label(entry)) + offset for entry in chosen]
        bars = axes.barh(places, values, height=_BAR * 0.92, color=_COLORS[precision], label=precision)
        shown = [f"{value:.2f} ×" if relative else f"{value:,.0f}" for value in values]
        axes.bar_label(bars, shown, padding=3, fontsize=8)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    if relative:
        axes.axvline(1, color="#bbbbbb", linewidth=0.8, zorder=0)
    what = "examples/s" if glue else "real tokens/s"
    to = "the same precision, padded" if glue else entries[0]["ratios"].get("speed", {}).get("to")
    axes.set_xlabel(f"{what}, as a multiple of {to}" if relative else what)
    axes.set_title(title, loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _draw_breakdown(axes: Axes, title: str, entries: Sequence[dict[str, Any]]) -> None:
    """Shares of a step, a bar a job."""
    labels = [f"{entry['precision']}, S = {entry['length']}" for entry in entries]
    lefts = [0.0] * len(entries)
    for part, color in zip(PARTS, _PART_COLORS, strict=True):
        shares = [
            100 * entry["parts_ms_per_step"][part] / sum(entry["parts_ms_per_step"].values()) for entry in entries
        ]
        axes.barh(labels, shares, left=lefts, height=0.6, color=color, label=part, edgecolor="white", linewidth=0.5)
        lefts = [left + share for left, share in zip(lefts, shares, strict=True)]
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"% of a training step of {entries[0]['contestant']}")
    axes.set_title(title, loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.5 / len(entries)), ncols=3)
