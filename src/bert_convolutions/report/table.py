"""Pre-training runs side by side, as a table for the terminal."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from bert_convolutions.errors import UsageError


def comparison_table(runs: Mapping[str, Path], title: str) -> Table:
    """Return the evaluation figures of finished pre-training runs, a row each, the lowest loss in bold.

    Args:
        runs: Names for the rows, each with the output folder of its run.
        title: What stands above the table.

    Raises:
        UsageError: A run has not been trained and evaluated to the end.
    """
    evaluations = {name: _read(run_dir, "eval_results.json") for name, run_dir in runs.items()}
    trainings = {name: _read(run_dir, "train_results.json") for name, run_dir in runs.items()}
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("model")
    for heading in ("steps", "evaluation loss", "perplexity", "masked tokens right", "real tokens/s"):
        table.add_column(heading, justify="right")
    lowest = min(evaluation["eval_loss"] for evaluation in evaluations.values())
    for name, evaluation in evaluations.items():
        table.add_row(
            name,
            str(trainings[name]["steps"]),
            f"{evaluation['eval_loss']:.3f}",
            f"{evaluation['eval_perplexity']:.1f}",
            f"{evaluation['eval_masked_accuracy']:.1%}",
            f"{trainings[name]['real_tokens_per_second']:,.0f}",
            style="bold" if evaluation["eval_loss"] == lowest else None,
        )
    return table


def _read(run_dir: Path, name: str) -> dict[str, Any]:
    """Read the figures of a run from one of its JSON files."""
    path = run_dir / name
    try:
        figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read ({error}): give a run trained and evaluated to the end") from error
    return figures
