"""Notices a loss that is NaN or infinite without waiting for the GPU in every step, and says what to do about it."""

import contextlib
from pathlib import Path

import torch

from bert_convolutions import files
from bert_convolutions.errors import TrainingDiverged
from bert_convolutions.training import checkpoints

DIVERGED_NAME = "diverged.json"
_SAMPLES_SHOWN = 64


class DivergenceGuard:
    """Remembers the first step whose loss was not finite.

    On a CPU it is known at once. On an accelerator it is kept there, since asking for it in each step would make the
    host wait; ``settle`` fetches it, to be called where the host waits anyway (logging) or must know (saving).
    """

    def __init__(self, device: torch.device) -> None:
        self.immediate = device.type == "cpu"
        self._first = torch.tensor(-1, device=device)

    def watch(self, loss: torch.Tensor, step: int) -> None:
        """Take note of the loss, 0-d, of a micro-batch of ``step``."""
        if not self.immediate:
            self._first = torch.where((self._first < 0) & ~torch.isfinite(loss), step, self._first)
        elif not torch.isfinite(loss):
            self._first = torch.where(self._first < 0, step, self._first)

    def settle(self) -> int | None:
        """The first bad step, or None; waits for the accelerator."""
        first = int(self._first)
        return None if first < 0 else first


def all_finite(model: torch.nn.Module) -> bool:
    """Whether every parameter of the model is finite; waits for the accelerator once."""
    sums = [parameter.detach().float().abs().sum() for parameter in model.parameters()]
    return bool(torch.isfinite(torch.stack(sums)).all())


def diverged(what: str, step: int, samples: list[int], folder: Path, writes: bool) -> TrainingDiverged:
    """The error that ends a run in ``step`` (0-based), and ``diverged.json`` with all its samples.

    Args:
        what: what was bad.
        step: the first bad step.
        samples: the examples it took.
        folder: the output folder.
        writes: whether this process writes the file.
    """
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
