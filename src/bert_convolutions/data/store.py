"""Examples on disk, opened in seconds at any size and read in random order without loading them into memory.

Stores don't shuffle or batch: see ``data.randomness`` for the order of the examples.
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
"""All checksums of datasets up to this size are verified when they are opened, which takes at most a second."""
_MAX_OPEN_SHARDS = 512
"""Maximum number of open shards, each with a file descriptor; also at most a quarter of those a process may have."""

_HASHED_INDICES = 1 << 20
"""Number of indices that are hashed at a time, which bounds the memory."""


class ExampleStore:
    """A sequence of untruncated examples ``[CLS] a [SEP] b [SEP]``; workers reopen it when it is unpickled.

    Attributes:
        description: one line for logs: the path and the number of examples.
        fingerprint: a hash of the contents of all examples in order, independent of their paths.
    """

    description: str
    fingerprint: str

    def __len__(self) -> int:
        """The number of examples."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> np.ndarray:
        """The ids of one example, int64 (length,)."""
        raise NotImplementedError

    def split_by_document(self, fraction: float, seed: int) -> "tuple[ExampleView, ExampleView]":
        """Hold out a ``fraction`` (0 to 1) of the documents; return views of the training and the held-out examples.

        A document is held out by a hash of its number and the seed.

        Raises:
            UsageError: the store does not record documents, or one of the two parts would be empty.
        """
        raise UsageError(
            f"{self.description}: does not say which document an example comes from; give --eval_data_file instead of "
            "--eval_fraction, or train on a folder made by build-dataset"
        )


class ExampleView(ExampleStore):
    """The examples of a store at ``listed`` (n,), or with ``others`` all but those, which then are sorted.

    Only the listed indices are in memory, which are few where a small part is held out.
    """

    def __init__(self, store: ExampleStore, listed: np.ndarray, others: bool = False) -> None:
        self._store, self._listed, self._others = store, listed, others
        self._others_before = listed - np.arange(listed.size) if others else listed[:0]
        self.description = f"{len(self):,} examples of {store.description}"
        digest = hashlib.sha256(store.fingerprint.encode())
        for start in range(0, len(self), _HASHED_INDICES):
            positions = np.arange(start, min(start + _HASHED_INDICES, len(self)))
            digest.update(self._indices(positions).astype(listed.dtype).tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._store) - self._listed.size if self._others else self._listed.size

    def __getitem__(self, index: int) -> np.ndarray:
        return self._store[int(self._indices(np.array(index)))]

    def _indices(self, positions: np.ndarray) -> np.ndarray:
        """The store's indices of the examples at ``positions`` of this view, of the same shape."""
        if not self._others:
            return self._listed[positions]
        return positions + np.searchsorted(self._others_before, positions, side="right")


class WatchedFile:
    """A file that is read in parts and must not change; workers reopen it when it is unpickled.

    It is not memory-mapped, since truncating a mapped file kills the process that reads it. If its size or times
    change, its checksum is compared.

    Args:
        path: the file.
        checksum: its SHA-256; None to check only that it is long enough.
        status: its ``change_stamp`` when the checksum was computed.

    Raises:
        UsageError: it can't be opened.
    """

    def __init__(self, path: Path, checksum: str | None, status: tuple[int, ...]) -> None:
        self._path, self._checksum, self._stamp = path, checksum, status
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
        """The ``count`` bytes from ``position`` on.

        Raises:
            UsageError: the content has changed.
        """
        data = self._read(position, count)
        while self._checksum is not None and change_stamp(self._file.fileno()) != self._stamp:
            self._file.close()
            self._open()
            self._stamp = change_stamp(self._file.fileno())
            if sha256(self._path) != self._checksum:
                raise UsageError(
                    f"{self._path}: is damaged: it has changed since it was opened; restore its content, or start anew "
                    "with other data"
                )
            data = self._read(position, count)
        if len(data) != count:
            raise UsageError(f"{self._path}: ends too early; it is damaged or has changed since it was opened")
        return data

    def _read(self, position: int, count: int) -> bytes:
        if hasattr(os, "pread"):  # forked workers share the file's own position
            return os.pread(self._file.fileno(), count, position)
        self._file.seek(position)  # on Windows, which doesn't fork
        return self._file.read(count)


