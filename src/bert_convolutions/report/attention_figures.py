"""Pictures of what the attention of models does on text."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bert_convolutions.report.attention import OFFSETS, AttentionOnText, SentenceAttention
from bert_convolutions.report.kernels import PANELS_A_ROW, panels_by_layer
from bert_convolutions.report.style import line_colors, plain


def attention_by_offset(found: AttentionOnText, name: str) -> Figure:
    """Mean probability by offset of the key: one panel a layer, one line a head."""
    rows = -(-len(found.by_offset) // PANELS_A_ROW)
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
        (layer + 1, head + 1, place - OFFSETS, f"{found.by_offset[layer, head, place]:.6f}")
        for layer, head, place in np.ndindex(*found.by_offset.shape)
    ]


def variance_bars(by_variant: Mapping[str, AttentionOnText]) -> Figure:
    """The share of each term in the variance of the scores: one panel a variant, one bar a layer and term."""
    terms = list(dict.fromkeys(term for found in by_variant.values() for term in found.terms))
    color = dict(zip(terms, line_colors(len(terms)), strict=True))
    layers = max(len(found.layer_shares) for found in by_variant.values())
    height = 1.1 + layers * (0.16 * len(terms) + 0.14)
    figure = Figure(figsize=(5.6, height * len(by_variant) + 0.4), layout="constrained")
    panels = figure.subplots(len(by_variant), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (variant, found) in zip(panels, by_variant.items(), strict=True):
        thickness = 0.85 / len(found.terms)
        for number, term in enumerate(found.terms):
            places = np.arange(len(found.layer_shares)) + (number - (len(found.terms) - 1) / 2) * thickness
            axes.barh(places, 100 * found.layer_shares[:, number], 0.9 * thickness, color=color[term], label=term)
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
    """Variant, layer, head (or all) and term, and the share."""
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
    """(L, S, S) of each term less its mean over the keys, which softmax doesn't see; their sum; the attention.

    Args:
        found: of the sentence.
        head: counted from 1; None gives the means over heads, in which the terms still add up to the sum.
    """

    def of_head(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values.mean(1) if head is None else values[:, head - 1]

    attention = of_head(found.probabilities)
    terms = {term: of_head(scores - scores.mean(-1, keepdims=True)) for term, scores in found.scores.items()}
    return {**terms, "sum": sum(terms.values(), np.zeros_like(attention)), "attention": attention}


def sentence_maps(found: SentenceAttention, name: str, head: int | None) -> Figure:
    """A row a layer: the score of each term, their sum, and the attention; queries downwards, keys to the right."""
    *columns, attention = sentence_values(found, head).items()
    side = max(0.15 * len(found.tokens), 1.3)
    layers, width = len(attention[1]), len(columns) + 1
    figure = Figure(figsize=(width * (side + 0.2) + 1.6, layers * (side + 0.15) + 1.2), layout="constrained")
    figure.suptitle(f"{name}, {'mean of the heads' if head is None else f'head {head}'}", fontsize=11)
    panels = figure.subplots(layers, width, sharex=True, sharey=True, squeeze=False)
    places = range(len(found.tokens))
    for layer, row in enumerate(panels):
        limit = max(*(float(np.abs(values[layer]).max()) for _, values in columns), 1e-6)
        for axes, (_, values) in zip(row, columns, strict=False):
            scores = axes.imshow(values[layer], cmap="PuOr", vmin=-limit, vmax=limit)
        given = row[-1].imshow(attention[1][layer], cmap="viridis", vmin=0)
        row[0].set_ylabel(f"layer {layer + 1}", fontsize=10)
        row[0].set_yticks(places, found.tokens, fontsize=6)
        for image, axes in ((scores, list(row[:-1])), (given, row[-1])):
            figure.colorbar(image, ax=axes, fraction=0.05, pad=0.01).ax.tick_params(labelsize=7)
    for axes, (column, _) in zip(panels[0], (*columns, attention), strict=True):
        axes.set_title(column, fontsize=10)
    for axes in panels[-1]:
        axes.set_xticks(places, found.tokens, fontsize=6, rotation=90)
    return figure


def sentence_rows(found: SentenceAttention, head: int | None) -> list[tuple[object, ...]]:
    """Layer, query, key, and what is drawn of them."""
    columns = sentence_values(found, head).values()
    names = [f"{number} {token}" for number, token in enumerate(found.tokens, 1)]
    shape = found.probabilities[:, 0].shape
    return [
        (layer + 1, names[query], names[key], *(f"{values[layer, query, key]:.4f}" for values in columns))
        for layer, query, key in np.ndindex(*shape)
    ]
