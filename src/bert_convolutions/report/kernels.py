"""The convolution kernels that a model with composite attention has learned, in one picture."""

import json
import math
import re
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from safetensors import SafetensorError, safe_open

from bert_convolutions.attention.terms import TERMS
from bert_convolutions.errors import UsageError
from bert_convolutions.report.style import line_colors, save_figure

PANELS_A_ROW = 4
"""Layers beside one another."""


def read_kernels(model_dir: Path, name: str) -> dict[int, np.ndarray]:
    """Read one term's kernel in every layer's attention from ``model.safetensors``.

    Args:
        model_dir: The folder of a model.
        name: The parameter of one of ``attention.terms.TERMS``, such as ``convfixed_param``.

    Returns:
        The kernel by layer, in the layers' order, over the offset of the key from the query: (d, 2n+1) of a dynamic
        term, else (H or 1, 2n+1); float32. Empty where the model has none of it.

    Raises:
        UsageError: The folder holds no ``model.safetensors``, or a damaged one.
    """
    path = model_dir / "model.safetensors"
    if not path.is_file():
        raise UsageError(f"{model_dir} holds no model.safetensors: it is not the output folder of a finished run")
    term = TERMS[name.removesuffix("_param")]
    kernels = {}
    try:
        with safe_open(path, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - not a dict
                match = re.search(rf"\blayer\.(\d+)\..*\b{name}$", key)
                if match:
                    kernels[int(match.group(1))] = term.seen_from_query(tensors.get_tensor(key)).float().numpy()
    except SafetensorError as error:
        raise UsageError(f"{path} can't be read ({error})") from error
    return dict(sorted(kernels.items()))


def plot_kernels(model_dir: Path, output: Path) -> bool:
    """Draw the kernels of a model, as ``kernel_figure`` does, into a file.

    Args:
        model_dir: The folder of a model (``config.json``, ``model.safetensors``).
        output: The PNG, SVG or PDF to write.

    Returns:
        Whether the model has any kernel; if not, nothing is written.

    Raises:
        UsageError: The folder holds no model.
    """
    figure = kernel_figure(read_all_kernels(model_dir), _kernel_name(model_dir))
    if figure is not None:
        save_figure(figure, output)
    return figure is not None


def read_all_kernels(model_dir: Path) -> dict[str, dict[int, np.ndarray]]:
    """The kernels that a model has, as ``read_kernels`` gives them, by the name of their term."""
    return {name: kernels for name in TERMS if (kernels := read_kernels(model_dir, f"{name}_param"))}


def kernel_rows(kernels: dict[str, dict[int, np.ndarray]]) -> list[tuple[object, ...]]:
    """What is drawn: term, layer, head (of a fixed term), offset, and weight less its mean or norm."""
    rows: list[tuple[object, ...]] = []
    for name, layers in kernels.items():
        for layer, kernel in layers.items():
            lines = (
                {"": np.linalg.norm(kernel, axis=0)} if TERMS[name].dynamic else dict(enumerate(_less_mean(kernel), 1))
            )
            for head, line in lines.items():
                places = enumerate(line, -(len(line) // 2))
                rows += [(name, layer + 1, head, offset, f"{value:.4f}") for offset, value in places]
    return rows


def _less_mean(kernel: np.ndarray) -> np.ndarray:
    return kernel - kernel.mean(1, keepdims=True)


def kernel_figure(found: dict[str, dict[int, np.ndarray]], name: str) -> Figure | None:
    """Draw kernels: the fixed ones a line a head, the dynamic ones as their norm by offset; None if there are none.

    The horizontal axis is the offset of the key from the query in tokens, negative for words before it; the outermost
    offsets stand for everything at least that far away. Subtracting a constant from a fixed kernel leaves the softmax
    unchanged, so each is drawn less its mean. A term of the keys is stored by query minus key and drawn reversed.
    """
    if not found:
        return None
    fixed = {name: kernels for name, kernels in found.items() if not TERMS[name].dynamic}
    dynamic = {name: kernels for name, kernels in found.items() if TERMS[name].dynamic}
    heights = [2.2 * math.ceil(len(kernels) / PANELS_A_ROW) + 0.9 for kernels in fixed.values()]
    heights += [1.6 + 0.28 * len(kernels) for kernels in dynamic.values()]
    figure = Figure(figsize=(8, sum(heights) + 0.6), layout="constrained")
    figure.suptitle(f"Learned kernels of {name}", fontsize=11)
    parts = iter(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    for name, kernels in fixed.items():
        part = next(parts)
        panels = panels_by_layer(part, {layer: _less_mean(kernel) for layer, kernel in kernels.items()})
        for axes in panels:
            axes.axhline(0, color="grey", linewidth=0.6, zorder=0)
            _offset_ticks(axes, next(iter(kernels.values())).shape[-1] // 2)
        part.suptitle(f"fixed ({name}): added to the score before softmax, less its mean", fontsize=10, weight="bold")
        part.supylabel("score", fontsize=10)
    for name, kernels in dynamic.items():
        _draw_norms(next(parts).subplots(), f"chosen by the {TERMS[name].side} ({name}): norm of its vector", kernels)
    return figure


def _kernel_name(model_dir: Path) -> str:
    """The attention kernel as the configuration spells it, or the folder's name where that can't be read."""
    try:
        config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
        return f"“{config['attention_kernel']}” ({model_dir.name})"
    except (OSError, ValueError, KeyError):
        return model_dir.name


def panels_by_layer(figure: Figure | SubFigure, lines: dict[int, np.ndarray]) -> list[Axes]:
    """One panel a layer, one line a head, over the offset of the key from the query.

    Args:
        figure: where they are drawn, with the legend.
        lines: by layer, (H, 2r+1) over the offsets from -r to r.
    """
    columns = min(PANELS_A_ROW, len(lines))
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


def _draw_norms(axes: Axes, title: str, kernels: dict[int, np.ndarray]) -> None:
    """A heat map, layers by offsets, of the Euclidean norm of each offset's vector."""
    norms = np.stack([np.linalg.norm(kernel, axis=0) for kernel in kernels.values()])
    reach = norms.shape[1] // 2
    image = axes.imshow(
        norms, aspect="auto", cmap="viridis", extent=(-reach - 0.5, reach + 0.5, len(norms) - 0.5, -0.5)
    )
    axes.set_yticks(range(len(norms)), [str(layer + 1) for layer in kernels])
    axes.set_ylabel("layer")
    axes.set_xlabel("offset of the key from the query (tokens)")
    axes.set_title(title, fontsize=10, weight="bold")
    _offset_ticks(axes, reach)
    axes.figure.colorbar(image, ax=axes)


def _offset_ticks(axes: Axes, reach: int) -> None:
    """Label the middle, the ends (which stand for everything beyond) and the halfway offsets."""
    if reach == 0:
        axes.set_xticks([0], ["all"])
        return
    places = sorted({-reach, -(reach // 2), 0, reach // 2, reach})
    names = {-reach: f"≤−{reach}", reach: f"≥{reach}"}
    axes.set_xticks(places, [names.get(place, f"{place}".replace("-", "−")) for place in places], fontsize=9)
