"""Dropout with fast random numbers: on a CPU, PyTorch's dropout takes longer than the layer it is applied to.

PyTorch draws one number per element, sequentially on one core, while the others wait: 5 ns each, half of the time of an
attention layer. Here all cores hash a counter: 64 bits, which serve four elements, take 1 ns on two cores. The
probability is rounded to 1/65536. The counter starts at a number from PyTorch's global generator, so that generator's
seeds and saved states determine this dropout too.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from bert_convolutions.attention.autograd import requires_plain_ops

_STEP = -0x61C8864680B583EB
"""2^64 divided by the golden ratio, as a signed number: the step of the counter, as in SplitMix64."""
_MULTIPLIER = -0x2917014799A6026D
"""Of the hash "degski64" (x ^= x >> 32, then x *= multiplier, twice, and x ^= x >> 32), as a signed number."""
_WORDS_AT_ONCE = 2**18
"""Words of 64 bits that are drawn at once: 2 MiB, which stay in the caches."""


@cache
@torch.inference_mode(False)  # cached for training too, which can't use inference tensors
def _counters(number: int) -> Tensor:
    """The first values of the counter, (number,) int64."""
    return torch.arange(number, device="cpu") * _STEP


def random_words(number: int) -> Tensor:
    """Random integers of 64 bits, (number,) int64, from the state of PyTorch's generator; at most _WORDS_AT_ONCE."""
    words = _counters(_WORDS_AT_ONCE)[:number] + int(torch.randint(2**63 - 1, (), device="cpu"))
    low, high = words.view(torch.int32).view(-1, 2).unbind(1)
    for _ in range(2):
        low.bitwise_xor_(high)
        words *= _MULTIPLIER
    low.bitwise_xor_(high)
    return words


def draw_keep_mask(mask: Tensor, rate: float) -> Tensor:
    """Fill ``mask``, a contiguous CPU tensor, with ones (probability ``1 - rate``) and zeros, and return it."""
    for part in mask.view(-1).split(4 * _WORDS_AT_ONCE):
        bits = random_words((len(part) + 3) // 4).view(torch.int16)
        torch.ge(bits[: len(part)], min(round(rate * 65536), 65535) - 32768, out=part)
    return mask


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
