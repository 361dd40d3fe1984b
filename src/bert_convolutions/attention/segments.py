"""Where examples begin and end in a batch, so that nothing crosses from one into another or into padding.

Legend: B rows, S sequence, H heads, C channels, n reach. An attention mask (B, S) holds, for each token, the number of
its example in the row, counted from 1; 0 is padding. The usual mask of zeros and ones is one example a row.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bert_convolutions.attention.autograd import must_be_seen_through


@dataclass(frozen=True, eq=False)
class Segments:
    """The segments of a batch. Made once per forward pass and shared by all layers.

    Attributes:
        examples: (B, S) int64, 0 for padding and k > 0 for the k-th example of the row, in increasing order; None
            where every token of a row belongs to the one example in it.
        pairs: None, or broadcastable to (B, H, S, S), instead of ``examples``: boolean, which pairs may attend; or
            floating point, what is added to their scores.
        examples_per_row: at least as many as any row has; None where nobody has counted.
        kept_mask: the score mask, where it is kept for the layers to share; see ``with_mask``.
        kept_spans: likewise the spans; see ``with_spans``.
    """

    examples: Tensor | None = None
    pairs: Tensor | None = None
    examples_per_row: int | None = None
    kept_mask: Tensor | None = None
    kept_spans: Tensor | None = None

    @classmethod
    def from_mask(cls, attention_mask: Tensor | None, examples_per_row: int | None = None) -> "Segments":
        """Read an attention mask.

        Args:
            attention_mask: (B, S) of any dtype, the numbers of the examples; or of pairs, (B, S, S) or
                (B, 1 or H, S, S): boolean and integers say which may attend (0 may not), and a floating-point mask is
                added to the scores, as in ``torch.nn.functional.scaled_dot_product_attention``, whatever its values.
                Convolutions over tokens don't go by such a mask: they see the whole row.
            examples_per_row: a bound on the numbers in a mask (B, S). Only convolutions over tokens need it; without
                it they ask the device, once a forward pass.

        Raises:
            ValueError: for another number of dimensions.
        """
        if attention_mask is None:
            return cls()
        if attention_mask.dim() == 2:
            return cls(attention_mask.long(), None, 1 if attention_mask.dtype == torch.bool else examples_per_row)
        if attention_mask.dim() not in (3, 4):
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; (B, S) or (B, H, S, S) is expected"
            )
        pairs = attention_mask if attention_mask.dim() == 4 else attention_mask.unsqueeze(1)
        return cls(pairs=pairs if pairs.is_floating_point() else pairs.bool())

    def to(self, device: torch.device | str | int) -> "Segments":
        """The same on another device."""
        tensors = {name: part for name, part in vars(self).items() if isinstance(part, Tensor)}
        moved: dict[str, Any] = {name: part.to(device) for name, part in tensors.items()}
        return replace(self, **moved)

    def counted(self) -> "Segments":
        """The same with ``examples_per_row``, which is asked of the device if nobody has counted.

        A graph that is compiled or exported can't ask, nor one without data: it takes S, which is right and slow.
        """
        if self.examples is None or self.examples_per_row is not None:
            return self
        if self.examples.is_meta or must_be_seen_through(self.examples):
            return replace(self, examples_per_row=self.examples.shape[1])
        return replace(self, examples_per_row=max(int(self.examples.max()), 1) if self.examples.numel() else 1)

    def score_mask(self, dtype: torch.dtype) -> Tensor | None:
        """What is added to the scores: 0 inside an example, a large negative number across a border.

        Padding attends to padding, so that no row of the softmax is empty. Half of the most negative number leaves
        room for the bias that is added to it.

        Returns:
            (B, 1 or H, S, S) of ``dtype``, or None where every pair may attend.
        """
        if self.kept_mask is not None and self.kept_mask.dtype == dtype:
            return self.kept_mask
        lowest = torch.finfo(dtype).min / 2
        allowed = self.pairs
        if self.examples is not None:
            allowed = (self.examples.unsqueeze(2) == self.examples.unsqueeze(1)).unsqueeze(1)
        if allowed is None:
            return None
        if allowed.is_floating_point():
            return allowed.to(dtype).clamp(min=lowest)
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, lowest)

    def with_mask(self, dtype: torch.dtype) -> "Segments":
        """The same, keeping their score mask: for backends that add a dense one."""
        return replace(self, kept_mask=self.score_mask(dtype))

    def spans(self) -> Tensor | None:
        """Which example each token is of and where that begins and ends, for backends that skip what lies outside.

        Found on the device, without asking it for a number. Padding counts as an example; a span reaches from the first
        token of that number to the last, whatever lies between.

        Returns:
            (3, B, S) int32: the number of the token's example, its first and its last position. The number is replaced
            by a negative one where tokens of others may lie between these. None where ``examples`` is.
        """
        if self.kept_spans is not None or self.examples is None:
            return self.kept_spans
        rows, length = self.examples.shape
        # A row has at most S examples. Should numbers be larger or negative, their examples share too wide a span.
        numbers = self.examples.long().clamp(0, length)
        positions = torch.arange(length, device=numbers.device).expand(rows, -1)
        first = numbers.new_full((rows, length + 1), length).scatter_reduce(1, numbers, positions, "amin")
        last = numbers.new_zeros(rows, length + 1).scatter_reduce(1, numbers, positions, "amax")
        own = (numbers == self.examples).long()
        tokens = numbers.new_zeros(rows, length + 1).scatter_add(1, numbers, own)
        first, last, tokens = (each.gather(1, numbers) for each in (first, last, tokens))
        alone = (last - first < tokens) & (own > 0)
        number = torch.where(alone, self.examples, -1 - 2 * self.examples.abs() - (self.examples < 0).long())
        return torch.stack([number, first, last]).int()

    def with_spans(self) -> "Segments":
        """The same, keeping their spans."""
        return replace(self, kept_spans=self.spans())

    def convolve(self, convolution: nn.Module, reach: int, hidden: Tensor) -> Tensor:
        """Convolve each example on its own: to it, padding and other examples are zeros.

        The examples of a row are moved apart by the reach of the kernel, convolved at once, and moved back.

        Args:
            convolution: as ``nn.Conv1d`` of 2n+1 weights without padding of its own.
            reach: n.
            hidden: (B, S, C in).

        Returns:
            (B, S, C out).
        """
        examples, most = self.examples, self.counted().examples_per_row
        if examples is not None:
            hidden = hidden * (examples > 0).unsqueeze(-1)
        if examples is None or most is None or (type(most) is int and most == 1):  # a graph has no branch on its length
            return convolution(nn.functional.pad(hidden.transpose(1, 2), (reach, reach))).transpose(1, 2)
        number = examples.clamp(min=1).cummax(dim=1).values  # padding counts to the example before it
        slots = reach * number + torch.arange(hidden.shape[1], device=hidden.device)  # (B, S), first at `reach`
        apart = hidden.new_zeros(hidden.shape[0], hidden.shape[1] + reach * (most + 1), hidden.shape[2])
        apart = apart.scatter(1, slots.unsqueeze(-1).expand_as(hidden), hidden)
        output = convolution(apart.transpose(1, 2)).transpose(1, 2)  # (B, S + n (most - 1), C out)
        return output.gather(1, (slots - reach).unsqueeze(-1).expand(-1, -1, output.shape[2]))
