"""Text as the tokenizer wants it: lower-cased, accents stripped, white space collapsed, quotes made plain.

These are the steps that the original takes before SentencePiece sees a sentence, in its order (the slow ALBERT
tokenizer of ``transformers`` 3): SentencePiece must see the same text when it learns as when it encodes.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence


def normalize(text: str) -> str:
    """Return one sentence lower-cased, without accents, with single spaces and plain double quotes.

    Lower-casing happens twice, as in the original: first letter by letter (so that a Greek capital sigma always becomes
    the medial form), and once more for the capitals that only appear when NFKD takes a ligature or sign apart.
    """
    return normalize_all([text])[0]


def normalize_all(texts: Sequence[str]) -> list[str]:
    """Return ``normalize`` of each text, with as many steps as possible over all of them in one string."""
    joined = "\n".join([" ".join(text.split()) for text in texts])  # no text has a line break of its own any more
    joined = joined.replace("Σ", "σ").lower().replace("``", '"').replace("''", '"')
    lines = joined.split("\n")
    return lines if joined.isascii() else [line if line.isascii() else _strip_accents(line) for line in lines]


def _strip_accents(text: str) -> str:
    return _combining_characters().sub("", unicodedata.normalize("NFKD", text)).lower()


@functools.cache
def _combining_characters() -> re.Pattern[str]:
    """Compile the class of all combining characters (a regular expression is 10 times a Python loop's speed)."""
    # None are beyond the second plane: what is there is ideographs, tags and private use.
    code_points = [point for point in range(0x300, 0x20000) if unicodedata.combining(chr(point))]
    ranges: list[list[int]] = []
    for point in code_points:
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges) + "]+")
