"""What a model's attention does on text: its scores term by term, where it looks, and one sentence in full.

Legend: L layers, H heads, S sequence, T terms of the score.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bert_convolutions.attention.composite import CompositeAttention, ScoreParts, attend_eager
from bert_convolutions.attention.offsets import expand_offsets
from bert_convolutions.attention.segments import Segments
from bert_convolutions.attention.terms import TERMS

OFFSETS = 16
"""How far from the query, on either side, mean attention is told."""
_Layer = tuple[dict[str, Tensor], Tensor]


@dataclass(frozen=True)
class AttentionOnText:
    """What the attention did on some texts.

    Attributes:
        terms: names of the T terms of the score, in the order of the equation.
        shares: (L, H, T) of the variance of the scores over the keys of a query. The share of a term is its covariance
            with the sum of all over the variance of the sum: they add up to 1, and one that works against the others
            has a negative one. What all keys of a query have in common is no variance, and softmax doesn't see it.
        layer_shares: (L, T), the same of all heads of a layer together.
        by_offset: (L, H, 2 x OFFSETS + 1) mean probability that a query gives to the key so many tokens after it.
    """

    terms: list[str]
    shares: NDArray[np.float64]
    layer_shares: NDArray[np.float64]
    by_offset: NDArray[np.float64]


@dataclass(frozen=True)
class SentenceAttention:
    """The attention in one sentence.

    Attributes:
        tokens: its S pieces, special ones included.
        scores: (L, H, S, S) by term, queries by keys; their sum is what softmax is taken of.
        probabilities: (L, H, S, S).
    """

    tokens: list[str]
    scores: dict[str, NDArray[np.float64]]
    probabilities: NDArray[np.float64]


def score_terms(parts: ScoreParts, length: int) -> dict[str, Tensor]:
    """The score (B, H, S, S) of each term alone; ``length`` is S."""
    scores = {}
    if parts.dot_product and parts.query is not None and parts.key is not None:
        scores["qk"] = parts.query @ parts.key.transpose(-1, -2) * parts.scaling
    for side, terms in parts.terms.items():
        for term, parameter in terms:
            weights = replace(parts, terms={side: [(term, parameter)]}).offset_weights(side)
            assert weights is not None
            expanded = expand_offsets(weights, length)
            name = next(name for name, declared in TERMS.items() if declared is term)
            scores[name] = expanded if side == "query" else expanded.transpose(-1, -2)
    return scores


@contextmanager
def _recorded(model: PreTrainedModel) -> Iterator[list[_Layer]]:
    """While open, each forward pass adds the terms and the probabilities of every layer to the list."""
    record: list[_Layer] = []

    def attend(parts: ScoreParts, value: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
        context, probabilities = attend_eager(parts, value, dropout)
        record.append((score_terms(parts, value.shape[2]), probabilities))
        return context, probabilities

    def replace_backend(module: CompositeAttention, arguments: tuple[Tensor, Segments, object]) -> tuple[object, ...]:
        return *arguments[:2], attend

    attentions = [module for module in model.modules() if isinstance(module, CompositeAttention)]
    hooks = [module.register_forward_pre_hook(replace_backend) for module in attentions]
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def measure(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> AttentionOnText:
    """Run texts, each alone, through a model with composite attention.

    Args:
        model: in evaluation mode, on any device.
        texts: the ids of each, special tokens included, at least two.
    """
    covariances: list[dict[str, Tensor]] = []
    looks: list[Tensor] = []
    seen = torch.zeros(2 * OFFSETS + 1, dtype=torch.float64)
    for ids in texts:
        with _recorded(model) as layers:
            model(input_ids=torch.tensor([list(ids)], device=model.device))
        covariances = covariances or [{} for _ in layers]
        looks = looks or [torch.zeros(probabilities.shape[1], len(seen)).double() for _, probabilities in layers]
        seen += torch.tensor([max(len(ids) - abs(offset), 0) for offset in range(-OFFSETS, OFFSETS + 1)])
        for (scores, probabilities), sums, look in zip(layers, covariances, looks, strict=True):
            varying = {name: (score - score.mean(-1, keepdim=True)).double() for name, score in scores.items()}
            total = sum(varying.values(), torch.zeros_like(probabilities, dtype=torch.float64))
            for name, score in varying.items():
                sums[name] = sums.get(name, 0) + (score * total).sum((0, 2, 3)).cpu()
            look += _diagonal_sums(probabilities[0]).cpu()
    by_offset = (torch.stack(looks) / seen).numpy()
    names = list(covariances[0])
    if not names:
        nothing = np.zeros((*by_offset.shape[:2], 0))
        return AttentionOnText(names, nothing, nothing[:, 0], by_offset)
    by_head = torch.stack([torch.stack([sums[name] for name in names], -1) for sums in covariances])
    return AttentionOnText(names, _shares(by_head), _shares(by_head.sum(1)), by_offset)


def _shares(covariances: Tensor) -> NDArray[np.float64]:
    """(..., T), divided by their sum, which is the variance; 0 where there is none."""
    variance = covariances.sum(-1, keepdim=True)
    return torch.where(variance > 0, covariances / variance, 0.0).numpy()


def _diagonal_sums(probabilities: Tensor) -> Tensor:
    """(H, S, S) -> (H, 2 x OFFSETS + 1), the sum over queries by offset of the key."""
    offsets = range(-OFFSETS, OFFSETS + 1)
    return torch.stack([probabilities.diagonal(offset, -2, -1).double().sum(-1) for offset in offsets], -1)


@torch.inference_mode()
def attention_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentence: str) -> SentenceAttention:
    """The attention of every layer and head in one sentence, the scores split into their terms."""
    ids = tokenizer(sentence)["input_ids"]
    with _recorded(model) as layers:
        model(input_ids=torch.tensor([ids], device=model.device))
    shape = layers[0][1].shape[1:]

    def stacked(scores: list[Tensor]) -> NDArray[np.float64]:
        return torch.stack([score.expand(1, *shape)[0] for score in scores]).double().cpu().numpy()

    return SentenceAttention(
        [str(token) for token in tokenizer.convert_ids_to_tokens(ids)],
        {name: stacked([terms[name] for terms, _ in layers]) for name in layers[0][0]},
        stacked([probabilities for _, probabilities in layers]),
    )
