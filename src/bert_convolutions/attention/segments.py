"""Where examples begin and end in a batch, so that nothing crosses from one into another or into padding.

Legend: B rows, S sequence, C channels. An attention mask holds, for each token, the number of its example in the row,
counted from 1; 0 is padding. The usual mask of zeros and ones is the case of one example a row.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Segments:
    """The segments of a batch. Made once per forward pass and shared by all layers.

    Attributes:
        examples: (B, S) integer, 0 for padding and k > 0 for the k-th example of the row, in increasing order; None
            where every token of a row belongs to the one example in it.
        allowed: None, or boolean, broadcastable to (B, H, S, S): which pairs may attend, instead of ``examples``.
        kept_mask: the score mask, where it is kept for the layers to share; see ``with_mask``.
        kept_spans: likewise the spans; see ``with_spans``.
    """

    examples: Tensor | None = None
    allowed: Tensor | None = None
    kept_mask: Tensor | None = None
    kept_spans: Tensor | None = None

    @classmethod
    def from_mask(cls, attention_mask: Tensor | None) -> "Segments":
        """Read a mask of shape (B, S), integer or boolean, or (B, S, S) / (B, 1 or H, S, S) of pairs.

        A mask of pairs is boolean (True may attend), 0/1, or the additive float kind (0 may attend).

        Raises:
            ValueError: for another number of dimensions.
        """
        if attention_mask is None:
            return cls()
        if attention_mask.dim() == 2:
            return cls(examples=attention_mask.long())
        if attention_mask.dim() not in (3, 4):
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; (B, S) or (B, H, S, S) is expected"
            )
        pairs = attention_mask if attention_mask.dim() == 4 else attention_mask.unsqueeze(1)
        additive = pairs.is_floating_point() and bool((pairs <= 0).all())
        return cls(allowed=pairs >= 0 if additive else pairs.bool())

    def score_mask(self, dtype: torch.dtype) -> Tensor | None:
        """What is added to the scores: 0 inside an example, a large negative number across a border.

        Padding attends to padding, so that no row of the softmax is empty. Half of the most negative number leaves
        room for the bias that is added to it.

        Returns:
            (B, 1 or H, S, S) of ``dtype``, or None where every pair may attend.
        """
        if self.kept_mask is not None and self.kept_mask.dtype == dtype:
            return self.kept_mask
        allowed = self.allowed
        if self.examples is not None:
            allowed = (self.examples.unsqueeze(2) == self.examples.unsqueeze(1)).unsqueeze(1)
        if allowed is None:
            return None
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
            ~allowed, torch.finfo(dtype).min / 2
        )

    def with_mask(self, dtype: torch.dtype) -> "Segments":
        """The same, keeping their score mask: for backends that add a dense one."""
        return replace(self, kept_mask=self.score_mask(dtype))

    def spans(self) -> Tensor | None:
        """Which example each token is of and where that begins and ends, for backends that skip what lies outside.

        Found on the device, without asking it for a number. Padding counts as an example; a span reaches from the first
        token of that number to the last, whatever lies between.

        Returns:
            (3, B, S) int32: the number of the token's example, its first and its last position; or None where ``examples`` is.
        """
        if self.kept_spans is not None or self.examples is None:
            return self.kept_spans
        rows, length = self.examples.shape
        # A row has at most S examples. Should numbers be larger or negative, their examples share too wide a span.
        numbers = self.examples.long().clamp(0, length)
        positions = torch.arange(length, device=numbers.device).expand(rows, -1)
        first = numbers.new_full((rows, length + 1), length).scatter_reduce(1, numbers, positions, "amin")
        last = numbers.new_zeros(rows, length + 1).scatter_reduce(1, numbers, positions, "amax")
        return torch.stack([self.examples, first.gather(1, numbers), last.gather(1, numbers)]).int()

    def with_spans(self) -> "Segments":
        """The same, keeping their spans."""
        return replace(self, kept_spans=self.spans())

    @cached_property
    def _most_examples(self) -> int:
        # One number from the device per forward pass, asked for by models with convolutions over tokens only.
        return 1 if self.examples is None else max(int(self.examples.max()), 1)

    def convolve(self, convolution: nn.Conv1d, hidden: Tensor) -> Tensor:
        """Convolve each example on its own: to it, padding and other examples are zeros.

        The examples of a row are moved apart by the reach of the kernel, convolved at once, and moved back.

        Args:
            convolution: odd kernel width 2n+1, without padding of its own.
            hidden: (B, S, C in).

        Returns:
            (B, S, C out).
        """
        reach = convolution.kernel_size[0] // 2
        if self.examples is None:
            return convolution(nn.functional.pad(hidden.transpose(1, 2), (reach, reach))).transpose(1, 2)
        hidden = hidden * (self.examples > 0).unsqueeze(-1)
        number = self.examples.clamp(min=1).cummax(dim=1).values  # padding counts to the example before it
        slots = reach * number + torch.arange(hidden.shape[1], device=hidden.device)  # (B, S), first at `reach`
        length = hidden.shape[1] + reach * (self._most_examples + 1)
        apart = hidden.new_zeros(hidden.shape[0], length, hidden.shape[2])
        apart = apart.scatter(1, slots.unsqueeze(-1).expand_as(hidden), hidden)
        output = convolution(apart.transpose(1, 2)).transpose(1, 2)  # (B, length - 2n, C out)
        return output.gather(1, (slots - reach).unsqueeze(-1).expand(-1, -1, output.shape[2]))
