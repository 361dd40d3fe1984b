"""Expands weights by offset (.., S, 2n+1) to scores (.., S, S), without an S x S index or a scatter-add.

Legend: S sequence, n reach. ``weights[p, n + r]`` belongs to the pair (p, p + r); pairs further apart than n share the
end weights.
"""

import torch
from torch import Tensor


def crop_offsets(weights: Tensor, length: int) -> Tensor:
    """Crop weights by offset (.., 2n+1) to the offsets that occur in a sequence of ``length`` tokens."""
    reach = (weights.shape[-1] - 1) // 2
    if torch.compiler.is_exporting() or torch.jit.is_tracing() or reach < length:  # a graph serves any length
        return weights
    return weights[..., reach - (length - 1) : reach + length]


def expand_offsets(weights: Tensor, length: int) -> Tensor:
    """Expand weights by offset to scores: ``scores[.., p, other] = weights[.., p, n + clip(other - p, -n, n)]``.

    The end weights are repeated to cover 2S offsets. Reading the same memory with rows that are one element shorter
    then shifts each row by one against the row before. This is the skewing of Music Transformer (Huang et al. 2018,
    arXiv 1809.04281, section 3.4.1), extended to both directions and to clipped offsets. It uses only views and a
    concatenation.

    Args:
        weights: (.., S or 1, 2n+1), any float dtype.
        length: S.

    Returns:
        (.., S, S), same dtype.
    """
    reach = (weights.shape[-1] - 1) // 2
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # a graph for any length can't branch on it
        positions = torch.arange(length, device=weights.device)
        index = (positions - positions.unsqueeze(1)).clamp(-reach, reach) + reach
        return weights.expand(*weights.shape[:-2], length, -1).gather(-1, index.expand(*weights.shape[:-2], -1, -1))
    weights = crop_offsets(weights, length)
    reach = (weights.shape[-1] - 1) // 2
    outside = length - 1 - reach
    left = weights[..., :1].expand(*weights.shape[:-1], outside)
    right = weights[..., -1:].expand(*weights.shape[:-1], outside + 1)
    by_offset = torch.cat([left, weights, right], dim=-1)  # (.., S or 1, 2S): offset r at S-1+r
    by_offset = by_offset.expand(*weights.shape[:-2], length, 2 * length)
    skewed = by_offset.flatten(-2)[..., length - 1 : length - 1 + length * (2 * length - 1)]
    return skewed.unflatten(-1, (length, 2 * length - 1))[..., :length]
