"""A Trainer that can be stopped at any moment: atomic checkpoints, a clean stop on signals and on a bad loss.

``OVERRIDDEN`` lists the members of ``transformers.Trainer`` that this package relies on. A test compares it with the
code and with the installed transformers, both the version of constraints.txt and the oldest of pyproject.toml.
"""

import contextlib
import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate.state import AcceleratorState
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainerControl
from transformers.integrations import TensorBoardCallback
from transformers.trainer import OPTIMIZER_NAME, TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.utils import logging

from bert_convolutions import files
from bert_convolutions.cpu import fast_float32_products, keep_freed_memory
from bert_convolutions.errors import RunInterrupted, UsageError, first_line
from bert_convolutions.signals import SignalWatch, resume_command
from bert_convolutions.training import checkpoints
from bert_convolutions.training.arguments import apply_settings, optimizer_settings, owes_evaluation
from bert_convolutions.training.collectives import Collectives
from bert_convolutions.training.output_folder import divergence_error
from bert_convolutions.training.progress import KernelBoard, RunProgress
from bert_convolutions.training.sampling import StepPlan, slices_loader

logger = logging.get_logger(__name__)

OVERRIDDEN = {
    "_get_output_dir": "the staging folder while a checkpoint is written",
    "_save_checkpoint": "writes on the first process into a staging folder, renames it, deletes the oldest",
    "_save": "saves the arguments as JSON, not as a pickle",
    "_save_rng_state": "with several processes, the first writes the states of all",
    "_load_rng_state": "another number of processes gets new, reproducible states",
    "_load_optimizer_and_scheduler": "applies the flags of the resumed run over those of the checkpoint",
    "_issue_warnings_after_load": "refuses the weights of another model",
    "_maybe_log_save_evaluate": "saves and stops after the step if a signal was received",
    "_finalize_training": "keeps the last checkpoint beside the best one",
    "training_step": "checks the loss",
    "get_train_dataloader": "each step's examples depend on the seed alone, see ``sampling``",
    "get_eval_dataloader": "the same, in the order of the dataset",
    "get_batch_samples": "counts the divisor of the loss over the global batch",
    "create_optimizer": "notes the peak learning rate for a resumed run",
    "compute_loss": "GLUE: the micro-batch's share of the step's mean",
    "_prepare_input": "copies asynchronously to the device; marks sizes that change for torch.compile",
    "floating_point_ops": "counts the parameters once",
    "evaluation_loop": "adds up sums instead of gathering logits",
    "evaluate": "pauses the clock; GLUE: computes its own scores",
    "log": "adds the throughput",
    "train_dataset": "declared: any store",
    "eval_dataset": "declared: any store",
    "model": "declared: never None",
    "label_smoother": "set: GLUE has none for regression",
    "model_accepts_loss_kwargs": "set: whether the model divides by the global batch's count",
    "loss_is_scaled_for_ga": "set: losses are not divided by the accumulation steps again",
}
"""Members of ``Trainer`` that the trainers of ``training`` and ``glue`` override or set, and what they do instead."""

_NEVER = 2**62


class EvaluationAbandonedError(Exception):
    """A signal was received during an evaluation, which stops so that the run can be saved at once."""


