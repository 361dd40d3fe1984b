"""The convolution terms of the score equation, one short declaration each. A new idea for a term goes here.

A term adds a convolution kernel. It belongs to one side of the score, the query's or the key's, and gives each position
p of that side *weights by offset*, (B, H, S, 2n+1): entry ``[p, n + r]`` is what the term adds to the score of p with
position p + r of the other side. A fixed kernel is these weights; a dynamic one is multiplied with the position's
projection. Offsets past the reach n share the end weight, so attention stays global. ``attention.offsets`` lays the
weights out as scores.

Shapes: B batch, S sequence, H heads, d head size, n reach (the kernel is 2n+1 wide).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Term:
    """One convolution term.

    Attributes:
        side: whether the position p above is the query's, i, or the key's, j.
        dynamic: whether the weights are the kernel times that side's projection over sqrt(d), or the kernel itself
            (then the projection need not exist).
        shape: (H, d, 2n+1) -> shape of the term's parameter, which is named ``<term>_param``.
        initial: zeros, or Kaiming-uniform with a = sqrt(5) as PyTorch's own convolutions.
        kernel: parameter -> kernel, (d, 2n+1) or (H, d, 2n+1) where dynamic, else (1, H or 1, 1, 2n+1); the parameter
            itself as it is.
    """

    side: Literal["query", "key"]
    dynamic: bool
    shape: Callable[[int, int, int], tuple[int, ...]]
    initial: Literal["zeros", "kaiming_uniform"]
    kernel: Callable[[Tensor], Tensor] = lambda parameter: parameter

    def seen_from_query(self, parameter: Tensor) -> Tensor:
        """The kernel, (d or H*d, 2n+1) where dynamic, else (H or 1, 2n+1), by the offset of the key from the query."""
        kernel = self.kernel(parameter).flatten(0, -2)
        return kernel if self.side == "query" else kernel.flip(-1)


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
    # The same from the key, seen from the key: k_j . Ck[:, i-j] / sqrt(d); the offset is query minus key
    "convk": Term(
        side="key",
        dynamic=True,
        shape=lambda heads, head_size, width: (head_size, width),
        initial="kaiming_uniform",
    ),
    # Both with a kernel for each head, q_i . Cq[h, :, j-i] / sqrt(d): DeBERTa's disentangled attention (He et al. 2021,
    # arXiv 2006.03654, equation 4), in which Cq are its projected embeddings of distances. On a CPU only in ``eager``.
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
