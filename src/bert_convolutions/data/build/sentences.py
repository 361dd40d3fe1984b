"""First stage of the dataset builder: a block of text becomes a file of encoded sentences."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bert_convolutions.data.build.arrays import write_arrays
from bert_convolutions.data.build.sources import Block, read_text, split_lines
from bert_convolutions.data.pieces import APPENDED_TOKENS, PieceTokenizer, find_model_file, flatten
from bert_convolutions.hub import local_folder
from bert_convolutions.parsing import read_model
from bert_convolutions.schemas import AddedTokens

_BATCH_CHARACTERS = 1 << 18
_PART_CHARACTERS = 1 << 14
_tokenizer: "TextTokenizer"


class HuggingFaceTextTokenizer:
    """Wraps any loaded Hugging Face tokenizer in the part of ``PieceTokenizer``'s interface that a build needs."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.cls_id: int = tokenizer.cls_token_id
        self.sep_id: int = tokenizer.sep_token_id

    @functools.cached_property
    def hash(self) -> str:
        """The SHA-256 that identifies vocabulary and rules."""
        from bert_convolutions.data.loading import tokenizer_hash

        return tokenizer_hash(self._tokenizer)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts in one int32 array, and the number of ids of each text (int64)."""
        encoded = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        return flatten(encoded)


TextTokenizer = PieceTokenizer | HuggingFaceTextTokenizer


def open_text_tokenizer(path: str | Path) -> TextTokenizer:
    """Open a bare ``spm.model``, a directory with one, or any Hugging Face tokenizer (or its name on the Hub).

    The last, and tokens that were added to one of ours, need ``transformers``, and so more memory.

    Raises:
        UsageError: the path does not exist or is not a tokenizer.
    """
    path = local_folder(path, "tokenizer")
    model_file, added = find_model_file(path), Path(path) / "added_tokens.json"
    if model_file and not (added.is_file() and read_model(AddedTokens, added).root.keys() - set(APPENDED_TOKENS)):
        return PieceTokenizer(model_file)
    from bert_convolutions.data.loading import load_tokenizer

    return HuggingFaceTextTokenizer(load_tokenizer(path))


def as_text_tokenizer(tokenizer: Any) -> TextTokenizer:
    """A loaded Hugging Face tokenizer for a build: its ``PieceTokenizer`` if it has no more tokens than that."""
    pieces = getattr(tokenizer, "pieces", None)
    return pieces if pieces and len(pieces) == len(tokenizer) else HuggingFaceTextTokenizer(tokenizer)


@dataclass(frozen=True)
class SentenceTask:
    """A block and where to write its sentences."""

    block: Block
    read_before: int
    """Position in the file on disk at which the previous block ends, in bytes."""
    path: Path
    language: str | None
    """Language for splitting lines into sentences; None if each line is a sentence."""


def init_worker(tokenizer: TextTokenizer) -> None:
    """Set the tokenizer of this process."""
    global _tokenizer
    _tokenizer = tokenizer


def encode_block(task: SentenceTask) -> int:
    """Encode and write the sentences of a block; return the number of bytes read from the file on disk.

    The output holds ``ids`` (concatenated), ``lengths`` (ids per sentence), ``segments`` (bool: whether a blank line,
    which ends a document, precedes the sentence) and, as facts, counts and whether a blank line ends the block.

    Raises:
        UsageError: the block is not UTF-8, or its file has become shorter.
    """
    sentences, segments, ends_with_border = _find_sentences(read_text(task.block), task.language)
    id_type = smallest_id_type(len(_tokenizer))
    all_ids, all_lengths = [np.empty(0, id_type)], [np.empty(0, np.uint32)]
    for batch in _batches(sentences):
        ids, lengths = _tokenizer.encode_flat(batch)
        all_ids.append(ids.astype(id_type))
        all_lengths.append(lengths.astype(np.uint32))
    ids = np.concatenate(all_ids)
    inner_borders = np.flatnonzero(segments[1:])
    write_arrays(
        task.path,
        {"lengths": np.concatenate(all_lengths), "segments": segments, "ids": ids},
        {
            "num_sentences": len(sentences),
            "num_tokens": ids.size,
            "num_bytes": task.block.end - task.block.start,
            "inner_borders": inner_borders.size,
            "last_document": len(sentences) - (int(inner_borders[-1]) + 1 if inner_borders.size else 0),
            "starts_with_border": bool(segments[:1].any()),
            "ends_with_border": ends_with_border,
        },
    )
    return task.block.position - task.read_before


def smallest_id_type(vocabulary_size: int) -> type[np.unsignedinteger[Any]]:
    """The smaller of uint16 and uint32 that can hold every id."""
    return np.uint16 if vocabulary_size <= 1 << 16 else np.uint32


def _find_sentences(text: str, language: str | None) -> tuple[list[str], np.ndarray, bool]:
    """The sentences of a text, whether a blank line precedes each, and whether one ends the text."""
    lines = split_lines(text)
    is_blank = np.array([not line or line.isspace() for line in lines], dtype=bool)
    filled = np.flatnonzero(~is_blank)
    segments = np.diff(filled, prepend=-1) > 1
    sentences = lines if filled.size == len(lines) else [lines[number] for number in filled.tolist()]
    if language is not None:
        cut = [split_sentences(paragraph, language) for paragraph in sentences]
        sentences = list(itertools.chain.from_iterable(cut))
        counts = np.fromiter(map(len, cut), dtype=np.int64, count=len(cut))
        is_first = np.zeros(len(sentences), dtype=bool)
        is_first[np.cumsum(counts) - counts] = True
        segments = np.repeat(segments, counts) & is_first
    return sentences, segments, bool(is_blank[-1:].any())


def _batches(sentences: list[str]) -> Iterator[list[str]]:
    """Group the sentences by about ``_BATCH_CHARACTERS``, which bounds the memory of lists of ids."""
    ends = np.cumsum(np.fromiter(map(len, sentences), dtype=np.int64, count=len(sentences)))
    begin = 0
    while begin < len(sentences):
        limit = (int(ends[begin - 1]) if begin else 0) + _BATCH_CHARACTERS
        end = max(int(np.searchsorted(ends, limit, side="right")), begin + 1)
        yield sentences[begin:end]
        begin = end


def split_sentences(paragraph: str, language: str) -> list[str]:
    """Split a paragraph into its non-blank sentences.

    A longer one is split in parts of ``_PART_CHARACTERS`` and the unfinished sentence of the part before: sentencex
    takes time quadratic in the length of Chinese and Japanese text, and splits nothing between any two quotation marks.
    """
    import sentencex

    sentences, rest = [], ""
    for start in range(0, len(paragraph), _PART_CHARACTERS):
        *whole, rest = sentencex.segment(language, rest + paragraph[start : start + _PART_CHARACTERS])
        sentences += whole
    return [sentence for sentence in (*sentences, rest) if sentence and not sentence.isspace()]
