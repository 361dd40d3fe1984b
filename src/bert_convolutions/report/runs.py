"""Training runs side by side, read from their files: loss curves in one picture, last figures in one table."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from bert_convolutions.errors import UsageError
from bert_convolutions.parsing import read_json
from bert_convolutions.report.style import line_colors, plain, save_figure
from bert_convolutions.terminal import make_table
from bert_convolutions.training.checkpoints import list_checkpoints

_STATE = "trainer_state.json"


@dataclass(frozen=True)
class LossHistory:
    """The losses a run logged.

    Attributes:
        train: ``(step, loss)`` of the training log, the mean since the line before, in order of the steps.
        evaluation: ``(step, loss)`` of each evaluation.
    """

    train: list[tuple[int, float]] = field(default_factory=list)
    evaluation: list[tuple[int, float]] = field(default_factory=list)


def read_loss_history(run_dir: Path) -> LossHistory:
    """Read the losses of a training run from its ``trainer_state.json`` or, before its end, its newest checkpoint's.

    Raises:
        UsageError: Neither is there, or the file is not what the Trainer writes.
    """
    path = _state_file(run_dir)
    history = LossHistory()
    try:
        for entry in json.loads(path.read_bytes())["log_history"]:
            if "loss" in entry:
                history.train.append((int(entry["step"]), float(entry["loss"])))
            if "eval_loss" in entry:
                history.evaluation.append((int(entry["step"]), float(entry["eval_loss"])))
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a trainer state that can be read ({error}); is the run damaged?") from error
    return history


def _state_file(run_dir: Path) -> Path:
    """The trainer state that is the newest of a run."""
    for folder in (run_dir, *reversed(list_checkpoints(run_dir))):
        if (folder / _STATE).is_file():
            return folder / _STATE
    raise UsageError(f"{run_dir} holds no {_STATE}: it is not the output folder of a training run")


def plot_loss_curves(runs: Mapping[str, Path], output: Path) -> None:
    """Draw training (thin) and evaluation (thick, with marks) loss over steps, one colour for each named run's folder.

    Raises:
        UsageError: A folder holds no training run.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for (name, run_dir), color in zip(runs.items(), line_colors(len(runs)), strict=True):
        history = read_loss_history(run_dir)
        if history.train:
            axes.plot(*zip(*history.train, strict=True), color=color, linewidth=1, alpha=0.55)
        if history.evaluation:
            axes.plot(*zip(*history.evaluation, strict=True), color=color, linewidth=2.2, marker="o", markersize=5)
            name = f"{name}: {history.evaluation[-1][1]:.2f} at the end"
        axes.plot([], [], color=color, linewidth=2.2, label=name)
    axes.plot([], [], color="grey", linewidth=1, alpha=0.8, label="training")
    axes.plot([], [], color="grey", linewidth=2.2, marker="o", markersize=5, label="evaluation")
    axes.set(xlabel="step", ylabel="loss (nats per masked token)", title="Masked-language-model loss")
    plain(axes)
    axes.legend(frameon=False)
    save_figure(figure, output)


def comparison_table(runs: Mapping[str, Path], title: str) -> Table:
    """The evaluation figures of finished pre-training runs' folders, a row for each name, the lowest loss in bold.

    Raises:
        UsageError: A run has not been trained and evaluated to the end.
    """
    figures = {
        name: _read(run_dir / "eval_results.json") | _read(run_dir / "train_results.json")
        for name, run_dir in runs.items()
    }
    table = make_table(title, "model", "steps", "evaluation loss", "perplexity", "masked tokens right", "real tokens/s")
    lowest = min(of_run["eval_loss"] for of_run in figures.values())
    for name, of_run in figures.items():
        table.add_row(
            name,
            str(of_run["steps"]),
            f"{of_run['eval_loss']:.3f}",
            f"{of_run['eval_perplexity']:.1f}",
            f"{of_run['eval_masked_accuracy']:.1%}",
            f"{of_run['real_tokens_per_second']:,.0f}",
            style="bold" if of_run["eval_loss"] == lowest else None,
        )
    return table


def _read(path: Path) -> dict[str, Any]:
    try:
        figures: dict[str, Any] = read_json(path)
    except UsageError as error:
        raise UsageError(f"{error}: give a run trained and evaluated to the end") from error
    return figures
