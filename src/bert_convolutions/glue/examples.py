"""Examples as token ids in concatenated arrays, and batches of them in packed or padded rows.

The files of a run are checked before anything is trained, tokenised once, and shared by all rounds.
Legend: N examples, O outputs (one per example, or per word), R rows, S row length.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bert_convolutions import files
from bert_convolutions.data.loading import tokenizer_hash
from bert_convolutions.data.masking import IGNORED
from bert_convolutions.data.packing import Rows, positions_within
from bert_convolutions.data.pieces import flatten
from bert_convolutions.errors import UsageError
from bert_convolutions.glue.plan import Job
from bert_convolutions.glue.reading import Examples, has_split, read_examples
from bert_convolutions.glue.tasks import DevSet, Task, TestSet
from bert_convolutions.model.modeling import CompositeBertPreTrainedModel
from bert_convolutions.training.sampling import Slice, StepPlan

TEXTS_PER_CALL = 10_000
"""Texts per call of the tokenizer: enough to use its threads, few enough for its Python lists to fit in memory."""
ROW_MULTIPLE = 8
"""Row lengths are multiples of this, which makes matrix products faster."""


@dataclass(frozen=True)
class EncodedExamples(Dataset[dict[str, Any]]):
    """Tokenised and truncated examples without padding. Items are features for a padding collator.

    Attributes:
        columns: concatenated int32 values by name: ``input_ids``, ``token_type_ids`` if the tokenizer returns them, and
            for word-level tasks ``labels``: the word's label at its first piece (0 in a test file), otherwise
            ``IGNORED``.
        offsets: (N + 1,) int64; example i is ``offsets[i]:offsets[i + 1]``.
        labels: (N,) int64 label ids or float32 scores; None for a test file and for word-level tasks.
        sentence_lengths: for word-level tasks, the number of words of each sentence in the file; otherwise None.
        indices: the indices of the predictions of a test file; otherwise None.
    """

    columns: dict[str, np.ndarray]
    offsets: np.ndarray
    labels: np.ndarray | None
    sentence_lengths: np.ndarray | None = None
    indices: list[int] | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, end = self.offsets[index], self.offsets[index + 1]
        item: dict[str, Any] = {name: values[start:end].tolist() for name, values in self.columns.items()}
        if self.labels is not None:
            item["labels"] = self.labels[index].item()
        return item

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each example."""
        return np.diff(self.offsets)

    @property
    def targets(self) -> np.ndarray | None:
        """(O,) the labels to predict: one per example, or one per word in the order of the file."""
        return self.columns["labels"][self.columns["labels"] != IGNORED] if "labels" in self.columns else self.labels

    @property
    def output_offsets(self) -> np.ndarray:
        """(N + 1,) offsets of each example's outputs among all O."""
        if "labels" not in self.columns:
            return np.arange(len(self) + 1)
        return _offsets(self.columns["labels"] != IGNORED)[self.offsets]

    def select(self, indices: np.ndarray) -> "EncodedExamples":
        """The examples at ``indices`` (M,), in that order."""
        tokens = flat_indices(self.offsets, indices)
        return dataclasses.replace(
            self,
            columns={name: values[tokens] for name, values in self.columns.items()},
            offsets=_offsets(self.lengths[indices]),
            labels=None if self.labels is None else self.labels[indices],
            sentence_lengths=None,
            indices=None,
        )


