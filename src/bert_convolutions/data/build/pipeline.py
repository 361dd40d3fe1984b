"""``bertconv build-dataset``: text of any size to shuffled sentence pairs on disk, in bounded memory.

Three stages, each a pool of processes over small independent tasks whose results are whole files:

1. a block of text (4 MiB) becomes a file of encoded sentences (``build_sentences``);
2. the sentences of a block become pairs, sorted by shuffle key (``build_pairs``);
3. the pairs of a shard are merged from all blocks and written (``build_shards``).

Whatever a killed run has finished, the next one finds and does not do again. The work files stand in a folder of their
own and take about as much room as the result, twice while a stage replaces them.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bert_convolutions.data.build import pairs as build_pairs
from bert_convolutions.data.build import sentences as build_sentences
from bert_convolutions.data.build import shards as build_shards
from bert_convolutions.data.build.arrays import read_facts
from bert_convolutions.data.build.parallel import run_tasks
from bert_convolutions.data.build.sources import Source, blocks, find_sources
from bert_convolutions.data.build.target import Target
from bert_convolutions.data.build.tokenizing import Encoder, open_encoder
from bert_convolutions.data.manifest import Manifest, write_datasets_files
from bert_convolutions.data.options import BuildDatasetOptions
from bert_convolutions.errors import CommandError, RunInterrupted, UsageError
from bert_convolutions.files import sha256, whole_file, write_json

_MERGE_PROCESSES = 3
"""Shards being merged at a time: each takes some five times a shard's size of memory."""
_DEFAULT_MAX_PROCESSES = 8


def build_dataset(options: BuildDatasetOptions) -> Path:
    """Build the dataset that the options describe, or go on with one that was interrupted.

    Returns:
        The folder of the Arrow shards, or the ids file.

    Raises:
        UsageError: bad options or text, an output that belongs to another dataset, or no room on the disk.
        RunInterrupted: Ctrl-C; the next call goes on.
        CommandError: a worker process was killed; the next call goes on.
    """
    target = Target.from_options(options)
    sources = find_sources(options.train_data_file)
    encoder = open_encoder(options.tokenizer_name)
    settings = _settings(options, sources, encoder)
    try:
        if target.is_finished(settings, options.overwrite_output_dir):
            print(f"{target.result}: already built from the same text with the same settings")
            return target.result
        with target.locked_work_folder(settings, options.overwrite_output_dir):
            _Build(options, target, sources, encoder, settings).run()
    except OSError as error:
        raise UsageError(
            f"{error.filename or target.result}: {error.strerror}; run again to go on from here"
        ) from error
    except BrokenProcessPool as error:
        raise CommandError(
            f"{target.result}: a worker process was killed, perhaps for lack of memory; run again to go on from here, "
            "with a smaller --num_proc"
        ) from error
    except KeyboardInterrupt as error:
        raise RunInterrupted(f"{target.result}: stopped; run the same command again to go on from here") from error
    return target.result


def _settings(options: BuildDatasetOptions, sources: list[Source], encoder: Encoder) -> dict[str, Any]:
    """Return all that decides the content of the dataset."""
    return {
        "tokenizer_hash": encoder.hash,
        "vocabulary_size": len(encoder),
        "output_format": options.output_format,
        "seed": options.seed,
        "pair_within_documents": options.pair_within_documents,
        "split_sentences": options.language if options.split_sentences else None,
        "shard_size_mb": options.shard_size_mb,
        "sources": [asdict(source) for source in sources],
    }


def _nothing() -> None:
    """Start a worker that needs no preparation."""


