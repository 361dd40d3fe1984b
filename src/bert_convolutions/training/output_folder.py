"""What a run finds in its output folder (nothing, a run to go on with, one to replace) and what it leaves there.

What comes next is always decided before what was goes: an overwritten run is set aside until the first checkpoint or
the result of the new one stands, and results are moved in by a journal (``.installing``) that a later run completes.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bert_convolutions import files
from bert_convolutions.errors import TrainingDiverged, UsageError
from bert_convolutions.parsing import read_model
from bert_convolutions.schemas import TrainResults
from bert_convolutions.self_contained import CODE_FILES
from bert_convolutions.terminal import say
from bert_convolutions.training import checkpoints
from bert_convolutions.training.progress import WORD_CHECKPOINTS

TRAIN_RESULTS_NAME = "train_results.json"
"""Moved in last: a folder that has it holds a finished run, and the model beside it is of the step it names."""
DIVERGED_NAME = "diverged.json"
_INSTALLING_NAME = ".installing"
_SAMPLES_SHOWN = 64
_OWN_NAMES = (
    TRAIN_RESULTS_NAME,
    "eval_results.json",
    "eval_results_lm.txt",
    "trainer_state.json",
    "training_args.json",
    DIVERGED_NAME,
    "config.json",
    "model.safetensors",
    *(f"{name}.py" for name in CODE_FILES),
)
_FACTS = {
    "train_steps": "the number of steps that --train_minutes came to",
    "num_examples": "the number of examples in --train_data_file",
    "global_batch_size": "the global batch (--per_device_train_batch_size x --gradient_accumulation_steps x processes)",
    "fingerprint": "the content of --train_data_file",
    "tokenizer": "the tokenizer (--tokenizer_name)",
    "optimizer": "the optimizer (--optim, --optim_args)",
    "schedule": "--lr_scheduler_type",
    "model": "the model (--config_name and the architecture flags)",
}
"""What a run's facts are called; those that are left out are flags."""


def refuse_if_in_use(folder: Path, resume: str | None, overwrite: bool) -> None:
    """Refuse a folder with files in it, unless the flags say to resume the run there or to overwrite it.

    Raises:
        UsageError: names the flags that say what to do with it.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output_dir {folder} is a file; give a folder")
    if resume is not None or overwrite or not folder.exists():
        return
    found = [path.name for path in folder.iterdir() if not path.name.startswith(".") or path.name == files.ASIDE_NAME]
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


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make the folder, hold its lock, and put right what a killed run has left there.

    Raises:
        UsageError: it can't be made or written to, or another run holds it.
    """
    files.make_folder(folder, "--output_dir")
    with files.run_lock(folder):
        checkpoints.sweep(folder)
        if (folder / _INSTALLING_NAME).is_dir():
            _finish_install(folder)
        files.settle_aside(folder, new_stands=_new_stands(folder))
        yield


class Start(NamedTuple):
    """Where a run begins: at its first step, at a checkpoint, or after its last step.

    Attributes:
        source: folder of the weights and the state to go on from; None for the beginning.
        run: the facts of the run that ``source`` is of.
        step: of ``source``.
        is_finished: whether the model and the results in the output folder are those of ``source`` already.
    """

    source: Path | None = None
    run: Mapping[str, Any] = {}
    step: int = 0
    is_finished: bool = False


def find_start(folder: Path, wish: str | None) -> Start:
    """Find what ``wish`` asks to go on from in the output folder, whose lock is held; say what was skipped and why.

    Raises:
        UsageError: it is not valid, or a model stands there without any checkpoint.
    """
    if wish is None:
        return Start()
    checkpoint, results = _find_checkpoint(folder, wish), _results_in(folder)
    if checkpoint:
        step = checkpoints.read_trainer_state(checkpoint).global_step
        later = checkpoints.newest_complete(folder) if wish != "true" else None
        if later and checkpoints.step_of(later) > step:
            raise UsageError(
                f"--resume_from_checkpoint {wish}: the next resume would take {later}, which is further on; move it "
                "elsewhere, or give another --output_dir"
            )
        own = checkpoint.resolve().parent == folder.resolve()
        if not own and not checkpoints.list_checkpoints(folder):
            _refuse_to_replace_model(folder)
        is_finished = own and results is not None and results.steps == step
        return Start(checkpoint, checkpoints.read_manifest(checkpoint).run, step, is_finished)
    if results:
        return Start(folder, results.run, results.steps, True)
    _refuse_to_replace_model(folder)
    say(f"no valid checkpoint in {folder}: starting from the beginning")
    return Start()


def _find_checkpoint(folder: Path, wish: str) -> Path | None:
    """The checkpoint asked for, or the newest valid one, checked to the last byte."""
    found: Path | None = Path(wish)
    if wish == "true":
        found, skipped = checkpoints.newest_valid(folder)
        for path, reason in skipped:
            say(f"skipped {path}: {reason}")
    else:
        fault = checkpoints.fault_in(Path(wish)) if Path(wish).is_dir() else "there is no such folder"
        if fault:
            raise UsageError(f"--resume_from_checkpoint {wish}: {fault}; true takes the newest valid one")
    if found:
        say(f"going on from {found}")
        checkpoints.refuse_unsafe_files(found)
    return found


