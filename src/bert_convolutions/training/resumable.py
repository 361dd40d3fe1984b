"""A Trainer that can be stopped at any moment: whole checkpoints, steps finished on a signal, no bad loss kept.

What is built on in ``transformers.Trainer`` stands in ``OVERRIDDEN``, tested with the transformers of constraints.txt
and the oldest that pyproject.toml allows; a test compares it with the code and with the version installed.
"""

import contextlib
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainerControl
from transformers.integrations import TensorBoardCallback
from transformers.trainer import OPTIMIZER_NAME, TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.utils import logging

from bert_convolutions import files
from bert_convolutions.errors import RunInterrupted, UsageError, first_line
from bert_convolutions.signals import SignalWatch, resume_command
from bert_convolutions.training import checkpoints
from bert_convolutions.training.arguments import apply_settings, keep_freed_memory, optimizer_settings
from bert_convolutions.training.collectives import Collectives
from bert_convolutions.training.output_folder import diverged
from bert_convolutions.training.progress import KernelBoard, RunProgress
from bert_convolutions.training.sampling import StepPlan, slices_loader

logger = logging.get_logger(__name__)

OVERRIDDEN = {
    "_get_output_dir": "while a checkpoint is written, its staging folder",
    "_save_checkpoint": "written by the first process into the staging folder, renamed; then the oldest are deleted",
    "_save": "the arguments as JSON, not as a pickle",
    "_save_rng_state": "of one process; those of several are gathered and written by the first",
    "_load_rng_state": "a run on another number of processes gets new, reproducible ones",
    "_load_optimizer_and_scheduler": "the flags given now count, not those of the checkpoint",
    "_issue_warnings_after_load": "weights of another model are refused",
    "_maybe_log_save_evaluate": "leaves after the step if a signal has come",
    "training_step": "looks at the loss",
    "get_train_dataloader": "examples by step, see ``sampling``",
    "get_eval_dataloader": "the same, in their own order",
    "get_batch_samples": "counts what the loss is divided by in the whole global batch",
    "compute_loss": "GLUE: the micro-batch's part of the step's mean",
    "_prepare_input": "copies to the device without waiting; tells a compiler which sizes change",
    "floating_point_ops": "parameters are counted once",
    "evaluation_loop": "sums instead of gathered logits",
    "evaluate": "off the clock; GLUE: its own scores",
    "log": "adds the throughput",
    "train_dataset": "declared: any store",
    "eval_dataset": "declared: any store",
    "model": "declared: always there",
    "label_smoother": "set: GLUE has none where labels are numbers",
    "model_accepts_loss_kwargs": "set: whether the model divides by the global batch's count",
    "loss_is_scaled_for_ga": "set: losses are divided already, by no number of accumulation steps again",
}
"""Members of ``Trainer`` that the trainers of ``training`` and ``glue`` override or set, and what they do instead."""