class ResumableTrainer(Trainer):
    """A Trainer that saves and stops on a signal, saves at intervals of time, and stops on a NaN or infinite loss.

    Checkpoints are atomic, written by the first process, and contain no pickle.

    Args:
        watch: the signal watch; the default receives no signals.
        run_facts: JSON values that a resumed run must agree with, stored in each checkpoint's manifest.
        save_every_minutes: save when this time has passed since the last checkpoint; the first process decides.
        All others are those of the ``Trainer``.

    Attributes:
        output_folder: folder of the checkpoints and results.
        collectives: collective operations between the processes.
    """

    model: Any  # never None, unlike in the Trainer's declaration
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
        self._published_step, self._must_stop = -1, False
        self._last_saved = time.monotonic()
        AcceleratorState._reset_state()  # else an earlier trainer's precision would be the only one of this process
        try:
            super().__init__(*args, **kwargs)
        except (ValueError, ImportError) as error:  # contradicting flags, or a package that isn't installed
            raise UsageError(first_line(error)) from error
        if self.args.device.type == "cpu":
            keep_freed_memory()
        self.output_folder = Path(self.args.output_dir or ".")
        self.collectives = Collectives(self.args.world_size)
        self._first_bad_step = torch.tensor(_NEVER, device=self.args.device)
        for callback in (ProgressCallback, PrinterCallback):
            if self.pop_callback(callback) is not None:
                self.add_callback(RunProgress(self.progress_note))
        if self.pop_callback(TensorBoardCallback) is not None:
            self.add_callback(KernelBoard(self.output_folder))
        self.add_callback(_HookCallback(self))

    def progress_note(self) -> str:
        """Hook: the text after the progress bar, here empty."""
        return ""

    # Data

    def train_plan(self) -> StepPlan:
        """The plan that assigns examples to training steps."""
        return StepPlan.of_training(self.args, len(self.train_dataset))

    def train_loader(self, dataset: Dataset[Any], collate: Callable[[Any], Any]) -> DataLoader[Any]:
        """The current epoch's micro-batches of this process, see ``slices_loader``."""
        plan = self.train_plan()
        return slices_loader(self.args, dataset, plan, lambda: self.state.global_step // plan.steps_per_epoch, collate)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The optimizer, whose groups note their peak rate; schedules that depend on the loss don't."""
        optimizer = super().create_optimizer(*args, **kwargs)
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        return optimizer

    # Hooks of a training step

    def training_begins(self) -> None:
        """Hook before the first step: complete a restored state, apply this run's flags and folder, seed dropout."""
        # Processes with the same seed would drop the same elements of their different examples.
        torch.manual_seed(self.args.seed + self.state.global_step * self.args.world_size + self.args.process_index)
        self.state.compute_steps(self.args, self.state.max_steps)
        if self.state.global_step and owes_evaluation(self.args, self.state, self.train_plan().steps_per_epoch):
            self._published_step = self.state.global_step  # the state of the random numbers is not restored yet
            self.control.should_evaluate = True
            self._maybe_log_save_evaluate(None, None, self.model_wrapped, None, None, None, None)
        best = self.output_folder / f"checkpoint-{self.state.best_global_step}"
        if best.is_dir():  # the run may have been moved
            self.state.best_model_checkpoint = str(best)

    @fast_float32_products()
    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Train on one micro-batch; record the first step with a bad loss on the device, without synchronizing."""
        loss = super().training_step(*args, **kwargs)
        first_if_bad = self._first_bad_step.clamp(max=self.state.global_step)
        self._first_bad_step = torch.where(torch.isfinite(loss), self._first_bad_step, first_if_bad)
        return loss

    def step_finished(self, control: TrainerControl) -> None:
        """Hook after a step, before logging, evaluating and saving: agree on all processes whether to save and stop."""
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
        """Hook after an evaluation batch: stop the evaluation if a signal was received.

        Raises:
            EvaluationAbandonedError: on all processes.
        """
        if self.collectives.any(self.watch.received is not None):
            raise EvaluationAbandonedError

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log, evaluate and save as the Trainer does; then save and stop if a signal was received by now."""
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
            if self.args.save_only_model:  # else the run could not be resumed
                self.args.save_only_model, self._published_step = False, -1
            self._save_checkpoint(self.model_wrapped, trial=None)
            raise RunInterrupted(
                f"stopped by {self.watch.cause or 'a signal to another process'} after step {self.state.global_step}, "
                f"saved as {checkpoints.newest_complete(self.output_folder)}; resume with: {resume_command()}"
            )

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """Without a limit of 1, by which the Trainer would delete the last checkpoint before results are written."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    # Bad losses

    def check_before_saving(self) -> None:
        """Raise ``TrainingDiverged`` on all processes if any has had a NaN or infinite loss or has such a weight."""
        self.check_losses()
        sums = torch.stack([weights.detach().float().abs().sum() for weights in self.model.parameters()])
        if self.collectives.any(not torch.isfinite(sums).all()):
            self._stop_diverged(self.state.global_step - 1, "the weights are no longer finite")

    def check_losses(self) -> None:
        """Stop all processes if any has had a NaN or infinite loss; synchronizes with the accelerator.

        Raises:
            TrainingDiverged: with the step, its samples and the last good checkpoint.
        """
        first = self.collectives.smallest(int(self._first_bad_step))
        if first != _NEVER:
            self._stop_diverged(first, "the loss was NaN or infinite")

    def _stop_diverged(self, step: int, what: str) -> NoReturn:
        samples = self.train_plan().samples_of_step(step)
        raise divergence_error(self.output_folder, what, step, samples, self.is_world_process_zero())

    # Saving

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Save at most once per step; if that fails, report it and train on, or raise if the run is about to stop."""
        if self._published_step == self.state.global_step:
            return
        self.check_before_saving()
        destination = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        random_states = self._gather_random_states()
        failure = self.collectives.failure_of(lambda: self._write_checkpoint(model, trial, destination, random_states))
        self._last_saved = time.monotonic()
        if failure is None:
            self._published_step = self.state.global_step
            return
        message = (
            f"the checkpoint of step {self.state.global_step} could not be written to {destination.parent} "
            f"({failure}); earlier checkpoints are untouched; make room there"
        )
        if self._must_stop:
            raise checkpoints.NotSavedError(message) from failure
        if self.is_world_process_zero():
            logger.error(f"{message}. Training continues and tries again at the next checkpoint.")

    def save_model_as(self, destination: Path) -> None:
        """Save model and tokenizer, without the state for resuming, in the folder ``destination`` in the output folder.

        Raises:
            NotSavedError: they could not be written; an existing folder of that name is untouched.
        """
        self.check_before_saving()

        def write() -> None:
            with self._publishing(destination) as staged:
                self.save_model(str(staged))

        failure = self.collectives.failure_of(write)
        if failure is not None:
            raise checkpoints.NotSavedError(
                f"{destination} could not be written ({failure}); make room there and resume with: {resume_command()}"
            ) from failure

    @contextlib.contextmanager
    def _publishing(self, destination: Path) -> Iterator[Path]:
        """Yield a new folder for all processes to fill; on success the first renames it to ``destination``."""
        staging = destination.parent / checkpoints.STAGING_NAME
        if not self.args.should_save:
            yield staging / destination.name
            return
        with self.watch.removed_on_exit(staging), checkpoints.staged(destination, self.run_facts) as folder:
            yield folder

    def _write_checkpoint(self, model: torch.nn.Module, trial: Any, folder: Path, random_states: list[bytes]) -> None:
        if not all(random_states):
            raise OSError("no room for the random state")
        best_step, self.state.best_global_step = self.state.best_global_step, None  # restored below, as is the log:
        log, self.state.log_history = self.state.log_history, []  # the Trainer would take 5 s to write 100,000 entries
        try:
            with self._publishing(folder) as staged:
                self._staging = staged.parent
                super()._save_checkpoint(model, trial)
                self.state.best_global_step, self.state.log_history = best_step, log
                best = folder.with_name(f"checkpoint-{best_step}")
                if best == folder or best.is_dir():
                    self.state.best_model_checkpoint = str(best)
                if self.args.should_save:
                    entries = {field.name: getattr(self.state, field.name) for field in dataclasses.fields(self.state)}
                    (staged / TRAINER_STATE_NAME).write_text(json.dumps(entries) + "\n", encoding="utf-8")
                    for process, state in enumerate(random_states):
                        (staged / f"rng_state_{process}.pth").write_bytes(state)
            if self.args.should_save:
                best = Path(self.state.best_model_checkpoint or folder)
                checkpoints.rotate(folder.parent, self.args.save_total_limit, keep=folder, best=best)
        finally:
            self._staging, self.state.best_global_step, self.state.log_history = None, best_step, log

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the model, and the arguments as JSON instead of the Trainer's pickle."""
        logging.disable_progress_bar()  # the run has its own bar
        try:
            super()._save(output_dir, state_dict)
        finally:
            logging.enable_progress_bar()
        if self.args.should_save:
            folder = Path(output_dir or self.output_folder)
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            files.write_text(folder / "training_args.json", self.args.to_json_string() + "\n")

    def _gather_random_states(self) -> list[bytes]:
        """The random state files of all processes, empty where writing failed; an empty list with one process."""
        if self.args.world_size == 1 or self.args.save_only_model:
            return []
        own = b""
        with contextlib.suppress(OSError, RuntimeError), tempfile.TemporaryDirectory() as scratch:
            super()._save_rng_state(scratch)
            own = next(Path(scratch).iterdir()).read_bytes()
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
            with checkpoints.safe_globals():
                super()._load_rng_state(checkpoint)
            return
        logger.warning(
            f"{checkpoint} was saved by {saved} processes and is resumed with {self.args.world_size}: "
            f"the data are the same, but dropout differs from an uninterrupted run."
        )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Restore both, then apply this run's flags: the schedule continues with their peak learning rate."""
        if checkpoint is None:
            return
        if not (Path(checkpoint) / OPTIMIZER_NAME).is_file():
            raise UsageError(
                f"{checkpoint} was saved without its optimizer (--save_only_model) and can't be resumed; start "
                f"from its weights with --model_name_or_path {checkpoint}"
            )
        given = optimizer_settings(self.optimizer)
        super()._load_optimizer_and_scheduler(checkpoint)
        apply_settings(given, self.optimizer, self.lr_scheduler)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse a checkpoint with missing or unknown weights; tied weights may be missing."""
        differing = set(load_result.missing_keys) - set(self.model.all_tied_weights_keys), load_result.unexpected_keys
        if any(differing):
            missing, unknown = (", ".join(sorted(names)[:3]) or "none" for names in differing)
            raise UsageError(
                f"the checkpoint is of another model (missing: {missing}; unknown: {unknown}); resume with the flags "
                f"that the run was started with"
            )


class _HookCallback(TrainerCallback):
    """Calls the trainer's hooks, after the Trainer's own callbacks."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.training_begins()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.step_finished(control)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.evaluation_batch_finished()
