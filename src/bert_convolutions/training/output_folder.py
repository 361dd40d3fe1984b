"""The output folder of a run: what may be resumed or replaced there, and how results are written.

An overwritten run is set aside and deleted only once the new one has written a checkpoint or its results. Results are
moved in from a journal (``.installing``), which a later run completes after a crash.
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
"""Written last: a folder with this file holds a finished run, and the model beside it is of the step in the file."""
DIVERGED_NAME = "diverged.json"
_INSTALLING_NAME = ".installing"
_SAMPLES_SHOWN = 64
_EVALUATION_NAMES = ("eval_results.json", "eval_results_lm.txt")
_OWN_NAMES = (
    TRAIN_RESULTS_NAME,
    *_EVALUATION_NAMES,
    checkpoints.TRAINER_STATE_NAME,
    "training_args.json",
    DIVERGED_NAME,
    "config.json",
    "model.safetensors",
    *(f"{name}.py" for name in CODE_FILES),
)
_FACTS = {
    "train_steps": "the number of steps chosen for --train_minutes",
    "num_examples": "the number of examples in --train_data_file",
    "global_batch_size": "the global batch (--per_device_train_batch_size x --gradient_accumulation_steps x processes)",
    "fingerprint": "the content of --train_data_file",
    "tokenizer": "the tokenizer (--tokenizer_name)",
    "optimizer": "the optimizer (--optim, --optim_args)",
    "schedule": "--lr_scheduler_type",
    "model": "the model (--config_name and the architecture flags)",
}
"""How messages name the run's facts; a fact that isn't listed is the flag of its name."""


def refuse_if_in_use(folder: Path, resume: str | None, overwrite: bool) -> None:
    """Refuse a folder that is not empty, unless the flags say to resume or overwrite the run in it.

    Raises:
        UsageError: names the flags that decide this.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output_dir {folder} is a file; give a folder")
    if resume is not None or overwrite or not folder.exists():
        return
    found = [path.name for path in folder.iterdir() if not path.name.startswith(".") or path.name == files.ASIDE_NAME]
    if found:
        raise UsageError(
            f"--output_dir {folder} is not empty ({', '.join(sorted(found)[:3])}, ...); resume with "
            f"--resume_from_checkpoint true, start anew with --overwrite_output_dir, or use another folder"
        )


def parse_resume_flag(value: str | bool | None) -> str | None:
    """``--resume_from_checkpoint`` as None (start anew), ``"true"`` (the newest checkpoint) or a path."""
    text = str(value)
    if text.lower() in ("false", "none", ""):
        return None
    return "true" if text.lower() == "true" else text


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Create the folder, hold its lock, and repair what a killed run has left in it.

    Raises:
        UsageError: it can't be created or written to, or another run holds the lock.
    """
    files.make_folder(folder, "--output_dir")
    with files.run_lock(folder):
        checkpoints.clean_up(folder)
        if (folder / _INSTALLING_NAME).is_dir():
            _finish_install(folder)
        files.settle_aside(folder, keep_new=_has_new_output(folder))
        yield


class Start(NamedTuple):
    """Where a run starts: at its first step, at a checkpoint, or after its last step.

    Attributes:
        source: folder of the weights and the Trainer's state to resume from; None to start anew.
        run: the facts of the run that saved ``source``.
        step: the step of ``source``.
        finished: the step of the model and the results in the output folder, if they are of the same run; else 0.
    """

    source: Path | None = None
    run: Mapping[str, Any] = {}
    step: int = 0
    finished: int = 0


def find_start(folder: Path, resume: str | None) -> Start:
    """Find where ``resume`` asks to start, and report skipped checkpoints; the folder's lock must be held.

    Raises:
        UsageError: the checkpoint is invalid, or the folder holds a model but no checkpoint.
    """
    if resume is None:
        return Start()
    checkpoint, results = _find_checkpoint(folder, resume), _results_in(folder)
    if checkpoint:
        step = checkpoints.read_trainer_state(checkpoint).global_step
        later = checkpoints.newest_complete(folder) if resume != "true" else None
        if later and checkpoints.step_of(later) > step:
            raise UsageError(
                f"--resume_from_checkpoint {resume}: the next resume would take {later}, which is further on; move it "
                "elsewhere, or give another --output_dir"
            )
        own = checkpoint.resolve().parent == folder.resolve()
        if not own and not checkpoints.list_checkpoints(folder):
            _refuse_to_replace_model(folder)
        finished = results.steps if results and own and (resume == "true" or results.steps == step) else 0
        return Start(checkpoint, checkpoints.read_manifest(checkpoint).run, step, finished)
    if results:
        return Start(folder, results.run, results.steps, results.steps)
    _refuse_to_replace_model(folder)
    say(f"no valid checkpoint in {folder}: starting from the beginning")
    return Start()


def _find_checkpoint(folder: Path, resume: str) -> Path | None:
    """The checkpoint that ``resume`` names, or the newest valid one, with verified checksums."""
    found: Path | None = Path(resume)
    if resume == "true":
        found, skipped = checkpoints.newest_valid(folder)
        for path, reason in skipped:
            say(f"skipped {path}: {reason}")
    else:
        fault = checkpoints.fault_in(Path(resume)) if Path(resume).is_dir() else "there is no such folder"
        if fault:
            raise UsageError(f"--resume_from_checkpoint {resume}: {fault}; true takes the newest valid one")
    if found:
        say(f"resuming from {found}")
        checkpoints.refuse_unsafe_files(found)
    return found


def _results_in(folder: Path) -> TrainResults | None:
    """The results of the finished run in a folder; None if it holds none."""
    with contextlib.suppress(UsageError):
        results = read_model(TrainResults, folder / TRAIN_RESULTS_NAME)
        return results if (folder / "model.safetensors").is_file() else None
    return None


def refuse_other_run(folder: Path, start: Start, facts: Mapping[str, Any], last_step: int) -> None:
    """Refuse to resume a run with different data, batch size or model.

    ``facts`` and ``last_step`` are those of the new run; facts that the earlier run didn't record are not compared.

    Raises:
        UsageError: names the first flag that differs, with both values; or the finished run has fewer steps.
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
                f"{start.source} cannot be resumed: {_FACTS.get(name, f'--{name}')} was {_as_text(old)} and is now "
                f"{_as_text(new)}; use the earlier value, or start from its weights alone with --model_name_or_path "
                f"{start.source}"
            )


