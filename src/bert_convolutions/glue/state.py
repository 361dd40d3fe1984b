"""What has been done in the folder of one (task, round): a JSON file, replaced as a whole after each stage.

It is written only once what it speaks of is complete on the disk, so a killed run leaves a stage undone, never
half-done and taken for good. Imports neither torch nor transformers.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bert_convolutions.errors import UsageError
from bert_convolutions.files import LOCK_NAME, write_json
from bert_convolutions.training import checkpoints

STATE_FILE = "glue_state.json"
ENCODER_FOLDER = "transformer_subgraph"
"""Below a fine-tuned task: its encoder without the classifier, for other tasks to start from."""


@dataclass
class TaskState:
    """What is known of one fine-tuned task.

    Attributes:
        task: its name.
        settings: what it was trained with: seed, learning rate, batch, steps, model.
        trained: whether training ended and the model was saved.
        dev: dev set to its scores, once evaluated.
        predicted: test set to the number of its rows, once written.
    """

    task: str
    settings: dict[str, Any]
    trained: bool = False
    dev: dict[str, dict[str, float]] = field(default_factory=dict)
    predicted: dict[str, int] = field(default_factory=dict)


def read_state(folder: Path) -> TaskState | None:
    """Return the state of a folder, or None where there is none.

    Raises:
        UsageError: the file is not one of ours.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return None
    try:
        return TaskState(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise UsageError(f"{path} is damaged: delete it to run this task again") from None


def write_state(folder: Path, state: TaskState) -> None:
    """Replace the state of a folder."""
    write_json(folder / STATE_FILE, asdict(state))


def format_results(results: Mapping[str, float]) -> str:
    """Return scores as the original's ``name = value`` lines."""
    return "".join(f"{name} = {value}\n" for name, value in results.items())


def clear_folder(folder: Path) -> None:
    """Delete what a former run of a task left: its results, checkpoints and encoder; the state goes first."""
    (folder / STATE_FILE).unlink(missing_ok=True)
    for pattern in ("eval_results_*.txt", "test_results_*.txt", "model*.safetensors", "config.json"):
        for path in folder.glob(pattern):
            path.unlink()
    shutil.rmtree(folder / ENCODER_FOLDER, ignore_errors=True)
    delete_checkpoints(folder)


def delete_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a task, from which nobody will go on."""
    checkpoints.sweep(folder)
    for checkpoint in checkpoints.list_checkpoints(folder):
        checkpoints.delete(checkpoint)


def is_foreign(folder: Path) -> bool:
    """Whether a folder holds files of something other than ``bertconv glue`` (a lock or a results folder apart)."""
    if not folder.is_dir() or (folder / STATE_FILE).is_file():
        return False
    return any(path.name != LOCK_NAME for path in folder.iterdir())
