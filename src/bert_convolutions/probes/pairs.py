"""Reads minimal pairs in the formats of BLiMP and Zorro or from a table, and makes pairs by moving words."""

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
LONGEST_SENTENCE = 24
"""Maximum number of words where one is moved; the cost is quadratic, as each token is masked in a separate copy."""


@dataclass(frozen=True)
class Paradigm:
    """Pairs that test one phenomenon.

    Attributes:
        name: the file's name without its suffix.
        phenomenon: its linguistic term (BLiMP's ``linguistics_term``); empty if not given.
        field: syntax, morphology, semantics ...; empty if not given.
        pairs: (good, bad) sentences.
    """

    name: str
    phenomenon: str
    field: str
    pairs: tuple[tuple[str, str], ...]

    def first(self, count: int | None) -> "Paradigm":
        """At most ``count`` pairs, evenly spaced over the paradigm."""
        if count is None or count >= len(self.pairs):
            return self
        chosen = np.linspace(0, len(self.pairs) - 1, count).round().astype(int).tolist()
        return Paradigm(self.name, self.phenomenon, self.field, tuple(self.pairs[index] for index in chosen))

    @property
    def sha256(self) -> str:
        """The SHA-256 of the sentences, which detects results of other pairs."""
        text = "\n".join(sentence for pair in self.pairs for sentence in pair)
        return hashlib.sha256(text.encode()).hexdigest()


def read_paradigms(path: Path) -> list[Paradigm]:
    """Read all paradigms of a folder, or of one file, sorted by name.

    Raises:
        UsageError: the path holds no pairs, a file has the wrong format, or two have the same name.
    """
    if not path.exists():
        raise UsageError(f"--data_dir {path} does not exist; give a folder with .jsonl, .txt or .tsv files")
    files = [file for file in sorted(path.glob("[!.]*")) if file.suffix in _READERS] if path.is_dir() else [path]
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
            if not all(map(str.strip, pair)):  # it would have the highest score
                raise UsageError(f"{path}: pair {number} of {paradigm.name} has a blank sentence; leave the pair out")
    return paradigms


def _read_lines(file: Path) -> list[str]:
    """The lines of a UTF-8 file without a byte order mark and empty lines at the end."""
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
    fields = {row.field.replace("/", "_") for row in rows}  # BLiMP has both spellings of syntax_semantics
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
        raise UsageError(f"{file}: the first line must name the columns, including {' and '.join(missing)}")
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
    """The value that all rows share, or an empty string."""
    return values.pop() if len(values) == 1 else ""


_READERS: dict[str, Callable[[Path], Paradigm]] = {".jsonl": _read_jsonl, ".txt": _read_txt, ".tsv": _read_tsv}


def make_moved_word_pairs(sentences: Sequence[str], distances: Sequence[int], pairs: int, seed: int) -> list[Paradigm]:
    """Pairs of a sentence and a copy with one word moved by k words to the left or right; a paradigm for each k.

    The first and the last word stay in place, since capitals and full stops would give them away. ``distances`` are the
    values of k, each with ``pairs`` pairs (or fewer, if too few sentences are long enough) that ``seed`` selects.
    Sentences of more than ``LONGEST_SENTENCE`` words are left out.

    Raises:
        UsageError: no sentence is long enough.
    """
    paradigms = []
    words = [split for sentence in sentences if len(split := sentence.split()) <= LONGEST_SENTENCE]
    for distance in distances:
        generator = np.random.default_rng((seed, distance))
        paradigm_pairs: list[tuple[str, str]] = []
        for index in generator.permutation(len(words)).tolist():
            sentence = words[index]
            num_starts = len(sentence) - 2 - distance  # the rotated span starts at 1 ... num_starts
            if num_starts < 1 or len(paradigm_pairs) == pairs:
                continue
            start, right = int(generator.integers(1, num_starts + 1)), bool(generator.integers(2))
            span = sentence[start : start + distance + 1]
            span = [*span[1:], span[0]] if right else [span[-1], *span[:-1]]
            moved = [*sentence[:start], *span, *sentence[start + distance + 1 :]]
            if moved != sentence:
                paradigm_pairs.append((" ".join(sentence), " ".join(moved)))
        if not paradigm_pairs:
            lengths = f"{distance + 3} to {LONGEST_SENTENCE} words"
            raise UsageError(f"--text has no line of {lengths}, which --distances {distance} needs: one sentence each")
        paradigms.append(Paradigm(f"moved_by_{distance}", "", "", tuple(paradigm_pairs)))
    return paradigms
