"""A self-contained HTML page of text, tables and figures, which are also written as separate files."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from bert_convolutions import files
from bert_convolutions.report.style import save_figure

Table = tuple[Sequence[str], Sequence[Sequence[object]]]
"""The headings and the rows."""
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 76rem; margin: 1rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.25rem; margin-top: 2.4rem; } h3 { font-size: 1rem; margin-bottom: .3rem; }
figure { margin: 1rem 0; } figcaption { max-width: 48rem; } figcaption, .note { color: #555; font-size: .9rem; }
.wide { overflow-x: auto; } .wide img { display: block; max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: .9rem; white-space: nowrap; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child, .text td { text-align: left; } p, summary { max-width: 48rem; overflow-wrap: anywhere; }
@media print { details { display: none; } .wide { overflow: visible; } .wide img { min-width: 0 !important; } }
"""
_PHONE_WIDTH = 560
"""Width in pixels up to which an image is scaled to fit a phone; wider ones scroll, to keep their text legible."""
_MIN_SCALE = 0.75


class Page:
    """Collects the parts of a page; figures and tables are also written to ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts: list[str] = []

    def heading(self, text: str, note: str = "", level: int = 2) -> None:
        """Add a heading, and optionally a note below it."""
        self.parts.append(f"<h{level}>{html.escape(text)}</h{level}>")
        if note:
            self.paragraph(note, "note")

    def paragraph(self, text: str, kind: str = "") -> None:
        """Add a paragraph; ``kind`` is a class of the style sheet."""
        self.parts.append(f'<p class="{kind}">{html.escape(text)}</p>' if kind else f"<p>{html.escape(text)}</p>")

    def figure(self, figure: Figure, name: str, caption: str, table: Table | None = None) -> None:
        """Add a figure as PNG; also write it as PNG and SVG, and its data ``table`` as CSV."""
        for suffix in (".png", ".svg"):
            save_figure(figure, self.folder / f"{name}{suffix}")
        if table is not None:
            files.write_csv(self.folder / f"{name}.csv", [table[0], *table[1]])
        data = base64.b64encode((self.folder / f"{name}.png").read_bytes()).decode()
        text = html.escape(caption)
        width = round(figure.get_figwidth() * 96)
        least = f' style="min-width: {round(_MIN_SCALE * width)}px"' if width > _PHONE_WIDTH else ""
        image = f'<img src="data:image/png;base64,{data}" width="{width}"{least} alt="{text}">'
        self.parts.append(f'<figure><div class="wide">{image}</div><figcaption>{text}</figcaption></figure>')

    def table(self, table: Table, name: str, bold: Sequence[bool] = (), folded: str = "", kind: str = "") -> None:
        """Add a table and write it as CSV.

        Args:
            table: headings and rows.
            name: name of the CSV file, without suffix.
            bold: for each row, whether it is bold.
            folded: if given, the table is collapsed under this line.
            kind: ``text`` aligns all columns to the left.
        """
        header, rows = table
        files.write_csv(self.folder / f"{name}.csv", [header, *rows])
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        body = []
        for number, row in enumerate(rows):
            cells = "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row)
            strong = number < len(bold) and bold[number]
            body.append(f'<tr style="font-weight:bold">{cells}</tr>' if strong else f"<tr>{cells}</tr>")
        wide = f'<div class="wide {kind}"><table><tr>{head}</tr>{"".join(body)}</table></div>'
        self.parts.append(f"<details><summary>{html.escape(folded)}</summary>{wide}</details>" if folded else wide)

    def html(self, title: str) -> str:
        """The complete page."""
        head = (
            f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
        )
        body = "\n".join(self.parts)
        return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'
