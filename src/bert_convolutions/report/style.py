"""How the plots look: colours that colour-blind readers can tell apart, and how a figure becomes a file."""

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


def line_colors(count: int) -> list[str | tuple[float, ...]]:
    """``count`` distinct colours: the palette where it suffices, else evenly spaced ones of the map ``viridis``."""
    if count <= len(OKABE_ITO):
        return list(OKABE_ITO[:count])
    return [colormaps["viridis"](index / (count - 1)) for index in range(count)]


def plain(axes: Axes, grid: str = "both") -> None:
    """A light grid, and no frame above and to the right."""
    axes.grid(alpha=0.25, axis=grid)  # type: ignore[arg-type]
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as its name says (PNG, SVG or PDF), the same bytes each time, in one atomic step.

    Raises:
        UsageError: for a name that ends otherwise.
    """
    if path.suffix not in _FORMATS:
        raise UsageError(f"{path}: give a name that ends in {', '.join(_FORMATS)}")
    image = BytesIO()
    dateless = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
    with matplotlib.rc_context({"svg.hashsalt": path.name, "svg.fonttype": "none"}):
        figure.savefig(image, format=path.suffix[1:], dpi=144, metadata=dateless)
    if path.suffix == ".png":  # a palette makes it a third of the size
        palette = Image.open(image).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        image = BytesIO()
        palette.save(image, "PNG", optimize=True, dpi=(144, 144))
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, image.getvalue())
