"""Composite attention: self-attention and convolutions in one score (Chang, Xu, Xu and Tu, ACL 2021, equation 9).

For head h, query position i and key position j, the score is the sum of any of these terms; softmax over j follows:

    score[h, i, j] =  q_i . k_j / sqrt(d)               qk         self-attention
                   +  f[h, clip(j - i)]                 convfixed  fixed lightweight convolution
                   +  q_i . Cq[:, clip(j - i)] / sqrt(d)  convq    dynamic lightweight convolution from the query
                   +  k_j . Ck[:, clip(i - j)] / sqrt(d)  convk    the same from the key
                   +  q_i . Cq[h, :, clip(j - i)] / sqrt(d)  convqhead, and likewise convkhead: one kernel per head

where clip limits an offset to [-n, n]. The output is softmax(score) . v. Optionally, a depthwise convolution of v is
added to it, or the heads of ConvBERT's span-based dynamic convolution (``span``) are concatenated with it.

Legend: B batch, S sequence, H heads, d head size, D hidden, n reach (a kernel is 2n+1 wide).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from bert_convolutions.attention.offsets import crop_offsets, expand_offsets
from bert_convolutions.attention.projections import check_projection, depthwise_convolution, project, projection_parts
from bert_convolutions.attention.segments import Segments
from bert_convolutions.attention.span import SpanConvolution
from bert_convolutions.attention.spec import AttentionKernel, Projection, parse_kernel
from bert_convolutions.attention.terms import TERMS, Term


@dataclass(frozen=True, eq=False)
class ScoreParts:
    """The parts of the score before they are computed and summed, which each backend does in its own way.

    Attributes:
        query, key: (B, H, S, d), or None if no term needs them.
        dot_product: whether the score includes their dot product over sqrt(d).
        terms: the convolution terms with their parameters, by side, ``query`` or ``key``.
        reach: n of the convolution terms.
        segments: which pairs of positions may attend.
        dtype: of ``mask`` and ``bias``, that of matrix products (autocast's where it is enabled).
        scaling: 1/sqrt(d).
    """

    query: Tensor | None
    key: Tensor | None
    dot_product: bool
    terms: dict[str, list[tuple[Term, Tensor]]]
    reach: int
    segments: Segments
    dtype: torch.dtype
    scaling: float

    @property
    def mask(self) -> Tensor | None:
        """The segments as a mask (B, 1 or H, S, S) that is added to the score, or None if all pairs may attend."""
        return self.segments.score_mask(self.dtype)

    def kernel(self, side: str) -> tuple[Tensor | None, Tensor | None]:
        """A side's summed dynamic kernels, (d, 2n+1) or (H, d, 2n+1), and fixed ones, (1, H or 1, 1, 2n+1)."""
        terms = self.terms.get(side, [])
        dynamic = [term.kernel(parameter) for term, parameter in terms if term.dynamic]
        fixed = [term.kernel(parameter) for term, parameter in terms if not term.dynamic]
        return (sum(dynamic[1:], dynamic[0]) if dynamic else None), (sum(fixed[1:], fixed[0]) if fixed else None)

    def offset_weights(self, side: str, length: int | None = None) -> Tensor | None:
        """A side's summed weights by offset, broadcastable to (B, H, S, 2n+1), cropped to ``length`` if given."""
        projection = self.query if side == "query" else self.key
        dynamic, fixed = self.kernel(side)
        if length is not None:
            dynamic, fixed = (None if part is None else crop_offsets(part, length) for part in (dynamic, fixed))
        if dynamic is None or projection is None:
            return fixed
        if dynamic.dim() == 3:  # one kernel per head
            weights = projection @ (dynamic * self.scaling)
        else:  # Projections are stored as (B, S, H, d), so the product in this layout needs no copy.
            weights = (projection.transpose(1, 2) @ (dynamic * self.scaling)).transpose(1, 2)
        return weights if fixed is None else weights + fixed

    def bias(self, length: int) -> Tensor | None:
        """The score without the dot product, broadcastable to (B, H, S, S): the float mask of other backends."""
        bias = self.mask
        for side in ("query", "key"):
            weights = self.offset_weights(side, length)
            if weights is not None:
                scores = expand_offsets(weights.to(self.dtype), length)
                scores = scores if side == "query" else scores.transpose(-1, -2)
                bias = scores if bias is None else bias + scores
        return bias


Attend = Callable[[ScoreParts, Tensor, float], tuple[Tensor, Tensor | None]]
"""(score parts, value (B, H, S, d), dropout) -> (context (B, H, S, d), probabilities (B, H, S, S) or None)."""


def attend_eager(parts: ScoreParts, value: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
    """The reference implementation of the equation, with which every other backend must agree."""
    length = value.shape[2]
    bias = parts.bias(length)
    scores = value.new_zeros(*value.shape[:3], length)
    if parts.dot_product and parts.query is not None and parts.key is not None:
        scores = parts.query @ parts.key.transpose(-1, -2) * parts.scaling
    if bias is not None:
        scores = scores + bias
    probabilities = scores.softmax(dim=-1)
    return functional.dropout(probabilities, dropout) @ value, probabilities


LINEAR = Projection()
"""The ordinary projection of queries, keys and values."""


class CompositeAttention(nn.Module):
    """Multi-head composite attention; usable in any PyTorch model.

    Args:
        hidden_size: D.
        num_heads: H.
        kernel: the terms of the score, their reach, and the convolution beside attention; or its option string.
        head_size: d, by default D/H.
        query_key: the projection of queries and keys.
        value: the projection of values.
        remove_query_key: use the hidden states, unprojected, as queries and keys (then H*d must be D).
        dropout: dropout rate of the attention probabilities, in training; below 1.
        activation: activation inside depthwise-separable projections, by default GELU.

    Raises:
        ValueError: the sizes are inconsistent, the option string is invalid, or the dropout rate out of range.

    Examples:
        >>> attention = CompositeAttention(256, 4, "qk_convfixed_convq_convk 8")
        >>> output, probabilities = attention(hidden)  # (B, S, 256) -> (B, S, 256), (B, 4, S, S)
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        kernel: AttentionKernel | str,
        head_size: int | None = None,
        query_key: Projection = LINEAR,
        value: Projection = LINEAR,
        remove_query_key: bool = False,
        dropout: float = 0.0,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if head_size is None and hidden_size % num_heads:
            raise ValueError(f"num_heads {num_heads} doesn't divide hidden_size {hidden_size}; give head_size")
        self.head_size = head_size or hidden_size // num_heads
        self.num_heads = num_heads
        size = num_heads * self.head_size
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout {dropout} is not from 0 to below 1")
        if remove_query_key and size != hidden_size:
            raise ValueError(f"remove_query_key needs num_heads x head_size = {size} to be hidden_size {hidden_size}")
        self.kernel = kernel = parse_kernel(kernel) if isinstance(kernel, str) else kernel
        self.dropout = nn.Dropout(dropout)  # a module, so that code that disables dropout finds it
        self.activation = activation or nn.GELU()
        self.remove_query_key = remove_query_key
        self.projections = {"query": query_key, "key": query_key, "value": value}
        for name in self._projected():
            check_projection(self.projections[name], "value" if name == "value" else "query_key", hidden_size, size)
            for suffix, module in projection_parts(self.projections[name], hidden_size, size).items():
                self.add_module(name + suffix, module)
        for name in self.kernel.convolution_terms:
            shape = TERMS[name].shape(num_heads, self.head_size, 2 * kernel.reach + 1)
            self.register_parameter(f"{name}_param", nn.Parameter(torch.empty(shape)))
        self.output_size = 2 * size if kernel.convolution == "convspan" else size
        if kernel.convolution == "convspan":
            self.span = SpanConvolution(hidden_size, num_heads, self.head_size, kernel.reach)
        elif kernel.convolution:
            self.convolution = depthwise_convolution(size, size, kernel.reach, groups=hidden_size)
            ones = torch.ones(1, num_heads, 1, 1)
            if kernel.convolution == "convolution_scaled":
                self.convolution_scalar = nn.Parameter(ones)
            else:  # not trained, but in the state dict, as in the paper's checkpoints
                self.register_buffer("convolution_scalar", ones)
        self.reset_terms()

    def reset_terms(self) -> None:
        """Initialise the convolution terms and the scale of the depthwise convolution."""
        for name in self.kernel.convolution_terms:
            parameter = self._parameter_of(name)
            if TERMS[name].initial == "zeros":
                nn.init.zeros_(parameter)
            else:
                bound = parameter.shape[-1] ** -0.5  # the same for a kernel per head
                nn.init.uniform_(parameter, -bound, bound)
        if hasattr(self, "convolution_scalar"):
            nn.init.ones_(self.convolution_scalar)

    def _parameter_of(self, term: str) -> Tensor:
        # Not get_parameter: pruning, parametrizations and functional_call replace the parameter by another tensor
        return getattr(self, f"{term}_param")

    def _projected(self) -> list[str]:
        """Names of the projections that some term needs; the others are not created."""
        needed = {"query", "key"} if "qk" in self.kernel.score_terms else set()
        needed |= {TERMS[name].side for name in self.kernel.convolution_terms if TERMS[name].dynamic}
        needed |= {"query"} if self.kernel.convolution == "convspan" else set()
        return [*(() if self.remove_query_key else sorted(needed, reverse=True)), "value"]

    def _heads(self, hidden: Tensor) -> Tensor:
        return hidden.unflatten(-1, (self.num_heads, self.head_size)).transpose(1, 2)  # (B, S, H*d) -> (B, H, S, d)

    def project(self, name: str, hidden: Tensor, segments: Segments) -> Tensor | None:
        """Queries, keys or values (B, H, S, d) of ``hidden`` (B, S, D); None if no term needs them."""
        if name in self._projected():
            parts = lambda suffix: self.get_submodule(name + suffix)  # noqa: E731
            hidden = project(parts, self.projections[name], hidden, segments, self.activation)
        elif not self.remove_query_key:
            return None
        return self._heads(hidden)

    def score_parts(
        self, query: Tensor | None, key: Tensor | None, segments: Segments, dtype: torch.dtype
    ) -> ScoreParts:
        """The parts of the score, with queries and keys (B, H, S, d)."""
        terms: dict[str, list[tuple[Term, Tensor]]] = {}
        for name in self.kernel.convolution_terms:
            terms.setdefault(TERMS[name].side, []).append((TERMS[name], self._parameter_of(name)))
        dot_product = "qk" in self.kernel.score_terms
        return ScoreParts(query, key, dot_product, terms, self.kernel.reach, segments, dtype, self.head_size**-0.5)

    def forward(
        self,
        hidden: Tensor,
        segments: Segments | Tensor | None = None,
        attend: Attend = attend_eager,
    ) -> tuple[Tensor, Tensor | None]:
        """Let the tokens of each example attend to each other.

        Args:
            hidden: (B, S, D), floating point.
            segments: an attention mask (B, S), 0 for padding and k > 0 for the k-th example of the row; a mask of
                pairs, such as a causal one, (1 or B, S, S) or (1 or B, 1 or H, S, S): boolean or integer, 0 where i may
                not attend to j, or floating point, added to the scores; or ``Segments``, which layers share.
            attend: the backend, by default the equation step by step; ``model.backends.attention_backend("sdpa")`` is
                the fastest on the device.

        Returns:
            Output (B, S, H*d), or (B, S, 2*H*d) with ``convspan``; and the probabilities (B, H, S, S) before dropout,
            or None if the backend doesn't keep them.

        Raises:
            ValueError: the mask has other sizes than (B, S), or is one of pairs and there are convolutions over tokens.
        """
        if not isinstance(segments, Segments):
            segments = Segments.from_mask(segments, size=hidden.shape[:2])
        query, key, value = (self.project(name, hidden, segments) for name in ("query", "key", "value"))
        assert value is not None
        parts = self.score_parts(query, key, segments, value.dtype)
        context, probabilities = attend(parts, value, self.dropout.p if self.training else 0.0)
        if self.kernel.convolution == "convspan":
            assert query is not None
            context = torch.cat([context, self.span(hidden, query, segments)], dim=1)
        elif self.kernel.convolution:
            flat = value.transpose(1, 2).flatten(2)  # (B, S, H*d)
            convolved = self._heads(segments.convolve(self.convolution, self.kernel.reach, flat))
            context = context + convolved * self.convolution_scalar
        return context.transpose(1, 2).flatten(2), probabilities
