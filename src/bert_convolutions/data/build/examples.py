"""Opens the examples of ``--train_data_file``: a built dataset, a file of ids, or plain text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bert_convolutions.data.build.pipeline import build_on_demand
from bert_convolutions.data.loading import tokenizer_hash
from bert_convolutions.data.options import BuildDatasetOptions
from bert_convolutions.data.store import (
    MANIFEST_FILE,
    ArrowStore,
    ExampleStore,
    check_tokenizer,
    manifest_path,
    read_manifest,
)
from bert_convolutions.data.store_ids import IdsStore
from bert_convolutions.errors import UsageError
from bert_convolutions.files import make_folder


def open_examples(
    paths: str | Path | Sequence[str | Path],
    *,
    tokenizer: Any,
    line_by_line: bool = False,
    train_iterable: bool = False,
    cache_dir: str | Path | None = None,
    **building: Any,
) -> ExampleStore:
    """Open the examples of ``--train_data_file``.

    Args:
        paths: one folder made by ``build-dataset``, one ids file (``train_iterable``), or text files
            (``line_by_line``), from which a dataset is built in ``cache_dir`` at the first call.
        tokenizer: the loaded tokenizer, which must be the one that the examples were built with.
        line_by_line: the paths are plain text, one sentence per line.
        train_iterable: the path is a file of token ids, one example per line.
        cache_dir: folder for files derived from text or ids files; default: beside the first file.
        building: for plain text, fields of ``BuildDatasetOptions`` such as ``num_proc`` and ``split_sentences``.

    Raises:
        UsageError: a path does not exist, is damaged, or was made with another tokenizer.
        RunInterrupted: a signal was received during a build, which the next call continues.
    """
    names = [str(paths)] if isinstance(paths, (str, Path)) else [str(path) for path in paths]
    if not names:
        raise UsageError("--train_data_file: no file given")
    first = Path(names[0])
    if line_by_line and train_iterable:
        raise UsageError("--line_by_line and --train_iterable contradict each other: plain text, or token ids?")
    for name in names:
        if not Path(name).exists():
            raise UsageError(f"{name}: no such file or folder")
    if (first / MANIFEST_FILE).exists():
        if len(names) > 1:
            raise UsageError(f"{names[1]}: only one folder made by build-dataset can be given")
        return ArrowStore(first, tokenizer_hash(tokenizer))
    cache = Path(cache_dir) if cache_dir is not None else first.parent / ".bertconv-cache"
    if train_iterable:
        if len(names) > 1:
            raise UsageError(f"{names[1]}: --train_iterable takes one ids file")
        return _open_ids(first, tokenizer, cache)
    if line_by_line:
        options = BuildDatasetOptions(tokenizer_name="", train_data_file=names, **building)
        return ArrowStore(build_on_demand(options, tokenizer, cache), tokenizer_hash(tokenizer))
    raise UsageError(
        f"{first}: is not a folder made by build-dataset; for plain text give --line_by_line, for a file of ids "
        "--train_iterable"
    )


def _open_ids(path: Path, tokenizer: Any, cache: Path) -> IdsStore:
    """Open an ids file, which must match the manifest of ``build-dataset`` beside it, if there is one."""
    if manifest_path(path).exists():
        manifest = read_manifest(manifest_path(path))
        check_tokenizer(path, manifest, tokenizer_hash(tokenizer))
        written, found = manifest.shards[0].num_bytes, path.stat().st_size
        if written != found:
            raise UsageError(
                f"{path}: has {found:,} bytes, and {written:,} when build-dataset wrote it; run that again, or "
                f"delete {manifest_path(path).name} if it was changed on purpose"
            )
    make_folder(cache, "--data_cache_dir")
    return IdsStore(path, vocabulary_size=len(tokenizer), cache_dir=cache)
