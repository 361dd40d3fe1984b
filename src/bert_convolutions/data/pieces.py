"""Text to token ids by the rules of the original's tokenizer, light (no ``transformers``) and fast.

Ids: the V pieces of the SentencePiece model, then ``[CLS]`` = V, ``[SEP]`` = V + 1, ``<pad>`` = V + 2 and ``[MASK]`` =
V + 3; ``<unk>`` is the model's own unknown piece. Encoding a text takes four steps:

1. special tokens typed in the text are cut out and become their ids;
2. the rest is normalised: lower-cased, accents stripped, white space collapsed, quotes made plain, in the order of the
   original (the slow ALBERT tokenizer of ``transformers`` 3);
3. SentencePiece encodes it (C++);
4. the comma-digit rule: a piece such as ``1,`` is encoded again without its comma, so that no piece joins a digit and a
   comma. What it becomes depends on the piece alone, so a table from id to ids, made once, is exact.
"""

import contextlib
import functools
import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sentencepiece

from bert_convolutions.errors import UsageError

APPENDED_TOKENS = ("[CLS]", "[SEP]", "<pad>", "[MASK]")
"""Tokens added after the model's pieces, in the order of their ids."""
UNKNOWN_TOKEN = "<unk>"
SPECIAL_TOKENS = {
    "unk_token": UNKNOWN_TOKEN,
    **dict(zip(("cls_token", "sep_token", "pad_token", "mask_token"), APPENDED_TOKENS, strict=True)),
}
"""By the names that ``transformers`` has for them."""
MODEL_FILE = "spm.model"
"""The model's name inside a tokenizer directory."""
CODE_FILE = "tokenization_composite_bert"
AUTO_MAP = {"AutoTokenizer": [f"{CODE_FILE}.CompositeBertTokenizer", None]}
"""What ``tokenizer_config.json`` says of the code beside it, which loads the tokenizer without this package."""
_SPECIAL_TOKENS = re.compile("(" + "|".join(re.escape(token) for token in (*APPENDED_TOKENS, UNKNOWN_TOKEN)) + ")")
WORD_START = "▁"
_RULES_VERSION = "composite-bert-tokenizer-1"


