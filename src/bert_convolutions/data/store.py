"""Examples on disk, opened in seconds at any size and read at random without holding them in memory.

Order and batches are not the store's business: see ``data.randomness``.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bert_convolutions.data.manifest import MANIFEST_FILE, Manifest, manifest_path, read_manifest
from bert_convolutions.data.options import BuildDatasetOptions
from bert_convolutions.data.randomness import Stream, mix
from bert_convolutions.errors import UsageError

_VERIFIED_BYTES = 512 << 20
"""Datasets up to this size have all checksums verified when they are opened, which takes a second at most."""
_MAX_OPEN_SHARDS = 512
"""Shards kept mapped at a time; each holds a file descriptor, of which a process usually has 1024."""


class ExampleStore(Protocol):
    """A sequence of examples ``[CLS] a [SEP] b [SEP]``, un-truncated; picklable, so that workers reopen it."""

    description: str
    """One line for logs: where the examples are and how many."""

    def __len__(self) -> int:
        """The number of examples."""

    def __getitem__(self, index: int) -> np.ndarray:
        """Return the ids of one example, int64 (length,)."""

    def split_by_document(self, fraction: float, seed: int) -> "tuple[ExampleView, ExampleView]":
        """Hold out a share of the documents: views of the examples to train on and of those to evaluate on.

        Which documents are held out is a function of their number and the seed alone.
        """


class ExampleView:
    """Some examples of a store, by index.

    Args:
        store: the examples.
        indices: which of them, integers (n,).
    """

    def __init__(self, store: ExampleStore, indices: np.ndarray) -> None:
        self._store = store
        self._indices = indices
        self.description = f"{indices.size:,} examples of {store.description}"

    def __len__(self) -> int:
        return int(self._indices.size)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return the ids of one example, int64 (length,)."""
        return self._store[int(self._indices[index])]

    def split_by_document(self, fraction: float, seed: int) -> "tuple[ExampleView, ExampleView]":
        """Not possible twice: split the store itself."""
        raise UsageError(f"{self.description}: a part of a dataset cannot be split again")


