"""The Trainer's checkpoints, made atomic: written into a staging folder, checked in, renamed, thinned out."""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.utils import logging

from bert_convolutions import files
from bert_convolutions.errors import CommandError, UsageError
from bert_convolutions.training import checkpoints
from bert_convolutions.training.collectives import Collectives
from bert_convolutions.training.interrupt import SignalWatch

logger = logging.get_logger(__name__)


class CheckpointNotSavedError(CommandError):
    """Writing a checkpoint failed, on a full disk for instance; what was there before is untouched."""


class AtomicCheckpointMixin(Trainer):
    """A ``Trainer`` whose checkpoints appear whole or not at all, and only on the first process.

    The Trainer writes ``checkpoint-<step>`` into ``_get_output_dir``; while it does, that is a staging folder beside
    the place. No pickle is left in it: the arguments go into ``training_args.json``.

    Attributes:
        collectives: what the processes tell each other.
        watch: the signals; a scratch folder is removed if a second Ctrl-C ends the process at once.
        run_facts: JSON values that a resumed run must agree with; kept in each checkpoint's manifest.
    """

    model: Any  # one that is always there, unlike the Trainer's own declaration says

    def __init__(self, *args: Any, watch: SignalWatch | None = None, **kwargs: Any) -> None:
        self.watch = watch or SignalWatch()
        self.run_facts: dict[str, Any] = {}
        self._staging: Path | None = None
        self._published_step = -1
        self._random_states: list[bytes] = []
        super().__init__(*args, **kwargs)
        self.collectives = Collectives(self.args.world_size)

    def check_before_saving(self) -> None:
        """Hook: raise if the state of the model is not worth a checkpoint. Called on all processes."""

    def save_now(self) -> None:
        """Save a checkpoint of the step just finished, unless this session has saved it already.

        Raises:
            CheckpointNotSavedError: it could not be written.
        """
        self._save_checkpoint(self.model_wrapped, trial=None)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        if self._published_step == self.state.global_step:
            return
        self.check_before_saving()
        folder = Path(self._get_output_dir(trial))
        self._random_states = self._gather_random_states()
        failure: Exception | None = None if all(self._random_states) else OSError("no room for the random state")
        staging = folder / checkpoints.STAGING_NAME
        if failure is None:
            with self.watch.scratch(staging):
                failure = self._write(model, trial, folder, staging)
        if self.collectives.any(failure is not None):
            reason = failure or "the first process could not write it"
            raise CheckpointNotSavedError(
                f"the checkpoint of step {self.state.global_step} could not be written to {folder} ({reason}); "
                f"earlier checkpoints are untouched; make room there"
            ) from failure
        self._published_step = self.state.global_step

    def _write(self, model: torch.nn.Module, trial: Any, folder: Path, staging: Path) -> Exception | None:
        """Write and publish; on all processes, of which only the first touches the disk. Returns what went wrong."""
        place = folder / f"checkpoint-{self.state.global_step}"
        best_step, self.state.best_global_step = self.state.best_global_step, None  # its path would be the staging's
        try:
            self._staging = staging
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
                (staging / place.name).mkdir(parents=True)
            super()._save_checkpoint(model, trial)
            self.state.best_global_step = best_step
            self._note_best(folder, place)
            if self.args.should_save:
                self.state.save_to_json(str(staging / place.name / TRAINER_STATE_NAME))
                checkpoints.publish(staging / place.name, place, self.run_facts)
                best = Path(self.state.best_model_checkpoint) if self.state.best_model_checkpoint else None
                checkpoints.rotate(folder, self.args.save_total_limit, keep=place, best=best)
        except (OSError, RuntimeError, SafetensorError) as error:  # PyTorch and safetensors have their own disk errors
            return error
        finally:
            self._staging = None
            self.state.best_global_step = best_step
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
        return None

    def _note_best(self, folder: Path, place: Path) -> None:
        if self.state.best_global_step:
            best = folder / f"checkpoint-{self.state.best_global_step}"
            if best == place or best.is_dir():
                self.state.best_model_checkpoint = str(best)

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
        """The random states of all processes, written by the first."""
        if self.args.world_size == 1:
            super()._save_rng_state(output_dir)
        elif self.args.should_save:
            for process, state in enumerate(self._random_states):
                (Path(output_dir) / f"rng_state_{process}.pth").write_bytes(state)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore this process's random state; a run on another number of processes gets a new, reproducible one."""
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

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse a checkpoint whose weights are not the model's; weights tied to others are rightly left out."""
        missing = set(load_result.missing_keys) - set(self.model.all_tied_weights_keys)
        if missing or load_result.unexpected_keys:
            raise UsageError(
                f"the checkpoint is of another model (missing: {_some(missing)}; unknown: "
                f"{_some(load_result.unexpected_keys)}); resume with the flags that the run was started with"
            )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the model; the arguments as JSON instead of the Trainer's pickle."""
        logging.disable_progress_bar()  # one bar is enough, and it is the run's
        try:
            super()._save(output_dir, state_dict)
        finally:
            logging.enable_progress_bar()
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir or ".")
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            files.write_text(folder / "training_args.json", self.args.to_json_string() + "\n")


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:3]) or "none"
