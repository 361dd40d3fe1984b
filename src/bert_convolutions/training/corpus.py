"""The examples of a run: those to train on and those to evaluate on, in whatever form they were given."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_convolutions.data.store import ExampleStore, open_examples
from bert_convolutions.training.options import PretrainOptions

HELD_OUT_SEED = 0
"""Draws the documents that --eval_fraction holds out: the same ones whatever --seed is, so that runs compare."""
SHUFFLE_SEED = 42
"""Of a dataset built from plain text; a run's own order is drawn anew from its seed in every epoch."""
_SNIFFED_BYTES = 4096


@dataclass(frozen=True)
class Corpus:
    """The stores of a run; None for what it does not need."""

    train: Any | None
    evaluation: Any | None


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
