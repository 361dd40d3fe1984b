"""Text to token ids by the rules of the original's tokenizer, fast and without ``transformers``.

Ids: the V pieces of the SentencePiece model, then ``[CLS]`` = V, ``[SEP]`` = V + 1, ``<pad>`` = V + 2 and ``[MASK]`` =
V + 3; ``<unk>`` is the model's own unknown piece. Encoding a text takes four steps:

1. special tokens in the text are split off and replaced by their ids;
2. the rest is normalised in the order of the original (the slow ALBERT tokenizer of ``transformers`` 3): lower-cased,
   accents stripped, white space collapsed, quotes replaced by plain ones;
3. SentencePiece encodes it (C++);
4. the comma-digit rule: a piece such as ``1,`` is encoded again without its comma, so that no piece joins a digit and a
   comma. The result depends only on the piece, so it is looked up in a table from id to ids.
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
"""Special tokens by the names of their arguments in ``transformers``."""
MODEL_FILE = "spm.model"
"""Name of the SentencePiece model in a tokenizer directory."""
CODE_FILE = "tokenization_composite_bert"
AUTO_MAP = {"AutoTokenizer": [f"{CODE_FILE}.CompositeBertTokenizer", None]}
"""Entry of ``tokenizer_config.json`` for the code beside it, which loads the tokenizer without this package."""
_SPECIAL_TOKENS = re.compile("(" + "|".join(re.escape(token) for token in (*APPENDED_TOKENS, UNKNOWN_TOKEN)) + ")")
WORD_START = "▁"
_RULES_VERSION = "composite-bert-tokenizer-1"


def find_model_file(path: str | Path) -> Path | None:
    """The SentencePiece model of a tokenizer path: the file itself, or ``spm.model`` in a directory.

    None for a directory with another tokenizer, including DeBERTa's, which has a file of the same name.

    Raises:
        UsageError: the path does not exist.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise UsageError(
            f"{path}: no such tokenizer; give the path of an spm.model or of a tokenizer directory, or a name of the "
            "Hugging Face Hub"
        )
    files = [file for name in ("config.json", "tokenizer_config.json") if (file := path / name).is_file()]
    content = "".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
    is_deberta = '"deberta-v2"' in content or '"DebertaV2Tokenizer' in content  # of the model, or of a tokenizer alone
    return path / MODEL_FILE if (path / MODEL_FILE).is_file() and not is_deberta else None