class _Build:
    """One build: the three stages over the files of the work folder."""

    def __init__(
        self,
        options: BuildDatasetOptions,
        target: Target,
        sources: list[Source],
        encoder: Encoder,
        settings: dict[str, Any],
    ) -> None:
        self._options = options
        self._target = target
        self._sources = sources
        self._encoder = encoder
        self._settings = settings
        self._work = target.work
        self._num_proc = options.num_proc or min(os.cpu_count() or 1, _DEFAULT_MAX_PROCESSES)

    def run(self) -> None:
        """Do what is left of the three stages, then write the manifest."""
        facts_file = self._work / "facts.json"
        if not facts_file.exists():
            write_json(facts_file, self._encode())
        facts: list[list[dict[str, Any]]] = json.loads(facts_file.read_bytes())
        counts = build_pairs.count(facts)
        id_bytes = 2 if build_sentences.smallest_id_type(len(self._encoder)).__name__ == "uint16" else 4
        num_shards = -(-counts.num_tokens * id_bytes // (self._options.shard_size_mb << 20)) or 1
        runs = self._pair(facts, num_shards)
        records = self._merge(runs, num_shards)
        num_examples = sum(record.num_examples for record in records)
        self._finish(records, counts, num_examples)

    def _sentence_files(self, facts: list[list[dict[str, Any]]]) -> list[list[Path]]:
        return [[self._sentence_file(i, j) for j in range(len(file))] for i, file in enumerate(facts)]

    def _sentence_file(self, source: int, block: int) -> Path:
        return self._work / f"{source:06}-{block:06}.sentences"

    def _encode(self) -> list[list[dict[str, Any]]]:
        """Encode all blocks; return the facts of each block of each file."""
        options = self._options
        num_blocks = [0] * len(self._sources)
        total = sum(source.size for source in self._sources)
        with _bar("reading", total, "B") as bar:

            def tasks() -> Iterator[build_sentences.SentenceTask]:
                for number, source in enumerate(self._sources):
                    before = 0
                    for block in blocks(source):
                        path = self._sentence_file(number, num_blocks[number])
                        num_blocks[number] += 1
                        if path.exists():
                            bar.update(block.position - before)
                        else:
                            language = options.language if options.split_sentences else None
                            yield build_sentences.SentenceTask(block, before, path, language)
                        before = block.position

            for read in self._run(build_sentences.encode_block, tasks(), build_sentences.start, options.tokenizer_name):
                bar.update(read)
        return [
            [read_facts(self._sentence_file(number, block)) for block in range(num)]
            for number, num in enumerate(num_blocks)
        ]

    def _pair(self, facts: list[list[dict[str, Any]]], num_shards: int) -> list[Path]:
        """Pair the sentences of all blocks; return the files of runs."""
        tasks = list(
            build_pairs.plan(
                self._sentence_files(facts),
                facts,
                pair_within_documents=self._options.pair_within_documents,
                seed=self._options.seed,
                num_shards=num_shards,
                cls_id=self._encoder.cls_id,
                sep_id=self._encoder.sep_id,
            )
        )
        runs = [task.runs for task in tasks]
        done = self._work / "paired"
        if not done.exists():
            missing = [task for task in tasks if not task.runs.exists()]
            with _bar("pairing", len(missing), "block") as bar:
                for _ in self._run(build_pairs.write_runs, missing):
                    bar.update()
            write_json(done, True)
        for file in self._work.glob("*.sentences"):
            file.unlink()
        if not sum(read_facts(path)["num_pairs"] for path in runs):
            raise UsageError(
                f"{self._options.train_data_file[0]}: not one pair of sentences in the text; give more text"
            )
        return runs

    def _merge(self, runs: list[Path], num_shards: int) -> list[build_shards.ShardRecord]:
        """Write the shards that are missing; return the records of all."""
        arrow = self._options.output_format == "arrow"
        folder, suffix = (self._target.result, "arrow") if arrow else (self._work, "txt")
        tasks = [
            build_shards.ShardTask(
                shard,
                runs,
                folder / f"examples-{shard:05}-of-{num_shards:05}.{suffix}",
                self._work / f"{shard:06}.shard.json",
                self._options.output_format,
            )
            for shard in range(num_shards)
        ]
        missing = [task for task in tasks if not (task.record.exists() and task.path.exists())]
        with _bar("shuffling", len(missing), "shard") as bar:
            for _ in self._run(build_shards.write_shard, missing, max_processes=_MERGE_PROCESSES):
                bar.update()
        return [build_shards.ShardRecord(**json.loads(task.record.read_bytes())) for task in tasks]

    def _finish(
        self, records: list[build_shards.ShardRecord], counts: build_pairs.CorpusCounts, num_examples: int
    ) -> None:
        numbers = {
            "examples": num_examples,
            "tokens": sum(record.num_tokens for record in records),
            "sentences": counts.num_sentences,
            "documents": counts.num_documents,
            "bytes": counts.num_bytes,
        }
        if self._options.output_format == "ids":
            records = [self._join_text(records)]
        manifest = Manifest(self._settings, numbers, records)
        if self._options.output_format == "arrow":
            id_type = build_sentences.smallest_id_type(len(self._encoder)).__name__
            write_datasets_files(self._target.result, manifest, id_type)
        manifest.write(self._target.manifest)
        self._target.remove_leftovers()
        sizes = f"{num_examples:,} pairs, {numbers['tokens']:,} tokens from {counts.num_bytes:,} bytes"
        print(f"{self._target.result}: {sizes}")

    def _join_text(self, records: list[build_shards.ShardRecord]) -> build_shards.ShardRecord:
        """Join the shards' lines into the one text file."""
        with whole_file(self._target.result) as output:
            for record in records:
                with (self._work / record.file).open("rb") as shard:
                    shutil.copyfileobj(shard, output, 1 << 20)
        path = self._target.result
        num_examples, num_tokens = (sum(getattr(r, name) for r in records) for name in ("num_examples", "num_tokens"))
        return build_shards.ShardRecord(path.name, num_examples, num_tokens, path.stat().st_size, sha256(path))

    def _run(
        self,
        function: Callable[..., Any],
        tasks: Iterable[Any],
        initializer: Callable[..., None] = _nothing,
        *initargs: Any,
        max_processes: int | None = None,
    ) -> Iterator[Any]:
        num_proc = min(self._num_proc, max_processes or self._num_proc)
        return run_tasks(function, tasks, num_proc=num_proc, initializer=initializer, initargs=initargs)


def _bar(name: str, total: int, unit: str) -> "tqdm[Any]":
    return tqdm(total=total, desc=name, unit=unit, unit_scale=unit == "B", mininterval=1.0, smoothing=0.05)
