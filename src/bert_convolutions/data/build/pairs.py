"""Second stage of the dataset builder: encoded sentences become pairs, sorted by shuffle key.

Every pair has a 64-bit key, a hash of the seed and of the number of its first sentence in the whole corpus. Sorting all
pairs by key is the shuffle: uniform over the corpus and the same for any number of processes. The key's top bits select
the shard, so each block's sorted pairs form one run per shard; the third stage merges the runs.
"""

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from bert_convolutions.data.build.arrays import open_arrays, take_rows, write_arrays
from bert_convolutions.data.randomness import Stream, mix
from bert_convolutions.schemas import BlockFacts

BLOCK_DOCUMENT_SENTENCES = 1000
"""A file without blank lines is divided into documents of this many sentences, so that some can be held out."""


@dataclass(frozen=True)
class Pairing:
    """Settings of the pairing, the same for all blocks."""

    within_documents: bool
    """Pair no sentences across a blank line."""
    seed: int
    num_shards: int
    cls_id: int
    sep_id: int


@dataclass(frozen=True)
class PairTask:
    """The sentences of one block, and what their pairing needs to know of other blocks."""

    pairing: Pairing
    sentences: Path
    runs: Path
    boundary_before: bool
    """Whether a blank line separates the block's first sentence from the one before it in the file."""
    first_sentence: int
    """Number of the block's first sentence in the corpus."""
    first_in_file: int
    """Its number in its file."""
    first_in_document: int
    """Its number in its document if there is no boundary before it."""
    document: int
    """Number of the document that the previous block ends in (or, without blank lines, of the file's first one)."""
    has_documents: bool
    """Whether the file has blank lines between sentences."""
    next_sentences: Path | None
    """The block whose first sentence may be paired with this block's last one."""