class AlignedPiece(NamedTuple):
    """A piece and the range of characters of the text that it covers, empty if it covers none."""

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
        # Not a cached property: in Python 3.11 it has a lock, which dill restores locked when it pickles the class.
        all_ids = range(self.num_pieces)
        self._byte_pieces = frozenset(self.processor.id_to_piece(n) for n in all_ids if self.processor.is_byte(n))
        # If the comma is not a piece, an unknown piece may contain one, and the comma-digit rule can't work on ids.
        self._comma_is_unknown = self.processor.piece_to_id(",") == self.unk_id

    def __len__(self) -> int:
        """The size of the vocabulary, V + 4."""
        return max(self.num_pieces, *(token_id + 1 for token_id in self.special_ids.values()))

    def __getstate__(self) -> dict[str, Any]:
        return {"model_path": self.model_path, "model_bytes": self.model_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load()

    @functools.cached_property
    def hash(self) -> str:
        """The SHA-256 that identifies the vocabulary and the rules."""
        return hashlib.sha256(_RULES_VERSION.encode() + self.model_bytes).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without ``[CLS]`` and ``[SEP]`` around it."""
        ids, lengths = self.encode_flat(texts)
        ends, all_ids = np.cumsum(lengths).tolist(), ids.tolist()
        return [all_ids[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Like ``encode``, but concatenated: all ids (int32) and the number of ids of each text (int64)."""
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
        """The pieces of a text that contains no special tokens, after the comma-digit rule."""
        pieces = self.processor.encode(normalize(text), out_type=str)
        return list(itertools.chain.from_iterable(self._split_comma(piece) or [piece] for piece in pieces))

    def align(self, text: str) -> list[AlignedPiece]:
        """The pieces of ``tokenize`` with their ranges in the text, without surrounding white space."""
        normalized, origins = normalize_aligned(text)
        seen, offsets = self.processor.normalize(normalized, with_offsets=True)  # SentencePiece's own normalisation
        offsets[len(seen) :] = [len(normalized)]
        aligned: list[AlignedPiece] = []
        begin, bytes_left = 0, 0
        for piece in self.processor.encode(normalized, out_type=str):
            end = begin + len(piece)
            if self._byte_pieces and piece in self._byte_pieces:  # several make one character
                bytes_left, end = (bytes_left or len(seen[begin].encode())) - 1, begin + 1
            for part, first, last in self._split_aligned(piece, begin, end):
                aligned.append(AlignedPiece(part, *_span(normalized, origins, offsets[first], offsets[last])))
            begin = begin if bytes_left else end
        return aligned

    def _split_aligned(self, piece: str, begin: int, end: int) -> Iterator[tuple[str, int, int]]:
        """Apply the comma-digit rule to a piece that covers ``begin`` to ``end``."""
        *parts, comma = self._split_comma(piece) or [piece]
        for part in parts:
            middle = min(begin + max(len(part.replace(WORD_START, "")), 1), end - 1)
            if part is parts[0] and piece[0] == WORD_START:
                middle = min(middle + 1, end - 1)
            yield part, begin, middle
            begin = middle
        yield comma, begin, end

    def piece_to_id(self, piece: str) -> int:
        """The id of a piece or special token, or the unknown token's id."""
        return self.special_ids.get(piece, self.processor.piece_to_id(piece))

    def _number_special_tokens(self) -> dict[str, int]:
        """Number the special tokens after the pieces, except those that are pieces of the model."""
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
        """The pieces that the comma-digit rule makes of a piece; None if it does not apply."""
        if len(piece) < 2 or piece[-1] != "," or not piece[-2].isdigit():
            return None
        pieces = self.processor.encode(piece[:-1].replace(WORD_START, ""), out_type=str)
        if piece[0] != WORD_START and pieces[0][0] == WORD_START:
            # SentencePiece always marks the start of a word; remove the mark if the piece had none.
            pieces = pieces[1:] if len(pieces[0]) == 1 else [pieces[0][1:], *pieces[1:]]
        return [*pieces, ","]


def normalize(text: str) -> str:
    """Lower-case a sentence, strip accents, collapse white space and replace quotes by plain double quotes.

    It is lower-cased twice, as in the original: first letter by letter, so that a Greek capital sigma always becomes
    the medial form, and once more for capitals that appear when NFKD decomposes a ligature or sign.
    """
    return normalize_all([text])[0]


def normalize_all(texts: Sequence[str]) -> list[str]:
    """``normalize`` of each text, with most steps applied to all of them joined in one string, which is faster."""
    joined = "\n".join([" ".join(text.split()) for text in texts])  # now no text contains a line break
    joined = joined.replace("Σ", "σ").lower().replace("``", '"').replace("''", '"')
    lines = joined.split("\n") if texts else []
    return lines if joined.isascii() else [line if line.isascii() else _without_accents(line).lower() for line in lines]


def normalize_aligned(text: str) -> tuple[str, list[tuple[int, int]]]:
    """``normalize`` of a text and, for each character of the result, its range in the text."""
    characters: list[tuple[str, int, int]] = []
    for word in re.finditer(r"\S+", text):
        if characters:
            characters.append((" ", characters[-1][2], word.start()))
        for index, character in enumerate(word[0], word.start()):
            for lower in "σ" if character == "Σ" else character.lower():
                last = characters[-1] if characters else ("", 0, 0)
                if lower == last[0] and lower in "`'":
                    characters[-1] = ('"', last[1], index + 1)
                else:
                    characters.append((lower, index, index + 1))
    if not all(character.isascii() for character, _, _ in characters):
        decomposed = [(_without_accents(character), begin, end) for character, begin, end in characters]
        characters = [(part, begin, end) for parts, begin, end in decomposed for part in parts]
    final = "".join(character for character, _, _ in characters).lower()  # a final sigma depends on its context
    return final, [(begin, end) for character, begin, end in characters for _ in character.lower()]


def _span(text: str, origins: list[tuple[int, int]], begin: int, end: int) -> tuple[int, int]:
    """The range of the original text for a range of the normalised one, without surrounding white space."""
    while begin < end and text[begin].isspace():
        begin += 1
    while begin < end and text[end - 1].isspace():
        end -= 1
    if begin < end:
        return origins[begin][0], origins[end - 1][1]
    index = origins[begin][0] if begin < len(origins) else origins[-1][1] if origins else 0
    return index, index


def stripped_marks(text: str) -> str:
    """The accents and other combining marks that ``normalize`` removes from a text."""
    return "".join(_combining_characters().findall(unicodedata.normalize("NFKD", text)))


def _without_accents(text: str) -> str:
    return _combining_characters().sub("", unicodedata.normalize("NFKD", text))


@functools.cache
def _combining_characters() -> re.Pattern[str]:
    """A character class of all combining characters (a regular expression is 10 times as fast as a Python loop)."""
    # There are none beyond the second plane, only ideographs, tags and private use.
    code_points = [point for point in range(0x300, 0x20000) if unicodedata.combining(chr(point))]
    ranges: list[list[int]] = []  # three times as fast as single characters
    for point in code_points:
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges) + "]+")


def flatten(encoded: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """The ids of all texts in one int32 array, and the number of ids of each text (int64)."""
    lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
    ids = np.fromiter(itertools.chain.from_iterable(encoded), dtype=np.int32, count=int(lengths.sum()))
    return ids, lengths
