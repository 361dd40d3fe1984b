"""Dropout with fast random numbers: on a CPU, PyTorch's dropout takes longer than the layer it is applied to.

PyTorch draws one number per element, sequentially on one core: 5 ns each, half of the time of an attention layer. Here
NumPy's SFC64 draws 64 bits in 2 ns, which serve four elements; the probability is rounded to 1/65536. It is seeded from
PyTorch's global generator, so that generator's seeds and saved states determine this dropout too.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from bert_convolutions.attention.autograd import requires_plain_ops


def draw_keep_mask(mask: Tensor, rate: float) -> Tensor:
    """Fill ``mask``, a contiguous CPU tensor, with ones (probability ``1 - rate``) and zeros, and return it."""
    elements = mask.numel()
    generator = np.random.SFC64(int(torch.randint(2**63 - 1, (), device="cpu")))
    bits = torch.from_numpy(generator.random_raw((elements + 3) // 4).view(np.int16))
    return torch.ge(bits[:elements].view(mask.shape), round(rate * 65536) - 32768, out=mask)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, rate: float) -> Tensor:
        mask = draw_keep_mask(hidden.new_empty(hidden.shape), rate).mul_(1 / (1 - rate))
        ctx.save_for_backward(mask)
        return hidden * mask

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grads[0] * mask, None


def dropout(hidden: Tensor, rate: float) -> Tensor:
    """Zero each element with probability ``rate`` and scale the others by 1/(1 - rate), as PyTorch does in training."""
    if rate <= 0 or rate >= 1 or hidden.device.type != "cpu" or requires_plain_ops(hidden):
        return functional.dropout(hidden, rate)
    return _Dropout.apply(hidden, rate)


class Dropout(nn.Dropout):
    """``torch.nn.Dropout``, faster on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply dropout to a tensor of any shape, in training only."""
        return dropout(input, self.p) if self.training else input
