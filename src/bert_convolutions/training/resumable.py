"""A Trainer that a signal can stop without a step being lost, and that stops by itself when its loss is no number."""

import contextlib
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from bert_convolutions import files
from bert_convolutions.errors import RunInterrupted, TrainingDiverged
from bert_convolutions.training import checkpoints
from bert_convolutions.training.atomic import AtomicCheckpointMixin, CheckpointNotSavedError
from bert_convolutions.training.divergence import DivergenceGuard, all_finite
from bert_convolutions.training.interrupt import ignore_signals
from bert_convolutions.training.memory import keep_freed_memory
from bert_convolutions.training.progress import ReadableProgress
from bert_convolutions.training.sampling import StepSlices

logger = logging.get_logger(__name__)

DIVERGED_NAME = "diverged.json"
_SAMPLES_SHOWN = 64
_NEVER = 2**62


class EvaluationAbandonedError(Exception):
    """A signal came during an evaluation; it is not finished, so that the run can be saved at once."""


class ResumableTrainer(AtomicCheckpointMixin):
    """Saves and leaves on SIGTERM and SIGINT, saves by the clock, and stops on a loss that is NaN or infinite.

    Args:
        save_every_minutes: save when this long has passed since the last checkpoint; the first process decides.
        All others are those of ``AtomicCheckpointMixin`` and the ``Trainer``.
    """

    def __init__(self, *args: Any, save_every_minutes: float | None = None, **kwargs: Any) -> None:
        self.train_slices: StepSlices | None = None
        super().__init__(*args, **kwargs)
        if self.args.device.type == "cpu":
            keep_freed_memory()
        self.save_every_minutes = save_every_minutes
        self.guard = DivergenceGuard(self.args.device)
        self._last_saved = time.monotonic()
        self._must_stop = False
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(ReadableProgress())
        self.add_callback(_StepControl(self))

    def slices_loader(
        self, dataset: Dataset[Any], slices: StepSlices, collate: Callable[[Any], Any]
    ) -> DataLoader[Any]:
        """Micro-batches of this process, in the order of ``slices``; nothing in it draws a random number.

        Args:
            dataset: is asked for a ``Slice`` at a time (``__getitems__``).
            slices: which ones.
            collate: makes a batch of what the data set answers.
        """
        workers = self.args.dataloader_num_workers
        return DataLoader(
            dataset,
            batch_sampler=slices,  # type: ignore[arg-type]
            collate_fn=collate,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            worker_init_fn=ignore_signals,
            generator=torch.Generator(),  # or else it draws a seed from the global one, which a resumed run repeats
        )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.train_slices is not None:
            self.train_slices.epoch = kwargs["epoch"]
        super()._run_epoch(*args, **kwargs)

    def samples_of_step(self, step: int) -> list[int]:
        """The examples of a step (0-based), for the message about a bad loss. Hook; nothing is known here."""
        return []

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch, with an eye on its loss."""
        loss = super().training_step(*args, **kwargs)
        self.guard.watch(loss, self.state.global_step)
        return loss

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
            raise interrupted(self.watch.received, self.state.global_step, Path(self.args.output_dir or "."))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Save; where that fails and the run is not about to end, say so and train on."""
        try:
            super()._save_checkpoint(model, trial)
        except CheckpointNotSavedError as error:
            if self._must_stop:
                raise
            if self.is_world_process_zero():
                logger.error(f"{error}. Training goes on and tries again at the next checkpoint.")
        self._last_saved = time.monotonic()

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; but a resumed run logs, saves and evaluates as often as its own flags say."""
        position = super()._init_training_state(max_steps, *args, **kwargs)
        self.state.compute_steps(self.args, max_steps)
        return position

    def _stop_diverged(self, step: int, what: str) -> None:
        samples = self.samples_of_step(step)
        folder = Path(self.args.output_dir or ".")
        last = checkpoints.newest_complete(folder)
        if self.is_world_process_zero():
            facts = {"step": step + 1, "samples": samples, "last_good_checkpoint": str(last) if last else None}
            with contextlib.suppress(OSError):  # a full disk must not hide the message
                files.write_json(folder / DIVERGED_NAME, facts)
        shown = ", ".join(map(str, samples[:_SAMPLES_SHOWN]))
        more = f" and {len(samples) - _SAMPLES_SHOWN} more" if len(samples) > _SAMPLES_SHOWN else ""
        raise TrainingDiverged(
            f"{what} in step {step + 1} (samples {shown}{more}; all in {folder / DIVERGED_NAME}); the last good "
            f"checkpoint is {last or 'none: this run has saved none yet'}; try a lower --learning_rate, a longer "
            f"--warmup_steps or float32"
        )


class _StepControl(TrainerCallback):
    """Brings the end of a step and of an evaluation batch to the trainer, after the Trainer's own callbacks."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.step_finished(control)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.evaluation_batch_finished()


def interrupted(signal: Any, step: int, folder: Path) -> RunInterrupted:
    """The error that ends a run which was stopped by ``signal`` and saved at ``step``."""
    name = getattr(signal, "name", "a signal to another process")
    last = checkpoints.newest_complete(folder)
    return RunInterrupted(
        f"stopped by {name} after step {step}, saved as {last}; go on with: {resume_command(sys.argv)}"
    )


def resume_command(argv: Sequence[str]) -> str:
    """The command line ``argv`` as it goes on from the newest checkpoint.

    A launcher's own part (torchrun ...) is not in ``argv`` and is to be put before it again.
    """
    words = ["bertconv"]
    skip_value = False
    for word in argv[1:]:
        if skip_value and not word.startswith("-"):
            skip_value = False
            continue
        skip_value = False
        flag = word.replace("-", "_").partition("=")[0].strip("_")
        if word.startswith("--") and flag in ("overwrite_output_dir", "resume_from_checkpoint"):
            skip_value = "=" not in word
            continue
        words.append(word)
    return shlex.join([*words, "--resume_from_checkpoint", "true"])