def plan_pairs(files: list[list[Path]], facts: list[list[BlockFacts]], pairing: Pairing) -> tuple[list[PairTask], int]:
    """Plan the pairing of every block that has sentences, from the paths and the facts of each file's blocks.

    In each file the first sentence is paired with the second, the third with the fourth and so on. With
    ``within_documents`` pairing restarts after every blank line.

    Returns:
        The tasks and the number of documents in all files.
    """
    tasks: list[PairTask] = []
    sentence = document = 0
    for paths, blocks in zip(files, facts, strict=True):
        filled = [part for part in zip(paths, blocks, _boundaries_before(blocks), strict=True) if part[1].num_sentences]
        has_documents = any(boundary or block.inner_borders for _, block, boundary in filled)
        in_file = in_document = boundaries = 0
        for (path, block, boundary), following in zip_longest(filled, filled[1:]):
            continues = following and not (pairing.within_documents and following[2])
            tasks.append(
                PairTask(
                    pairing,
                    sentences=path,
                    runs=path.with_suffix(".runs"),
                    boundary_before=boundary,
                    first_sentence=sentence,
                    first_in_file=in_file,
                    first_in_document=in_document,
                    document=document + boundaries,
                    has_documents=has_documents,
                    next_sentences=following[0] if continues else None,
                )
            )
            in_document = block.last_document + (0 if boundary or block.inner_borders else in_document)
            boundaries += boundary + block.inner_borders
            in_file += block.num_sentences
            sentence += block.num_sentences
        document += boundaries + 1 if has_documents else -(-in_file // BLOCK_DOCUMENT_SENTENCES)
    return tasks, document


def _boundaries_before(blocks: list[BlockFacts]) -> list[bool]:
    """For each block of a file, whether a blank line separates its first sentence from an earlier one."""
    boundaries = []
    started = pending = False
    for block in blocks:
        boundaries.append(started and (pending or block.starts_with_border))
        started, pending = (
            started or block.num_sentences > 0,
            block.ends_with_border or (pending and not block.num_sentences),
        )
    return boundaries


def write_runs(task: PairTask) -> None:
    """Pair the sentences of a block and write the pairs sorted by shuffle key.

    The file holds ``keys`` (uint64), ``documents`` (uint32), ``lengths`` (uint32) and ``ids`` (concatenated) of the
    pairs, and for each shard the index of its first pair (``pair_starts``) and first id (``id_starts``).
    """
    with open_arrays(task.sentences) as read:
        ids, lengths, segments = read("ids"), read("lengths").astype(np.int64), read("segments")
    segments[0] = task.boundary_before
    num_own = lengths.size
    in_file = task.first_in_file + np.arange(num_own)
    within_documents, num_shards = task.pairing.within_documents, task.pairing.num_shards
    position_in_unit = _number_in_document(segments, task.first_in_document) if within_documents else in_file
    first = np.flatnonzero(position_in_unit % 2 == 0)
    if task.next_sentences is not None and first.size and first[-1] == num_own - 1:
        with open_arrays(task.next_sentences) as read:
            length = int(read("lengths", 0, 1)[0])
            ids = np.concatenate([ids, read("ids", 0, length)])
        lengths = np.append(lengths, length)
        segments = np.append(segments, False)
    first = first[first + 1 < lengths.size]
    if within_documents:
        first = first[~segments[first + 1]]
    documents = (
        task.document + (np.cumsum(segments) if task.has_documents else in_file // BLOCK_DOCUMENT_SENTENCES)[first]
    )

    keys = mix((task.first_sentence + first).astype(np.uint64), task.pairing.seed, Stream.PAIR_SHUFFLE)
    order = np.argsort(keys, kind="stable")
    keys, first = keys[order], first[order]
    pair_lengths = lengths[first] + lengths[first + 1] + 3
    shards = ((keys >> np.uint64(32)) * np.uint64(num_shards)) >> np.uint64(32)  # equal parts of the range of keys
    bounds = np.searchsorted(shards, np.arange(num_shards + 1))
    id_bounds = np.concatenate([[0], np.cumsum(pair_lengths)])[bounds]
    write_arrays(
        task.runs,
        {
            "pair_starts": bounds.astype(np.int64),
            "id_starts": id_bounds.astype(np.int64),
            "keys": keys,
            "documents": documents[order].astype(np.uint32),
            "lengths": pair_lengths.astype(np.uint32),
            "ids": _join_pairs(ids, lengths, first, task.pairing.cls_id, task.pairing.sep_id),
        },
        {"num_pairs": first.size},
    )


def _number_in_document(segments: np.ndarray, first_in_document: int) -> np.ndarray:
    """The number of each sentence in its document."""
    positions = np.arange(segments.size)
    last_boundary = np.maximum.accumulate(np.where(segments, positions, -1))
    return np.where(last_boundary < 0, positions + first_in_document, positions - last_boundary)


def _join_pairs(ids: np.ndarray, lengths: np.ndarray, first: np.ndarray, cls_id: int, sep_id: int) -> np.ndarray:
    """Concatenate ``[CLS] a [SEP] b [SEP]`` of each pair (sentences ``first[i]`` and ``first[i] + 1``).

    The special ids are first inserted in the order of the text, ``[SEP]`` after every sentence and ``[CLS]`` before the
    first of each pair. Then each pair is one contiguous row to copy.
    """
    is_first = np.zeros(lengths.size, dtype=np.int64)
    is_first[first] = 1
    ends = np.cumsum(lengths + 1 + is_first)
    begins = ends - (lengths + 1 + is_first)
    marked = np.empty(int(ends[-1]) if ends.size else 0, dtype=ids.dtype)
    is_text = np.ones(marked.size, dtype=bool)
    for positions, special_id in ((begins[first], cls_id), (ends - 1, sep_id)):
        marked[positions] = special_id
        is_text[positions] = False
    marked[is_text] = ids
    return take_rows(marked, begins[first], ends[first + 1] - begins[first])