def _results_in(folder: Path) -> TrainResults | None:
    """The results of the finished run whose model is in a folder; None where it isn't one."""
    with contextlib.suppress(UsageError):
        results = read_model(TrainResults, folder / TRAIN_RESULTS_NAME)
        return results if (folder / "model.safetensors").is_file() else None
    return None


def refuse_other_run(folder: Path, start: Start, facts: Mapping[str, Any], last_step: int) -> None:
    """Refuse to resume a run with other data, another batch or another model: it would not be the same run.

    What the earlier run has not recorded is not compared; ``facts`` and ``last_step`` are those of the run to come.

    Raises:
        UsageError: names the first flag that differs, with both values; or the model is of a shorter run.
    """
    if start.source == folder and start.step < last_step:
        _refuse_to_replace_model(folder)
    for name, value in json.loads(json.dumps(dict(facts))).items():
        old, new = start.run.get(name, value), value
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            common = [key for key in new if key in old and old[key] != new[key]]
            old, new = ({key: side[key] for key in common} for side in (old, new))
        if old != new:
            raise UsageError(
                f"{start.source} cannot be resumed: {_FACTS.get(name, f'--{name}')} was {_brief(old)} and is now "
                f"{_brief(new)}; use the earlier value, or start from its weights alone with --model_name_or_path "
                f"{start.source}"
            )


def _refuse_to_replace_model(folder: Path) -> None:
    """Refuse to resume where a model stands without a checkpoint (finished, converted, fine-tuned), or replace it."""
    models = [path.name for pattern in ("*.safetensors", "pytorch_model*.bin") for path in folder.glob(pattern)]
    if models:
        raise UsageError(
            f"--resume_from_checkpoint: {folder} holds a model ({models[0]}) and no checkpoint to go on from; start "
            f"from its weights in another --output_dir with --model_name_or_path {folder}, or start anew here with "
            f"--overwrite_output_dir"
        )


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[None]:
    """Set an earlier run aside; it comes back if the new one fails before it leaves a checkpoint or a result.

    Files and folders other than a run's checkpoints, results and model stay where they are. The folder must be held.
    """
    own = [*checkpoints.list_checkpoints(folder), *_word_checkpoints(folder)]
    files.set_aside(folder, [*own, *(folder / name for name in _OWN_NAMES)])
    try:
        yield
    except BaseException:
        files.settle_aside(folder, new_stands=_new_stands(folder))
        raise


def _new_stands(folder: Path) -> bool:
    saved = checkpoints.list_checkpoints(folder) or _word_checkpoints(folder)
    return bool(saved) or (folder / _INSTALLING_NAME).is_dir()


def _word_checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob(WORD_CHECKPOINTS) if (path / checkpoints.MANIFEST_NAME).is_file()]


def install(staged: Path, folder: Path) -> None:
    """Move complete files from ``staged``, in ``folder``, to their places; after a crash the next run completes it."""
    files.sync_tree(staged)
    staged.rename(folder / _INSTALLING_NAME)
    files.sync(folder)
    _finish_install(folder)


def _finish_install(folder: Path) -> None:
    journal = folder / _INSTALLING_NAME
    (folder / DIVERGED_NAME).unlink(missing_ok=True)
    names = sorted((path.name for path in journal.iterdir()), key=lambda name: (name == TRAIN_RESULTS_NAME, name))
    if TRAIN_RESULTS_NAME in names:  # those in place are of another step than the model that comes
        (folder / TRAIN_RESULTS_NAME).unlink(missing_ok=True)
    for name in names:
        (journal / name).replace(folder / name)
    files.sync(folder)
    shutil.rmtree(journal, ignore_errors=True)
    files.discard_aside(folder)


def _brief(value: Any) -> str:
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, Mapping) else str(value)


def write_evaluation(folder: Path, metrics: Mapping[str, float]) -> None:
    """``eval_results_lm.txt`` with a ``name = value`` line a figure, as the original's, and ``eval_results.json``.

    In the text file the names come without ``eval_``, so that ``perplexity`` is found where it always was.
    """
    lines = [f"{name.removeprefix('eval_')} = {value}\n" for name, value in sorted(metrics.items())]
    files.write_text(folder / "eval_results_lm.txt", "".join(lines))
    files.write_json(folder / "eval_results.json", dict(metrics))


def diverged(folder: Path, what: str, step: int, samples: list[int], writes: bool) -> TrainingDiverged:
    """The error that ends a run in ``step`` (0-based); the process that ``writes`` leaves ``diverged.json``."""
    last = checkpoints.newest_complete(folder)
    if writes:
        facts = {"step": step + 1, "samples": samples, "last_good_checkpoint": str(last) if last else None}
        with contextlib.suppress(OSError):  # a full disk must not hide the message
            files.write_json(folder / DIVERGED_NAME, facts)
    shown = ", ".join(map(str, samples[:_SAMPLES_SHOWN]))
    more = f" and {len(samples) - _SAMPLES_SHOWN} more" if len(samples) > _SAMPLES_SHOWN else ""
    way = "go on from it with --resume_from_checkpoint true and" if last else "start again with"
    return TrainingDiverged(
        f"{what} in step {step + 1} (samples {shown}{more}; all in {folder / DIVERGED_NAME}); the last good "
        f"checkpoint is {last or 'none: this run has saved none yet'}; {way} a lower --learning_rate, a longer "
        f"--warmup_steps or float32"
    )
