"""The figures of a sweep: loss curves with a band over seeds, dots with intervals, a heat map of differences."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from bert_convolutions.report.style import line_colors, name_lines, plain
from bert_convolutions.report.sweep_results import Run, Saving, SweepResults
from bert_convolutions.sweep.statistics import Comparison

_ORDER = "local_order"
"""Name of the local-order probe's cell."""
_HORIZONTAL_AXES: tuple[tuple[str, Callable[[Run], Sequence[float]]], ...] = (
    ("steps", lambda run: run.steps),
    ("tokens", lambda run: run.tokens),
    ("training FLOPs", lambda run: run.flops),
)


def colors(results: SweepResults) -> dict[str, object]:
    """A colour per variant that has runs, the same in all figures."""
    variants = results.by_variant
    return dict(zip(variants, line_colors(len(variants)), strict=True))


def loss_curves(results: SweepResults) -> Figure:
    """Held-out loss against steps, tokens and FLOPs: mean over seeds, with a band from minimum to maximum.

    Runs of different lengths, as with ``--train_minutes``, share the steps at which all were evaluated, and their ends.
    """
    figure = Figure(figsize=(5, 10), layout="constrained")
    color = colors(results)
    for axes, (label, horizontal) in zip(figure.subplots(len(_HORIZONTAL_AXES), 1), _HORIZONTAL_AXES, strict=True):
        for variant, runs in results.by_variant.items():
            common = set.intersection(*(set(run.steps[:-1]) for run in runs))
            points = [(run, [*(run.steps.index(step) for step in sorted(common)), -1]) for run in runs]
            losses = np.array([np.take(run.losses, indices) for run, indices in points])
            xs = np.mean([np.take(horizontal(run), indices) for run, indices in points], axis=0)
            name = f"{variant} ({len(runs)} seed{'s' if len(runs) > 1 else ''})"
            axes.plot(xs, losses.mean(axis=0), color=color[variant], marker="o", markersize=3, label=name)
            axes.fill_between(xs, losses.min(axis=0), losses.max(axis=0), color=color[variant], alpha=0.2, linewidth=0)
        axes.set(xlabel=label, ylabel="held-out loss (nats per masked token)")
        if label != "steps":
            axes.xaxis.set_major_formatter(EngFormatter())  # 10 M instead of 1.0 and a separate 1e7
        plain(axes)
    name_lines(figure)
    return figure


def dots(
    values: Mapping[str, Mapping[int, float]], compared: Mapping[str, Comparison], results: SweepResults, unit: str
) -> Figure:
    """A metric's mean of each variant with its interval over seeds, and single seeds as small marks."""
    figure = Figure(figsize=(5, 1.2 + 0.42 * len(compared)), layout="constrained")
    axes = figure.add_subplot()
    color = colors(results)
    for row, (variant, summary) in enumerate(compared.items()):
        seeds = list(values[variant].values())
        axes.plot(seeds, [row] * len(seeds), "|", color=color[variant], markersize=9, alpha=0.6)
        axes.plot(summary.mean, row, "o", color=color[variant], markersize=8)
        if summary.interval:
            axes.plot(summary.interval, [row, row], color=color[variant], linewidth=2)
    axes.set_yticks(range(len(compared)), list(compared))
    axes.set(xlabel=unit, ylim=(len(compared) - 0.5, -0.5))
    plain(axes, "x")
    return figure


def order_lines(results: SweepResults) -> Figure | None:
    """Accuracy of the local-order probe by the distance of the moved word; None if no run has it."""
    if not any(_ORDER in run.probes for run in results.runs):
        return None
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    color = colors(results)
    for variant, runs in results.by_variant.items():
        probes = [run.probes[_ORDER].paradigms for run in runs if _ORDER in run.probes]
        if not probes:
            continue
        distances = [int(paradigm.rpartition("_")[2]) for paradigm in probes[0]]
        accuracies = np.array([[100 * result.accuracy for result in probe.values()] for probe in probes])
        axes.plot(distances, accuracies.mean(axis=0), color=color[variant], marker="o", label=variant)
        axes.fill_between(distances, accuracies.min(axis=0), accuracies.max(axis=0), color=color[variant], alpha=0.2)
        axes.set_xticks(distances)
    axes.axhline(50, color="grey", linewidth=1, linestyle=":")
    axes.set(xlabel="distance by which a word was moved", ylabel="accuracy (%)")
    plain(axes)
    name_lines(figure)
    return figure


