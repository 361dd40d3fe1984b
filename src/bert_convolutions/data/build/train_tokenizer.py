"""``bertconv train-tokenizer``: learns a SentencePiece vocabulary from text of any size."""

import contextlib
import io
import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, wait
from itertools import islice
from pathlib import Path

import numpy as np
import sentencepiece

from bert_convolutions.data.build.sources import find_sources, refuse_changed, text_lines
from bert_convolutions.data.options import TrainTokenizerOptions
from bert_convolutions.data.pieces import AUTO_MAP, CODE_FILE, MODEL_FILE, SPECIAL_TOKENS, normalize, stripped_marks
from bert_convolutions.data.randomness import Stream, mix
from bert_convolutions.errors import UsageError
from bert_convolutions.files import make_folder, refuse_overlap, write_bytes, write_json
from bert_convolutions.schemas import TextRecord
from bert_convolutions.self_contained import write_code
from bert_convolutions.terminal import say

_MAX_LINE_BYTES = 4192
"""SentencePiece skips longer lines, so they are split."""
_MAX_LINE_CHARACTERS = _MAX_LINE_BYTES // 4
_MIN_SAMPLE = 101
"""The smallest sample size that SentencePiece accepts."""
_BATCH_LINES = 1 << 16
_INSPECTED_LINES, _NOTED_SHARE = 1000, 0.01
"""Lines whose accents and marks are counted, and the share of their characters from which on they are reported."""


def train_tokenizer(options: TrainTokenizerOptions) -> Path:
    """Learn a unigram vocabulary; write ``spm.model``, ``tokenizer_config.json`` and the code that loads them.

    The text is read twice: to count its lines, then to draw ``input_sentence_size`` of them. Only those are held in
    memory.

    Returns:
        The output folder. ``AutoTokenizer`` loads it, without this package if given ``trust_remote_code=True``.

    Raises:
        UsageError: bad text or options, an output that exists or can't be created, or too little text for the
            vocabulary.
    """
    folder = Path(options.output_dir)
    _check_options(options, folder)
    sources = find_sources(options.input)
    make_folder(folder, "--output_dir")  # early, since learning takes long
    try:
        num_lines = _count_lines(text_lines(sources, "counting"))
        if not num_lines:
            raise UsageError(f"{options.input[0]}: the text has only blank lines")
        model = _train_sentencepiece(_sample(sources, num_lines, options), options)
        refuse_changed(sources)
    except BaseException:
        with contextlib.suppress(OSError):  # it may hold other files
            folder.rmdir()
        raise
    # Written by hand, so that transformers need not be loaded.
    config = {"tokenizer_class": "CompositeBertTokenizer", **SPECIAL_TOKENS, "auto_map": AUTO_MAP}
    write_json(folder / "tokenizer_config.json", config)
    write_code(folder, CODE_FILE)
    write_bytes(folder / MODEL_FILE, model)
    return folder


def _check_options(options: TrainTokenizerOptions, folder: Path) -> None:
    for name in ("vocab_size", "input_sentence_size"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name} {getattr(options, name)}: give a positive number")
    refuse_overlap(folder, "--output_dir", {"--input": options.input})
    if (folder / MODEL_FILE).exists() and not options.overwrite_output_dir:
        raise UsageError(
            f"--output_dir {folder}: already holds a tokenizer; choose another folder or give --overwrite_output_dir"
        )


def _count_lines(lines: Iterator[str]) -> int:
    """Count the lines, and say if what normalisation strips from the first of them is a notable part of the text."""
    num_lines = num_characters = 0
    stripped: list[str] = []
    for num_lines, line in enumerate(lines, 1):
        if num_lines <= _INSPECTED_LINES:
            num_characters += len(line)
            stripped += stripped_marks(line)
    if len(stripped) > _NOTED_SHARE * num_characters:
        names = ", ".join(unicodedata.name(mark, hex(ord(mark))) for mark, _ in Counter(stripped).most_common(3))
        say(
            f"the tokenizer strips accents and marks, {len(stripped) / num_characters:.0%} of the characters of this "
            f"text ({names}, ...); docs/howto/own-language.md makes one that keeps them"
        )
    return num_lines


def _sample(sources: list[TextRecord], num_lines: int, options: TrainTokenizerOptions) -> Iterator[str]:
    """Yield about ``input_sentence_size`` lines, each drawn with the same probability and normalised as for encoding.

    SentencePiece's own normalisation keeps capitals and accents, and would spend a large part of the vocabulary on
    pieces that never occur in lower-cased text.
    """
    threshold = np.uint64(min(int(options.input_sentence_size / num_lines * 2.0**64), 2**64 - 1))
    lines = text_lines(sources, "sampling")
    number = 0
    while batch := list(islice(lines, _BATCH_LINES)):
        keys = mix(np.arange(number, number + len(batch), dtype=np.uint64), options.seed, Stream.TOKENIZER_SAMPLE)
        for position in np.flatnonzero(keys <= threshold).tolist():
            yield from _split_long_line(normalize(batch[position]))
        number += len(batch)


def _split_long_line(line: str) -> Iterator[str]:
    """Split a line that SentencePiece would skip, after a space if possible."""
    while len(line) > _MAX_LINE_CHARACTERS and len(line.encode()) > _MAX_LINE_BYTES:
        space = line.rfind(" ", 1, _MAX_LINE_CHARACTERS)
        end = space if space > 0 else _MAX_LINE_CHARACTERS
        yield line[:end]
        line = line[end:].lstrip()
    if line:
        yield line


def _train_sentencepiece(lines: Iterator[str], options: TrainTokenizerOptions) -> bytes:
    """Train the model with SentencePiece's default number of threads, which affects the rounding of float sums."""
    model: Future[bytes] = Future()
    stopped = threading.Event()

    def lines_until_stopped() -> Iterator[str]:
        for line in lines:
            if stopped.is_set():
                raise InterruptedError
            yield line

    def train() -> None:
        writer = io.BytesIO()
        sentencepiece.set_random_generator_seed(options.seed & 0xFFFFFFFF)
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=lines_until_stopped(),
                model_writer=writer,
                model_type="unigram",
                vocab_size=options.vocab_size,
                input_sentence_size=max(options.input_sentence_size, _MIN_SAMPLE),
                shuffle_input_sentence=True,
                max_sentence_length=_MAX_LINE_BYTES,
                minloglevel=2,
            )
            model.set_result(writer.getvalue())
        except BaseException as error:
            model.set_exception(error)

    # Python handles no signals while C++ runs in its main thread, which here may take hours.
    threading.Thread(target=train, daemon=True).start()
    try:
        while not wait([model], timeout=1.0).done:  # of two signals at once, one may not wake it
            pass
        return model.result()
    except (RuntimeError, ValueError) as error:
        raise UsageError(_explain_error(str(error), options)) from error
    finally:
        stopped.set()
        wait([model], timeout=2.0)  # Python aborts if it ends while C++ is given lines


def _explain_error(message: str, options: TrainTokenizerOptions) -> str:
    """SentencePiece's message in terms of the flags."""
    if found := re.search(r"to a value <= (\d+)", message):
        return (
            f"--vocab_size {options.vocab_size}: too large for this text, which has at most {found[1]} pieces; "
            f"give --vocab_size {found[1]} or less, or more text"
        )
    if found := re.search(r"required_chars\D+(\d+) vs (\d+)", message):
        needed = max(int(found[1]), int(found[2])) + 1
        return f"--vocab_size {options.vocab_size}: too small for the characters of this text; give at least {needed}"
    return f"--input {options.input[0]}: SentencePiece cannot learn from this text ({message.splitlines()[0]})"
