"""What a finished (or running) training folder says about itself, read from its files without loading the model."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from bert_convolutions.errors import UsageError

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
    """Read the losses of the training run in ``run_dir``.

    They stand in the ``trainer_state.json`` of the folder, or, while the run is not finished, of its newest checkpoint.

    Raises:
        UsageError: Neither is there, or the file is not what the Trainer writes.
    """
    path = _state_file(run_dir)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["log_history"]
        history = LossHistory()
        for entry in entries:
            if "loss" in entry:
                history.train.append((int(entry["step"]), float(entry["loss"])))
            if "eval_loss" in entry:
                history.evaluation.append((int(entry["step"]), float(entry["eval_loss"])))
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a trainer state that can be read ({error}); is the run damaged?") from error
    return history


def _state_file(run_dir: Path) -> Path:
    """The trainer state that is the newest of a run."""
    if (run_dir / _STATE).is_file():
        return run_dir / _STATE
    checkpoints = {
        int(match.group(1)): folder / _STATE
        for folder in run_dir.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", folder.name)) and (folder / _STATE).is_file()
    }
    if not checkpoints:
        raise UsageError(f"{run_dir} holds no {_STATE}: it is not the output folder of a training run")
    return checkpoints[max(checkpoints)]