def order_rows(results: SweepResults) -> list[tuple[object, ...]]:
    """Variant, seed, distance and accuracy."""
    return [
        (run.variant, run.seed, paradigm.rpartition("_")[2], f"{found.accuracy:.4f}")
        for run in results.runs
        if _ORDER in run.probes
        for paradigm, found in run.probes[_ORDER].paradigms.items()
    ]


def saving_lines(savings: Mapping[str, Sequence[Saving]], results: SweepResults) -> Figure:
    """The factor by which a variant needs fewer tokens, against the loss, with 95 % intervals over seeds."""
    figure = Figure(figsize=(5, 3.8), layout="constrained")
    axes = figure.add_subplot()
    color = colors(results)
    for variant, levels in savings.items():
        found = [saving for saving in levels if saving.factor is not None]
        xs, factors = [saving.level for saving in found], np.array([saving.factor for saving in found], dtype=float)
        ends = np.array([saving.interval or (saving.factor, saving.factor) for saving in found], dtype=float)
        bars = np.abs(ends.reshape(-1, 2).T - factors)
        axes.errorbar(xs, factors, bars, color=color[variant], marker="o", capsize=3, label=variant)
    axes.axhline(1, color="grey", linewidth=1, linestyle=":")
    axes.invert_xaxis()
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set(
        xlabel="held-out loss (nats per masked token)", ylabel=f"tokens of {results.experiment.baseline} / variant"
    )
    plain(axes)
    name_lines(figure)
    return figure


def curve_rows(results: SweepResults) -> list[tuple[object, ...]]:
    """Variant, seed, step, tokens, FLOPs and loss of each evaluation."""
    return [
        (run.variant, run.seed, step, round(tokens), f"{flops:.4g}", f"{loss:.4f}")
        for run in results.runs
        for step, tokens, flops, loss in zip(run.steps, run.tokens, run.flops, run.losses, strict=True)
    ]


Differences = tuple[list[str], list[str], NDArray[np.float64]]
"""Names of the rows, the variants, and the differences to the baseline (rows, variants) in percentage points."""


def differences(results: SweepResults, figures_of: Callable[[Run], Mapping[str, float]]) -> Differences | None:
    """Mean paired differences to the baseline over common seeds, NaN without; None if there is nothing to compare.

    ``figures_of`` returns a run's fractions by name, if any.
    """
    runs = results.by_variant
    reference = {run.seed: figures_of(run) for run in runs.pop(results.experiment.baseline or "", [])}
    found: dict[tuple[str, str], list[float]] = {}
    for variant, of_variant in runs.items():
        for run in of_variant:
            base, figures = reference.get(run.seed, {}), figures_of(run)
            for name in base:
                if name in figures:  # evaluations may be unfinished
                    found.setdefault((name, variant), []).append(100 * (figures[name] - base[name]))
    names, variants = (list(dict.fromkeys(keys)) for keys in zip(*found, strict=True)) if found else ([], [])
    table = [[np.mean(found.get((name, variant), np.nan)) for variant in variants] for name in names]
    return ([name.replace("_", " ") for name in names], variants, np.array(table)) if found else None


def difference_map(found: Differences, baseline: str) -> Figure:
    """A heat map annotated with the differences."""
    rows, columns, table = found
    figure = Figure(figsize=(3.4 + 0.5 * len(columns), 1.9 + 0.3 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    limit = max(float(np.nanmax(np.abs(table))), 1.0)
    image = axes.imshow(table, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), rows, fontsize=9)
    for row, column in np.ndindex(*table.shape):
        shade = "white" if abs(table[row, column]) > 0.65 * limit else "black"
        text = "" if np.isnan(table[row, column]) else f"{table[row, column]:+.1f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=shade)
    figure.colorbar(image, label=f"percentage points\nagainst {baseline}", location="bottom")
    return figure