def refuse_other_model(folder: Path, model: str) -> None:
    """Refuse to replace the results of a run in ``folder`` by those of an evaluation of another model.

    Raises:
        UsageError: names both.
    """
    if (folder / TRAIN_RESULTS_NAME).is_file() and not folder.samefile(model):
        raise UsageError(
            f"--output_dir {folder} holds the results of another model than --model_name_or_path {model}; give another "
            "--output_dir"
        )


def _refuse_to_replace_model(folder: Path) -> None:
    """Refuse to resume in a folder that holds a (finished, converted, fine-tuned) model but no checkpoint."""
    models = [path.name for pattern in ("*.safetensors", "pytorch_model*.bin") for path in folder.glob(pattern)]
    if models:
        raise UsageError(
            f"--resume_from_checkpoint: {folder} holds a model ({models[0]}) and no checkpoint to resume from; start "
            f"from its weights in another --output_dir with --model_name_or_path {folder}, or start anew here with "
            f"--overwrite_output_dir"
        )


@contextlib.contextmanager
def set_earlier_run_aside(folder: Path) -> Iterator[None]:
    """Set an earlier run aside; restore it if the new one fails before writing a checkpoint or its results.

    Only checkpoints, results and the model of the run are moved. The folder's lock must be held.
    """
    own = [*checkpoints.list_checkpoints(folder), *_word_checkpoints(folder)]
    files.set_aside(folder, [*own, *(folder / name for name in _OWN_NAMES)])
    try:
        yield
    except BaseException:
        files.settle_aside(folder, keep_new=_has_new_output(folder))
        raise


def _has_new_output(folder: Path) -> bool:
    saved = checkpoints.list_checkpoints(folder) or _word_checkpoints(folder)
    return bool(saved) or (folder / _INSTALLING_NAME).is_dir()


def _word_checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob(WORD_CHECKPOINTS) if (path / checkpoints.MANIFEST_NAME).is_file()]


def install(staged: Path, folder: Path) -> None:
    """Move the complete files in ``staged``, a subfolder, into ``folder``; after a crash the next run does so."""
    files.sync_tree(staged)
    staged.rename(folder / _INSTALLING_NAME)
    files.sync(folder)
    _finish_install(folder)


def _finish_install(folder: Path) -> None:
    journal = folder / _INSTALLING_NAME
    (folder / DIVERGED_NAME).unlink(missing_ok=True)
    names = sorted((path.name for path in journal.iterdir()), key=lambda name: (name == TRAIN_RESULTS_NAME, name))
    if TRAIN_RESULTS_NAME in names:  # the old results are not those of the new model
        for name in (TRAIN_RESULTS_NAME, *_EVALUATION_NAMES):
            (folder / name).unlink(missing_ok=True)
    for name in names:
        (journal / name).replace(folder / name)
    files.sync(folder)
    shutil.rmtree(journal, ignore_errors=True)
    files.discard_aside(folder)


def _as_text(value: Any) -> str:
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, Mapping) else str(value)


def write_evaluation(folder: Path, metrics: Mapping[str, float]) -> None:
    """Write ``eval_results.json`` and, as the original does, ``eval_results_lm.txt`` of ``name = value`` lines.

    The text file leaves the prefix ``eval_`` out, so that ``perplexity`` has the name that the original gives it.
    """
    lines = [f"{name.removeprefix('eval_')} = {value}\n" for name, value in sorted(metrics.items())]
    files.write_text(folder / "eval_results_lm.txt", "".join(lines))
    files.write_json(folder / "eval_results.json", dict(metrics))


def divergence_error(folder: Path, what: str, step: int, samples: list[int], writes: bool) -> TrainingDiverged:
    """The error that ends a run in ``step`` (0-based); with ``writes``, also write ``diverged.json``."""
    last = checkpoints.newest_complete(folder)
    if writes:
        facts = {"step": step + 1, "samples": samples, "last_good_checkpoint": str(last) if last else None}
        with contextlib.suppress(OSError):  # a full disk must not hide the message
            files.write_json(folder / DIVERGED_NAME, facts)
    shown = ", ".join(map(str, samples[:_SAMPLES_SHOWN]))
    more = f" and {len(samples) - _SAMPLES_SHOWN} more" if len(samples) > _SAMPLES_SHOWN else ""
    advice = "resume from it with --resume_from_checkpoint true and" if last else "start again with"
    return TrainingDiverged(
        f"{what} in step {step + 1} (samples {shown}{more}; all in {folder / DIVERGED_NAME}); the last good "
        f"checkpoint is {last or 'none: this run has saved none yet'}; {advice} a lower --learning_rate, a longer "
        f"--warmup_steps or float32"
    )
