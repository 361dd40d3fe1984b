"""How the plots look: colours that colour-blind readers can tell apart, and how a figure becomes a file."""

from io import BytesIO
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

from bert_convolutions import files

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
"""Okabe and Ito's palette (jfly.uni-koeln.de/color) without its yellow, which is too light for lines."""


def line_colors(count: int) -> list[str | tuple[float, ...]]:
    """``count`` distinct colours: the palette where it suffices, else evenly spaced ones of the map ``viridis``."""
    if count <= len(OKABE_ITO):
        return list(OKABE_ITO[:count])
    return [colormaps["viridis"](index / (count - 1)) for index in range(count)]


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, in one atomic step."""
    png = BytesIO()
    figure.savefig(png, format="png", dpi=150)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, png.getvalue())
