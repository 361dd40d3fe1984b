"""Draws the learned convolution kernels of a model in one figure."""

import json
import math
import re
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from safetensors import SafetensorError, safe_open

from bert_convolutions.attention.terms import TERMS
from bert_convolutions.errors import UsageError
from bert_convolutions.hub import local_folder
from bert_convolutions.report.options import PlotKernelsOptions
from bert_convolutions.report.style import line_colors, save_figure

PANELS_PER_ROW = 4
"""Number of layers side by side."""
Kernels = dict[str, dict[int, np.ndarray]]
"""Kernels by term and layer, over offsets of the key: (d or H*d, 2n+1) if dynamic, else (H or 1, 2n+1)."""


def run_plot_kernels(options: PlotKernelsOptions) -> Path:
    """Draw the kernels of a checkpoint, the original's included.

    Raises:
        UsageError: it is not a model, or has no kernels.
    """
    with tempfile.TemporaryDirectory() as temporary:
        model = local_folder(options.checkpoint)
        if (model / "pytorch_model.bin").is_file() and not any(model.glob("model*.safetensors")):
            from bert_convolutions.convert.original import convert_checkpoint

            model = convert_checkpoint(model, Path(temporary) / "converted")
        if not plot_kernels(model, options.output, options.checkpoint.resolve().name):
            raise UsageError(f"{options.checkpoint} has no convolution kernels in its attention: nothing to draw")
    return options.output


def plot_kernels(model_dir: Path, output: Path, name: str) -> bool:
    """Draw the kernels of a model's folder by ``kernel_figure`` to a PNG, SVG or PDF file.

    Returns whether the model, which the figure calls ``name``, has kernels; if not, nothing is written.

    Raises:
        UsageError: The folder holds no model.
    """
    figure = kernel_figure(read_kernels(model_dir), _with_kernel(model_dir, name))
    if figure is not None:
        save_figure(figure, output)
    return figure is not None


def read_kernels(model_dir: Path) -> Kernels:
    """Read the kernels of every layer's attention from a model's weights, in one ``.safetensors`` file or several.

    Raises:
        UsageError: The folder holds no weights, or damaged ones.
    """
    paths = sorted(model_dir.glob("model*.safetensors"))
    if not paths:
        raise UsageError(f"{model_dir} holds no model.safetensors: it is not the output folder of a finished run")
    kernels: Kernels = {name: {} for name in TERMS}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 - not a dict
                    match = re.search(r"\blayer\.(\d+)\..*\b(\w+)_param$", key)
                    if match and match[2] in TERMS:
                        kernel = TERMS[match[2]].kernel_by_key_offset(tensors.get_tensor(key))
                        kernels[match[2]][int(match[1])] = kernel.float().numpy()
        except SafetensorError as error:
            raise UsageError(f"{path} can't be read ({error})") from error
    return {name: dict(sorted(by_layer.items())) for name, by_layer in kernels.items() if by_layer}


