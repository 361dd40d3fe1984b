"""What a run finds in its output folder (nothing, a run to go on with, one to replace) and what it leaves there."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_convolutions import files
from bert_convolutions.errors import UsageError
from bert_convolutions.terminal import say
from bert_convolutions.training import checkpoints

TRAIN_RESULTS_NAME = "train_results.json"
"""Written last: a folder that has it holds a finished run."""
_OWN_NAMES = (
    TRAIN_RESULTS_NAME,
    "eval_results.json",
    "eval_results_lm.txt",
    "trainer_state.json",
    "diverged.json",
    "config.json",
    "model.safetensors",
)
_FLAGS_OF_FACTS = {
    "seed": "--seed",
    "data_seed": "--data_seed",
    "num_examples": "the number of examples in --train_data_file",
    "global_batch_size": "the global batch (--per_device_train_batch_size x --gradient_accumulation_steps x processes)",
    "block_size": "--block_size",
    "mlm_probability": "--mlm_probability",
    "use_sop_head": "--use_sop_head",
    "data": "the content of --train_data_file",
    "model": "the model (--config_name and the architecture flags)",
}


def refuse_if_in_use(folder: Path, resume: str | None, overwrite: bool) -> None:
    """A folder with files of another run in it is neither mixed with a new one nor emptied unasked.

    Raises:
        UsageError: names the flags that say what to do with it.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output_dir {folder} is a file; give a folder")
    if resume is not None or overwrite or not folder.exists():
        return
    found = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if found:
        raise UsageError(
            f"--output_dir {folder} is not empty ({', '.join(sorted(found)[:3])}, ...); go on with "
            f"--resume_from_checkpoint true, start anew with --overwrite_output_dir, or use another folder"
        )


def resume_wish(value: str | bool | None) -> str | None:
    """``--resume_from_checkpoint`` as None (no), ``"true"`` (the newest) or a path."""
    text = str(value)
    if value is None or text.lower() in ("false", "none", ""):
        return None
    return "true" if text.lower() == "true" else text


def find_checkpoint(folder: Path, wish: str | None) -> Path | None:
    """The checkpoint to go on from, checked to the last byte; what is skipped is told.

    Raises:
        UsageError: the one that was asked for by its path is not valid.
    """
    if wish is None:
        return None
    if wish != "true":
        fault = "there is no such folder" if not Path(wish).is_dir() else checkpoints.fault_in(Path(wish))
        if fault:
            raise UsageError(f"--resume_from_checkpoint {wish}: {fault}; true takes the newest valid one")
        found: Path | None = Path(wish)
    else:
        found, skipped = checkpoints.newest_valid(folder)
        for path, fault in skipped:
            say(f"skipped {path}: {fault}")
        say(f"going on from {found}" if found else f"no valid checkpoint in {folder}: starting from the beginning")
    if found:
        checkpoints.refuse_unsafe_files(found)
    return found


def refuse_other_run(checkpoint: Path, facts: Mapping[str, Any]) -> None:
    """Going on is exact only with the data, the batch and the model of before.

    Raises:
        UsageError: names the first flag that differs, with both values.
    """
    before = checkpoints.read_manifest(checkpoint).get("run", {})
    for name, value in json.loads(json.dumps(dict(facts))).items():
        if name in before and before[name] != value:
            raise UsageError(
                f"{checkpoint} cannot be resumed: {_FLAGS_OF_FACTS[name]} was {_brief(before[name], value)} and is now "
                f"{_brief(value, before[name])}; use the earlier value, or start from its weights alone with "
                f"--model_name_or_path {checkpoint}"
            )


def clear(folder: Path) -> None:
    """Delete what an earlier run has left: its checkpoints, results and model; nothing else."""
    for checkpoint in checkpoints.list_checkpoints(folder):
        checkpoints.delete(checkpoint)
    for name in _OWN_NAMES:
        (folder / name).unlink(missing_ok=True)


def install(staged: Path, folder: Path) -> None:
    """Move complete files from ``staged`` into ``folder``, each synced first; ``staged`` is gone afterwards."""
    for path in sorted(staged.iterdir()):
        files.sync(path)
        path.replace(folder / path.name)
    files.sync(folder)
    shutil.rmtree(staged, ignore_errors=True)


def _brief(value: Any, other: Any) -> str:
    """A value as text; of a mapping, what differs from ``other``."""
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items() if other.get(key) != item) or "otherwise"
    return str(value)
