"""The folder of one (task, round): which stages are done, and how a new run replaces an old one.

``glue_state.json`` is replaced atomically after each stage, when the files of that stage are complete on disk, so a
killed run never leaves a half-done stage marked as done. An overwritten run is set aside, and restored unless the new
one has written a checkpoint or a result. Imports neither PyTorch nor transformers.
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
"""Subfolder of a model fine-tuned on MNLI with its encoder, without the classifier, from which other tasks start."""
_OUTPUT_PATTERNS = (
    *("eval_results_*.txt", "test_results_*.txt", "diverged.json"),
    *("config.json", "model*.safetensors*", CODE_PATTERN, ENCODER_FOLDER),
)


def read_state(folder: Path) -> TaskState | None:
    """The state of a folder, or None if there is none.

    Raises:
        UsageError: the file is damaged.
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


def refuse_foreign_folder(folder: Path, overwrite: bool, tasks: str) -> None:
    """Refuse to train in a folder with files but no state; even an overwrite never replaces a foreign model.

    Raises:
        UsageError: names a file, and ``tasks`` that an overwrite would run again.
    """
    if not folder.is_dir() or (folder / STATE_FILE).is_file():
        return
    if overwrite and (models := _paths(folder, None)):
        raise UsageError(
            f"{models[0]} was not made by bertconv glue, and --overwrite_output_dir replaces only its own files: use "
            f"another --output_dir, or move {folder} away"
        )
    found = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if found and not overwrite:
        raise UsageError(
            f"{folder} is not empty and was not made by bertconv glue ({found[0]}): move it away, or use another "
            f"--output_dir; --overwrite_output_dir writes into it, and runs {tasks} again"
        )


def start_anew(folder: Path, state: TaskState) -> None:
    """Set the files of an earlier run aside and write the state of the new one."""
    before = folder / STATE_FILE
    checkpoints.clean_up(folder)
    if before.is_file():
        try:
            saved = read_state(folder)
        except UsageError:  # damaged, but it is overwritten
            saved = None
        files.set_aside(folder, [before, *_paths(folder, saved)])
    write_state(folder, state)


def settle_overwrite(folder: Path) -> None:
    """Delete what was set aside if the new run has written a checkpoint or a result; otherwise restore it."""
    state = read_state(folder)
    has_output = state is not None and (state.trained or checkpoints.newest_complete(folder) is not None)
    files.settle_aside(folder, keep_new=has_output, debris=[*_paths(folder, None), folder / STATE_FILE])


def delete_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a finished task."""
    checkpoints.clean_up(folder)
    for checkpoint in checkpoints.list_checkpoints(folder):
        checkpoints.delete(checkpoint)


def fault_in(folder: Path, state: TaskState) -> str:
    """A message about a file of a fine-tuned model that has changed since it was saved, or an empty string."""
    for name, expected in state.saved.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if files.sha256(path) != expected:
            return f"{path} has changed since it was saved after training: its checksum differs"
    return ""


def _paths(folder: Path, state: TaskState | None) -> list[Path]:
    """The files of a run except its state: model, results, checkpoints, and the tokenizer that the state lists."""
    found = [path for pattern in _OUTPUT_PATTERNS for path in sorted(folder.glob(pattern))]
    named = {folder / name for name in (state.saved if state else {}) if "/" not in name}
    return [*found, *sorted(named - set(found)), *checkpoints.list_checkpoints(folder)]
