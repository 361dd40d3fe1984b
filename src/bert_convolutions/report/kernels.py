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
from bert_convolutions.report.style import line_colors, save_png

_PANELS_A_ROW = 4


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
                    kernel = term.kernel(tensors.get_tensor(key)).float().numpy()
                    kernel = kernel if term.dynamic else kernel[0, :, 0]
                    kernels[int(match.group(1))] = kernel if term.side == "query" else kernel[:, ::-1]
    except SafetensorError as error:
        raise UsageError(f"{path} can't be read ({error})") from error
    return dict(sorted(kernels.items()))


def plot_kernels(model_dir: Path, output: Path) -> bool:
    """Draw the kernels of a model: the fixed ones a line a head, the dynamic ones as their norm by offset.

    The horizontal axis is the offset of the key from the query in tokens, negative for words before it; the outermost
    offsets stand for everything at least that far away. Subtracting a constant from a fixed kernel leaves the softmax
    unchanged, so each is drawn less its mean. A term of the keys is stored by query minus key and drawn reversed.

    Args:
        model_dir: The folder of a model (``config.json``, ``model.safetensors``).
        output: The PNG to write.

    Returns:
        Whether the model has any kernel; if not, nothing is written.

    Raises:
        UsageError: The folder holds no model.
    """
    found = {name: kernels for name in TERMS if (kernels := read_kernels(model_dir, f"{name}_param"))}
    if not found:
        return False
    fixed = {name: kernels for name, kernels in found.items() if not TERMS[name].dynamic}
    dynamic = {name: kernels for name, kernels in found.items() if TERMS[name].dynamic}
    heights = [2.4 * math.ceil(len(kernels) / _PANELS_A_ROW) + 0.6 for kernels in fixed.values()]
    if dynamic:
        heights.append(1.4 + 0.28 * max(map(len, dynamic.values())))
    figure = Figure(figsize=(11, sum(heights) + 0.6), layout="constrained")
    figure.suptitle(f"Learned kernels of {_kernel_name(model_dir)}")
    parts = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    for part, (name, kernels) in zip(parts, fixed.items(), strict=False):
        _draw_fixed(part, name, kernels)
    if dynamic:
        panels = parts[-1].subplots(1, len(dynamic), squeeze=False)[0]
        for axes, (name, kernels) in zip(panels, dynamic.items(), strict=True):
            _draw_norms(axes, f"chosen by the {TERMS[name].side} ({name}): norm of its vector", kernels)
    save_png(figure, output)
    return True


def _kernel_name(model_dir: Path) -> str:
    """The attention kernel as the configuration spells it, or the folder's name where that can't be read."""
    try:
        config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
        return f"“{config['attention_kernel']}” ({model_dir.name})"
    except (OSError, ValueError, KeyError):
        return model_dir.name


def _draw_fixed(figure: SubFigure, name: str, kernels: dict[int, np.ndarray]) -> None:
    """One panel a layer, one line a head: the score that a fixed convolution adds at each offset."""
    columns = min(_PANELS_A_ROW, len(kernels))
    panels = figure.subplots(math.ceil(len(kernels) / columns), columns, sharex=True, sharey=True, squeeze=False)
    heads = max(len(kernel) for kernel in kernels.values())
    colors = line_colors(heads)
    for axes in panels.flat[len(kernels) :]:
        axes.set_axis_off()
    for axes, (layer, kernel) in zip(panels.flat, kernels.items(), strict=False):
        reach = kernel.shape[-1] // 2
        for head, weights in enumerate(kernel):
            axes.plot(
                range(-reach, reach + 1), weights - weights.mean(), color=colors[head], label=f"head {head + 1}", lw=1.5
            )
        axes.axvline(0, color="grey", linewidth=0.6, zorder=0)
        axes.axhline(0, color="grey", linewidth=0.6, zorder=0)
        axes.set_title(f"layer {layer + 1}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        _offset_ticks(axes, reach)
    figure.suptitle(f"fixed ({name}): added to the score before softmax, less its mean", fontsize=10, weight="bold")
    figure.supxlabel("offset of the key from the query (tokens)", fontsize=10)
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)


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
