"""The loss curves of several training runs in one picture."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from bert_convolutions.report.runs import read_loss_history
from bert_convolutions.report.style import line_colors, save_figure


def plot_loss_curves(runs: Mapping[str, Path], output: Path, *, title: str = "Masked-language-model loss") -> None:
    """Draw training (thin) and evaluation (thick, with marks) loss over steps, one colour a run.

    Args:
        runs: Names for the legend, each with the output folder of its run.
        output: The PNG to write.
        title: What stands above the picture.

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
    axes.set(xlabel="step", ylabel="loss (nats per masked token)", title=title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save_figure(figure, output)
