"""The folder of one (task, round): what has been done there, and how a new run takes the place of an old one.

``glue_state.json`` is replaced as a whole after each stage, once the files of that stage are complete on the disk, so a
killed run leaves a stage undone, never half-done and taken for good. What an overwrite replaces is set aside, and comes
back unless the new run has left a checkpoint or a result. Imports neither torch nor transformers.
"""

from pathlib import Path

from bert_convolutions import files
from bert_convolutions.errors import UsageError
from bert_convolutions.parsing import read_model
from bert_convolutions.schemas import TaskState
from bert_convolutions.self_contained import CODE_PATTERN
from bert_convolutions.training import checkpoints

STATE_FILE = "glue_state.json"
ENCODER_FOLDER = "transformer_subgraph"
"""Below a fine-tuned task: its encoder without the classifier, for other tasks to start from."""
_WRITTEN = (
    *("eval_results_*.txt", "test_results_*.txt", "diverged.json"),
    *("config.json", "model*.safetensors*", CODE_PATTERN, ENCODER_FOLDER),
)


def read_state(folder: Path) -> TaskState | None:
    """Return the state of a folder, or None where there is none.

    Raises:
        UsageError: the file is not one of ours.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return None
    try:
        return read_model(TaskState, path)
    except UsageError as error:
        raise UsageError(f"{path} is damaged: delete or move {folder} to run this task again ({error})") from error


def write_state(folder: Path, state: TaskState) -> None:
    """Replace the state of a folder."""
    files.write_json(folder / STATE_FILE, state.model_dump())


def refuse_strangers(folder: Path, overwrite: bool, tasks: str) -> None:
    """Refuse to train in a folder with files and no state; even an overwrite replaces no model that isn't ours.

    Raises:
        UsageError: names a file, and ``tasks`` as what an overwrite runs again.
    """
    if not folder.is_dir() or (folder / STATE_FILE).is_file():
        return
    if overwrite and (models := _paths(folder, None)):
        raise UsageError(
            f"{models[0]} was not made by bertconv glue, and --overwrite_output_dir replaces only what was: use "
            f"another --output_dir, or move {folder} away"
        )
    found = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if found and not overwrite:
        raise UsageError(
            f"{folder} is not empty and was not made by bertconv glue ({found[0]}): move it away, or use another "
            f"--output_dir; --overwrite_output_dir writes into it, and runs {tasks} again"
        )


def begin(folder: Path, state: TaskState) -> None:
    """Set aside what a former run left in a folder, and write the state of the new one."""
    before = folder / STATE_FILE
    checkpoints.sweep(folder)
    if before.is_file():
        try:
            saved = read_state(folder)
        except UsageError:  # damaged, and overwritten
            saved = None
        files.set_aside(folder, [before, *_paths(folder, saved)])
    write_state(folder, state)


def settle(folder: Path) -> None:
    """Remove what was set aside if the new run has left a checkpoint or a result; else put it back."""
    state = read_state(folder)
    stands = state is not None and (state.trained or checkpoints.newest_complete(folder) is not None)
    files.settle_aside(folder, new_stands=stands, debris=[*_paths(folder, None), folder / STATE_FILE])


def delete_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a task that is done."""
    checkpoints.sweep(folder)
    for checkpoint in checkpoints.list_checkpoints(folder):
        checkpoints.delete(checkpoint)


def fault_in(folder: Path, state: TaskState) -> str:
    """Return which file of a fine-tuned model is not as it was saved, or nothing."""
    for name, expected in state.saved.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if files.sha256(path) != expected:
            return f"{path} is not what was saved there after training: its checksum is another"
    return ""


def _paths(folder: Path, state: TaskState | None) -> list[Path]:
    """What a run writes, the state apart: its model, results and checkpoints, and the tokenizer that a state names."""
    found = [path for pattern in _WRITTEN for path in sorted(folder.glob(pattern))]
    named = {folder / name for name in (state.saved if state else {}) if "/" not in name}
    return [*found, *sorted(named - set(found)), *checkpoints.list_checkpoints(folder)]
