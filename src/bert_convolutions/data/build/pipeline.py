"""``bertconv build-dataset``: turns text of any size into shuffled sentence pairs on disk, in bounded memory.

It has three stages. Each is a pool of processes that run small independent tasks and write complete files:

1. a block of text (4 MiB) becomes a file of encoded sentences (``sentences``);
2. the sentences of a block become pairs, sorted by shuffle key (``pairs``);
3. the pairs of a shard are merged from all blocks and written (``shards``).

A run continues where a killed one stopped, since it skips tasks whose files exist. The work files have a folder of
their own and take about as much space as the result, twice as much while a stage replaces them.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bert_convolutions.data.build import sentences, shards
from bert_convolutions.data.build.arrays import read_facts
from bert_convolutions.data.build.pairs import Pairing, PairTask, plan_pairs, write_runs
from bert_convolutions.data.build.parallel import run_tasks
from bert_convolutions.data.build.sentences import TextTokenizer, as_text_tokenizer, open_text_tokenizer
from bert_convolutions.data.build.sources import Source, blocks, find_dataset, find_sources, refuse_changed
from bert_convolutions.data.build.target import Target, identity
from bert_convolutions.data.options import BuildDatasetOptions
from bert_convolutions.environment import is_first_process, usable_cores
from bert_convolutions.errors import CommandError, UsageError
from bert_convolutions.files import make_folder, refuse_overlap, run_lock, whole_file, write_json
from bert_convolutions.parsing import parse, read_model
from bert_convolutions.schemas import (
    BlockFacts,
    BuildSettings,
    CorpusCounts,
    DatasetManifest,
    DatasetRecord,
    FileFacts,
    ShardRecord,
    TextRecord,
)
from bert_convolutions.signals import interruptible
from bert_convolutions.terminal import make_bar

_MERGE_PROCESSES = 3
"""Number of shards merged at a time; each takes about five times its size in memory."""
_MAX_OPENINGS = 100_000
"""A shard opens every run. Where all of them do so more often than this, runs are joined first, up to ..."""
_JOINED_BYTES = 32 << 20
"""... this many bytes of ids, plus a block."""
TaskT = TypeVar("TaskT")


def build_dataset(options: BuildDatasetOptions) -> Path:
    """Build the dataset that the options describe, or continue an interrupted build.

    Returns:
        The folder of the Arrow shards, or the ids file.

    Raises:
        UsageError: bad options or text, an output that belongs to another dataset, or a full disk.
        RunInterrupted: a signal was received; the next call continues.
        CommandError: a worker process was killed; the next call continues.
    """
    target = Target.from_options(options)
    with interruptible(str(target.result)):
        dataset = find_dataset(options)
        local = [dataset.path] if dataset and not dataset.revision else options.train_data_file
        sources = find_sources(local) if local else []
        tokenizer = open_text_tokenizer(options.tokenizer_name)
        return _build(options, target, tokenizer, _settings(options, tokenizer, sources, dataset))


def build_on_demand(options: BuildDatasetOptions, tokenizer: Any, cache: Path) -> Path:
    """Find the dataset built from the same text with the same settings, or build it now.

    If several processes ask for the same one, the first builds it and the others wait.

    Args:
        options: the text and the settings, without tokenizer and output.
        tokenizer: a loaded Hugging Face tokenizer.
        cache: folder for such datasets.

    Returns and raises what ``build_dataset`` does.
    """
    sources, text_tokenizer = find_sources(options.train_data_file), as_text_tokenizer(tokenizer)
    settings = _settings(options, text_tokenizer, sources)
    folder = cache / f"pairs-{identity(settings)[:16]}"
    refuse_overlap(folder, "--data_cache_dir", {"--train_data_file": options.train_data_file})
    make_folder(cache, "--data_cache_dir")
    # Overwrite, so that a damaged dataset is rebuilt: nothing else can be in a folder of this name.
    options = replace(options, output_dir=str(folder), overwrite_output_dir=True)
    with interruptible(str(folder)):
        return _build(options, Target.from_options(options), text_tokenizer, settings, wait=True)


def _settings(
    options: BuildDatasetOptions,
    tokenizer: TextTokenizer,
    sources: list[TextRecord],
    dataset: DatasetRecord | None = None,
) -> BuildSettings:
    if options.split_sentences and not re.fullmatch(r"[a-z]{2,3}(-[a-z]+)*", options.language):
        raise UsageError(  # sentencex splits text of any other language as English
            f"--language {options.language} is no language code in small letters, as en, de or pt are"
        )
    return BuildSettings(
        tokenizer_hash=tokenizer.hash,
        vocabulary_size=len(tokenizer),
        output_format=options.output_format,
        seed=options.seed,
        pair_within_documents=options.pair_within_documents,
        split_sentences=options.language if options.split_sentences else None,
        shard_size_mb=options.shard_size_mb,
        sources=sources,
        dataset=dataset,
    )


def _build(
    options: BuildDatasetOptions, target: Target, tokenizer: TextTokenizer, settings: BuildSettings, wait: bool = False
) -> Path:
    """Build the dataset unless it exists; with ``wait``, wait for another process that builds it instead of raising."""
    try:
        if target.is_finished(settings, options.overwrite_output_dir):
            if is_first_process():
                print(f"{target.result}: already built from the same text with the same settings")
            return target.result
        with ExitStack() as stack:
            if wait:
                target.result.mkdir(parents=True, exist_ok=True)
                stack.enter_context(run_lock(target.result, wait=True))
            stack.enter_context(target.locked_work_folder(settings, options.overwrite_output_dir))
            if not target.is_finished(settings, options.overwrite_output_dir):  # by the process that held the lock
                _Build(target, tokenizer, settings, options.num_proc or min(usable_cores(), 8)).run()
    except OSError as error:
        raise UsageError(
            f"{error.filename or target.result}: {error.strerror or error}; run again to resume"
        ) from error
    except BrokenProcessPool as error:
        raise CommandError(
            f"{target.result}: a worker process was killed, perhaps for lack of memory; run again to resume, "
            "with a smaller --num_proc"
        ) from error
    return target.result


@dataclass(frozen=True)
class _Build:
    """One build: the three stages on the files of the work folder."""

    _target: Target
    _tokenizer: TextTokenizer
    _settings: BuildSettings
    _num_proc: int

    def run(self) -> None:
        """Do the unfinished part of the three stages, then write the manifest."""
        facts_file = self._target.work / "facts.json"
        if not facts_file.exists():
            write_json(facts_file, [[block.model_dump() for block in file] for file in self._encode()])
        facts = read_model(FileFacts, facts_file).root
        block_facts = [block for file in facts for block in file]
        id_type = sentences.smallest_id_type(len(self._tokenizer))
        id_bytes = np.dtype(id_type).itemsize
        total_bytes = sum(block.num_tokens for block in block_facts) * id_bytes
        num_shards = -(-total_bytes // (self._settings.shard_size_mb << 20)) or 1
        files = [[self._sentence_file(i, j) for j in range(len(file))] for i, file in enumerate(facts)]
        special_ids = self._tokenizer.cls_id, self._tokenizer.sep_id
        pairing = Pairing(self._settings.pair_within_documents, self._settings.seed, num_shards, *special_ids)
        tasks, num_documents = plan_pairs(files, facts, pairing)
        self._pair(tasks)
        runs = [task.runs for task in tasks]
        if len(runs) * num_shards > _MAX_OPENINGS:
            runs = self._join(runs, [block.num_tokens * id_bytes for block in block_facts if block.num_sentences])
        records = self._merge(runs, num_shards)
        counts = CorpusCounts(
            examples=sum(record.num_examples for record in records),
            tokens=sum(record.num_tokens for record in records),
            sentences=sum(block.num_sentences for block in block_facts),
            documents=num_documents,
            bytes=sum(block.num_bytes for block in block_facts),
        )
        if self._settings.output_format == "ids":
            records = [self._join_text(records, counts)]
        else:
            shards.write_datasets_files(self._target.result, records, id_type.__name__)
        self._target.finish(DatasetManifest(settings=self._settings, counts=counts, shards=records))
        sizes = f"{counts.examples:,} pairs, {counts.tokens:,} tokens from {counts.bytes:,} bytes"
        unpaired = counts.sentences - 2 * counts.examples
        lost = f"; sentences without a partner in their file or document: {unpaired:,}" if unpaired else ""
        print(f"{self._target.result}: {sizes}{lost}")

    def _sentence_file(self, source: int, block: int) -> Path:
        return self._target.work / f"{source:06}-{block:06}.sentences"

    def _encode(self) -> list[list[BlockFacts]]:
        """Encode all blocks; return the facts of each block of each file."""
        dataset = self._settings.dataset
        sources: Sequence[Source] = [dataset] if dataset else self._settings.sources
        paths: list[list[Path]] = [[] for _ in sources]
        total = None if dataset else sum(source.size for source in self._settings.sources)
        with make_bar("reading", total, "B") as bar:

            def tasks() -> Iterator[sentences.SentenceTask]:
                for number, source in enumerate(sources):
                    before = 0
                    for block in blocks(source):
                        path = self._sentence_file(number, len(paths[number]))
                        paths[number].append(path)
                        if path.exists():
                            bar.update(block.position - before)
                        else:
                            yield sentences.SentenceTask(block, before, path, self._settings.split_sentences)
                        before = block.position

            encode, tokenizer = sentences.encode_block, (self._tokenizer,)
            for read in run_tasks(encode, tasks(), self._num_proc, sentences.init_worker, tokenizer):
                bar.update(read)
        refuse_changed(self._settings.sources)
        return [[parse(BlockFacts, read_facts(path), path) for path in file] for file in paths]

    def _pair(self, tasks: list[PairTask]) -> None:
        """Pair the sentences of all blocks, then delete their sentence files."""
        done = self._target.work / "paired"
        if not done.exists():
            self._run(
                "pairing", "block", write_runs, [task for task in tasks if not task.runs.exists()], self._num_proc
            )
            if not any(read_facts(task.runs)["num_pairs"] for task in tasks):
                path = (self._settings.dataset or self._settings.sources[0]).path
                raise UsageError(
                    f"{path}: the text has no pair of sentences; give more text, one sentence per line, or "
                    "--split_sentences if a line is a paragraph"
                )
            write_json(done, True)
        for file in self._target.work.glob("*.sentences"):
            file.unlink()

    def _join(self, runs: list[Path], sizes: list[int]) -> list[Path]:
        """Join consecutive runs, which have about ``sizes`` bytes; return the paths of the joined ones."""
        tasks: dict[int, shards.JoinTask] = {}
        for run, group in zip(runs, (np.cumsum(sizes) // _JOINED_BYTES).tolist(), strict=True):
            path = self._target.work / f"{group:06}.joined"
            tasks.setdefault(group, shards.JoinTask([], path)).runs.append(run)
        missing = [task for task in tasks.values() if not task.path.exists()]
        self._run("joining", "run", shards.join_runs, missing, min(self._num_proc, _MERGE_PROCESSES))
        return [task.path for task in tasks.values()]

    def _merge(self, runs: list[Path], num_shards: int) -> list[ShardRecord]:
        """Write the missing shards; return the records of all."""
        tasks = [
            shards.ShardTask(
                shard,
                runs,
                self._target.shard(shard, num_shards, self._settings),
                self._target.work / f"{shard:06}.shard.json",
                self._settings.output_format,
            )
            for shard in range(num_shards)
        ]
        missing = [task for task in tasks if not (task.record.exists() and task.path.exists())]
        self._run("shuffling", "shard", shards.write_shard, missing, min(self._num_proc, _MERGE_PROCESSES))
        return [read_model(ShardRecord, task.record) for task in tasks]

    def _join_text(self, records: list[ShardRecord], counts: CorpusCounts) -> ShardRecord:
        """Join the shards' lines into one text file; its old manifest is deleted."""
        path = self._target.result
        with whole_file(path) as output:
            for record in records:
                with (self._target.work / record.file).open("rb") as shard:
                    shutil.copyfileobj(shard, output, 1 << 20)
            self._target.manifest.unlink(missing_ok=True)
        return shards.record_of(path, counts.examples, counts.tokens)

    @staticmethod
    def _run(name: str, unit: str, function: Callable[[TaskT], None], tasks: list[TaskT], num_proc: int) -> None:
        """Run ``tasks`` with a progress bar."""
        with make_bar(name, len(tasks), unit) as bar:
            for _ in run_tasks(function, tasks, num_proc):
                bar.update()
