"""The style of figures, with colours that are safe for colour-blind readers, and saving them to files."""

from io import BytesIO
from pathlib import Path

import matplotlib
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from bert_convolutions import files
from bert_convolutions.errors import UsageError

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
"""Okabe and Ito's palette (jfly.uni-koeln.de/color) without its yellow, which is too light for lines."""
_FORMATS = (".png", ".svg", ".pdf")
_LEGEND_LINE = 0.22
"""Height of a line of a legend in inches."""


def line_colors(count: int) -> list[str | tuple[float, ...]]:
    """``count`` distinct colours: the palette's if it has enough, otherwise evenly spaced ones of ``viridis``."""
    if count <= len(OKABE_ITO):
        return list(OKABE_ITO[:count])
    return [colormaps["viridis"](index / (count - 1)) for index in range(count)]


def plain(axes: Axes, grid: str = "both") -> None:
    """Draw a light grid, and no frame at the top and right."""
    axes.grid(alpha=0.25, axis=grid)  # type: ignore[arg-type]
    axes.spines[["top", "right"]].set_visible(False)


def name_lines(figure: Figure) -> None:
    """Draw the first axes' legend in them or, of more lines than the palette has colours, below a higher figure."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    if len(names) <= len(OKABE_ITO):
        figure.axes[0].legend(frameon=False)
    else:
        figure.set_figheight(figure.get_figheight() + _LEGEND_LINE * len(names))
        figure.legend(handles, names, loc="outside lower center", frameon=False)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure atomically and reproducibly in the format of the suffix (PNG, SVG or PDF).

    Raises:
        UsageError: the suffix is another one.
    """
    if path.suffix not in _FORMATS:
        raise UsageError(f"{path}: give a name that ends in {', '.join(_FORMATS)}")
    image = BytesIO()
    dateless = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
    with matplotlib.rc_context({"svg.hashsalt": path.name, "svg.fonttype": "none"}):
        figure.savefig(image, format=path.suffix[1:], dpi=144, metadata=dateless)
    if path.suffix == ".png":  # with a palette it has a third of the size
        palette = Image.open(image).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        image = BytesIO()
        palette.save(image, "PNG", optimize=True, dpi=(144, 144))
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, image.getvalue())
