"""The convolution terms as a few columns of weights a position.

From the reach on, a convolution term is the same for all later positions and the same for all earlier ones. Less what
it is for the earlier ones, it is

    bias[i, j] = near[i, j - i] + (later_i + later_j  if j > i  else  0),    near = 0 where |j - i| >= n

What was taken off a query's weights, softmax doesn't see, since it is the same for all keys. What was taken off a key's
weights is k_j . c / sqrt(d) for one c of the layer, so it is added to all queries: (q_i + c) . k_j / sqrt(d). Queries
and keys have 2n columns each, ``near`` and ``later``: 16 with the paper's n, as many as a matrix product takes at once.

Legend: B batch, H heads, G = B x H, S sequence, d head size, n reach, w = 2n-1 offsets near.
"""

from functools import lru_cache

import torch
from torch import Tensor

from bert_convolutions.attention.cpu.tiles import with_room


@lru_cache
@torch.inference_mode(False)  # kept for training too, which takes no inference tensors
def _basis(side: str, width: int, dtype: torch.dtype) -> Tensor:
    """(2n+1, 2n): weights by offset times this are columns. An offset is "other minus own position"."""
    reach, near = width // 2, max(width - 2, 0)
    later, earlier = (width - 1, 0) if side == "query" else (0, width - 1)
    basis = torch.zeros(width, near + 1, dtype=dtype)
    for column in range(near):
        offset = column + 1
        is_later = offset > reach if side == "query" else offset < reach
        basis[offset, column] += 1
        basis[later if is_later else earlier, column] -= 1
    basis[later, near] += 1
    basis[earlier, near] -= 1
    return basis


class Columns:
    """The terms of the queries or the keys: from projections to columns, and the gradients back.

    Args:
        side: ``query`` or ``key``.
        dynamic: the sum of the dynamic terms, (d, 2n+1); or None.
        fixed: that of the others, (1, H or 1, 1, 2n+1); or None, but not both.
        scaling: 1/sqrt(d).
        shape: B, H, S, d.
        dtype: of the projections.
    """

    def __init__(
        self,
        side: str,
        dynamic: Tensor | None,
        fixed: Tensor | None,
        scaling: float,
        shape: torch.Size,
        dtype: torch.dtype,
    ) -> None:
        self._shape, self._scaling = shape, scaling
        self._fixed_shape = None if fixed is None else fixed.shape
        width = next(kernel.shape[-1] for kernel in (dynamic, fixed) if kernel is not None)
        self._basis = _basis(side, width, dtype)
        self._dynamic = None if dynamic is None else (dynamic.to(dtype) @ self._basis).mul_(scaling)  # (d, 2n)
        self._fixed = None if fixed is None else fixed.to(dtype) @ self._basis  # (1, H or 1, 1, 2n)

    def of(self, projection: Tensor | None, unseen: Tensor | None = None) -> Tensor:
        """The columns (G, S, 2n), with room for n-1 positions, of projections (G, S, d) less ``unseen`` (d,)."""
        batch, heads, length, _ = self._shape
        number = self._basis.shape[1]
        columns = with_room(self._basis, (batch * heads, length, number), max(number // 2 - 1, 0) * number)
        constant = self._fixed
        if self._dynamic is not None and projection is not None:
            torch.mm(projection.flatten(0, 1), self._dynamic, out=columns.flatten(0, 1))
            if unseen is not None:
                constant = (0 if constant is None else constant) - unseen @ self._dynamic
        else:
            columns.zero_()
        if constant is not None:
            columns.view(batch, heads, length, number).add_(constant)
        return columns

    def gradients(
        self, columns: Tensor, projection: Tensor | None, unseen: Tensor | None, by_projection: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of the projections (G, S, d), of the dynamic and of the fixed terms.

        Args:
            columns: that of the columns (G, S, 2n).
            projection, unseen: as in ``of``.
            by_projection: what the dot product adds to the first, which is written to; or None.
        """
        by_dynamic = by_fixed = None
        if self._fixed_shape is not None:
            sums = columns.view(*self._shape[:3], -1).sum((0, 2), keepdim=True)
            by_fixed = (sums @ self._basis.mT).sum_to_size(self._fixed_shape)
        if self._dynamic is not None and projection is not None:
            flat = columns.flatten(0, 1)
            by_columns = projection.flatten(0, 1).mT @ flat
            if unseen is not None:
                by_columns -= torch.outer(unseen, flat.sum(0))
            by_dynamic = (by_columns @ self._basis.mT).mul_(self._scaling)
            if by_projection is None:
                by_projection = (flat @ self._dynamic.mT).view_as(projection)
            else:
                by_projection.flatten(0, 1).addmm_(flat, self._dynamic.mT)
        return by_projection, by_dynamic, by_fixed