def flat_indices(offsets: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The concatenated positions of rows ``indices`` (M,) in a flat array whose rows have ``offsets``."""
    lengths = np.diff(offsets)[indices]
    return np.repeat(offsets[indices], lengths) + positions_within(lengths)


def encode(tokenizer: PreTrainedTokenizerBase, examples: Examples, max_seq_length: int) -> EncodedExamples:
    """Tokenise examples as ``[CLS] a [SEP]`` or ``[CLS] a [SEP] b [SEP]``, truncating the longer text first."""
    parts: dict[str, list[np.ndarray]] = {}
    all_lengths = []
    for start in range(0, len(examples), TEXTS_PER_CALL):
        texts = [column[start : start + TEXTS_PER_CALL] for column in examples.texts]
        batch = tokenizer(*texts, truncation="longest_first", max_length=max_seq_length, return_attention_mask=False)
        for name, rows in batch.items():
            values, lengths = flatten(rows)
            parts.setdefault(name, []).append(values)
        all_lengths.append(lengths)
    labels = None
    if examples.labels is not None:
        whole = all(isinstance(label, int) for label in examples.labels)
        labels = np.array(examples.labels, dtype=np.int64 if whole else np.float32)
    columns = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    return EncodedExamples(columns, _offsets(np.concatenate(all_lengths)), labels, indices=examples.indices)


def encode_words(tokenizer: PreTrainedTokenizerBase, examples: Examples, max_seq_length: int) -> EncodedExamples:
    """Tokenise sentences that are lists of words, between the special tokens that the tokenizer puts around a text.

    Each word is tokenised separately, after a space as in running text. A sentence that is too long is continued in
    another example. A word that is too long by itself is truncated; one without pieces becomes the unknown token.
    Without labels every word gets label 0.
    """
    words = sorted({word for sentence in examples.texts[0] for word in sentence})
    encoded = tokenizer([f" {word}" for word in words], add_special_tokens=False, verbose=False)["input_ids"]
    before, after = _around_a_text(tokenizer)
    room = max_seq_length - len(before) - len(after)
    pieces = {word: ids[:room] or [tokenizer.unk_token_id] for word, ids in zip(words, encoded, strict=True)}
    rows: list[tuple[list[int], list[int]]] = []
    labels: Any = examples.labels or ([0] * len(sentence) for sentence in examples.texts[0])
    for sentence, sentence_labels in zip(examples.texts[0], labels, strict=True):
        rows.append(([], []))
        for word, label in zip(sentence, sentence_labels, strict=True):
            if len(rows[-1][0]) + len(pieces[word]) > room:
                rows.append(([], []))
            rows[-1][0].extend(pieces[word])
            rows[-1][1].extend([label] + [IGNORED] * (len(pieces[word]) - 1))
    ids, lengths = flatten([[*before, *row, *after] for row, _ in rows])
    ignored = [IGNORED] * len(before), [IGNORED] * len(after)
    columns = {"input_ids": ids, "labels": flatten([[*ignored[0], *row, *ignored[1]] for _, row in rows])[0]}
    if "token_type_ids" in tokenizer.model_input_names:
        columns["token_type_ids"] = np.zeros_like(ids)
    sentence_lengths = np.array([len(sentence) for sentence in examples.texts[0]])
    return EncodedExamples(columns, _offsets(lengths), None, sentence_lengths, examples.indices)


def _around_a_text(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens before a text, such as ``[CLS]``, and after it: XLNet has all there, EuroBERT none."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    special = encoded["special_tokens_mask"]
    start = special.index(0)
    end = len(special) - special[::-1].index(0)
    return encoded["input_ids"][:start], encoded["input_ids"][end:]


def _offsets(lengths: np.ndarray) -> np.ndarray:
    """The offsets (N + 1,) of concatenated rows of ``lengths`` (N,)."""
    return np.concatenate([[0], np.cumsum(lengths)])


class GlueData:
    """The files of a run, in ``data_dir`` or in a task's own folder; checked first, then encoded once and cached."""

    def __init__(self, data_dir: Path | None, max_seq_length: int) -> None:
        self.data_dir, self.max_seq_length = data_dir, max_seq_length
        self._encoded: dict[tuple[str, str, Path, bool], EncodedExamples] = {}
        self._hashes: dict[Path, str] = {}

    def check(self, jobs: Sequence[Job]) -> dict[str, int]:
        """Read every file that the jobs need, so that a bad line is found before days of training, not after.

        Returns:
            The number of training examples of each task that is trained.

        Raises:
            UsageError: a file is missing or does not fit its task. Test files may be missing: see ``has_test``.
        """
        counts: dict[tuple[str, str], int] = {}
        for job in jobs:
            needed: list[tuple[str, TestSet | None]] = [(job.task.train, None)] if job.train else []
            needed += [(dev_set.path, None) for dev_set in job.task.dev if job.reads_dev]
            needed += [(test.path, test) for test in job.predict if self.has_test(job.task, test)]
            for path, test in needed:
                if (job.task.name, path) not in counts:
                    counts[job.task.name, path] = len(self._read(job.task, path, test))
        return {job.task.name: counts[job.task.name, job.task.train] for job in jobs if job.train}

    def train_hash(self, task: Task) -> str | None:
        """The SHA-256 of a task's training examples; None if there is no such file."""
        path = self.root(task) / task.train
        if path not in self._hashes and task.dataset is not None:
            self._read(task, task.train)
        elif path not in self._hashes and path.is_file():
            self._hashes[path] = files.sha256(path)
        return self._hashes.get(path)

    def hashes(self, task: Task) -> dict[str, str]:
        """The SHA-256 of the development and test files of a task that have been read, by the name of their results."""
        parts: tuple[DevSet | TestSet, ...] = (*task.dev, *task.tests)
        return {part.results: found for part in parts if (found := self._hashes.get(self.root(task) / part.path))}

    def dev(self, tokenizer: PreTrainedTokenizerBase, task: Task) -> dict[DevSet, EncodedExamples]:
        """The development sets of a task."""
        return {dev_set: self.encoded(tokenizer, task, dev_set.path) for dev_set in task.dev}

    def has_test(self, task: Task, test: TestSet) -> bool:
        """Whether a test file exists."""
        if task.dataset is not None:
            return has_split(task.dataset, test.path)
        return (self.root(task) / test.path).is_file()

    def root(self, task: Task) -> Path:
        """The root folder of a task's files."""
        root = task.root if task.root is not None else self.data_dir
        if root is None:
            way_out = "" if task.named else ", or --dataset nyu-mll/glue"
            raise UsageError(f"{task.name} needs --data_dir, the folder with its files{way_out}")
        return root

    def encoded(
        self, tokenizer: PreTrainedTokenizerBase, task: Task, path: str, test: TestSet | None = None
    ) -> EncodedExamples:
        """The examples of a task's training or development file, or of the file of a ``test`` set."""
        key = (tokenizer_hash(tokenizer), task.name, self.root(task) / path, test is None)  # dev may be predicted too
        if key not in self._encoded:
            encoder = encode_words if task.per_token else encode
            self._encoded[key] = encoder(tokenizer, self._read(task, path, test), self.max_seq_length)
        return self._encoded[key]

    def _read(self, task: Task, path: str, test: TestSet | None = None) -> Examples:
        """The examples of a file, which must not change during the run."""
        examples = read_examples(self.root(task) / path, task, test)
        if self._hashes.setdefault(examples.path, examples.sha256) != examples.sha256:
            raise UsageError(f"{examples.path} has changed since this run began: start it again")
        return examples


Layout = Callable[[EncodedExamples], Mapping[str, Any]]
"""Makes the model's inputs from examples, in their order; the layout does not change the model's outputs."""


@dataclass(frozen=True)
class PackedRows:
    """Packs examples into few rows, for the models that support it."""

    pad_id: int

    def __call__(self, examples: EncodedExamples) -> dict[str, Any]:
        """Pack N examples.

        Returns:
            ``input_ids``, ``token_type_ids`` if there are any, ``attention_mask`` (0 for padding, k for the k-th
            example of the row) and ``position_ids``, all (R, S) int64; ``example_starts`` (N,), the position of each
            example's first token in the flattened rows; ``examples_per_row``, an int, the maximum; ``labels`` (N,), if
            any.
        """
        row_length = -(-int(examples.lengths.max()) // ROW_MULTIPLE) * ROW_MULTIPLE
        rows = Rows.of(examples.lengths, row_length)
        batch = {name: rows.lay_out(column) for name, column in examples.columns.items() if name != "input_ids"}
        batch["input_ids"] = rows.lay_out(examples.columns["input_ids"], self.pad_id)
        batch |= {"attention_mask": rows.attention_mask(), "position_ids": rows.lay_out(rows.positions)}
        batch["example_starts"] = rows.starts
        if examples.labels is not None:
            batch["labels"] = examples.labels
        tensors = {name: torch.from_numpy(value) for name, value in batch.items()}
        return {**tensors, "examples_per_row": int(rows.numbers.max())}


@dataclass(frozen=True)
class PaddedRows:
    """One example per row, padded to the longest by a collator of ``transformers``, for any of its models."""

    collator: Callable[[list[dict[str, Any]]], Mapping[str, Any]]

    def __call__(self, examples: EncodedExamples) -> Mapping[str, Any]:
        """The collator's batch of the examples."""
        return self.collator([examples[index] for index in range(len(examples))])


def layout_for(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, per_token: bool = False) -> Layout:
    """The layout with the least padding that a model supports; ``per_token`` for word-level tasks."""
    if per_token:
        return PaddedRows(DataCollatorForTokenClassification(tokenizer))
    if isinstance(model, CompositeBertPreTrainedModel):
        return PackedRows(int(tokenizer.pad_token_id))
    return PaddedRows(DataCollatorWithPadding(tokenizer))


@dataclass(frozen=True)
class ShuffledExamples(Dataset[Any]):
    """Training examples, selected by a ``Slice`` of an epoch's uniform shuffle."""

    examples: EncodedExamples
    plan: StepPlan

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, part: Slice) -> EncodedExamples:  # the DataLoader prefers it to __getitem__
        return self.examples.select(self.plan.samples(part))


@dataclass(frozen=True)
class CountingCollator:
    """Makes a batch and counts its outputs as ``num_examples``.

    Every process must run the model, so one without examples at the end of an epoch gets ``stand_in``, counted as 0.
    """

    layout: Layout
    stand_in: EncodedExamples

    def __call__(self, examples: EncodedExamples) -> dict[str, Any]:
        """The batch of ``examples``."""
        count = int(examples.output_offsets[-1])
        return {**self.layout(examples if len(examples) else self.stand_in), "num_examples": count}
