"""Notices a loss that is NaN or infinite without waiting for the GPU in every step."""

import torch


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
