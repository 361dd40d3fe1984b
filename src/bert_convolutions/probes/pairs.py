"""Minimal pairs on disk: BLiMP's and Zorro's layouts, and a table of one's own."""

import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bert_convolutions.errors import UsageError
from bert_convolutions.parsing import parse
from bert_convolutions.schemas import BlimpPair

_COLUMNS = ("sentence_good", "sentence_bad")


@dataclass(frozen=True)
class Paradigm:
    """Pairs that test one thing.

    Attributes:
        name: the file's name without its ending.
        phenomenon: what linguists call it (BLiMP's ``linguistics_term``); empty if not given.
        field: syntax, morphology, semantics ...; empty if not given.
        pairs: (good, bad) sentences.
    """

    name: str
    phenomenon: str
    field: str
    pairs: tuple[tuple[str, str], ...]

    def first(self, count: int | None) -> "Paradigm":
        """At most ``count`` pairs, evenly spread over the paradigm."""
        if count is None or count >= len(self.pairs):
            return self
        chosen = np.linspace(0, len(self.pairs) - 1, count).round().astype(int).tolist()
        return Paradigm(self.name, self.phenomenon, self.field, tuple(self.pairs[index] for index in chosen))

    @property
    def sha256(self) -> str:
        """Of the sentences, so that results of other pairs are not taken for these."""
        text = "\n".join(sentence for pair in self.pairs for sentence in pair)
        return hashlib.sha256(text.encode()).hexdigest()


def read_paradigms(path: Path) -> list[Paradigm]:
    """Read all paradigms of a folder, or of one file, in order of their names.

    Raises:
        UsageError: nothing is there, a file is not in the layout its ending stands for, or two have the same name.
    """
    if not path.exists():
        raise UsageError(f"--data_dir {path} does not exist; give a folder with .jsonl, .txt or .tsv files")
    files = [file for file in sorted(path.iterdir()) if file.suffix in _READERS] if path.is_dir() else [path]
    if not files or any(file.suffix not in _READERS for file in files):
        raise UsageError(f"--data_dir {path} holds no {', '.join(_READERS)}; give a folder of minimal pairs")
    paradigms = [_READERS[file.suffix](file) for file in files]
    names = [paradigm.name for paradigm in paradigms]
    for paradigm in paradigms:
        if names.count(paradigm.name) > 1:
            raise UsageError(f"--data_dir {path} has two files named {paradigm.name}; rename one")
        if not paradigm.pairs:
            raise UsageError(f"{path}: {paradigm.name} holds no pairs")
        for number, pair in enumerate(paradigm.pairs, 1):
            if not all(map(str.strip, pair)):  # whose score would be that of certainty
                raise UsageError(f"{path}: pair {number} of {paradigm.name} has a blank sentence; leave the pair out")
    return paradigms


def _read_lines(file: Path) -> list[str]:
    """The lines of a UTF-8 text, without a byte order mark and blank lines at the end."""
    try:
        lines = file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} can't be read as UTF-8 text ({error})") from error
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _read_jsonl(file: Path) -> Paradigm:
    rows = []
    for number, line in enumerate(_read_lines(file), 1):
        try:
            rows.append(parse(BlimpPair, json.loads(line), f"{file}, line {number}"))
        except json.JSONDecodeError as error:
            raise UsageError(f"{file}, line {number} is not valid JSON ({error.msg})") from error
    terms = {row.linguistics_term for row in rows}
    fields = {row.field.replace("/", "_") for row in rows}  # BLiMP spells syntax_semantics in both ways
    return Paradigm(
        file.stem, _common(terms), _common(fields), tuple((row.sentence_good, row.sentence_bad) for row in rows)
    )


def _read_txt(file: Path) -> Paradigm:
    lines = _read_lines(file)
    if len(lines) % 2:
        raise UsageError(f"{file} has {len(lines)} lines; pairs need an even number: odd line bad, even line good")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise UsageError(f"{file}, line {number} is blank; each line is a sentence, odd lines bad, even lines good")
    phenomenon = file.stem.partition("-")[0]
    return Paradigm(file.stem, phenomenon, "", tuple(zip(lines[1::2], lines[::2], strict=True)))


def _read_tsv(file: Path) -> Paradigm:
    header, *rows = csv.reader(_read_lines(file) or [""], delimiter="\t", quoting=csv.QUOTE_NONE)
    missing = [column for column in _COLUMNS if column not in header]
    if missing:
        raise UsageError(f"{file}: the first line must name the columns, and {' and '.join(missing)} among them")
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise UsageError(f"{file}, line {number} has {len(row)} columns, not the {len(header)} of the first line")
    named = [dict(zip(header, row, strict=True)) for row in rows]
    return Paradigm(
        file.stem,
        _common({row.get("linguistics_term", "") for row in named}),
        _common({row.get("field", "") for row in named}),
        tuple((row["sentence_good"], row["sentence_bad"]) for row in named),
    )


def _common(values: set[str]) -> str:
    """The one value that all rows have, or none."""
    return values.pop() if len(values) == 1 else ""


_READERS: dict[str, Callable[[Path], Paradigm]] = {".jsonl": _read_jsonl, ".txt": _read_txt, ".tsv": _read_tsv}


def moved_words(sentences: Sequence[str], distances: Sequence[int], pairs: int, seed: int) -> list[Paradigm]:
    """Pairs of a sentence and the same with one word moved by k words to the left or right; a paradigm for each k.

    The first and the last word stay, since capitals and full stops would give them away. ``distances`` are the k; each
    has so many ``pairs``, or fewer if there are not so many sentences of enough words, chosen by ``seed``.

    Raises:
        UsageError: no sentence is long enough.
    """
    paradigms = []
    words = [sentence.split() for sentence in sentences]
    for distance in distances:
        generator = np.random.default_rng((seed, distance))
        made: list[tuple[str, str]] = []
        for index in generator.permutation(len(words)).tolist():
            sentence = words[index]
            places = len(sentence) - 2 - distance  # first place of the span that is turned by one: 1 ... places
            if places < 1 or len(made) == pairs:
                continue
            start, right = int(generator.integers(1, places + 1)), bool(generator.integers(2))
            span = sentence[start : start + distance + 1]
            span = [*span[1:], span[0]] if right else [span[-1], *span[:-1]]
            moved = [*sentence[:start], *span, *sentence[start + distance + 1 :]]
            if moved != sentence:
                made.append((" ".join(sentence), " ".join(moved)))
        if not made:
            raise UsageError(f"--text has no sentence of {distance + 3} words, which --distances {distance} needs")
        paradigms.append(Paradigm(f"moved_by_{distance}", "", "", tuple(made)))
    return paradigms
