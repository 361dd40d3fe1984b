"""Text as the tokenizer wants it: lower-cased, accents stripped, white space collapsed, quotes made plain.

These are the steps that the original takes before SentencePiece sees a sentence, in its order (the slow ALBERT
tokenizer of ``transformers`` 3): SentencePiece must see the same text when it learns as when it encodes.
"""

import functools
import re
import sys
import unicodedata


def normalize(text: str) -> str:
    """Return one sentence lower-cased, without accents, with single spaces and plain double quotes.

    Lower-casing happens twice, as in the original: first letter by letter (so that a Greek capital sigma always becomes
    the medial form), and once more for the capitals that only appear when NFKD takes a ligature or sign apart.
    """
    text = " ".join(text.split())
    if text.isascii():
        return text.lower().replace("``", '"').replace("''", '"')
    text = text.replace("Σ", "σ").lower().replace("``", '"').replace("''", '"')
    return _combining_characters().sub("", unicodedata.normalize("NFKD", text)).lower()


@functools.cache
def _combining_characters() -> re.Pattern[str]:
    """Compile the class of all combining characters (a regular expression is 10 times a Python loop's speed)."""
    code_points = [point for point in range(0x300, sys.maxunicode + 1) if unicodedata.combining(chr(point))]
    ranges: list[list[int]] = []
    for point in code_points:
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges) + "]+")