def change_stamp(file: int | Path) -> tuple[int, ...]:
    """Inode, size and times of a file (path or descriptor), which change when it is written to or replaced."""
    found = os.stat(file)  # noqa: PTH116 - takes descriptors too
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class ArrowStore(ExampleStore):
    """A folder made by ``build-dataset``.

    Opening checks the sizes of all shards, and their checksums if that takes at most a second; ``verify`` checks those
    of larger datasets. Reading an example checks its ids against the vocabulary, and refuses a shard that has changed
    since it was opened.

    Args:
        folder: the folder of ``manifest.json``.
        tokenizer_hash: hash of the model's tokenizer; None to accept any.

    Raises:
        UsageError: built with another tokenizer, or a shard is missing, truncated or damaged; names it.
    """

    def __init__(self, folder: str | Path, tokenizer_hash: str | None = None) -> None:
        self.folder = Path(folder)
        self._manifest = read_manifest(self.folder / MANIFEST_FILE)
        self._shards = self._manifest.shards
        if tokenizer_hash is not None:
            check_tokenizer(self.folder, self._manifest, tokenizer_hash)
        self._stamps = [_shard_stamp(self.folder / shard.file, shard.num_bytes) for shard in self._shards]
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
        """Hold out documents, which end at blank lines of the text or, if it has none, after every 1000 sentences."""
        threshold = np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))
        parts = []
        for number, start in enumerate(self._starts[:-1]):
            file, layout = self._shard(number)
            documents = np.frombuffer(file.read(layout.documents_at, 4 * self._shards[number].num_examples), np.uint32)
            parts.append(np.flatnonzero(mix(documents, seed, Stream.HELD_OUT) < threshold) + start)
        smallest = np.uint32 if len(self) < 1 << 32 else np.int64
        held_out = np.concatenate(parts, dtype=smallest, casting="unsafe")
        if not 0 < held_out.size < len(self):
            raise UsageError(
                f"{self.folder}: {self._manifest.counts.documents} documents are too few to hold out a fraction "
                f"of {fraction}; give another --eval_fraction, or --eval_data_file"
            )
        return ExampleView(self, held_out, others=True), ExampleView(self, held_out)

    def verify(self) -> None:
        """Compare the checksum of every shard with the manifest, which reads all data.

        Raises:
            UsageError: names a shard that differs.
        """
        for shard in self._shards:
            path = self.folder / shard.file
            if sha256(path) != shard.sha256:
                raise UsageError(f"{path}: the shard is damaged (its checksum differs); run build-dataset again")

    def _shard(self, number: int) -> "tuple[WatchedFile, _Layout]":
        record, file = self._shards[number], self._open.get(number)
        if file is None:
            file = self._open[number] = WatchedFile(self.folder / record.file, record.sha256, self._stamps[number])
            if len(self._open) > _max_open_shards():
                self._open.popitem(last=False)
        if number not in self._layouts:
            self._layouts[number] = _find_layout(self.folder / record.file, record, file)
        return file, self._layouts[number]


class _Layout(NamedTuple):
    """Byte positions of the arrays of a shard's only record batch, and the dtype of the ids.

    The arrays are the offsets of the examples in the ids, int32 (examples + 1,), the ids (tokens,), and the documents,
    uint32 (examples,).
    """

    offsets_at: int
    ids_at: int
    documents_at: int
    id_type: np.dtype[Any]


def _find_layout(path: Path, record: ShardRecord, file: WatchedFile) -> _Layout:
    """Find the arrays of an Arrow file and check them against its record."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:  # briefly, to read the schema only
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
    """The path of the manifest of an ids file."""
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
    """Refuse examples that were built with another tokenizer.

    Raises:
        UsageError: names their ``path``.
    """
    built_with = manifest.settings.tokenizer_hash
    if built_with != tokenizer_hash:
        raise UsageError(
            f"{path}: built with another tokenizer (hash {built_with[:12]}, not {tokenizer_hash[:12]}); "
            "give that one as --tokenizer_name or run build-dataset again"
        )


def _max_open_shards() -> int:
    try:
        import resource
    except ModuleNotFoundError:  # on Windows, where the limit is 8192
        return _MAX_OPEN_SHARDS
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # usually 1024, on macOS 256
    return _MAX_OPEN_SHARDS if limit == resource.RLIM_INFINITY else min(_MAX_OPEN_SHARDS, limit // 4)


def _shard_stamp(path: Path, size: int) -> tuple[int, ...]:
    """``change_stamp`` of a shard, which must exist and have ``size`` bytes."""
    found = change_stamp(path) if path.is_file() else None
    if found is None or found[1] != size:
        state = f"has {found[1]:,} bytes instead of {size:,}: it was truncated or changed" if found else "is missing"
        raise UsageError(f"{path}: the shard {state}; run build-dataset again")
    return found
