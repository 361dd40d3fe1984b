"""Draw the figures of ``docs/composite-attention.md`` with the package itself: python docs/figures.py [FOLDER]."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from bert_convolutions import CompositeAttention
from bert_convolutions.attention.segments import Segments
from bert_convolutions.attention.spec import parse_kernel
from bert_convolutions.report.style import OKABE_ITO

DOCS = Path(__file__).parent
LENGTH, REACH, SIZE = 14, 3, 16
TERMS = {
    "qk": "q$_i$ · k$_j$: any pair",
    "convfixed": "f: the offset alone",
    "convq": "q$_i$ · C$_q$: offset and query",
    "convk": "k$_j$ · C$_k$: offset and key",
}


def scores(kernel: str) -> torch.Tensor:
    """What one head with random weights gives each pair of random tokens, (S, S)."""
    torch.manual_seed(4)
    attention = CompositeAttention(SIZE, 1, parse_kernel(kernel))
    hidden = torch.randn(1, LENGTH, SIZE)
    for name, parameter in attention.named_parameters():
        torch.nn.init.normal_(parameter, std=1.0 if name.endswith("_param") else 0.2)
    with torch.no_grad():
        query, key = (attention.project(name, hidden, Segments()) for name in ("query", "key"))
        parts = attention.score_parts(query, key, Segments(), hidden.dtype)
        bias = parts.bias(LENGTH)
        found = torch.zeros(1, 1, LENGTH, LENGTH) if bias is None else bias.expand(1, 1, LENGTH, LENGTH)
        if parts.dot_product and parts.query is not None and parts.key is not None:
            found = found + parts.query @ parts.key.mT * parts.scaling
    return found[0, 0]


def draw_terms(path: Path) -> None:
    """Each term's scores beside the sum: constant diagonals, and where they stop being constant."""
    figure = Figure(figsize=(7.5, 5.4), layout="constrained")
    panels = figure.subplots(2, 3).flat
    panels[-1].set_axis_off()
    kernels = [f"{name} {REACH}" for name in TERMS] + [f"{'_'.join(TERMS)} {REACH}"]
    for axes, kernel, title in zip(panels[:-1], kernels, [*TERMS.values(), "their sum"], strict=True):
        values = scores(kernel)
        most = float(values.abs().max())
        axes.imshow(values, cmap="PuOr", vmin=-most, vmax=most)
        axes.set_title(f"{kernel.split()[0] if title != 'their sum' else 'all'}\n{title}", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("key j", fontsize=8)
    panels[0].set_ylabel("query i", fontsize=8)
    figure.savefig(path, dpi=110)


def draw_clip(path: Path) -> None:
    """How offsets become the 2n+1 weights of a kernel: past the reach all share the end weight."""
    figure = Figure(figsize=(6, 2.2), layout="constrained")
    axes = figure.subplots()
    offsets = range(-8, 9)
    weights = [max(-REACH, min(REACH, offset)) for offset in offsets]
    colors = [OKABE_ITO[1] if abs(offset) > REACH else OKABE_ITO[0] for offset in offsets]
    axes.bar(offsets, [weight + REACH + 1 for weight in weights], color=colors)
    axes.set_xticks(list(offsets))
    axes.set_xlabel(f"offset j - i in tokens, reach n = {REACH}", fontsize=9)
    axes.set_ylabel("number of the weight", fontsize=9)
    axes.set_title("blue: a weight of its own; orange: the end weight, shared by all that is further away", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def draw_learned(path: Path, steps: int = 200) -> None:
    """What the heads of ``examples/attention_module.py`` learn to add by offset."""
    example = _example()
    model, accuracy = example.train("qk_convfixed_convq_convk 4", steps)
    plain = example.train("dot_product", steps)[1]
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    axes = figure.subplots()
    for head, weights in enumerate(model.attention.convfixed_param.detach()[0, :, 0]):
        axes.plot(range(-4, 5), weights - weights.mean(), label=f"head {head + 1}", color=OKABE_ITO[head])
    axes.axhline(0, color="grey", linewidth=0.6)
    axes.set_xlabel("offset of the key from the query (tokens)", fontsize=9)
    axes.set_title(
        f"convfixed after {steps} steps of “which comes first?”: {100 * accuracy:.0f} % right; "
        f"dot product alone: {100 * plain:.0f} %",
        fontsize=9,
    )
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def _example() -> Any:
    spec = importlib.util.spec_from_file_location("example", DOCS.parent / "examples" / "attention_module.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FIGURES = {"terms.png": draw_terms, "clip.png": draw_clip, "learned.png": draw_learned}


def main() -> None:
    """Draw them into the folder that is named, else into ``docs/figures``."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        draw(folder / name)


if __name__ == "__main__":
    main()
