"""The pictures of a sweep: loss curves with a band over seeds, dots with intervals, a heat map of differences."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from bert_convolutions.report.style import line_colors
from bert_convolutions.report.sweep_results import Run, SweepResults
from bert_convolutions.schemas import Accuracy, ProbeResults
from bert_convolutions.sweep.statistics import Comparison

_X_AXES: tuple[tuple[str, Callable[[Run], Sequence[float]]], ...] = (
    ("steps", lambda run: run.steps),
    ("tokens", lambda run: run.tokens),
    ("training FLOPs", lambda run: run.flops),
)


def colors(results: SweepResults) -> dict[str, object]:
    """One colour a variant that has runs, the same in every picture."""
    variants = [variant for variant in results.experiment.variants if results.of(variant)]
    return dict(zip(variants, line_colors(len(variants)), strict=True))


def loss_curves(results: SweepResults) -> Figure:
    """Held-out loss against steps, tokens and FLOPs: the mean over seeds, in a band from the lowest to the highest."""
    figure = Figure(figsize=(7, 11), layout="constrained")
    color = colors(results)
    for axes, (label, horizontal) in zip(figure.subplots(len(_X_AXES), 1), _X_AXES, strict=True):
        for variant in results.experiment.variants:
            runs = results.of(variant)
            if not runs:
                continue
            count = min(len(run.steps) for run in runs)
            losses = np.array([run.losses[:count] for run in runs])
            xs = np.mean([horizontal(run)[:count] for run in runs], axis=0)
            name = f"{variant} ({len(runs)} seed{'s' if len(runs) > 1 else ''})"
            axes.plot(xs, losses.mean(axis=0), color=color[variant], marker="o", markersize=3, label=name)
            axes.fill_between(xs, losses.min(axis=0), losses.max(axis=0), color=color[variant], alpha=0.2, linewidth=0)
        axes.set(xlabel=label, ylabel="held-out loss (nats per masked token)")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    return figure


def dots(title: str, compared: Mapping[str, Comparison], results: SweepResults, unit: str) -> Figure:
    """A metric's mean of each variant with its interval over seeds, the seeds themselves as small marks."""
    figure = Figure(figsize=(7, 1.2 + 0.42 * len(compared)), layout="constrained")
    axes = figure.add_subplot()
    color = colors(results)
    values = results.values(title)
    for place, (variant, summary) in enumerate(compared.items()):
        seeds = list(values[variant].values())
        axes.plot(seeds, [place] * len(seeds), "|", color=color[variant], markersize=9, alpha=0.6)
        axes.plot(summary.mean, place, "o", color=color[variant], markersize=8)
        if summary.interval:
            axes.plot(summary.interval, [place, place], color=color[variant], linewidth=2)
    axes.set_yticks(range(len(compared)), list(compared))
    axes.invert_yaxis()
    axes.set(xlabel=unit)
    axes.grid(alpha=0.25, axis="x")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def order_lines(results: SweepResults, name: str) -> Figure | None:
    """Accuracy of the order probe by how far the word was moved; None where no run has it."""
    if not any(name in run.probes for run in results.runs):
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    color = colors(results)
    for variant in results.experiment.variants:
        probes = [run.probes[name].paradigms for run in results.of(variant) if name in run.probes]
        if not probes:
            continue
        distances = [int(paradigm.rpartition("_")[2]) for paradigm in probes[0]]
        shares = np.array([[100 * result.accuracy for result in probe.values()] for probe in probes])
        axes.plot(distances, shares.mean(axis=0), color=color[variant], marker="o", label=variant)
        axes.fill_between(distances, shares.min(axis=0), shares.max(axis=0), color=color[variant], alpha=0.2)
        axes.set_xticks(distances)
    axes.axhline(50, color="grey", linewidth=1, linestyle=":")
    axes.set(xlabel="words by which one word was moved", ylabel="right pairs (%)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def _groups(results: ProbeResults) -> Mapping[str, Accuracy]:
    return results.phenomena or results.paradigms


def difference_map(results: SweepResults, name: str) -> Figure | None:
    """Differences to the baseline by phenomenon and variant, in percentage points; None where there is nothing."""
    baseline = [run for run in results.of(results.experiment.baseline or "") if name in run.probes]
    others = [
        variant
        for variant in results.experiment.variants
        if variant != results.experiment.baseline and any(name in run.probes for run in results.of(variant))
    ]
    if not baseline or not others:
        return None
    phenomena = list(_groups(baseline[0].probes[name]))
    table = np.full((len(phenomena), len(others)), np.nan)
    for column, variant in enumerate(others):
        runs = [run for run in results.of(variant) if name in run.probes]
        for row, phenomenon in enumerate(phenomena):
            mine = np.mean([_groups(run.probes[name])[phenomenon].accuracy for run in runs])
            base = np.mean([_groups(run.probes[name])[phenomenon].accuracy for run in baseline])
            table[row, column] = 100 * (mine - base)
    figure = Figure(figsize=(3.2 + 0.9 * len(others), 1.4 + 0.34 * len(phenomena)), layout="constrained")
    axes = figure.add_subplot()
    limit = max(float(np.abs(table).max()), 1.0)
    image = axes.imshow(table, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
    axes.set_xticks(range(len(others)), others, rotation=30, ha="right")
    axes.set_yticks(range(len(phenomena)), [phenomenon.replace("_", " ") for phenomenon in phenomena])
    for row, column in np.ndindex(*table.shape):
        text = f"{table[row, column]:+.0f}"
        shade = "white" if abs(table[row, column]) > 0.65 * limit else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=shade)
    figure.colorbar(image, label=f"percentage points against {results.experiment.baseline}")
    return figure
