"""Examples on disk, opened in seconds at any size and read at random without holding them in memory.

Order and batches are not the store's business: see ``data.randomness``.
"""

import hashlib
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bert_convolutions.data.randomness import Stream, mix
from bert_convolutions.errors import UsageError
from bert_convolutions.files import sha256
from bert_convolutions.parsing import read_model
from bert_convolutions.schemas import DatasetManifest, ShardRecord

MANIFEST_FILE = "manifest.json"
_VERIFIED_BYTES = 512 << 20
"""Datasets up to this size have all checksums verified when they are opened, which takes a second at most."""
_MAX_OPEN_SHARDS = 512
"""Shards kept open at a time; each holds a file descriptor, of which a process usually has 1024."""


class ExampleStore:
    """A sequence of examples ``[CLS] a [SEP] b [SEP]``, un-truncated; picklable, so that workers reopen it.

    Attributes:
        description: one line for logs: where the examples are and how many.
        fingerprint: a hash of all examples in their order, whatever they are called and wherever they lie.
    """

    description: str
    fingerprint: str

    def __len__(self) -> int:
        """The number of examples."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> np.ndarray:
        """Return the ids of one example, int64 (length,)."""
        raise NotImplementedError

    def split_by_document(self, fraction: float, seed: int) -> "tuple[ExampleView, ExampleView]":
        """Hold out a share of the documents: views of the examples to train on and of those to evaluate on.

        Which documents are held out is a function of their number and the seed alone. ``fraction`` is between 0 and 1.

        Raises:
            UsageError: documents are not known here, or one of the two parts would be empty.
        """
        raise UsageError(
            f"{self.description}: does not say which document an example comes from; give --eval_data_file instead of "
            "--eval_fraction, or train on a folder made by build-dataset"
        )


class ExampleView(ExampleStore):
    """The examples of a store that have the ``indices`` (n,)."""

    def __init__(self, store: ExampleStore, indices: np.ndarray) -> None:
        self._store = store
        self._indices = indices
        self.description = f"{indices.size:,} examples of {store.description}"
        self.fingerprint = hashlib.sha256(store.fingerprint.encode() + indices.tobytes()).hexdigest()

    def __len__(self) -> int:
        return int(self._indices.size)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._store[int(self._indices[index])]


class WatchedFile:
    """A file read in parts that must stay what it was; picklable, so that workers reopen it.

    It is read and not memory-mapped: whoever maps a file that is cut short is killed. Where its size or times are not
    those seen before, its checksum tells whether its content is.

    Args:
        path: the file.
        checksum: its SHA-256; None where its length alone is to be watched.
        status: ``status_of`` it when its content was known.

    Raises:
        UsageError: it can't be opened.
    """

    def __init__(self, path: Path, checksum: str | None, status: tuple[int, ...]) -> None:
        self._path, self._checksum, self._status = path, checksum, status
        self._open()

    def _open(self) -> None:
        try:
            self._file = self._path.open("rb", buffering=0)
        except OSError as error:
            raise UsageError(f"{self._path}: can't be read ({error.strerror})") from error

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def read(self, position: int, count: int) -> bytes:
        """Return the ``count`` bytes from ``position`` on.

        Raises:
            UsageError: the content has changed.
        """
        data = os.pread(self._file.fileno(), count, position)
        while self._checksum is not None and status_of(self._file.fileno()) != self._status:
            self._file.close()
            self._open()
            self._status = status_of(self._file.fileno())
            if sha256(self._path) != self._checksum:
                raise UsageError(
                    f"{self._path}: is damaged: it has changed since it was opened; give it back its content, or start "
                    "anew with other data"
                )
            data = os.pread(self._file.fileno(), count, position)
        if len(data) != count:
            raise UsageError(f"{self._path}: ends too early; it is damaged or has changed since it was opened")
        return data


def status_of(file: int | Path) -> tuple[int, ...]:
    """What changes when a file, given open or by its path, is written to, cut short or replaced."""
    found = os.stat(file)  # noqa: PTH116 - a descriptor has no other way
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class ArrowStore(ExampleStore):
    """A folder made by ``build-dataset``.

    When it is opened the sizes of all shards are checked, and the checksums where that takes a second at most;
    ``verify`` checks those of larger datasets. Every example's ids are checked against the vocabulary when it is read,
    and a shard that changes from then on is refused.

    Args:
        folder: where ``manifest.json`` is.
        tokenizer_hash: of the tokenizer that the model is trained with; None: any.

    Raises:
        UsageError: built with another tokenizer, or a shard is missing, truncated or damaged; names it.
    """

    def __init__(self, folder: str | Path, tokenizer_hash: str | None = None) -> None:
        self.folder = Path(folder)
        self._manifest = read_manifest(self.folder / MANIFEST_FILE)
        self._shards = self._manifest.shards
        if tokenizer_hash is not None:
            check_tokenizer(self.folder, self._manifest, tokenizer_hash)
        self._statuses = [_status(self.folder / shard.file, shard.num_bytes) for shard in self._shards]
        if sum(shard.num_bytes for shard in self._shards) <= _VERIFIED_BYTES:
            self.verify()
        self._starts = np.cumsum([0, *(shard.num_examples for shard in self._shards)])
        self._layouts: dict[int, _Layout] = {}
        self._open: OrderedDict[int, WatchedFile] = OrderedDict()
        self.fingerprint = hashlib.sha256(" ".join(shard.sha256 for shard in self._shards).encode()).hexdigest()
        self.description = f"{folder} ({len(self):,} pairs in {len(self._shards)} shards)"

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        file, layout = self._shard(number)
        row = index - int(self._starts[number])
        start, stop = np.frombuffer(file.read(layout.offsets_at + 4 * row, 8), np.int32).tolist()
        width = layout.id_type.itemsize
        stored = file.read(layout.ids_at + width * start, width * (stop - start))
        ids = np.frombuffer(stored, layout.id_type).astype(np.int64)
        if ids.max(initial=0) >= self._manifest.settings.vocabulary_size:
            path = self.folder / self._shards[number].file
            raise UsageError(
                f"{path}: the shard is damaged (an id of row {row} is out of range); run build-dataset again"
            )
        return ids

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def split_by_document(self, fraction: float, seed: int) -> tuple[ExampleView, ExampleView]:
        """Hold out documents: each ends at a blank line of the text; without any, after 1000 sentences."""
        threshold = np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))
        train, held_out = [], []
        for number, start in enumerate(self._starts[:-1]):
            file, layout = self._shard(number)
            documents = np.frombuffer(file.read(layout.documents_at, 4 * self._shards[number].num_examples), np.uint32)
            is_held_out = mix(documents, seed, Stream.HELD_OUT) < threshold
            held_out.append(np.flatnonzero(is_held_out) + start)
            train.append(np.flatnonzero(~is_held_out) + start)
        smallest = np.uint32 if len(self) < 1 << 32 else np.int64
        train_view, held_out_view = (
            ExampleView(self, np.concatenate(parts, dtype=smallest, casting="unsafe")) for parts in (train, held_out)
        )
        if not len(train_view) or not len(held_out_view):
            raise UsageError(
                f"{self.folder}: {self._manifest.counts.documents} documents are too few to hold out a share of "
                f"{fraction}; give another --eval_fraction, or --eval_data_file"
            )
        return train_view, held_out_view

    def verify(self) -> None:
        """Compare the checksum of every shard with the manifest; reads everything.

        Raises:
            UsageError: names the shard that differs.
        """
        for shard in self._shards:
            path = self.folder / shard.file
            if sha256(path) != shard.sha256:
                raise UsageError(f"{path}: the shard is damaged (its checksum differs); run build-dataset again")

    def _shard(self, number: int) -> "tuple[WatchedFile, _Layout]":
        record, file = self._shards[number], self._open.get(number)
        if file is None:
            file = self._open[number] = WatchedFile(self.folder / record.file, record.sha256, self._statuses[number])
            if len(self._open) > _MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
        if number not in self._layouts:
            self._layouts[number] = _find_layout(self.folder / record.file, record, file)
        return file, self._layouts[number]


class _Layout(NamedTuple):
    """Where the arrays of a shard's one record batch begin in its file, in bytes, and the type of the ids.

    They are the offsets (examples + 1,) int32 of the examples among the ids (tokens,), and the documents (examples,)
    uint32.
    """

    offsets_at: int
    ids_at: int
    documents_at: int
    id_type: np.dtype[Any]


def _find_layout(path: Path, record: ShardRecord, file: WatchedFile) -> _Layout:
    """Find the arrays of an Arrow file, and check that they are what was written."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:  # for a moment, and nothing but the schema at its head is looked at
            mapped = source.read_buffer()
            batch = pa.ipc.open_stream(mapped).read_next_batch()
            rows, documents = batch.column("input_ids"), batch.column("document")
            sizes = len(rows), len(rows.values)
            offsets_at, ids_at, documents_at = (
                buffer.address - mapped.address
                for buffer in (rows.buffers()[1], rows.buffers()[3], documents.buffers()[1])
            )
            id_type = np.dtype(rows.values.type.to_pandas_dtype())
    except (pa.ArrowException, OSError, KeyError, StopIteration, ValueError, AttributeError, IndexError) as error:
        raise UsageError(f"{path}: the shard is damaged ({error}); run build-dataset again") from error
    offsets = np.frombuffer(file.read(offsets_at, 4 * (record.num_examples + 1)), np.int32)
    whole = sizes == (record.num_examples, record.num_tokens) and offsets[-1] == record.num_tokens
    if not whole or (np.diff(offsets, prepend=0) < 0).any():
        raise UsageError(f"{path}: the shard is damaged (its content is not what was written); run build-dataset again")
    return _Layout(offsets_at, ids_at, documents_at, id_type)


