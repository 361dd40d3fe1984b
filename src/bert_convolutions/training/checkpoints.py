"""Checkpoints on disk: published atomically, verified before use, and rotated without losing the last valid one.

A checkpoint is a folder ``checkpoint-<step>`` whose ``manifest.json`` gives the size and the SHA-256 of every other
file. The manifest is written last, before the folder is renamed, so a folder without one is incomplete. While a
checkpoint is replaced by one of the same step, the old one is named ``.replaced-checkpoint-<step>`` and is still found.
"""

import contextlib
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from bert_convolutions.errors import CommandError, UsageError, first_line
from bert_convolutions.files import discard_aside, remove_temporaries, sha256, sync, sync_tree, write_json
from bert_convolutions.parsing import parse, read_json
from bert_convolutions.schemas import CheckpointManifest, StoredFile, StoredTrainerState

MANIFEST_NAME = "manifest.json"
STAGING_NAME = ".saving"
"""Subfolder of the output folder in which a checkpoint is written before it is renamed."""
_DELETED, _REPLACED = ".deleting-", ".replaced-"
_NAME = re.compile(r"(?:\.replaced-)?checkpoint-(\d+)")
TRAINER_STATE_NAME = "trainer_state.json"


class NotSavedError(CommandError):
    """Writing a checkpoint failed, for example on a full disk; earlier checkpoints are untouched."""


class Search(NamedTuple):
    """The newest valid checkpoint, if any, and the invalid newer ones that were skipped, each with the reason."""

    found: Path | None
    skipped: list[tuple[Path, str]]


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint folder; -1 for any other name."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders in ``folder``, valid or not, sorted by step."""
    if not folder.is_dir():
        return []
    found = {path.name: path for path in folder.iterdir() if path.is_dir() and step_of(path) >= 0}
    replaced = {_REPLACED + name for name in found}
    return sorted((path for name, path in found.items() if name not in replaced), key=step_of)


