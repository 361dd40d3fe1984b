"""The convolution terms as a few columns of weights per position (derived in ``fused``), and their gradients.

Queries and keys have 2n columns each: 2n-1 ``near``, for the offsets from -(n-1) to n-1, and ``later``.

Legend: B batch, H heads, G = B x H, S sequence, d head size, n reach, w = 2n-1 offsets near.
"""

from functools import lru_cache

import torch
from torch import Tensor

from bert_convolutions.attention.cpu.tiles import empty_with_margin


@lru_cache
@torch.inference_mode(False)  # cached for training too, which can't use inference tensors
def _basis(side: str, width: int, dtype: torch.dtype) -> Tensor:
    """(2n+1, 2n): the matrix that maps weights by offset (other position minus own position) to columns."""
    later, earlier = (width - 1, 0) if side == "query" else (0, width - 1)
    basis = torch.zeros(width, max(width - 1, 1), dtype=dtype, device="cpu")
    basis[1:-1, :-1].fill_diagonal_(1)
    basis[later, -1] += 1
    basis[earlier] -= 1
    return basis


class Columns:
    """The terms of the queries or of the keys: maps projections to columns, and propagates gradients back.

    Args:
        side: ``query`` or ``key``.
        dynamic: sum of the dynamic kernels, (d, 2n+1), or None.
        fixed: sum of the fixed kernels, (1, H or 1, 1, 2n+1), or None; not both are None.
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

    def of(self, projection: Tensor | None, shift: Tensor | None = None) -> Tensor:
        """The columns (G, S, 2n), with a margin of n-1 positions, of projections (G, S, d) minus ``shift`` (d,)."""
        batch, heads, length, _ = self._shape
        number = self._basis.shape[1]
        columns = empty_with_margin(self._basis, (batch * heads, length, number), max(number // 2 - 1, 0) * number)
        constant = self._fixed
        if self._dynamic is not None and projection is not None:
            torch.mm(projection.flatten(0, 1), self._dynamic, out=columns.flatten(0, 1))
            if shift is not None:
                constant = (0 if constant is None else constant) - shift @ self._dynamic
        else:
            columns.zero_()
        if constant is not None:  # expanded to all positions first: adding long rows is faster
            columns.view(batch, -1).add_(constant.expand(1, heads, length, number).reshape(1, -1))
        return columns

    def grads(
        self, grad_columns: Tensor, projection: Tensor | None, shift: Tensor | None, grad_projection: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of the projections (G, S, d), of the dynamic and of the fixed kernels.

        Args:
            grad_columns: gradient of the columns (G, S, 2n).
            projection, shift: as in ``of``.
            grad_projection: gradient of the projections from the dot product, updated in place; or None.
        """
        grad_dynamic = grad_fixed = None
        if self._fixed_shape is not None:
            sums = grad_columns.view(*self._shape[:3], -1).sum(0, keepdim=True).sum(2, keepdim=True)
            grad_fixed = (sums @ self._basis.mT).sum_to_size(self._fixed_shape)
        if self._dynamic is not None and projection is not None:
            flat = grad_columns.flatten(0, 1)
            # The gradient of the dynamic kernels' columns, (d, 2n); by matrices of scores, for more than one core.
            grad_product = torch.bmm(grad_columns.mT, projection).sum(0).mT
            if shift is not None:
                grad_product -= torch.outer(shift, flat.sum(0))
            grad_dynamic = (grad_product @ self._basis.mT).mul_(self._scaling)
            if grad_projection is None:
                grad_projection = (flat @ self._dynamic.mT).view_as(projection)
            else:
                grad_projection.flatten(0, 1).addmm_(flat, self._dynamic.mT)
        return grad_projection, grad_dynamic, grad_fixed
