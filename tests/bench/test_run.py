"""``bertconv bench`` as a whole with tiny models, in threads and in processes."""

import json
import multiprocessing
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import pytest
import torch

from bert_convolutions.bench import run, worker
from bert_convolutions.bench.corpus import Setup, join_sentences
from bert_convolutions.bench.options import TASK_NAMES, BenchOptions
from bert_convolutions.bench.plan import Job
from bert_convolutions.bench.results import SCHEMA
from bert_convolutions.bench.run import run_bench
from bert_convolutions.bench.worker import Worker
from bert_convolutions.cli.main import main
from bert_convolutions.errors import UsageError
from bert_convolutions.signals import SIGNALS

JOB = Job("loading", "composite", "float32", 128, 4)


class ThreadedWorker(Worker):
    """A worker in a thread of this process, which starts faster."""

    def _start(self, *args: Any) -> Any:
        thread = threading.Thread(target=worker.serve, args=args, daemon=True)
        thread.start()
        self._connection.poll(60)  # accelerate has one state per process, so workers can't be set up at the same time
        return thread


def read(flags: dict[str, Any]) -> dict[str, Any]:
    return json.loads((Path(flags["output_dir"]) / "results.json").read_text(encoding="utf-8"))


def test_joined_sentences_have_at_most_the_given_length() -> None:
    class Words:
        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [0] * len(text.split())}

    sentences = ["a b", "c", "d e f", "g h i j k l m", "n"]
    assert list(join_sentences(iter(sentences), Words(), 4)) == ["a b c", "d e f", "g h i j k l m", "n"]


def test_the_command_measures_in_processes(bench_flags: dict[str, Any], tmp_path: Path, capfd: Any) -> None:
    flags = {**bench_flags, "output_dir": str(tmp_path), "tasks": ["pretraining"], "sequence_lengths": [128]}
    flags |= {"contestants": ["composite", "electra"], "precision": ["float32"], "threads": 1}
    argv = ["bench"]
    for name, value in flags.items():
        argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    assert main(argv) == 0
    results = read(flags)
    assert results["schema"] == SCHEMA and results["complete"] and results["machine"]["threads"] == 1
    ours, electra = results["measurements"]
    assert ours["rounds"][0]["tokens"] == electra["rounds"][0]["tokens"] > 0
    assert ours["ratios"]["speed"]["to"] == "electra float32" and ours["ratios"]["speed"]["median"] > 0
    assert electra["ratios"]["speed"]["median"] == 1
    assert ours["peak_memory_bytes"] > 50e6
    printed = capfd.readouterr()
    assert "x baseline" in printed.out and "pretraining, S = 128" in printed.out
    assert "Traceback" not in printed.err


def test_all_tasks_write_json_and_a_plot(
    bench_flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(run, "Worker", ThreadedWorker)
    flags = {**bench_flags, "precision": ["float32"], "contestants": ["composite", "dot_product", "electra"]}
    flags["contestants"] += ["plain_sdpa", "ours"]
    flags |= {"tasks": list(TASK_NAMES), "quick": True}  # one export is enough
    flags |= {"sequence_lengths": [128]}
    run_bench(BenchOptions(**flags))
    results = read(flags)
    entries = results["measurements"]
    assert {entry["task"] for entry in entries} == set(TASK_NAMES)
    assert all(entry["failure"] is None and entry["medians"]["ms_per_step"] > 0 for entry in entries)
    assert all(entry["ratios"]["speed"]["median"] > 0 for entry in entries if entry["task"] != "loading")
    picture = matplotlib.image.imread(Path(flags["output_dir"]) / "results.png")
    assert picture.shape[0] > 500 and picture.shape[1] > 1000
    assert "Fastest here: --per_device_train_batch_size" in capfd.readouterr().out


def test_a_failed_contestant_does_not_stop_the_others(
    bench_flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def fail(job: Any, setup: Any, turns: Any) -> None:
        if job.contestant == "dot_product":
            raise MemoryError("no room")
        run_job(job, setup, turns)

    run_job = worker.run_job
    monkeypatch.setattr(worker, "run_job", fail)
    monkeypatch.setattr(run, "Worker", ThreadedWorker)
    flags = {**bench_flags, "precision": ["float32"], "contestants": ["composite", "dot_product"]}
    flags |= {"sequence_lengths": [128], "tasks": ["pretraining"]}
    run_bench(BenchOptions(**flags))
    composite, dot_product = read(flags)["measurements"]
    assert dot_product["failure"] == "MemoryError: no room" and "medians" not in dot_product
    assert composite["medians"]["ms_per_step"] > 0 and composite["ratios"] == {}
    assert "is not measured: MemoryError: no room" in capfd.readouterr().out


def test_a_process_whose_bench_has_ended_ends_without_a_word(bench_setup: Setup) -> None:
    ours, theirs = multiprocessing.Pipe()
    ours.close()
    worker.serve(theirs, JOB, bench_setup)


def test_a_signal_to_the_whole_group_reaches_no_process_of_a_job(
    bench_setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would end them while they import their libraries, with a traceback each."""
    blocked: set[int] = set()
    start = lambda: blocked.update(signal.pthread_sigmask(signal.SIG_BLOCK, ()))  # noqa: E731
    context = SimpleNamespace(set_forkserver_preload=len, Process=lambda **given: SimpleNamespace(start=start))
    monkeypatch.setattr(multiprocessing, "get_context", lambda name: context)
    Worker(JOB, bench_setup)
    assert blocked >= {*SIGNALS}


def test_a_path_with_brackets_can_be_the_output(
    bench_flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(run, "Worker", ThreadedWorker)
    folder = tmp_path / "bench (copy) (2)"
    flags = {**bench_flags, "output_dir": str(folder), "precision": ["float32"], "contestants": ["composite"]}
    run_bench(BenchOptions(**{**flags, "sequence_lengths": [128], "tasks": ["loading"]}))
    (entry,) = read({"output_dir": str(folder)})["measurements"]
    assert entry["medians"]["real_tokens_per_second"] > 0 and entry["failure"] is None


def test_too_little_text_is_refused(bench_flags: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="fewer --rounds or --steps"):
        run_bench(BenchOptions(**{**bench_flags, "rounds": 1000}))


def test_an_output_that_is_a_file_is_refused(bench_flags: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(UsageError, match="is a file"):
        run_bench(BenchOptions(**{**bench_flags, "output_dir": str(path)}))


def test_an_unknown_contestant_is_refused(capfd: Any) -> None:
    assert main(["bench", "--contestants", "electrra"]) == 2
    assert "valid are composite" in capfd.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has bf16")
def test_a_cpu_without_bf16_is_measured_in_float32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run, "cpu_has_bf16", lambda: False)
    precisions: set[str] = set()

    def record_precisions(bench: run.Bench) -> None:
        precisions.update(job.precision for group in bench.groups for job in group.jobs)

    monkeypatch.setattr(run.Bench, "run", record_precisions)
    run_bench(BenchOptions(output_dir=str(tmp_path), quick=True))
    assert precisions == {"float32"}
    with pytest.raises(UsageError, match="--precision bf16"):
        run_bench(BenchOptions(output_dir=str(tmp_path), precision=["bf16"]))
