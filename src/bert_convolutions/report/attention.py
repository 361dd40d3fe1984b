"""Measures a model's attention on text: variance of scores by term, mean attention by offset, single sentences.

Legend: L layers, H heads, S sequence, T terms of the score.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bert_convolutions.attention.composite import CompositeAttention, ScoreParts, attend_eager
from bert_convolutions.attention.offsets import expand_offsets
from bert_convolutions.attention.segments import Segments
from bert_convolutions.attention.terms import TERMS
from bert_convolutions.report.kernels import PANELS_PER_ROW, panels_by_layer
from bert_convolutions.report.style import line_colors, plain

OFFSETS = 16
"""Maximum distance from the query for mean attention."""
_OFFSETS = range(-OFFSETS, OFFSETS + 1)
_Layer = tuple[dict[str, Tensor], Tensor]


@dataclass(frozen=True)
class AttentionOnText:
    """Statistics of the attention on some texts.

    Attributes:
        terms: names of the T terms of the score, in the order of the equation.
        shares: (L, H, T), each term's share of the variance of the scores over the keys of a query: its covariance with
            the sum of all terms, divided by the variance of the sum. Shares add up to 1; a term that counteracts the
            others has a negative share. Constants per query have no variance and leave softmax unchanged.
        layer_shares: (L, T), the same for all heads of a layer together.
        by_offset: (L, H, 2 x OFFSETS + 1) mean attention probability by offset of the key from the query.
    """

    terms: list[str]
    shares: NDArray[np.float64]
    layer_shares: NDArray[np.float64]
    by_offset: NDArray[np.float64]


@dataclass(frozen=True)
class SentenceAttention:
    """The attention in one sentence.

    Attributes:
        tokens: its S tokens, special ones included.
        scores: (L, H, S, S) by term, queries by keys; softmax is applied to their sum.
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
def _record_attention(model: PreTrainedModel) -> Iterator[list[_Layer]]:
    """In this context, each forward pass appends the terms and the probabilities of every layer to the list."""
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
    """Run texts one by one through a model with composite attention, which must be in evaluation mode.

    Each text is given as at least two ids, special tokens included.
    """
    covariances: list[dict[str, Tensor]] = []
    sums: list[Tensor] = []
    seen = torch.zeros(len(_OFFSETS), dtype=torch.float64)
    for ids in texts:
        with _record_attention(model) as layers:
            model(input_ids=torch.tensor([list(ids)], device=model.device))
        covariances = covariances or [{} for _ in layers]
        sums = sums or [torch.zeros(probabilities.shape[1], len(seen)).double() for _, probabilities in layers]
        seen += torch.tensor([max(len(ids) - abs(offset), 0) for offset in _OFFSETS])
        for (scores, probabilities), by_term, offset_sum in zip(layers, covariances, sums, strict=True):
            varying = {name: (score - score.mean(-1, keepdim=True)).double() for name, score in scores.items()}
            total = sum(varying.values(), torch.zeros_like(probabilities, dtype=torch.float64))
            for name, score in varying.items():
                by_term[name] = by_term.get(name, 0) + (score * total).sum((0, 2, 3)).cpu()
            diagonals = [probabilities[0].diagonal(offset, -2, -1).double().sum(-1) for offset in _OFFSETS]  # (H,) each
            offset_sum += torch.stack(diagonals, -1).cpu()
    by_offset = (torch.stack(sums) / seen).numpy()
    names = list(covariances[0])
    if not names:
        nothing = np.zeros((*by_offset.shape[:2], 0))
        return AttentionOnText(names, nothing, nothing[:, 0], by_offset)
    by_head = torch.stack([torch.stack([by_term[name] for name in names], -1) for by_term in covariances])
    return AttentionOnText(names, _variance_shares(by_head), _variance_shares(by_head.sum(1)), by_offset)


def _variance_shares(covariances: Tensor) -> NDArray[np.float64]:
    """Covariances (..., T) divided by their sum, the variance; 0 if that is 0."""
    variance = covariances.sum(-1, keepdim=True)
    return torch.where(variance > 0, covariances / variance, 0.0).numpy()


@torch.inference_mode()
def attention_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentence: str) -> SentenceAttention:
    """The attention of every layer and head in one sentence, with scores by term."""
    ids = tokenizer(sentence, verbose=False)["input_ids"]
    with _record_attention(model) as layers:
        model(input_ids=torch.tensor([ids], device=model.device))
    shape = layers[0][1].shape[1:]

    def stacked(scores: list[Tensor]) -> NDArray[np.float64]:
        return torch.stack([score.expand(1, *shape)[0] for score in scores]).double().cpu().numpy()

    return SentenceAttention(
        [str(token) for token in tokenizer.convert_ids_to_tokens(ids)],
        {name: stacked([terms[name] for terms, _ in layers]) for name in layers[0][0]},
        stacked([probabilities for _, probabilities in layers]),
    )


