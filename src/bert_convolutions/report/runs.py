"""Compares training runs by their files: loss curves in one figure, final metrics in one table."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from bert_convolutions.errors import UsageError
from bert_convolutions.parsing import read_json
from bert_convolutions.report.style import line_colors, plain, save_figure
from bert_convolutions.terminal import make_table
from bert_convolutions.training.checkpoints import TRAINER_STATE_NAME, list_checkpoints

Losses = list[tuple[int, float]]
"""Pairs of step and loss, in order of steps."""


def read_losses(run_dir: Path) -> tuple[Losses, Losses]:
    """Read the losses of a training run from its ``trainer_state.json`` or, if unfinished, its newest checkpoint's.

    Returns:
        The training losses, each a mean since the entry before, and the evaluation losses.

    Raises:
        UsageError: There is no such file, or it is damaged.
    """
    paths = [folder / TRAINER_STATE_NAME for folder in (run_dir, *reversed(list_checkpoints(run_dir)))]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise UsageError(f"{run_dir} holds no {TRAINER_STATE_NAME}: it is not the output folder of a training run")
    try:
        log = json.loads(path.read_bytes())["log_history"]
        train, evaluation = (
            [(int(entry["step"]), float(entry[name])) for entry in log if name in entry]
            for name in ("loss", "eval_loss")
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a trainer state that can be read ({error}); is the run damaged?") from error
    return train, evaluation


def plot_loss_curves(runs: Mapping[str, Path], output: Path) -> None:
    """Draw training (thin) and evaluation (thick, with marks) loss over steps, one colour per run.

    Raises:
        UsageError: A folder holds no training run.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for (name, run_dir), color in zip(runs.items(), line_colors(len(runs)), strict=True):
        train, evaluation = read_losses(run_dir)
        if train:
            axes.plot(*zip(*train, strict=True), color=color, linewidth=1, alpha=0.55)
        if evaluation:
            axes.plot(*zip(*evaluation, strict=True), color=color, linewidth=2.2, marker="o", markersize=5)
            name = f"{name}: {evaluation[-1][1]:.2f} at the end"
        axes.plot([], [], color=color, linewidth=2.2, label=name)
    axes.plot([], [], color="grey", linewidth=1, alpha=0.8, label="training")
    axes.plot([], [], color="grey", linewidth=2.2, marker="o", markersize=5, label="evaluation")
    axes.set(xlabel="step", ylabel="loss (nats per masked token)", title="Masked-language-model loss")
    plain(axes)
    axes.legend(frameon=False)
    save_figure(figure, output)


def comparison_table(runs: Mapping[str, Path], title: str) -> Table:
    """The evaluation metrics of finished pre-training runs, one row each, the lowest loss in bold.

    Raises:
        UsageError: A run's training or evaluation is unfinished.
    """
    figures = {
        name: _read(run_dir / "eval_results.json") | _read(run_dir / "train_results.json")
        for name, run_dir in runs.items()
    }
    table = make_table(title, "model", "steps", "evaluation loss", "perplexity", "masked tokens right", "real tokens/s")
    lowest = min(metrics["eval_loss"] for metrics in figures.values())
    for name, metrics in figures.items():
        table.add_row(
            name,
            str(metrics["steps"]),
            f"{metrics['eval_loss']:.3f}",
            f"{metrics['eval_perplexity']:.1f}",
            f"{metrics['eval_masked_accuracy']:.1%}",
            f"{metrics['real_tokens_per_second']:,.0f}",
            style="bold" if metrics["eval_loss"] == lowest else None,
        )
    return table


def _read(path: Path) -> dict[str, Any]:
    try:
        figures: dict[str, Any] = read_json(path)
    except UsageError as error:
        raise UsageError(f"{error}: give a run trained and evaluated to the end") from error
    return figures
