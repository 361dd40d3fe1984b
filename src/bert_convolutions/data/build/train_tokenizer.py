"""``bertconv train-tokenizer``: a SentencePiece vocabulary from text of any size."""

import contextlib
import io
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import sentencepiece

from bert_convolutions.data.build.sources import find_sources, refuse_changed, text_lines
from bert_convolutions.data.options import TrainTokenizerOptions
from bert_convolutions.data.pieces import AUTO_MAP, CODE_FILE, MODEL_FILE, SPECIAL_TOKENS, normalize
from bert_convolutions.data.randomness import Stream, mix
from bert_convolutions.errors import UsageError
from bert_convolutions.files import make_folder, refuse_overlap, write_bytes, write_json
from bert_convolutions.schemas import TextRecord
from bert_convolutions.self_contained import write_code

_MAX_LINE_BYTES = 4192
"""SentencePiece leaves longer lines out; here they are cut into several instead."""
_MAX_LINE_CHARACTERS = _MAX_LINE_BYTES // 4
_MIN_SAMPLE = 101
"""The least that SentencePiece accepts as the size of a sample."""
_KEYS_AT_A_TIME = 1 << 16


def train_tokenizer(options: TrainTokenizerOptions) -> Path:
    """Learn a unigram vocabulary and write ``spm.model``, ``tokenizer_config.json`` and the code that needs no package.

    The text is read twice: to count its lines, then to draw ``input_sentence_size`` of them. Only those are held in
    memory.

    Returns:
        The output folder, which ``AutoTokenizer`` loads; without this package by ``trust_remote_code=True``.

    Raises:
        UsageError: bad text or options, an output that is already there or can't be made, or too little text for the
            vocabulary.
    """
    folder = Path(options.output_dir)
    _check(options, folder)
    sources = find_sources(options.input)
    make_folder(folder, "--output_dir")  # now, since learning takes its time
    try:
        num_lines = sum(1 for _ in text_lines(sources, "counting"))
        if not num_lines:
            raise UsageError(f"{options.input[0]}: nothing but blank lines in the text")
        model = _learn(_sample(sources, num_lines, options), options)
        refuse_changed(sources)
    except UsageError:
        with contextlib.suppress(OSError):  # there are other files in it
            folder.rmdir()
        raise
    # What AutoTokenizer needs beside the model, without loading transformers.
    config = {"tokenizer_class": "CompositeBertTokenizer", **SPECIAL_TOKENS, "auto_map": AUTO_MAP}
    write_json(folder / "tokenizer_config.json", config)
    write_code(folder, CODE_FILE)
    write_bytes(folder / MODEL_FILE, model)
    return folder


def _check(options: TrainTokenizerOptions, folder: Path) -> None:
    for name in ("vocab_size", "input_sentence_size"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name} {getattr(options, name)}: give a positive number")
    refuse_overlap(folder, "--output_dir", {"--input": options.input})
    if (folder / MODEL_FILE).exists() and not options.overwrite_output_dir:
        raise UsageError(
            f"--output_dir {folder}: already holds a tokenizer; choose another folder or give --overwrite_output_dir"
        )


def _sample(sources: list[TextRecord], num_lines: int, options: TrainTokenizerOptions) -> Iterator[str]:
    """Yield about ``input_sentence_size`` lines, each with the same probability, as the tokenizer will see them.

    They are normalised as before encoding. SentencePiece's own normalisation keeps capitals and accents, and would
    spend a large part of the vocabulary on pieces that no lower-cased text can ever be cut into.
    """
    threshold = np.uint64(min(int(options.input_sentence_size / num_lines * 2.0**64), 2**64 - 1))
    lines = text_lines(sources, "sampling")
    number = 0
    while batch := list(islice(lines, _KEYS_AT_A_TIME)):
        keys = mix(np.arange(number, number + len(batch), dtype=np.uint64), options.seed, Stream.TOKENIZER_SAMPLE)
        for position in np.flatnonzero(keys <= threshold).tolist():
            yield from _cut(normalize(batch[position]))
        number += len(batch)


def _cut(line: str) -> Iterator[str]:
    """Cut a line that SentencePiece would leave out, after a space where there is one."""
    while len(line) > _MAX_LINE_CHARACTERS and len(line.encode()) > _MAX_LINE_BYTES:
        space = line.rfind(" ", 1, _MAX_LINE_CHARACTERS)
        end = space if space > 0 else _MAX_LINE_CHARACTERS
        yield line[:end]
        line = line[end:].lstrip()
    if line:
        yield line


def _learn(lines: Iterator[str], options: TrainTokenizerOptions) -> bytes:
    """The model that SentencePiece learns, with its constant number of threads: sums of floats depend on it."""
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(options.seed & 0xFFFFFFFF)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            model_type="unigram",
            vocab_size=options.vocab_size,
            input_sentence_size=max(options.input_sentence_size, _MIN_SAMPLE),
            shuffle_input_sentence=True,
            max_sentence_length=_MAX_LINE_BYTES,
            minloglevel=2,
        )
    except (RuntimeError, ValueError) as error:
        raise UsageError(_explain(str(error), options)) from error
    return model.getvalue()


def _explain(message: str, options: TrainTokenizerOptions) -> str:
    """What SentencePiece's message means for the flags."""
    if found := re.search(r"to a value <= (\d+)", message):
        return (
            f"--vocab_size {options.vocab_size}: too large for this text, which has at most {found[1]} pieces; "
            f"give --vocab_size {found[1]} or less, or more text"
        )
    if found := re.search(r"required_chars\D+(\d+) vs (\d+)", message):
        needed = max(int(found[1]), int(found[2])) + 1
        return f"--vocab_size {options.vocab_size}: too small for the characters of this text; give at least {needed}"
    return f"--input {options.input[0]}: SentencePiece cannot learn from this text ({message.splitlines()[0]})"