def attention_by_offset(found: AttentionOnText, name: str) -> Figure:
    """Mean probability by offset of the key: a panel per layer, a line per head."""
    rows = -(-len(found.by_offset) // PANELS_PER_ROW)
    figure = Figure(figsize=(8, 2.2 * rows + 1.3), layout="constrained")
    figure.suptitle(f"Mean attention by offset: {name}", fontsize=11)
    for axes in panels_by_layer(figure, dict(enumerate(found.by_offset))):
        axes.set_xticks([-OFFSETS, -OFFSETS // 2, 0, OFFSETS // 2, OFFSETS])
        axes.set_ylim(bottom=0)
    figure.supylabel("probability", fontsize=10)
    return figure


def offset_rows(found: AttentionOnText) -> list[tuple[object, ...]]:
    """Layer, head, offset and mean probability."""
    return [
        (layer + 1, head + 1, offset_index - OFFSETS, f"{found.by_offset[layer, head, offset_index]:.6f}")
        for layer, head, offset_index in np.ndindex(*found.by_offset.shape)
    ]


def variance_bars(by_variant: Mapping[str, AttentionOnText]) -> Figure:
    """The share of each term in the variance of the scores: a panel per variant, a bar per layer and term."""
    terms = list(dict.fromkeys(term for found in by_variant.values() for term in found.terms))
    color = dict(zip(terms, line_colors(len(terms)), strict=True))
    layers = max(len(found.layer_shares) for found in by_variant.values())
    height = 1.1 + layers * (0.16 * len(terms) + 0.14)
    figure = Figure(figsize=(5.6, height * len(by_variant) + 0.4), layout="constrained")
    panels = figure.subplots(len(by_variant), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (variant, found) in zip(panels, by_variant.items(), strict=True):
        thickness = 0.85 / len(found.terms)
        for number, term in enumerate(found.terms):
            positions = np.arange(len(found.layer_shares)) + (number - (len(found.terms) - 1) / 2) * thickness
            axes.barh(positions, 100 * found.layer_shares[:, number], 0.9 * thickness, color=color[term], label=term)
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.set_yticks(range(len(found.layer_shares)), [str(layer + 1) for layer in range(len(found.layer_shares))])
        axes.invert_yaxis()
        axes.set(ylabel="layer", title=variant)
        plain(axes, "x")
    panels[-1].set_xlabel("share of the variance of the scores (%)")
    handles = {label: bar for axes in panels for bar, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False)
    return figure


def variance_rows(by_variant: Mapping[str, AttentionOnText]) -> list[tuple[object, ...]]:
    """Variant, layer, head (or all), term and share."""
    rows: list[tuple[object, ...]] = []
    for variant, found in by_variant.items():
        for layer in range(len(found.layer_shares)):
            heads = [("all", found.layer_shares[layer]), *enumerate(found.shares[layer], 1)]
            for head, shares in heads:
                rows += [
                    (variant, layer + 1, head, term, f"{share:.4f}")
                    for term, share in zip(found.terms, shares, strict=True)
                ]
    return rows


def sentence_values(found: SentenceAttention, head: int | None) -> dict[str, NDArray[np.float64]]:
    """Each term less its mean over the keys (which leaves softmax unchanged), their sum and the attention, (L, S, S).

    ``head`` counts from 1; None gives the means over heads, in which the terms still add up to the sum.
    """

    def of_head(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values.mean(1) if head is None else values[:, head - 1]

    attention = of_head(found.probabilities)
    terms = {term: of_head(scores - scores.mean(-1, keepdims=True)) for term, scores in found.scores.items()}
    return {**terms, "sum": sum(terms.values(), np.zeros_like(attention)), "attention": attention}


def sentence_maps(found: SentenceAttention, name: str, head: int | None) -> Figure:
    """The score of each term, their sum and the attention, a row per layer; rows are queries, columns keys."""
    *columns, attention = sentence_values(found, head).items()
    side = max(0.15 * len(found.tokens), 1.3)
    layers, width = len(attention[1]), len(columns) + 1
    figure = Figure(figsize=(width * (side + 0.2) + 1.6, layers * (side + 0.15) + 1.2), layout="constrained")
    figure.suptitle(f"{name}, {'mean of the heads' if head is None else f'head {head}'}", fontsize=11)
    panels = figure.subplots(layers, width, sharex=True, sharey=True, squeeze=False)
    positions = range(len(found.tokens))
    for layer, row in enumerate(panels):
        limit = max(*(float(np.abs(values[layer]).max()) for _, values in columns), 1e-6)
        for axes, (_, values) in zip(row, columns, strict=False):
            scores = axes.imshow(values[layer], cmap="PuOr", vmin=-limit, vmax=limit)
        probabilities = row[-1].imshow(attention[1][layer], cmap="viridis", vmin=0)
        row[0].set_ylabel(f"layer {layer + 1}", fontsize=10)
        row[0].set_yticks(positions, found.tokens, fontsize=6, parse_math=False)
        for image, axes in ((scores, list(row[:-1])), (probabilities, row[-1])):
            figure.colorbar(image, ax=axes, fraction=0.05, pad=0.01).ax.tick_params(labelsize=7)
    for axes, (column, _) in zip(panels[0], (*columns, attention), strict=True):
        axes.set_title(column, fontsize=10)
    for axes in panels[-1]:
        axes.set_xticks(positions, found.tokens, fontsize=6, rotation=90, parse_math=False)
    return figure


def sentence_rows(found: SentenceAttention, head: int | None) -> list[tuple[object, ...]]:
    """Layer, query, key and the drawn values."""
    columns = sentence_values(found, head).values()
    names = [f"{number} {token}" for number, token in enumerate(found.tokens, 1)]
    shape = found.probabilities[:, 0].shape
    return [
        (layer + 1, names[query], names[key], *(f"{values[layer, query, key]:.4f}" for values in columns))
        for layer, query, key in np.ndindex(*shape)
    ]
