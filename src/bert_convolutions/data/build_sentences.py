"""First stage of the dataset builder: a block of text becomes a file of encoded sentences."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bert_convolutions.data.build_sources import Block, read_text
from bert_convolutions.data.encoder import Encoder, open_encoder
from bert_convolutions.data.files import write_arrays
from bert_convolutions.data.spm_encoder import flatten

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

    The file holds ``ids`` (flat), ``lengths`` (ids of each sentence), ``borders`` (bool: a blank line, the border of a
    document, stands before the sentence) and, as facts, the counts and whether blank lines end the block.

    Raises:
        UsageError: the block is not UTF-8.
    """
    id_type = smallest_id_type(len(_encoder))
    all_ids, all_lengths, all_borders = [], [], []
    sentences = _Sentences(read_text(task.block), task.language)
    for batch, borders in sentences:
        ids, lengths = flatten(_encoder.encode(batch))
        all_ids.append(ids.astype(id_type))
        all_lengths.append(lengths.astype(np.uint32))
        all_borders.append(np.array(borders, dtype=bool))
    arrays = {
        "lengths": _joined(all_lengths, np.uint32),
        "borders": _joined(all_borders, np.bool_),
        "ids": _joined(all_ids, id_type),
    }
    borders_at = np.flatnonzero(arrays["borders"])
    num_sentences = arrays["lengths"].size
    write_arrays(
        task.path,
        arrays,
        num_sentences=num_sentences,
        num_tokens=arrays["ids"].size,
        num_bytes=task.block.end - task.block.start,
        num_borders=borders_at.size,
        starts_with_border=bool(num_sentences and arrays["borders"][0]),
        ends_with_border=sentences.border,
        since_last_border=int(num_sentences - borders_at[-1]) if borders_at.size else num_sentences,
    )
    return task.block.position - task.read_before


def smallest_id_type(vocabulary_size: int) -> type[np.unsignedinteger[Any]]:
    """Return the smallest of uint16 and uint32 that holds every id."""
    return np.uint16 if vocabulary_size <= 1 << 16 else np.uint32


class _Sentences:
    """Batches of the sentences of a text, and for each whether blank lines stand before it.

    Lines end where ``str.splitlines`` ends them, as in the original. After iteration ``border`` says whether blank
    lines end the text.
    """

    def __init__(self, text: str, language: str | None) -> None:
        self._text = text
        self._language = language
        self.border = False

    def __iter__(self) -> Iterator[tuple[list[str], list[bool]]]:
        sentences: list[str] = []
        borders: list[bool] = []
        characters = 0
        for line in self._text.splitlines():
            if not line or line.isspace():
                self.border = True
                continue
            for sentence in [line] if self._language is None else split_sentences(line, self._language):
                sentences.append(sentence)
                borders.append(self.border)
                self.border = False
            characters += len(line)
            if characters > _BATCH_CHARACTERS:
                yield sentences, borders
                sentences, borders, characters = [], [], 0
        yield sentences, borders


def split_sentences(paragraph: str, language: str) -> list[str]:
    """Cut a paragraph into its sentences, none of them blank."""
    import sentencex

    return [sentence for sentence in sentencex.segment(language, paragraph) if sentence and not sentence.isspace()]


def _joined(arrays: list[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype)