def manifest_path(ids_file: Path) -> Path:
    """Return where the manifest of an ids file is."""
    return ids_file.with_name(f"{ids_file.name}.{MANIFEST_FILE}")


def read_manifest(path: Path) -> DatasetManifest:
    """Read a manifest.

    Raises:
        UsageError: it is damaged or of another version.
    """
    try:
        return read_model(DatasetManifest, path)
    except UsageError as error:
        raise UsageError(f"{error}; run build-dataset again") from error


def check_tokenizer(path: Path, manifest: DatasetManifest, tokenizer_hash: str) -> None:
    """Refuse examples of another tokenizer.

    Raises:
        UsageError: names ``path``, where they are.
    """
    built_with = manifest.settings.tokenizer_hash
    if built_with != tokenizer_hash:
        raise UsageError(
            f"{path}: built with another tokenizer (hash {built_with[:12]}, not {tokenizer_hash[:12]}); "
            "give that one as --tokenizer_name or run build-dataset again"
        )


def _status(path: Path, size: int) -> tuple[int, ...]:
    """``status_of`` a shard, which must be there and of its size."""
    found = status_of(path) if path.is_file() else None
    if found is None or found[1] != size:
        state = f"has {found[1]:,} bytes instead of {size:,}: it was truncated or changed" if found else "is missing"
        raise UsageError(f"{path}: the shard {state}; run build-dataset again")
    return found