class ArrowStore:
    """A folder made by ``build-dataset``.

    When it is opened the sizes of all shards are checked, and the checksums where that takes a second at most;
    ``verify`` checks those of larger datasets. Every example's ids are checked against the vocabulary when it is read.

    Args:
        folder: where ``manifest.json`` is.
        tokenizer_hash: of the tokenizer that the model is trained with; None: any.

    Raises:
        UsageError: built with another tokenizer, or a shard is missing, truncated or damaged; names it.
    """

    def __init__(self, folder: str | Path, tokenizer_hash: str | None = None) -> None:
        self.folder = self._folder = Path(folder)
        self._manifest = read_manifest(self._folder / MANIFEST_FILE)
        if tokenizer_hash is not None:
            _check_tokenizer(self._folder, self._manifest, tokenizer_hash)
        for shard in self._manifest.shards:
            _check_size(self._folder / shard.file, shard.num_bytes)
        if sum(shard.num_bytes for shard in self._manifest.shards) <= _VERIFIED_BYTES:
            self.verify()
        self._starts = np.cumsum([0, *(shard.num_examples for shard in self._manifest.shards)])
        self._vocabulary_size = int(self._manifest.settings["vocabulary_size"])
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self.description = f"{folder} ({len(self):,} pairs in {len(self._manifest.shards)} shards)"

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        """Return the ids of one example, int64 (length,)."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        shard = self._shard(number)
        row = index - int(self._starts[number])
        ids = shard.ids[shard.offsets[row] : shard.offsets[row + 1]].astype(np.int64)
        if ids.max(initial=0) >= self._vocabulary_size:
            path = self._folder / self._manifest.shards[number].file
            raise UsageError(
                f"{path}: the shard is damaged (an id of row {row} is out of range); run build-dataset again"
            )
        return ids

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def split_by_document(self, fraction: float, seed: int) -> tuple[ExampleView, ExampleView]:
        """Hold out a share of the documents: views of the examples to train on and of those to evaluate on.

        A document ends at a blank line of the text; a file without any counts as documents of 1000 sentences. Which
        are held out is a function of their number in the corpus and the seed alone.

        Args:
            fraction: share of the documents, between 0 and 1.
            seed: of the draw.

        Raises:
            UsageError: one of the two parts would be empty.
        """
        threshold = np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))
        train, held_out = [], []
        for number, start in enumerate(self._starts[:-1]):
            documents = self._shard(number).documents.astype(np.uint64)
            is_held_out = mix(documents, seed, Stream.HELD_OUT) < threshold
            held_out.append(np.flatnonzero(is_held_out) + start)
            train.append(np.flatnonzero(~is_held_out) + start)
        views = ExampleView(self, _compact(train, len(self))), ExampleView(self, _compact(held_out, len(self)))
        if not len(views[0]) or not len(views[1]):
            raise UsageError(
                f"{self._folder}: {self._manifest.counts['documents']} documents are too few to hold out a share of "
                f"{fraction}; give another --eval_fraction, or --eval_data_file"
            )
        return views

    def verify(self) -> None:
        """Compare the checksum of every shard with the manifest; reads everything.

        Raises:
            UsageError: names the shard that differs.
        """
        from bert_convolutions.files import sha256

        for shard in self._manifest.shards:
            path = self._folder / shard.file
            if sha256(path) != shard.sha256:
                raise UsageError(f"{path}: the shard is damaged (its checksum differs); run build-dataset again")

    def _shard(self, number: int) -> "_Shard":
        shard = self._open.get(number)
        if shard is None:
            record = self._manifest.shards[number]
            path = self._folder / record.file
            _check_size(path, record.num_bytes)
            shard = self._open[number] = _Shard(path, record.num_examples, record.num_tokens)
            if len(self._open) > _MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
        return shard


class _Shard:
    """One Arrow file, mapped: ``ids`` (tokens,), ``offsets`` (examples + 1,), ``documents`` (examples,)."""

    def __init__(self, path: Path, num_examples: int, num_tokens: int) -> None:
        import pyarrow as pa

        try:
            with pa.memory_map(str(path)) as source:
                batch = pa.ipc.open_stream(source).read_next_batch()
            rows = batch.column("input_ids")
            self.offsets = np.frombuffer(rows.buffers()[1], dtype=np.int32)[: len(rows) + 1]
            self.ids = rows.values.to_numpy()
            self.documents = batch.column("document").to_numpy()
        except (pa.ArrowException, OSError, KeyError, StopIteration, ValueError) as error:
            raise UsageError(f"{path}: the shard is damaged ({error}); run build-dataset again") from error
        whole = len(rows) == num_examples and self.ids.size == num_tokens and self.offsets[-1] == num_tokens
        if not whole or (np.diff(self.offsets) < 0).any():
            raise UsageError(
                f"{path}: the shard is damaged (its content is not what was written); run build-dataset again"
            )


def open_examples(
    paths: str | Path | Sequence[str | Path],
    *,
    tokenizer: Any,
    line_by_line: bool = False,
    train_iterable: bool = False,
    cache_dir: str | Path | None = None,
    seed: int = 42,
    num_proc: int | None = None,
    split_sentences: bool = False,
    pair_within_documents: bool = False,
    language: str = "en",
) -> ExampleStore:
    """Open the examples that ``--train_data_file`` names.

    Args:
        paths: one folder made by ``build-dataset``; or one ids file (``train_iterable``); or text files
            (``line_by_line``), from which a dataset is built under ``cache_dir`` the first time.
        tokenizer: the loaded tokenizer, which the examples must fit, or its path.
        line_by_line: the paths are plain text, one sentence a line.
        train_iterable: the path is a file of token ids, one example a line.
        cache_dir: folder for what is derived once from text or ids files; default: beside the first file.
        seed: of the shuffle of a dataset built from text.
        num_proc: processes for building it.
        split_sentences, pair_within_documents, language: as ``build-dataset`` takes them, for plain text.

    Raises:
        UsageError: nothing is there, it is damaged, or it was made with another tokenizer.
    """
    names = [str(paths)] if isinstance(paths, (str, Path)) else [str(path) for path in paths]
    if not names:
        raise UsageError("--train_data_file: no file given")
    first = Path(names[0])
    if line_by_line and train_iterable:
        raise UsageError("--line_by_line and --train_iterable contradict each other: plain text, or token ids?")
    if any(not Path(name).exists() for name in names):
        missing = next(name for name in names if not Path(name).exists())
        raise UsageError(f"{missing}: no such file or folder")
    from bert_convolutions.data.tokenizer import tokenizer_hash

    if (first / MANIFEST_FILE).exists():
        if len(names) > 1:
            raise UsageError(f"{names[1]}: only one folder made by build-dataset can be given")
        return ArrowStore(first, tokenizer_hash(tokenizer))
    cache = Path(cache_dir) if cache_dir is not None else first.parent / ".bertconv-cache"
    if train_iterable:
        from bert_convolutions.data.store_ids import IdsStore

        if len(names) > 1:
            raise UsageError(f"{names[1]}: --train_iterable takes one ids file")
        if (manifest := manifest_path(first)).exists():
            _check_tokenizer(first, read_manifest(manifest), tokenizer_hash(tokenizer))
        return IdsStore(first, vocabulary_size=len(_loaded(tokenizer)), cache_dir=cache)
    if line_by_line:
        settings = BuildDatasetOptions(
            train_data_file=names,
            tokenizer_name="",
            seed=seed,
            num_proc=num_proc,
            split_sentences=split_sentences,
            pair_within_documents=pair_within_documents,
            language=language,
        )
        return _build_from_text(settings, tokenizer, cache)
    raise UsageError(
        f"{first}: is no folder made by build-dataset; for plain text give --line_by_line, for a file of ids "
        "--train_iterable"
    )


def _build_from_text(settings: BuildDatasetOptions, tokenizer: Any, cache: Path) -> ArrowStore:
    """Build a dataset from text, or open the one built before from the same text in the same way."""
    from bert_convolutions.data.build.pipeline import build_dataset
    from bert_convolutions.data.build.sources import find_sources
    from bert_convolutions.data.tokenizer import tokenizer_hash

    identity = tokenizer_hash(tokenizer)
    language = settings.language if settings.split_sentences else None
    sources = [asdict(source) for source in find_sources(settings.train_data_file)]
    content = [identity, settings.seed, language, settings.pair_within_documents, sources]
    folder = cache / f"pairs-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]}"
    path = tokenizer
    if not isinstance(tokenizer, (str, Path)):
        path = cache / f"tokenizer-{identity[:16]}"
        tokenizer.save_pretrained(str(path))
    # What is damaged there is made again: the folder's name says that nothing else can be in it.
    build_dataset(replace(settings, tokenizer_name=str(path), output_dir=str(folder), overwrite_output_dir=True))
    return ArrowStore(folder, identity)


def _loaded(tokenizer: Any) -> Any:
    from bert_convolutions.data.tokenizer import load_tokenizer

    return load_tokenizer(tokenizer) if isinstance(tokenizer, (str, Path)) else tokenizer


def _check_tokenizer(path: Path, manifest: Manifest, tokenizer_hash: str) -> None:
    if manifest.tokenizer_hash != tokenizer_hash:
        raise UsageError(
            f"{path}: built with another tokenizer (hash {manifest.tokenizer_hash[:12]}, not {tokenizer_hash[:12]}); "
            "give that one as --tokenizer_name or run build-dataset again"
        )


def _check_size(path: Path, size: int) -> None:
    found = path.stat().st_size if path.is_file() else None
    if found != size:
        state = (
            "is missing" if found is None else f"has {found:,} bytes instead of {size:,}: it was truncated or changed"
        )
        raise UsageError(f"{path}: the shard {state}; run build-dataset again")


def _compact(parts: list[np.ndarray], limit: int) -> np.ndarray:
    """Join index arrays in the smallest type that holds them."""
    dtype = np.uint32 if limit < 1 << 32 else np.int64
    return np.concatenate([part.astype(dtype) for part in parts])
