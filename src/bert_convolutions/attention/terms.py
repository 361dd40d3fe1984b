"""The convolution terms of the score equation, one short declaration each. A new idea for a term goes here.

A term turns queries or keys into *weights by offset*, shape (B, H, S, 2n+1): entry ``[row, n + r]`` is what the term
adds to the score between position ``row`` and the position ``row + r``. Offsets past the reach n share the end weight,
so attention stays global. ``attention.band`` lays these weights out as scores.

Shapes: B batch, S sequence, H heads, d head size, n reach (the kernel is 2n+1 wide).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Term:
    """One convolution term.

    Attributes:
        row: whether ``row`` above is the query's position i or the key's position j; the projection of that side is
            what ``weights`` may use.
        dynamic: whether the weights depend on that projection (else the projection need not exist).
        shape: (H, d, 2n+1) -> shape of the term's parameter, which is named ``<term>_param``.
        initial: zeros, or Kaiming-uniform with a = sqrt(5) as PyTorch's own convolutions.
        weights: (projection (B, H, S, d) or None, parameter, 1/sqrt(d)) -> weights by offset, broadcastable to
            (B, H, S, 2n+1); linear in the last dimension of the parameter.
    """

    row: Literal["query", "key"]
    dynamic: bool
    shape: Callable[[int, int, int], tuple[int, ...]]
    initial: Literal["zeros", "kaiming_uniform"]
    weights: Callable[[Any, Tensor, float], Tensor]


TERMS = {
    # Fixed lightweight convolution, a learned bias per head and offset: f[h, j-i]  (paper, section 3.1)
    "convfixed": Term(
        row="query",
        dynamic=False,
        shape=lambda heads, head_size, width: (1, heads, 1, width),
        initial="zeros",
        weights=lambda projection, parameter, scaling: parameter,
    ),
    # Dynamic lightweight convolution from the query, i.e. relative position embeddings: q_i . Cq[:, j-i] / sqrt(d)
    "convq": Term(
        row="query",
        dynamic=True,
        shape=lambda heads, head_size, width: (head_size, width),
        initial="kaiming_uniform",
        weights=lambda query, parameter, scaling: query @ (parameter * scaling),
    ),
    # The same from the key, seen from the key: k_j . Ck[:, i-j] / sqrt(d); the offset is query minus key
    "convk": Term(
        row="key",
        dynamic=True,
        shape=lambda heads, head_size, width: (head_size, width),
        initial="kaiming_uniform",
        weights=lambda key, parameter, scaling: key @ (parameter * scaling),
    ),
}
