"""The convolution terms as a few columns of weights per position (derived in ``fused``), and their gradients.

Queries and keys have 2n columns each: 2n-1 ``near``, for the offsets from -(n-1) to n-1, and ``later``. Offsets are the
key's position minus the query's for both. With n = 0 there is one column of zeros.

Legend: B batch, H heads, G = B x H, S sequence, d head size, n reach.
"""

from typing import Any

import torch
from torch import Tensor

from bert_convolutions.attention.cpu.tiles import empty_with_margin


def _to_columns(side: str, weights: Tensor) -> Tensor:
    """Map weights by offset (other position minus own position), (.., 2n+1), to columns, (.., 2n)."""
    if weights.shape[-1] == 1:
        return torch.zeros_like(weights)
    weights = weights.flip(-1) if side == "key" else weights
    return weights[..., 1:] - weights[..., :1]


def _from_columns(side: str, grad: Tensor, width: int) -> Tensor:
    """The gradient (.., 2n+1) of the weights from that of the columns."""
    if width == 1:
        return torch.zeros_like(grad)
    grad = torch.cat([-grad.sum(-1, keepdim=True), grad], -1)
    return grad.flip(-1) if side == "key" else grad


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
        self._side, self._shape, self._scaling = side, shape, scaling
        self._fixed_shape = None if fixed is None else fixed.shape
        self._width = next(kernel.shape[-1] for kernel in (dynamic, fixed) if kernel is not None)
        # (d, 2n) and (1, H or 1, 1, 2n)
        self._dynamic = None if dynamic is None else (_to_columns(side, dynamic) * scaling).to(dtype)
        self._fixed = None if fixed is None else _to_columns(side, fixed).to(dtype)

    def of(self, projection: Tensor | None, shift: Tensor | None = None) -> Tensor:
        """The columns (G, S, 2n), with a margin of n positions, of projections (G, S, d) minus ``shift`` (d,)."""
        batch, heads, length, _ = self._shape
        weights: Any = self._fixed if self._dynamic is None else self._dynamic
        number = weights.shape[-1]
        columns = empty_with_margin(weights, (batch * heads, length, number), number // 2 * number)
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
            grad_fixed = _from_columns(self._side, sums, self._width).sum_to_size(self._fixed_shape)
        if self._dynamic is not None and projection is not None:
            flat = grad_columns.flatten(0, 1)
            # The gradient of the dynamic kernels' columns, (d, 2n); by matrices of scores, for more than one core.
            grad_product = torch.bmm(grad_columns.mT, projection).sum(0).mT
            if shift is not None:
                grad_product -= torch.outer(shift, flat.sum(0))
            grad_dynamic = _from_columns(self._side, grad_product, self._width).mul_(self._scaling)
            if grad_projection is None:
                grad_projection = (flat @ self._dynamic.mT).view_as(projection)
            else:
                grad_projection.flatten(0, 1).addmm_(flat, self._dynamic.mT)
        return grad_projection, grad_dynamic, grad_fixed
