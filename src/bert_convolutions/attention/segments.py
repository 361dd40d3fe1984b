"""The examples in each row of a batch: tokens neither attend to nor are convolved with other examples or padding.

Legend: B rows, S sequence, H heads, C channels, n reach. An attention mask (B, S) holds, for each token, the number of
its example in the row, counted from 1; 0 is padding. With the usual mask of zeros and ones, each row is one example.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bert_convolutions.attention.autograd import requires_plain_ops


@dataclass(frozen=True, eq=False)
class Segments:
    """The segments of a batch, created once per forward pass and shared by all layers.

    Attributes:
        examples: (B, S) int64, 0 for padding and k > 0 for the k-th example of the row, in increasing order; None
            if each row is one example without padding.
        pairs: None, or used instead of ``examples``, broadcastable to (B, H, S, S): boolean, whether a pair may attend;
            or floating point, added to its score.
        examples_per_row: upper bound on the examples in any row, or None if unknown.
        cached_mask: the score mask, cached for all layers; see ``with_mask``.
        cached_spans: the spans, likewise; see ``with_spans``.
    """

    examples: Tensor | None = None
    pairs: Tensor | None = None
    examples_per_row: int | None = None
    cached_mask: Tensor | None = None
    cached_spans: Tensor | None = None

    @classmethod
    def from_mask(
        cls, attention_mask: Tensor | None, examples_per_row: int | None = None, size: tuple[int, ...] | None = None
    ) -> "Segments":
        """Create segments from an attention mask.

        Args:
            attention_mask: (1 or B, S) of any dtype, k for the k-th example of the row (convolutions over tokens rely
                on numbers that increase and are at most S); or a mask of pairs, (1 or B, S, S) or
                (1 or B, 1 or H, S, S), as in ``torch.nn.functional.scaled_dot_product_attention``: boolean or integer,
                0 where a pair may not attend, or floating point, added to the scores whatever its values. Convolutions
                over tokens refuse a mask of pairs.
            examples_per_row: upper bound on the numbers in a mask (B, S), which only convolutions over tokens need. If
                None, they read it from the device, once per forward pass.
            size: (B, S) of the tokens; None if it is not to be checked.

        Raises:
            ValueError: the mask has another number of dimensions or another size.
        """
        if attention_mask is None:
            return cls()
        if attention_mask.dim() == 2:
            if size and not torch.jit.is_tracing() and attention_mask.shape not in (size, (1, size[1])):
                raise ValueError(
                    f"the attention mask has shape {tuple(attention_mask.shape)}, not (B, S) = {tuple(size)}; a mask "
                    "of pairs is (1, S, S) or (B, S, S)"
                )
            return cls(attention_mask.long(), None, 1 if attention_mask.dtype == torch.bool else examples_per_row)
        if attention_mask.dim() not in (3, 4):
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; (B, S) or (B, H, S, S) is expected"
            )
        pairs = attention_mask if attention_mask.dim() == 4 else attention_mask.unsqueeze(1)
        return cls(pairs=pairs if pairs.is_floating_point() else pairs.bool())

    def to(self, device: torch.device | str | int) -> "Segments":
        """Move to another device."""
        tensors = {name: part for name, part in vars(self).items() if isinstance(part, Tensor)}
        moved: dict[str, Any] = {name: part.to(device) for name, part in tensors.items()}
        return replace(self, **moved)

    def with_count(self) -> "Segments":
        """A copy with ``examples_per_row``, which is read from the device if unknown.

        It can't be read in compiled or exported graphs or from tensors without data: there it is S, correct but slow.
        """
        if self.examples is None or self.examples_per_row is not None:
            return self
        if self.examples.is_meta or requires_plain_ops(self.examples):
            return replace(self, examples_per_row=self.examples.shape[1])
        return replace(self, examples_per_row=max(int(self.examples.max()), 1) if self.examples.numel() else 1)

    def score_mask(self, dtype: torch.dtype) -> Tensor | None:
        """The mask that is added to the scores: 0 within an example, a large negative number between examples.

        Padding attends to padding, so that no row of the softmax is empty. The negative number is half of the lowest
        of the dtype, so that adding the bias doesn't overflow.

        Returns:
            (B, 1 or H, S, S) of ``dtype``, or None if all pairs may attend.
        """
        if self.cached_mask is not None and self.cached_mask.dtype == dtype:
            return self.cached_mask
        lowest = torch.finfo(dtype).min / 2
        allowed = self.pairs
        if self.examples is not None:
            allowed = (self.examples.unsqueeze(2) == self.examples.unsqueeze(1)).unsqueeze(1)
        if allowed is None:
            return None
        if allowed.is_floating_point():
            return allowed.to(dtype).clamp(min=lowest)
        return torch.where(allowed, allowed.new_zeros((), dtype=dtype), lowest)

    def with_mask(self, dtype: torch.dtype) -> "Segments":
        """A copy that caches the score mask, for backends that need a dense one."""
        return replace(self, cached_mask=self.score_mask(dtype))

    def spans(self) -> Tensor | None:
        """The example of each token, and where it begins and ends, for backends that skip everything outside of it.

        Computed without synchronizing with the device. Padding counts as an example. A span reaches from the first to
        the last token of a number, whatever lies between them.

        Returns:
            (3, B, S) int32: the number of each token's example, and the example's first and last position. The number
            is replaced by a negative one if the span may contain other examples. None if ``examples`` is None.
        """
        if self.cached_spans is not None or self.examples is None:
            return self.cached_spans
        rows, length = self.examples.shape
        # A row has at most S examples. Larger or negative numbers are clamped, which makes their spans too wide.
        numbers = self.examples.long().clamp(0, length)
        positions = torch.arange(length, device=numbers.device).expand(rows, -1)
        first = numbers.new_full((rows, length + 1), length).scatter_reduce(1, numbers, positions, "amin")
        last = numbers.new_zeros(rows, length + 1).scatter_reduce(1, numbers, positions, "amax")
        own = (numbers == self.examples).long()
        tokens = numbers.new_zeros(rows, length + 1).scatter_add(1, numbers, own)
        first, last, tokens = (each.gather(1, numbers) for each in (first, last, tokens))
        contiguous = (last - first < tokens) & (own > 0)
        number = torch.where(contiguous, self.examples, -1 - 2 * self.examples.abs() - (self.examples < 0).long())
        return torch.stack([number, first, last]).int()

    def with_spans(self) -> "Segments":
        """A copy that caches the spans."""
        return replace(self, cached_spans=self.spans())

    def convolve(self, convolution: nn.Module, reach: int, hidden: Tensor) -> Tensor:
        """Convolve each example separately: padding and other examples are zeros to it.

        The examples of a row are moved apart by the reach of the kernel, convolved together, and moved back.

        Args:
            convolution: an ``nn.Conv1d``, or a module like it, with 2n+1 weights and without padding.
            reach: n.
            hidden: (B, S, C in).

        Returns:
            (B, S, C out).

        Raises:
            ValueError: there is a mask of pairs, and the convolution would read tokens that it excludes.
        """
        if self.pairs is not None:
            raise ValueError(
                "a convolution over tokens can't follow a mask of pairs, such as a causal one; give a mask (B, S), or "
                "leave out convolution, convspan and convolutional projections"
            )
        examples, most = self.examples, self.with_count().examples_per_row
        if examples is not None:
            hidden = hidden * (examples > 0).unsqueeze(-1)
        if examples is None or most is None or (type(most) is int and most == 1):  # graphs can't branch on length
            return convolution(nn.functional.pad(hidden.transpose(1, 2), (reach, reach))).transpose(1, 2)
        number = examples.clamp(min=1).cummax(dim=1).values  # padding belongs to the example before it
        slots = reach * number + torch.arange(hidden.shape[1], device=hidden.device)  # (B, S), the first is n
        spread = hidden.new_zeros(hidden.shape[0], hidden.shape[1] + reach * (most + 1), hidden.shape[2])
        spread = spread.scatter(1, slots.unsqueeze(-1).expand_as(hidden), hidden)
        output = convolution(spread.transpose(1, 2)).transpose(1, 2)  # (B, S + n (most - 1), C out)
        return output.gather(1, (slots - reach).unsqueeze(-1).expand(hidden.shape[0], -1, output.shape[2]))
