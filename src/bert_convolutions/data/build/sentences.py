"""First stage of the dataset builder: a block of text becomes a file of encoded sentences."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bert_convolutions.data.build.arrays import write_arrays
from bert_convolutions.data.build.sources import Block, read_text
from bert_convolutions.data.build.tokenizing import Encoder, open_encoder

_BATCH_CHARACTERS = 1 << 18
_encoder: Encoder


@dataclass(frozen=True)
class SentenceTask:
    """A block, and where to write its sentences."""

    block: Block
    read_before: int
    """How far in the file on disk the blocks before reach, in bytes."""
    path: Path
    language: str | None
    """Language to split the lines into sentences by; None: a line is a sentence."""


def start(tokenizer_name: str) -> None:
    """Open the tokenizer, once in every process."""
    global _encoder
    _encoder = open_encoder(tokenizer_name)


def encode_block(task: SentenceTask) -> int:
    """Write the sentences of a block; return the bytes it takes of the file on disk.

    The file holds ``ids`` (flat), ``lengths`` (ids of each sentence), ``segments`` (bool: a blank line, the border of a
    document, stands before the sentence) and, as facts, the counts and whether blank lines end the block.

    Raises:
        UsageError: the block is not UTF-8.
    """
    sentences, segments, ends_with_border = _find_sentences(read_text(task.block), task.language)
    id_type = smallest_id_type(len(_encoder))
    all_ids, all_lengths = [np.empty(0, id_type)], [np.empty(0, np.uint32)]
    for batch in _batches(sentences):
        ids, lengths = _encoder.encode_flat(batch)
        all_ids.append(ids.astype(id_type))
        all_lengths.append(lengths.astype(np.uint32))
    ids = np.concatenate(all_ids)
    borders_at = np.flatnonzero(segments)
    write_arrays(
        task.path,
        {"lengths": np.concatenate(all_lengths), "segments": segments, "ids": ids},
        num_sentences=len(sentences),
        num_tokens=ids.size,
        num_bytes=task.block.end - task.block.start,
        num_borders=borders_at.size,
        starts_with_border=bool(segments[:1].any()),
        ends_with_border=ends_with_border,
        since_last_border=len(sentences) - (int(borders_at[-1]) if borders_at.size else 0),
    )
    return task.block.position - task.read_before


def smallest_id_type(vocabulary_size: int) -> type[np.unsignedinteger[Any]]:
    """Return the smallest of uint16 and uint32 that holds every id."""
    return np.uint16 if vocabulary_size <= 1 << 16 else np.uint32


def _find_sentences(text: str, language: str | None) -> tuple[list[str], np.ndarray, bool]:
    """Return the sentences of a text, for each whether blank lines stand before it, and whether they end the text.

    Lines end where ``str.splitlines`` ends them, as in the original.
    """
    lines = text.splitlines()
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
    """Yield the sentences in groups of some ``_BATCH_CHARACTERS``, which bounds the memory of lists of ids."""
    ends = np.cumsum(np.fromiter(map(len, sentences), dtype=np.int64, count=len(sentences)))
    begin = 0
    while begin < len(sentences):
        limit = (int(ends[begin - 1]) if begin else 0) + _BATCH_CHARACTERS
        end = max(int(np.searchsorted(ends, limit, side="right")), begin + 1)
        yield sentences[begin:end]
        begin = end


def split_sentences(paragraph: str, language: str) -> list[str]:
    """Cut a paragraph into its sentences, none of them blank."""
    import sentencex

    return [sentence for sentence in sentencex.segment(language, paragraph) if sentence and not sentence.isspace()]