def kernel_rows(kernels: Kernels) -> list[tuple[object, ...]]:
    """The drawn values: term, layer, head (of a fixed term), offset, and the weight less its mean, or the norm."""
    rows: list[tuple[object, ...]] = []
    for term, layers in kernels.items():
        for layer, kernel in layers.items():
            for head, line in enumerate(TERMS[term].values_to_draw(kernel), 1):
                positions = enumerate(line, -(len(line) // 2))
                named = "" if TERMS[term].dynamic else head
                rows += [(term, layer + 1, named, offset, f"{value:.4f}") for offset, value in positions]
    return rows


def kernel_figure(found: Kernels, name: str) -> Figure | None:
    """Draw fixed kernels with a line per head, dynamic ones as their norm by offset; None if there are none.

    The horizontal axis is the offset of the key from the query in tokens, negative for keys before the query; the
    outermost offsets represent all larger distances. A key term is stored by query minus key and drawn reversed.
    """
    if not found:
        return None
    drawn = {
        term: {layer: TERMS[term].values_to_draw(kernel) for layer, kernel in kernels.items()}
        for term, kernels in sorted(found.items(), key=lambda item: TERMS[item[0]].dynamic)
    }
    heights = [
        1.6 + 0.28 * len(layers) if TERMS[term].dynamic else 2.2 * math.ceil(len(layers) / PANELS_PER_ROW) + 0.9
        for term, layers in drawn.items()
    ]
    figure = Figure(figsize=(8, sum(heights) + 0.6), layout="constrained")
    figure.suptitle(f"Learned kernels of {name}", fontsize=11, parse_math=False)
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, (term, layers) in zip(parts, drawn.items(), strict=True):
        if TERMS[term].dynamic:
            _draw_norms(part.subplots(), f"dynamic, from the {TERMS[term].side} ({term}): norm of its vector", layers)
            continue
        for axes in panels_by_layer(part, layers):
            axes.axhline(0, color="grey", linewidth=0.6, zorder=0)
            _offset_ticks(axes, next(iter(layers.values())).shape[-1] // 2)
        part.suptitle(f"fixed ({term}): added to the score before softmax, less its mean", fontsize=10, weight="bold")
        part.supylabel("score", fontsize=10)
    return figure


def _with_kernel(model_dir: Path, name: str) -> str:
    """The attention kernel in the configuration and the model's name, or only the latter if it can't be read."""
    try:
        config = json.loads((model_dir / "config.json").read_bytes())
        return f"“{config['attention_kernel']}” ({name})"
    except (OSError, ValueError, KeyError):
        return name


def panels_by_layer(figure: Figure | SubFigure, lines: dict[int, np.ndarray]) -> list[Axes]:
    """Draw a panel per layer with a line per head; ``lines`` are (H, 2r+1) by layer, over the offsets from -r to r."""
    columns = min(PANELS_PER_ROW, len(lines))
    panels = figure.subplots(math.ceil(len(lines) / columns), columns, sharex=True, sharey=True, squeeze=False)
    colors = line_colors(max(len(values) for values in lines.values()))
    for axes in panels.flat[len(lines) :]:
        axes.set_axis_off()
    for axes, (layer, values) in zip(panels.flat, lines.items(), strict=False):
        reach = values.shape[-1] // 2
        for head, line in enumerate(values):
            axes.plot(range(-reach, reach + 1), line, color=colors[head], label=f"head {head + 1}", lw=1.5)
        axes.axvline(0, color="grey", linewidth=0.6, zorder=0)
        axes.set_title(f"layer {layer + 1}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("offset of the key from the query (tokens)", fontsize=10)
    handles = panels.flat[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right center", frameon=False, fontsize=9)
    return list(panels.flat[: len(lines)])


def _draw_norms(axes: Axes, title: str, layers: dict[int, np.ndarray]) -> None:
    """Draw a heat map, layers by offsets, of norms (1, 2n+1) by layer."""
    norms = np.concatenate(list(layers.values()))
    reach = norms.shape[1] // 2
    image = axes.imshow(
        norms, aspect="auto", cmap="viridis", extent=(-reach - 0.5, reach + 0.5, len(norms) - 0.5, -0.5)
    )
    axes.set_yticks(range(len(norms)), [str(layer + 1) for layer in layers])
    axes.set_ylabel("layer")
    axes.set_xlabel("offset of the key from the query (tokens)")
    axes.set_title(title, fontsize=10, weight="bold")
    _offset_ticks(axes, reach)
    axes.figure.colorbar(image, ax=axes)


def _offset_ticks(axes: Axes, reach: int) -> None:
    """Label the middle, the ends (which include all larger distances) and the offsets halfway."""
    if reach == 0:
        axes.set_xticks([0], ["all"])
        return
    offsets = sorted({-reach, -(reach // 2), 0, reach // 2, reach})
    names = {-reach: f"≤−{reach}", reach: f"≥{reach}"}
    axes.set_xticks(offsets, [names.get(offset, f"{offset}".replace("-", "−")) for offset in offsets], fontsize=9)
