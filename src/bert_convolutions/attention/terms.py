"""The convolution terms of the score equation, one declaration each. Add new terms here.

A term adds a convolution kernel to the score. It belongs to one side, the query or the key, and gives each position p
of that side *weights by offset*, (B, H, S, 2n+1): entry ``[p, n + r]`` is added to the score of p with position p + r
of the other side. A fixed kernel consists of these weights; a dynamic one yields them when multiplied by the projection
of p. Offsets beyond the reach n share the end weight, so attention stays global. ``attention.offsets`` expands the
weights to scores.

Shapes: B batch, S sequence, H heads, d head size, n reach (the kernel is 2n+1 wide).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True)
class Term:
    """One convolution term.

    Attributes:
        side: whether the position p above is that of the query, i, or of the key, j.
        dynamic: whether the weights are that side's projection times the kernel, over sqrt(d); otherwise they are the
            kernel itself, and the projection need not exist.
        shape: (H, d, 2n+1) -> shape of the term's parameter, which is named ``<term>_param``.
        initial: zeros, or uniform within 1/sqrt(2n+1): the paper's code takes Kaiming-uniform with a = sqrt(5).
        kernel: parameter -> kernel, (d, 2n+1) or (H, d, 2n+1) if dynamic, else (1, H or 1, 1, 2n+1); by default the
            parameter itself.
    """

    side: Literal["query", "key"]
    dynamic: bool
    shape: Callable[[int, int, int], tuple[int, ...]]
    initial: Literal["zeros", "kaiming_uniform"]
    kernel: Callable[[Tensor], Tensor] = lambda parameter: parameter

    def kernel_by_key_offset(self, parameter: Tensor) -> Tensor:
        """The kernel, (d or H*d, 2n+1) if dynamic, else (H or 1, 2n+1), by key position minus query position."""
        kernel = self.kernel(parameter).flatten(0, -2)
        return kernel if self.side == "query" else kernel.flip(-1)

    def values_to_draw(self, kernel: NDArray[Any]) -> NDArray[Any]:
        """Of a ``kernel_by_key_offset``: the norm by offset of a dynamic one, or a fixed one's heads less their means.

        Subtracting a constant from a fixed kernel leaves the softmax unchanged.
        """
        if self.dynamic:
            return (kernel**2).sum(0, keepdims=True) ** 0.5
        return kernel - kernel.mean(1, keepdims=True)


TERMS = {
    # Fixed lightweight convolution, a learned bias per head and offset: f[h, j-i]  (paper, section 3.1)
    "convfixed": Term(
        side="query",
        dynamic=False,
        shape=lambda heads, head_size, width: (1, heads, 1, width),
        initial="zeros",
    ),
    # Dynamic lightweight convolution from the query, i.e. relative position embeddings: q_i . Cq[:, j-i] / sqrt(d)
    "convq": Term(
        side="query",
        dynamic=True,
        shape=lambda heads, head_size, width: (head_size, width),
        initial="kaiming_uniform",
    ),
    # Dynamic lightweight convolution from the key: k_j . Ck[:, i-j] / sqrt(d); the offset is query minus key
    "convk": Term(
        side="key",
        dynamic=True,
        shape=lambda heads, head_size, width: (head_size, width),
        initial="kaiming_uniform",
    ),
    # Both with one kernel per head, q_i . Cq[h, :, j-i] / sqrt(d): DeBERTa's disentangled attention (He et al. 2021,
    # arXiv 2006.03654, equation 4), where Cq are projected embeddings of distances. The fused CPU function lacks them.
    "convqhead": Term(
        side="query",
        dynamic=True,
        shape=lambda heads, head_size, width: (heads, head_size, width),
        initial="kaiming_uniform",
    ),
    "convkhead": Term(
        side="key",
        dynamic=True,
        shape=lambda heads, head_size, width: (heads, head_size, width),
        initial="kaiming_uniform",
    ),
}