def find_model_file(path: str | Path) -> Path | None:
    """Return the SentencePiece model that a tokenizer path means: itself, or ``spm.model`` in a directory.

    None stands for a directory with another tokenizer in it, DeBERTa's included, whose file has the same name.

    Raises:
        UsageError: nothing is there.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise UsageError(
            f"{path}: no such tokenizer; give the path of an spm.model or of a tokenizer directory, or a name of the "
            "Hugging Face Hub"
        )
    config = path / "config.json"
    is_debertas = config.is_file() and '"deberta-v2"' in config.read_text(encoding="utf-8", errors="replace")
    return path / MODEL_FILE if (path / MODEL_FILE).is_file() and not is_debertas else None


class AlignedPiece(NamedTuple):
    """A piece, and the range of characters of the text that it stands for; an empty one where it adds nothing."""

    piece: str
    begin: int
    end: int


class PieceTokenizer:
    """Text to token ids with a bare ``spm.model``; the ids are those of the original's tokenizer.

    Raises:
        UsageError: the file is missing or is not a SentencePiece model.
    """

    def __init__(self, model_path: str | Path) -> None:
        self.model_path = str(model_path)
        try:
            self.model_bytes = Path(model_path).read_bytes()
        except OSError as error:
            raise UsageError(f"{model_path}: cannot read the SentencePiece model ({error.strerror})") from error
        self._load()

    def _load(self) -> None:
        self.processor = sentencepiece.SentencePieceProcessor()
        self.num_pieces = 0
        with contextlib.suppress(RuntimeError, OSError, ValueError):
            self.processor.LoadFromSerializedProto(self.model_bytes)
            self.num_pieces = int(self.processor.get_piece_size())
        if not self.num_pieces:
            raise UsageError(f"{self.model_path}: not a SentencePiece model; give the path of an spm.model")
        self.unk_id = int(self.processor.unk_id())
        self.special_ids = self._number_special_tokens()
        self.cls_id, self.sep_id, self.pad_id, self.mask_id = (self.special_ids[token] for token in APPENDED_TOKENS)
        self._comma_table = self._make_comma_table()
        self._comma_lengths = np.ones(len(self), dtype=np.int64)
        for token, parts in self._comma_table.items():
            self._comma_lengths[token] = len(parts)
        # Not a cached property: those of Python 3.11 have a lock, which comes back locked where dill pickles a class.
        every = range(self.num_pieces)
        self._byte_pieces = frozenset(self.processor.id_to_piece(n) for n in every if self.processor.is_byte(n))
        # A comma that is no piece of its own may be swallowed by an unknown piece; then ids do not tell enough.
        self._comma_is_unknown = self.processor.piece_to_id(",") == self.unk_id

    def __len__(self) -> int:
        """Return the size of the vocabulary, V + 4."""
        return max(self.num_pieces, *(token_id + 1 for token_id in self.special_ids.values()))

    def __getstate__(self) -> dict[str, Any]:
        return {"model_path": self.model_path, "model_bytes": self.model_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load()

    @functools.cached_property
    def hash(self) -> str:
        """Return the sha256 that identifies the vocabulary and the rules."""
        return hashlib.sha256(_RULES_VERSION.encode() + self.model_bytes).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without ``[CLS]`` and ``[SEP]`` around it."""
        ids, lengths = self.encode_flat(texts)
        ends, every = np.cumsum(lengths).tolist(), ids.tolist()
        return [every[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return what ``encode`` returns, flat: all ids (int32) and the number of ids of each text (int64)."""
        if _SPECIAL_TOKENS.search("\n".join(texts)):
            return flatten(self._encode_with_special_tokens(texts))
        normalized = normalize_all(texts)
        encoded = self.processor.encode(normalized, out_type=int, num_threads=1)
        if self._comma_is_unknown:
            for position, found in enumerate(encoded):
                if self.unk_id in found:
                    encoded[position] = [self.piece_to_id(piece) for piece in self.tokenize(normalized[position])]
        ids, lengths = flatten(encoded)
        hits = np.flatnonzero(self._comma_lengths[ids] > 1)
        if not hits.size:
            return ids, lengths
        added = self._comma_lengths[ids[hits]] - 1
        np.add.at(lengths, np.searchsorted(np.cumsum(lengths), hits, side="right"), added)
        starts = hits + np.cumsum(added) - added
        replaced = [self._comma_table[token] for token in ids[hits].tolist()]
        ids = np.repeat(ids, self._comma_lengths[ids])
        for start, parts in zip(starts.tolist(), replaced, strict=True):
            ids[start : start + len(parts)] = parts
        return ids, lengths

    def _encode_with_special_tokens(self, texts: Sequence[str]) -> list[list[int]]:
        parts = [_SPECIAL_TOKENS.split(text) for text in texts]
        plain = iter(self.encode([part for split in parts for part in split[::2]]))
        encoded = []
        for split in parts:
            ids = next(plain)
            for token in split[1::2]:
                ids = [*ids, self.special_ids[token], *next(plain)]
            encoded.append(ids)
        return encoded

    def tokenize(self, text: str) -> list[str]:
        """Return the pieces of a text without special tokens in it, the comma-digit rule applied."""
        pieces = self.processor.encode(normalize(text), out_type=str)
        return list(itertools.chain.from_iterable(self._split_comma(piece) or [piece] for piece in pieces))

    def align(self, text: str) -> list[AlignedPiece]:
        """Return the pieces of ``tokenize`` with where each stands in the text, white space around it left out."""
        normalized, origins = normalize_aligned(text)
        seen, places = self.processor.normalize(normalized, with_offsets=True)  # as SentencePiece reads it
        places[len(seen) :] = [len(normalized)]
        aligned: list[AlignedPiece] = []
        begin, bytes_left = 0, 0
        for piece in self.processor.encode(normalized, out_type=str):
            end = begin + len(piece)
            if self._byte_pieces and piece in self._byte_pieces:  # several stand for one character
                bytes_left, end = (bytes_left or len(seen[begin].encode())) - 1, begin + 1
            for part, first, last in self._split_aligned(piece, begin, end):
                aligned.append(AlignedPiece(part, *_span(normalized, origins, places[first], places[last])))
            begin = begin if bytes_left else end
        return aligned

    def _split_aligned(self, piece: str, begin: int, end: int) -> Iterator[tuple[str, int, int]]:
        """Apply the comma-digit rule to a piece that stands from ``begin`` to ``end``."""
        *parts, comma = self._split_comma(piece) or [piece]
        for part in parts:
            middle = min(begin + max(len(part.replace(WORD_START, "")), 1), end - 1)
            if part is parts[0] and piece[0] == WORD_START:
                middle = min(middle + 1, end - 1)
            yield part, begin, middle
            begin = middle
        yield comma, begin, end

    def piece_to_id(self, piece: str) -> int:
        """Return the id of a piece or special token; the unknown token's where there is none."""
        return self.special_ids.get(piece, self.processor.piece_to_id(piece))

    def _number_special_tokens(self) -> dict[str, int]:
        """Append the special tokens to the pieces, but for those that the model already has among its pieces."""
        special_ids = {UNKNOWN_TOKEN: self.unk_id}
        next_id = self.num_pieces
        for token in APPENDED_TOKENS:
            piece_id = int(self.processor.piece_to_id(token))
            if piece_id == self.unk_id:
                piece_id, next_id = next_id, next_id + 1
            special_ids[token] = piece_id
        return special_ids

    def _make_comma_table(self) -> dict[int, list[int]]:
        pieces = enumerate(self.processor.id_to_piece(list(range(self.num_pieces))))
        return {
            token: [*map(self.piece_to_id, parts)] for token, piece in pieces if (parts := self._split_comma(piece))
        }

    def _split_comma(self, piece: str) -> list[str] | None:
        """Return what the comma-digit rule makes of a piece; None where it does not apply."""
        if len(piece) < 2 or piece[-1] != "," or not piece[-2].isdigit():
            return None
        pieces = self.processor.encode(piece[:-1].replace(WORD_START, ""), out_type=str)
        if piece[0] != WORD_START and pieces[0][0] == WORD_START:
            # SentencePiece starts a word where the original text had none: take the mark off again.
            pieces = pieces[1:] if len(pieces[0]) == 1 else [pieces[0][1:], *pieces[1:]]
        return [*pieces, ","]


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
    lines = joined.split("\n") if texts else []
    return lines if joined.isascii() else [line if line.isascii() else _without_accents(line).lower() for line in lines]


def normalize_aligned(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Return ``normalize`` of a text and, for each of its characters, the range in the text that it comes from."""
    characters: list[tuple[str, int, int]] = []
    for word in re.finditer(r"\S+", text):
        if characters:
            characters.append((" ", characters[-1][2], word.start()))
        for place, character in enumerate(word[0], word.start()):
            for lower in "σ" if character == "Σ" else character.lower():
                last = characters[-1] if characters else ("", 0, 0)
                if lower == last[0] and lower in "`'":
                    characters[-1] = ('"', last[1], place + 1)
                else:
                    characters.append((lower, place, place + 1))
    if not all(character.isascii() for character, _, _ in characters):
        decomposed = [(_without_accents(character), begin, end) for character, begin, end in characters]
        characters = [(part, begin, end) for parts, begin, end in decomposed for part in parts]
    final = "".join(character for character, _, _ in characters).lower()  # as a whole: a final sigma depends on context
    return final, [(begin, end) for character, begin, end in characters for _ in character.lower()]


def _span(text: str, origins: list[tuple[int, int]], begin: int, end: int) -> tuple[int, int]:
    """The range of the original text that a range of the normalised one comes from, without white space around it."""
    while begin < end and text[begin].isspace():
        begin += 1
    while begin < end and text[end - 1].isspace():
        end -= 1
    if begin < end:
        return origins[begin][0], origins[end - 1][1]
    place = origins[begin][0] if begin < len(origins) else origins[-1][1] if origins else 0
    return place, place


def _without_accents(text: str) -> str:
    return _combining_characters().sub("", unicodedata.normalize("NFKD", text))


@functools.cache
def _combining_characters() -> re.Pattern[str]:
    """Compile the class of all combining characters (a regular expression is 10 times a Python loop's speed)."""
    # None are beyond the second plane: what is there is ideographs, tags and private use.
    code_points = [point for point in range(0x300, 0x20000) if unicodedata.combining(chr(point))]
    ranges: list[list[int]] = []  # three times the speed of single characters
    for point in code_points:
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges) + "]+")


def flatten(encoded: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of all texts in one int32 array, and the number of ids of each text (int64)."""
    lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
    ids = np.fromiter(itertools.chain.from_iterable(encoded), dtype=np.int32, count=int(lengths.sum()))
    return ids, lengths
