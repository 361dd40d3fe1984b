"""A Trainer that can be stopped at any moment: whole checkpoints, steps finished on a signal, no bad loss kept.

What is built on in ``transformers.Trainer`` stands in ``OVERRIDDEN``, tested with the transformers of constraints.txt
and the oldest that pyproject.toml allows; a test compares it with the code and with the version installed.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils.data import DataLoader, Dataset
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
)
from transformers.integrations import TensorBoardCallback
from transformers.trainer import OPTIMIZER_NAME, TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.utils import logging

from bert_convolutions import files
from bert_convolutions.errors import RunInterrupted, UsageError
from bert_convolutions.training import checkpoints
from bert_convolutions.training.arguments import apply_settings, keep_freed_memory, optimizer_settings
from bert_convolutions.training.collectives import Collectives
from bert_convolutions.training.divergence import DivergenceGuard, all_finite, diverged
from bert_convolutions.training.progress import RunProgress
from bert_convolutions.training.sampling import StepPlan, StepSlices, slices_loader
from bert_convolutions.training.signals import SignalWatch, resume_command
from bert_convolutions.training.tracking import KernelBoard

logger = logging.get_logger(__name__)

OVERRIDDEN = {
    "_get_output_dir": "while a checkpoint is written, its staging folder",
    "_save_checkpoint": "written by the first process into the staging folder, checked in, renamed, thinned out",
    "_save": "the arguments as JSON, not as a pickle",
    "_save_rng_state": "the random states of all processes, by the first",
    "_load_rng_state": "a run on another number of processes gets new, reproducible ones",
    "_load_optimizer_and_scheduler": "the flags given now count, not those of the checkpoint",
    "_issue_warnings_after_load": "weights of another model are refused",
    "_init_training_state": "a resumed run logs, saves and evaluates as often as its own flags say",
    "_run_epoch": "tells the sampler the epoch",
    "_maybe_log_save_evaluate": "leaves after the step if a signal has come",
    "training_step": "looks at the loss",
    "get_train_dataloader": "examples by step, see ``sampling``",
    "get_eval_dataloader": "the same, in their own order",
    "get_batch_samples": "counts what the loss is divided by in the whole global batch",
    "compute_loss": "GLUE: the micro-batch's part of the step's mean",
    "_prepare_input": "copies to the device without waiting",
    "floating_point_ops": "parameters are counted once",
    "evaluation_loop": "sums instead of gathered logits",
    "evaluate": "off the clock; GLUE: its own scores",
    "log": "adds the throughput",
    "train_dataset": "declared: any store",
    "eval_dataset": "declared: any store",
    "model": "declared: always there",
    "model_accepts_loss_kwargs": "set: whether the model divides by the global batch's count",
    "loss_is_scaled_for_ga": "set: losses are divided already, by no number of accumulation steps again",
}
"""Members of ``Trainer`` that the trainers of ``training`` and ``glue`` override or set, and what they do instead."""

_NEVER = 2**62
_DISK_ERRORS = (OSError, RuntimeError, SafetensorError)
"""PyTorch and safetensors have their own."""
_ELSEWHERE = "the first process could not write it"


class EvaluationAbandonedError(Exception):
    """A signal came during an evaluation; it is not finished, so that the run can be saved at once."""


class ResumableTrainer(Trainer):
    """Saves and leaves on a signal, saves by the clock, and stops on a loss that is NaN or infinite.

    Checkpoints appear whole or not at all, written by the first process. No pickle is left in them.

    Args:
        watch: the signals; left out, it receives none.
        run_facts: JSON values that a resumed run must agree with; kept in each checkpoint's manifest.
        save_every_minutes: save when this long has passed since the last checkpoint; the first process decides.
        All others are those of the ``Trainer``.

    Attributes:
        collectives: what the processes tell each other.
        guard: what is known of the losses.
    """

    model: Any  # one that is always there, unlike the Trainer's own declaration says

    def __init__(
        self,
        *args: Any,
        watch: SignalWatch | None = None,
        run_facts: Mapping[str, Any] | None = None,
        save_every_minutes: float | None = None,
        **kwargs: Any,
    ) -> None:
        self.watch = watch or SignalWatch()
        self.run_facts = dict(run_facts or {})
        self.save_every_minutes = save_every_minutes
        self._staging: Path | None = None
        self._published_step = -1
        self._random_states: list[bytes] = []
        self._train_slices: StepSlices | None = None
        self._last_saved = time.monotonic()
        self._must_stop = False
        super().__init__(*args, **kwargs)
        if self.args.device.type == "cpu":
            keep_freed_memory()
        self.collectives = Collectives(self.args.world_size)
        self.guard = DivergenceGuard(self.args.device)
        for callback in (ProgressCallback, PrinterCallback):
            if self.pop_callback(callback) is not None:
                self.add_callback(RunProgress(self.progress_note))
        if self.pop_callback(TensorBoardCallback) is not None:
            self.add_callback(KernelBoard())
        self.add_callback(_StepControl(self))

    @property
    def output_folder(self) -> Path:
        """Where checkpoints and results go."""
        return Path(self.args.output_dir or ".")

    # Hooks

    def samples_of_step(self, step: int) -> list[int]:
        """The examples of a step (0-based), for the message about a bad loss. Hook; nothing is known here."""
        return []

    def progress_note(self) -> str:
        """What the progress line says at its end. Hook; nothing here."""
        return ""

    # Data

    def training_loader(self, dataset: Dataset[Any], plan: StepPlan, collate: Callable[[Any], Any]) -> DataLoader[Any]:
        """This process's micro-batches of an epoch, see ``slices_loader``; the sampler is told of each new epoch."""
        self._train_slices = StepSlices(plan, self.args.process_index)
        return slices_loader(self.args, dataset, self._train_slices, collate)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self._train_slices is not None:
            self._train_slices.epoch = kwargs["epoch"]
        super()._run_epoch(*args, **kwargs)

    # A step and what is due after it

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch, with an eye on its loss."""
        loss = super().training_step(*args, **kwargs)
        self.guard.watch(loss, self.state.global_step)
        return loss

    def step_finished(self, control: TrainerControl) -> None:
        """Between a step and what is due after it (log, evaluate, save): what the processes want, agreed."""
        wishes = [self.watch.received is not None, self._is_time_to_save()]
        stop, save = (count > 0 for count in self.collectives.sum(wishes))
        if stop:
            self._must_stop, control.should_save, control.should_evaluate = True, True, False
        if save:
            control.should_save = True
        if self.guard.immediate or control.should_log or control.should_save or control.should_evaluate:
            self.check_losses()

    def evaluation_batch_finished(self) -> None:
        """Leave the evaluation if a signal has come.

        Raises:
            EvaluationAbandonedError: on all processes.
        """
        if self.collectives.any(self.watch.received is not None):
            raise EvaluationAbandonedError

    def _is_time_to_save(self) -> bool:
        if self.save_every_minutes is None or not self.is_world_process_zero():
            return False
        return time.monotonic() - self._last_saved >= self.save_every_minutes * 60

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """What the Trainer does after a step; then leave, if a signal came before or meanwhile.

        Raises:
            RunInterrupted: after the checkpoint has been saved.
        """
        busy = self.control.should_log or self.control.should_save or self.control.should_evaluate
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)
        except EvaluationAbandonedError:
            self._must_stop = True
        if busy and not self._must_stop:
            self._must_stop = self.collectives.any(self.watch.received is not None)
        if self._must_stop:
            self.save_now()
            raise interrupted(self.watch, self.state.global_step, self.output_folder)

    # Bad losses

    def check_before_saving(self) -> None:
        """Never save weights that a bad loss has spoilt.

        Raises:
            TrainingDiverged: on all processes, if any of them saw a bad loss or holds a bad weight.
        """
        self.check_losses()
        if self.collectives.any(not all_finite(self.model)):
            self._stop_diverged(self.state.global_step - 1, "the weights are no longer finite")

    def check_losses(self) -> None:
        """Stop on all processes if the loss has been NaN or infinite on any of them.

        Raises:
            TrainingDiverged: with the step, its samples and the last good checkpoint.
        """
        bad = self.guard.settle()
        first = self.collectives.smallest(_NEVER if bad is None else bad)
        if first != _NEVER:
            self._stop_diverged(first, "the loss was NaN or infinite")

    def _stop_diverged(self, step: int, what: str) -> None:
        raise diverged(what, step, self.samples_of_step(step), self.output_folder, self.is_world_process_zero())

    # Saving

    def save_now(self) -> None:
        """Save a checkpoint of the step just finished, unless this session has saved it already.

        Raises:
            NotSavedError: it could not be written.
        """
        self._save_checkpoint(self.model_wrapped, trial=None)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Save; where that fails and the run is not about to end, say so and train on."""
        if self._published_step == self.state.global_step:
            return
        self.check_before_saving()
        folder = Path(self._get_output_dir(trial))
        self._random_states = self._gather_random_states()
        failure: Exception | None = None if all(self._random_states) else OSError("no room for the random state")
        if failure is None:
            failure = self._write_checkpoint(model, trial, folder / f"checkpoint-{self.state.global_step}")
        self._last_saved = time.monotonic()
        if not self.collectives.any(failure is not None):
            self._published_step = self.state.global_step
            return
        message = (
            f"the checkpoint of step {self.state.global_step} could not be written to {folder} "
            f"({failure or _ELSEWHERE}); earlier checkpoints are untouched; make room there"
        )
        if self._must_stop:
            raise checkpoints.NotSavedError(message) from failure
        if self.is_world_process_zero():
            logger.error(f"{message}. Training goes on and tries again at the next checkpoint.")

    @contextmanager
    def _published(self, place: Path) -> Iterator[Path]:
        """A new folder, to be filled by all processes; the first one gives it the name ``place`` if nothing fails."""
        staging = place.parent / checkpoints.STAGING_NAME
        with self.watch.scratch(staging):
            try:
                if self.args.should_save:
                    shutil.rmtree(staging, ignore_errors=True)
                    (staging / place.name).mkdir(parents=True)
                yield staging / place.name
                if self.args.should_save:
                    checkpoints.publish(staging / place.name, place, self.run_facts)
            finally:
                if self.args.should_save:
                    shutil.rmtree(staging, ignore_errors=True)

    def _write_checkpoint(self, model: torch.nn.Module, trial: Any, place: Path) -> Exception | None:
        """Write and publish; on all processes, of which only the first touches the disk. Returns what went wrong."""
        best_step, self.state.best_global_step = self.state.best_global_step, None  # its path would be the staging's
        try:
            with self._published(place) as staged:
                self._staging = staged.parent
                super()._save_checkpoint(model, trial)
                self.state.best_global_step = best_step
                self._note_best(place)
                if self.args.should_save:
                    self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
            if self.args.should_save:
                best = Path(self.state.best_model_checkpoint) if self.state.best_model_checkpoint else None
                checkpoints.rotate(place.parent, self.args.save_total_limit, keep=place, best=best)
        except _DISK_ERRORS as error:
            return error
        finally:
            self._staging = None
            self.state.best_global_step = best_step
        return None

    def save_model_as(self, place: Path) -> None:
        """Save model and tokenizer, without what resuming needs, in a folder of their own in the output folder.

        Raises:
            NotSavedError: they could not be written; what had the name before is untouched.
        """
        self.check_before_saving()
        failure: Exception | None = None
        try:
            with self._published(place) as staged:
                self.save_model(str(staged))
        except _DISK_ERRORS as error:
            failure = error
        if self.collectives.any(failure is not None):
            raise checkpoints.NotSavedError(
                f"{place} could not be written ({failure or _ELSEWHERE}); make room there and go on with: "
                f"{resume_command()}"
            ) from failure

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _note_best(self, place: Path) -> None:
        if self.state.best_global_step:
            best = place.with_name(f"checkpoint-{self.state.best_global_step}")
            if best == place or best.is_dir():
                self.state.best_model_checkpoint = str(best)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the model; the arguments as JSON instead of the Trainer's pickle."""
        logging.disable_progress_bar()  # one bar is enough, and it is the run's
        try:
            super()._save(output_dir, state_dict)
        finally:
            logging.enable_progress_bar()
        if self.args.should_save:
            folder = Path(output_dir or self.output_folder)
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            files.write_text(folder / "training_args.json", self.args.to_json_string() + "\n")

    def _gather_random_states(self) -> list[bytes]:
        """What ``_save_rng_state`` would write on each process; empty where that failed. One process needs none."""
        if self.args.world_size == 1:
            return [b"written in place"]
        try:
            with tempfile.TemporaryDirectory() as scratch:
                super()._save_rng_state(scratch)
                own = next(Path(scratch).iterdir()).read_bytes()
        except (OSError, RuntimeError):
            own = b""
        return self.collectives.gather(own)

    def _save_rng_state(self, output_dir: str) -> None:
        if self.args.world_size == 1:
            super()._save_rng_state(output_dir)
        elif self.args.should_save:
            for process, state in enumerate(self._random_states):
                (Path(output_dir) / f"rng_state_{process}.pth").write_bytes(state)

    # Resuming

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> Any:
        position = super()._init_training_state(max_steps, *args, **kwargs)
        self.state.compute_steps(self.args, max_steps)
        return position

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        saved = len(list(Path(checkpoint).glob("rng_state*.pth")))
        if saved == self.args.world_size:
            super()._load_rng_state(checkpoint)
            return
        logger.warning(
            f"{checkpoint} was saved by {saved} processes and goes on with {self.args.world_size}: "
            f"same data, other dropout than without the interruption."
        )
        torch.manual_seed(self.args.seed + self.state.global_step * self.args.world_size + self.args.process_index)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Restore both; then the flags given now count: the schedule goes on with their peak learning rate.

        Raises:
            UsageError: the checkpoint has no optimizer, so that going on would not be the same run.
        """
        if checkpoint is None:
            return
        if not (Path(checkpoint) / OPTIMIZER_NAME).is_file():
            raise UsageError(
                f"{checkpoint} was saved without its optimizer (--save_only_model) and can't be gone on from; start "
                f"from its weights with --model_name_or_path {checkpoint}"
            )
        given = optimizer_settings(self.optimizer)
        super()._load_optimizer_and_scheduler(checkpoint)
        apply_settings(given, self.optimizer, self.lr_scheduler)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse a checkpoint whose weights are not the model's; weights tied to others are rightly left out."""
        missing = set(load_result.missing_keys) - set(self.model.all_tied_weights_keys)
        if missing or load_result.unexpected_keys:
            raise UsageError(
                f"the checkpoint is of another model (missing: {_some(missing)}; unknown: "
                f"{_some(load_result.unexpected_keys)}); resume with the flags that the run was started with"
            )


class _StepControl(TrainerCallback):
    """Brings the end of a step and of an evaluation batch to the trainer, after the Trainer's own callbacks."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.step_finished(control)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.evaluation_batch_finished()


def interrupted(watch: SignalWatch, step: int, folder: Path) -> RunInterrupted:
    """The error that ends a run which was stopped and saved at ``step``."""
    last = checkpoints.newest_complete(folder)
    return RunInterrupted(
        f"stopped by {watch.cause or 'a signal to another process'} after step {step}, saved as {last}; go on with: "
        f"{resume_command()}"
    )


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:3]) or "none"
