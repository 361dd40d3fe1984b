"""Span-based dynamic convolution (Jiang et al., "ConvBERT", NeurIPS 2020, arXiv 2008.02496, section 3.2).

Each position computes the weights of its own convolution from its query and a key of the span around it, and applies
them to values that are projected for this convolution. For head h, position i and offsets r from -n to n:

    weights[h, i, :] = softmax_r(W_h (q_i * span_key_i)),    output[h, i] = sum_r weights[h, i, r] value[h, i + r]

where ``*`` is elementwise, ``span_key`` a depthwise-separable convolution of the hidden states, and W_h (2n+1, H*d).
The output is concatenated with that of the attention heads, whose queries it shares: ConvBERT's "mixed attention".

Legend: B batch, S sequence, H heads, d head size, D hidden, n reach (a kernel is 2n+1 wide).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from bert_convolutions.attention.segments import Segments


class SpanConvolution(nn.Module):
    """The convolution of one layer; equal to that of ``ConvBertSelfAttention`` in ``transformers``.

    Padding and other examples are zeros to an example and take part in its softmax, like positions beyond the row. In
    ``transformers`` the convolution sees the padding instead, so that a token's output depends on the amount of it; the
    two agree on rows without padding.

    Args:
        hidden_size: D.
        num_heads: H.
        head_size: d.
        reach: n.
    """

    def __init__(self, hidden_size: int, num_heads: int, head_size: int, reach: int) -> None:
        super().__init__()
        size = num_heads * head_size
        self.reach = reach
        self.head_size = head_size
        self.key_conv = nn.Conv1d(hidden_size, hidden_size, 2 * reach + 1, groups=hidden_size, bias=False)
        self.key_pointwise = nn.Linear(hidden_size, size)
        self.kernel = nn.Linear(size, num_heads * (2 * reach + 1))
        self.value = nn.Linear(hidden_size, size)

    def forward(self, hidden: Tensor, query: Tensor, segments: Segments) -> Tensor:
        """Hidden states (B, S, D) and queries (B, H, S, d) -> (B, H, S, d)."""
        key = self.key_pointwise(segments.convolve(self.key_conv, self.reach, hidden))  # (B, S, H*d)
        logits = self.kernel(key * query.transpose(1, 2).flatten(2)).unflatten(-1, (-1, 2 * self.reach + 1))
        value = self.value(hidden).unflatten(-1, (-1, self.head_size))  # (B, S, H, d)
        weights = logits.softmax(-1).to(value.dtype)  # (B, S, H, 2n+1)
        starts, length = range(2 * self.reach + 1), hidden.shape[1]
        if segments.examples is not None:
            numbers = functional.pad(segments.examples, (self.reach, self.reach))
            neighbours = torch.stack([numbers[:, start : start + length] for start in starts], -1)  # (B, S, 2n+1)
            weights = weights * (neighbours == segments.examples.unsqueeze(-1)).unsqueeze(2)
        around = functional.pad(value, (0, 0, 0, 0, self.reach, self.reach))
        # A sum over shifted views is three times as fast on a CPU as a product with windows.
        shifted = [around[:, start : start + length] * weights[..., start, None] for start in starts]
        return sum(shifted[1:], shifted[0]).transpose(1, 2)