def publish(staged: Path, destination: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest of the complete checkpoint in ``staged``, then rename it to ``destination``.

    ``facts`` are JSON values for the manifest. A checkpoint at ``destination``, on the same file system, is replaced.
    """
    sync_tree(staged)
    files = {
        str(path.relative_to(staged)): StoredFile(size=path.stat().st_size, sha256=sha256(path))
        for path in sorted(staged.rglob("*"))
        if path.is_file()
    }
    write_json(staged / MANIFEST_NAME, CheckpointManifest(format=1, run=dict(facts), files=files).model_dump())
    replaced = destination.with_name(_REPLACED + destination.name)
    if destination.exists():
        destination.rename(replaced)
    staged.rename(destination)
    sync(destination.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    discard_aside(destination.parent)


@contextlib.contextmanager
def staged(destination: Path, facts: Mapping[str, Any]) -> Iterator[Path]:
    """Make a folder in the staging folder beside ``destination``, and ``publish`` it unless filling it fails."""
    staging = destination.parent / STAGING_NAME
    try:
        shutil.rmtree(staging, ignore_errors=True)
        (staging / destination.name).mkdir(parents=True)
        yield staging / destination.name
        publish(staging / destination.name, destination, facts)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def read_manifest(checkpoint: Path) -> CheckpointManifest:
    """The manifest of a checkpoint.

    Raises:
        UsageError: it is missing or malformed; the message completes "... was skipped: ".
    """
    if not (checkpoint / MANIFEST_NAME).exists():
        raise UsageError(f"it has no {MANIFEST_NAME}, so it is incomplete")
    try:
        content = read_json(checkpoint / MANIFEST_NAME)
    except UsageError as error:
        raise UsageError(f"its {MANIFEST_NAME} cannot be read ({error})") from error
    try:
        return parse(CheckpointManifest, content, MANIFEST_NAME)
    except UsageError as error:
        raise UsageError(f"its {MANIFEST_NAME} is not one that this version can read ({error})") from error


def read_trainer_state(checkpoint: Path) -> StoredTrainerState:
    """The Trainer's state in a checkpoint.

    Raises:
        UsageError: it is malformed, or its step is not that of the folder's name.
    """
    from transformers import TrainerState

    state = parse(StoredTrainerState, read_json(checkpoint / TRAINER_STATE_NAME), TRAINER_STATE_NAME)
    unknown = set(state.model_extra or ()) - {field.name for field in fields(TrainerState)}
    if unknown:
        raise UsageError(f"{TRAINER_STATE_NAME} holds {min(unknown)}, which this version of transformers doesn't know")
    if step_of(checkpoint) not in (-1, state.global_step):
        raise UsageError(f"{TRAINER_STATE_NAME} is of step {state.global_step}")
    return state


def fault_in(checkpoint: Path, *, contents: bool = True) -> str | None:
    """What is wrong with a checkpoint, or None. Without ``contents``, checks names and sizes but no checksums."""
    try:
        files = read_manifest(checkpoint).files
        for name, expected in files.items():
            path = checkpoint / name
            size = path.stat().st_size
            if size != expected.size:
                return f"{name} has {size} bytes instead of {expected.size}"
            if contents and sha256(path) != expected.sha256:
                return f"{name} does not have the checksum it was written with"
        for name in ("model.safetensors", TRAINER_STATE_NAME):
            if name not in files:
                return f"{name} is not in its {MANIFEST_NAME}"
        if contents:
            read_trainer_state(checkpoint)
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    except UsageError as error:
        return str(error)
    return None


def newest_valid(folder: Path) -> Search:
    """The valid checkpoint of the highest step in ``folder``."""
    skipped: list[tuple[Path, str]] = []
    for checkpoint in reversed(list_checkpoints(folder)):
        fault = fault_in(checkpoint)
        if fault is None:
            return Search(checkpoint, skipped)
        skipped.append((checkpoint, fault))
    return Search(None, skipped)


def newest_complete(folder: Path) -> Path | None:
    """Like ``newest_valid``, but checks file names and sizes only, which is fast enough for a message."""
    complete = (path for path in reversed(list_checkpoints(folder)) if fault_in(path, contents=False) is None)
    return next(complete, None)


def rotate(folder: Path, limit: int | None, *, keep: Path, best: Path | None = None) -> None:
    """Delete the oldest complete checkpoints so that ``limit`` are left; None or 0 deletes nothing.

    Two are never deleted: ``keep``, the one just published, even if damaged ones of a later step exist, and ``best``,
    the best by ``--metric_for_best_model``.
    """
    if not limit:
        return
    complete = [path for path in list_checkpoints(folder) if fault_in(path, contents=False) is None]
    spare = [path for path in complete if path not in (keep, best)]
    for path in spare[: max(len(complete) - limit, 0)]:
        delete(path)


def delete(checkpoint: Path) -> None:
    """Delete a checkpoint; a crash in the middle leaves nothing that looks like one."""
    doomed = checkpoint.with_name(_DELETED + checkpoint.name)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def clean_up(folder: Path) -> None:
    """Repair or remove what killed runs left half-written or half-deleted in ``folder``, whose lock must be held."""
    remove_temporaries(folder)
    for path in list_checkpoints(folder):
        if path.name.startswith(_REPLACED) and fault_in(path, contents=False) is None:  # killed before its replacement
            path.rename(path.with_name(path.name.removeprefix(_REPLACED)))
    for path in folder.iterdir():
        if path.name == STAGING_NAME or path.name.startswith((_DELETED, _REPLACED)):
            shutil.rmtree(path, ignore_errors=True)


def safe_globals() -> contextlib.AbstractContextManager[None]:
    """Let ``torch.load(weights_only=True)`` read NumPy's random state, whether NumPy 1 or 2 wrote it.

    ``transformers`` allows only the names of the installed NumPy, and a checkpoint may be older than it.
    """
    import numpy
    import torch

    reconstruct: Any = numpy.empty(0).__reduce__()[0]
    names = [(reconstruct, f"numpy.{package}.multiarray._reconstruct") for package in ("core", "_core")]
    return torch.serialization.safe_globals([*names, numpy.ndarray, numpy.dtype, numpy.dtypes.UInt32DType])


def refuse_unsafe_files(checkpoint: Path) -> None:
    """Check that PyTorch's files in a checkpoint hold only tensors and plain values before the Trainer loads them.

    Raises:
        UsageError: loading a file would run code, or it is not one that PyTorch wrote.
    """
    import torch

    for path in sorted([*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth"), *checkpoint.glob("pytorch_model*.bin")]):
        try:
            with safe_globals():
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            raise UsageError(
                f"{path} is refused: it holds more than tensors and plain values, or is damaged; "
                f"resume from another checkpoint ({first_line(error)})"
            ) from error
