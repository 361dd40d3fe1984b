"""The examples of a run: those to train on and those to evaluate on, in whatever form they were given."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_convolutions.data.build.pipeline import build_on_demand
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
from bert_convolutions.data.tokenizer import tokenizer_hash
from bert_convolutions.errors import UsageError
from bert_convolutions.training.options import PretrainOptions

HELD_OUT_SEED = 0
"""Draws the documents that --eval_fraction holds out: the same ones whatever --seed is, so that runs compare."""
SHUFFLE_SEED = 42
"""Of a dataset built from plain text; a run's own order is drawn anew from its seed in every epoch."""
_SNIFFED_BYTES = 4096


@dataclass(frozen=True)
class Corpus:
    """The stores of a run (``data.store.ExampleStore``); None for what it does not need."""

    train: Any | None
    evaluation: Any | None

    @property
    def fingerprint(self) -> str | None:
        """A hash of all examples to train on, by which a resumed run tells whether they are still the same."""
        return self.train.fingerprint if self.train is not None else None


def open_corpus(options: PretrainOptions, tokenizer: Any, do_train: bool, do_eval: bool) -> Corpus:
    """Open the data; from plain text the examples are built first, once.

    Raises:
        UsageError: a file is missing, damaged, of another tokenizer, or too small to be divided.
    """
    if options.eval_fraction > 0:
        whole = _open(options, options.train_data_file, tokenizer, train_iterable=options.train_iterable)
        train, held_out = whole.split_by_document(options.eval_fraction, HELD_OUT_SEED)
        return Corpus(train if do_train else None, held_out if do_eval else None)
    train_iterable = options.train_iterable
    return Corpus(
        _open(options, options.train_data_file, tokenizer, train_iterable=train_iterable) if do_train else None,
        _open(options, options.eval_data_file, tokenizer, train_iterable=_holds_ids(options)) if do_eval else None,
    )


def _open(options: PretrainOptions, paths: list[str], tokenizer: Any, *, train_iterable: bool) -> ExampleStore:
    """Open one set; --train_iterable wins over --line_by_line, as in the original's commands."""
    return open_examples(
        paths,
        tokenizer=tokenizer,
        line_by_line=options.line_by_line and not train_iterable,
        train_iterable=train_iterable,
        cache_dir=options.data_cache_dir,
        seed=SHUFFLE_SEED,
        num_proc=options.num_proc,
        split_sentences=options.split_sentences,
        pair_within_documents=options.pair_within_documents,
        language=options.language,
    )


def _holds_ids(options: PretrainOptions) -> bool:
    """Whether the evaluation file is one of ids: with --train_iterable either is accepted, told apart by its start."""
    path = Path(options.eval_data_file[0])
    if not options.train_iterable or not path.is_file():
        return False
    if not options.line_by_line:
        return True
    with path.open("rb") as file:
        return not file.read(_SNIFFED_BYTES).translate(None, b"0123456789 \r\n")


def open_examples(
    paths: str | Path | Sequence[str | Path],
    *,
    tokenizer: Any,
    line_by_line: bool = False,
    train_iterable: bool = False,
    cache_dir: str | Path | None = None,
    seed: int = SHUFFLE_SEED,
    num_proc: int | None = None,
    split_sentences: bool = False,
    pair_within_documents: bool = False,
    language: str = "en",
) -> ExampleStore:
    """Open the examples that ``--train_data_file`` names.

    Args:
        paths: one folder made by ``build-dataset``; or one ids file (``train_iterable``); or text files
            (``line_by_line``), from which a dataset is built under ``cache_dir`` the first time.
        tokenizer: the loaded tokenizer, which the examples must fit.
        line_by_line: the paths are plain text, one sentence a line.
        train_iterable: the path is a file of token ids, one example a line.
        cache_dir: folder for what is derived once from text or ids files; default: beside the first file.
        seed: of the shuffle of a dataset built from text.
        num_proc: processes for building it.
        split_sentences, pair_within_documents, language: as ``build-dataset`` takes them, for plain text.

    Raises:
        UsageError: nothing is there, it is damaged, or it was made with another tokenizer.
        RunInterrupted: a signal came while a dataset was built; the next call goes on.
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
        options = BuildDatasetOptions(
            train_data_file=names,
            tokenizer_name="",
            seed=seed,
            num_proc=num_proc,
            split_sentences=split_sentences,
            pair_within_documents=pair_within_documents,
            language=language,
        )
        return ArrowStore(build_on_demand(options, tokenizer, cache), tokenizer_hash(tokenizer))
    raise UsageError(
        f"{first}: is no folder made by build-dataset; for plain text give --line_by_line, for a file of ids "
        "--train_iterable"
    )


def _open_ids(path: Path, tokenizer: Any, cache: Path) -> IdsStore:
    """Open an ids file; what ``build-dataset`` has left beside it must fit."""
    if manifest_path(path).exists():
        manifest = read_manifest(manifest_path(path))
        check_tokenizer(path, manifest, tokenizer_hash(tokenizer))
        written, found = manifest.shards[0].num_bytes, path.stat().st_size
        if written != found:
            raise UsageError(
                f"{path}: has {found:,} bytes, and {written:,} when build-dataset wrote it; run that again, or "
                f"delete {manifest_path(path).name} if it was changed on purpose"
            )
    return IdsStore(path, vocabulary_size=len(tokenizer), cache_dir=cache)