_NEVER = 2**62
_DISK_ERRORS = (OSError, RuntimeError, SafetensorError)
"""PyTorch and safetensors have their own."""


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
        output_folder: where checkpoints and results go.
        collectives: what the processes tell each other.
    """

    model: Any  # one that is always there, unlike the Trainer's own declaration says
    train_dataset: Any

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
        self._save_every_seconds = (save_every_minutes or math.inf) * 60
        self._staging: Path | None = None
        self._published_step = -1
        self._last_saved = time.monotonic()
        self._must_stop = False
        try:
            super().__init__(*args, **kwargs)
        except (ValueError, ImportError) as error:  # flags that contradict, or need a package that isn't here
            raise UsageError(first_line(error)) from error
        if self.args.device.type == "cpu":
            keep_freed_memory()
        self.output_folder = Path(self.args.output_dir or ".")
        self.collectives = Collectives(self.args.world_size)
        self._first_bad = torch.tensor(_NEVER, device=self.args.device)
        for callback in (ProgressCallback, PrinterCallback):
            if self.pop_callback(callback) is not None:
                self.add_callback(RunProgress(self.progress_note))
        if self.pop_callback(TensorBoardCallback) is not None:
            self.add_callback(KernelBoard())
        self.add_callback(_Events(self))

    def progress_note(self) -> str:
        """What the progress line says at its end. Hook; nothing here."""
        return ""

    # Data

    def train_plan(self) -> StepPlan:
        """Which examples each training step takes."""
        return StepPlan.of_training(self.args, len(self.train_dataset))

    def samples_of_step(self, step: int) -> list[int]:
        """The examples of a step (0-based) on all processes."""
        return self.train_plan().samples_of_step(step)

    def train_loader(self, dataset: Dataset[Any], collate: Callable[[Any], Any]) -> DataLoader[Any]:
        """This process's micro-batches of the epoch that training is in, see ``slices_loader``."""
        plan = self.train_plan()
        return slices_loader(self.args, dataset, plan, lambda: self.state.global_step // plan.steps_per_epoch, collate)

    # A step and what is due after it

    def training_begins(self) -> None:
        """The model is ready, and the state of a resumed run has been read: now its own flags count."""
        self.state.compute_steps(self.args, self.state.max_steps)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch; the first step with a bad loss is noted on the device, so that nothing waits for it."""
        loss = super().training_step(*args, **kwargs)
        first_if_bad = self._first_bad.clamp(max=self.state.global_step)
        self._first_bad = torch.where(torch.isfinite(loss), self._first_bad, first_if_bad)
        return loss

    def step_finished(self, control: TrainerControl) -> None:
        """After a step, before it is logged, evaluated and saved: agree over all processes whether to save and stop."""
        is_time = self.is_world_process_zero() and time.monotonic() - self._last_saved >= self._save_every_seconds
        stop, save = self.collectives.sum([self.watch.received is not None, is_time])
        if stop:
            self._must_stop, control.should_evaluate = True, False
        if stop or save:
            control.should_save = True
        waits = control.should_log or control.should_save or control.should_evaluate
        if waits or self.args.device.type == "cpu":
            self.check_losses()

    def evaluation_batch_finished(self) -> None:
        """Leave the evaluation if a signal has come.

        Raises:
            EvaluationAbandonedError: on all processes.
        """
        if self.collectives.any(self.watch.received is not None):
            raise EvaluationAbandonedError

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """What the Trainer does after a step; then save and leave, if a signal came before or meanwhile."""
        busy = self.control.should_log or self.control.should_save or self.control.should_evaluate
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)
        except EvaluationAbandonedError:
            self._must_stop = True
        except KeyError as error:
            if "metric_for_best_model" not in str(error):
                raise
            raise UsageError(f"--metric_for_best_model: {error.args[0]}") from error
        if busy and not self._must_stop:
            self._must_stop = self.collectives.any(self.watch.received is not None)
        if self._must_stop:
            self._save_checkpoint(self.model_wrapped, trial=None)
            raise RunInterrupted(
                f"stopped by {self.watch.cause or 'a signal to another process'} after step {self.state.global_step}, "
                f"saved as {checkpoints.newest_complete(self.output_folder)}; go on with: {resume_command()}"
            )

    # Bad losses

    def check_before_saving(self) -> None:
        """Never save weights that a bad loss has spoilt.

        Raises:
            TrainingDiverged: on all processes, if any of them saw a bad loss or holds a bad weight.
        """
        self.check_losses()
        sums = torch.stack([weights.detach().float().abs().sum() for weights in self.model.parameters()])
        if self.collectives.any(not torch.isfinite(sums).all()):
            self._stop_diverged(self.state.global_step - 1, "the weights are no longer finite")

    def check_losses(self) -> None:
        """Stop on all processes if the loss has been NaN or infinite on any of them; waits for an accelerator.

        Raises:
            TrainingDiverged: with the step, its samples and the last good checkpoint.
        """
        first = self.collectives.smallest(int(self._first_bad))
        if first != _NEVER:
            self._stop_diverged(first, "the loss was NaN or infinite")

    def _stop_diverged(self, step: int, what: str) -> NoReturn:
        raise diverged(self.output_folder, what, step, self.samples_of_step(step), self.is_world_process_zero())

    # Saving

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Save, once a step; where that fails, say so and train on, or raise it if the run is to end here."""
        if self._published_step == self.state.global_step:
            return
        self.check_before_saving()
        place = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        random_states = self._gather_random_states()
        failure = self._failure_of(lambda: self._write_checkpoint(model, trial, place, random_states))
        self._last_saved = time.monotonic()
        if failure is None:
            self._published_step = self.state.global_step
            return
        message = (
            f"the checkpoint of step {self.state.global_step} could not be written to {place.parent} ({failure}); "
            f"earlier checkpoints are untouched; make room there"
        )
        if self._must_stop:
            raise checkpoints.NotSavedError(message) from failure
        if self.is_world_process_zero():
            logger.error(f"{message}. Training goes on and tries again at the next checkpoint.")

    def save_model_as(self, place: Path) -> None:
        """Save model and tokenizer, without what resuming needs, in a folder of their own in the output folder.

        Raises:
            NotSavedError: they could not be written; what had the name before is untouched.
        """
        self.check_before_saving()

        def write() -> None:
            with self._published(place) as staged:
                self.save_model(str(staged))

        failure = self._failure_of(write)
        if failure is not None:
            raise checkpoints.NotSavedError(
                f"{place} could not be written ({failure}); make room there and go on with: {resume_command()}"
            ) from failure

    def _failure_of(self, write: Callable[[], None]) -> Exception | None:
        """Write on all processes, of which the first touches the disk; return what went wrong on any of them."""
        failure: Exception | None = None
        try:
            write()
        except _DISK_ERRORS as error:
            failure = error
        failed = self.collectives.any(failure is not None)
        return (failure or OSError("the first process could not write it")) if failed else None

    @contextlib.contextmanager
    def _published(self, place: Path) -> Iterator[Path]:
        """A new folder, to be filled by all processes; the first one gives it the name ``place`` if nothing fails."""
        staging = place.parent / checkpoints.STAGING_NAME
        if not self.args.should_save:
            yield staging / place.name
            return
        with self.watch.scratch(staging):
            try:
                shutil.rmtree(staging, ignore_errors=True)
                (staging / place.name).mkdir(parents=True)
                yield staging / place.name
                checkpoints.publish(staging / place.name, place, self.run_facts)
            finally:
                shutil.rmtree(staging, ignore_errors=True)

    def _write_checkpoint(self, model: torch.nn.Module, trial: Any, place: Path, random_states: list[bytes]) -> None:
        if not all(random_states):
            raise OSError("no room for the random state")
        best_step, self.state.best_global_step = self.state.best_global_step, None  # its path would be the staging's
        try:
            with self._published(place) as staged:
                self._staging = staged.parent
                super()._save_checkpoint(model, trial)
                self.state.best_global_step = best_step
                best = place.with_name(f"checkpoint-{best_step}")
                if best == place or best.is_dir():
                    self.state.best_model_checkpoint = str(best)
                if self.args.should_save:
                    self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
                    for process, state in enumerate(random_states):
                        (staged / f"rng_state_{process}.pth").write_bytes(state)
            if self.args.should_save:
                best = Path(self.state.best_model_checkpoint or place)
                checkpoints.rotate(place.parent, self.args.save_total_limit, keep=place, best=best)
        finally:
            self._staging, self.state.best_global_step = None, best_step

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

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
        """What the Trainer would write on each process, empty where that failed; one process writes it itself."""
        if self.args.world_size == 1 or self.args.save_only_model:
            return []
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

    # Resuming

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
        """Restore both; then the flags given now count: the schedule goes on with their peak learning rate."""
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
        lacking = set(load_result.missing_keys) - set(self.model.all_tied_weights_keys)
        if lacking or load_result.unexpected_keys:
            missing, unknown = (
                ", ".join(sorted(keys)[:3]) or "none" for keys in (lacking, load_result.unexpected_keys)
            )
            raise UsageError(
                f"the checkpoint is of another model (missing: {missing}; unknown: {unknown}); resume with the flags "
                f"that the run was started with"
            )


class _Events(TrainerCallback):
    """Calls the trainer's own methods on events, after the Trainer's own callbacks."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.training_begins()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.step_finished(control)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.evaluation_batch_finished()
