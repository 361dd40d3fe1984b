"""``bertconv bench``: prepare, measure group by group, show, and write what there is after each group."""

import contextlib
import time
from pathlib import Path
from typing import Any

import torch
from rich.text import Text

from bert_convolutions import files
from bert_convolutions.bench.contestants import CONTESTANTS
from bert_convolutions.bench.corpus import Setup, prepare
from bert_convolutions.bench.options import BenchOptions
from bert_convolutions.bench.plan import START_WORK, Group, make_plan
from bert_convolutions.bench.results import Measurement, document, fastest_setting, group_results, machine
from bert_convolutions.bench.tables import draw, group_table
from bert_convolutions.bench.turns import Report
from bert_convolutions.bench.worker import Worker
from bert_convolutions.errors import CommandError, UsageError
from bert_convolutions.files import run_lock
from bert_convolutions.model.backends import attention_backend
from bert_convolutions.model.flops import peak_flops
from bert_convolutions.terminal import duration, make_console
from bert_convolutions.training.arguments import cpu_has_bf16

RESULTS, PICTURE = "results.json", "results.png"


def run_bench(options: BenchOptions) -> None:
    """Measure, print tables, and write ``results.json`` and ``results.png``.

    Raises:
        UsageError: bad flags, text, tokenizer or configuration.
        CommandError: nothing could be measured.
    """
    if not torch.cuda.is_available() and not cpu_has_bf16():
        if "bf16" in options.precision:
            raise UsageError("--precision bf16: this CPU has no instructions for it; measure float32")
        options.precision = ["float32"]
    groups = make_plan(options, _backends())
    folder = Path(options.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output_dir {folder} is a file; give a folder")
    folder.mkdir(parents=True, exist_ok=True)
    with run_lock(folder):
        Bench(options, groups, folder).run()


def _backends() -> list[str]:
    """Of our attention on this machine, the default first."""
    with contextlib.suppress(UsageError, ValueError):
        attention_backend("triton")
        return ["sdpa", "eager", *(["triton"] if torch.cuda.is_available() else [])]
    return ["sdpa", "eager"]


class Bench:
    """The groups of a bench over one output folder; ``reads_pairs``: whether their jobs read sentence pairs."""

    def __init__(self, options: BenchOptions, groups: list[Group], folder: Path, *, reads_pairs: bool = True) -> None:
        self.options, self.groups, self.folder, self.reads_pairs = options, groups, folder, reads_pairs
        self.console = make_console()
        self.entries: dict[str, list[dict[str, Any]]] = {}
        on_gpu = torch.cuda.is_available()
        self.peak = peak_flops(torch.cuda.get_device_name(), options.peak_tflops) if on_gpu else None
        self._work_done = 0.0
        self._begun = time.monotonic()

    def run(self) -> None:
        """Measure all groups and write the results after each."""
        setup = prepare(self.options, self.groups, self.say, self.reads_pairs)
        facts = machine()
        self.say(f"{facts['gpu'] or facts['cpu']}, {self.options.threads or facts['threads']} threads")
        for name in dict.fromkeys(job.contestant for group in self.groups for job in group.jobs):
            self.say(f"  {name:<22}{CONTESTANTS[name].description}", style="dim")
        self._begun = time.monotonic()
        for number, group in enumerate(self.groups, start=1):
            self.say(f"\n[{number}/{len(self.groups)}] {group.title}{self._time_left()}", style="bold cyan")
            measurements = self._measure(group, setup)
            self.entries[group.title] = group_results(group, measurements, self.peak)
            self._write(complete=number == len(self.groups))
            self.console.print(group_table(group.title, self.entries[group.title]))
        results = self._write(complete=True)
        if not any("medians" in entry for entry in results["measurements"]):
            raise CommandError(f"nothing could be measured: {results['measurements'][0]['failure']}")
        if fastest := fastest_setting(results["measurements"]):
            self.say(f"\nFastest here: {fastest}" + (", roughly" if self.options.quick else ""), style="bold")
        draw(self.entries, results["machine"], self.folder / PICTURE)
        spent = duration(time.monotonic() - self._begun)
        self.say(f"\nMeasured in {spent}: {self.folder / RESULTS}, {self.folder / PICTURE}", style="bold")

    def say(self, line: str, style: str = "") -> None:
        """Print a line."""
        self.console.print(Text(line, style=style))

    def _measure(self, group: Group, setup: Setup) -> list[Measurement]:
        """Let the jobs of a group take turns, each in a process of its own; every other round in reverse order."""
        workers = [Worker(job, setup) for job in group.jobs]
        measurements = [Measurement(job) for job in group.jobs]
        try:
            with self.console.status("") as status:
                for worker in workers:
                    status.update(f"{worker.job.name}: starting")
                    worker.wait_until_ready()
                self._work_done += START_WORK * len(workers)
                for worker in workers:
                    status.update(f"{worker.job.name}: warm-up")
                    self._take(worker, group.warmup_steps)
                for number in range(group.rounds):
                    self.say(f"round {number + 1} of {group.rounds}{self._time_left()}", style="dim")
                    forwards = range(len(workers))
                    for index in forwards if number % 2 == 0 else reversed(forwards):  # what drifts favours nobody
                        status.update(f"{group.jobs[index].name}: round {number + 1} of {group.rounds}")
                        report = self._take(workers[index], group.steps)
                        if report is not None:
                            measurements[index].reports.append(report)
        finally:
            for worker in workers:
                worker.close()
        for worker, measurement in zip(workers, measurements, strict=True):
            if worker.failure is not None:  # the rounds before would be compared with all rounds of the others
                measurement.failure, measurement.reports = worker.failure, []
        return measurements

    def _take(self, worker: Worker, steps: int) -> Report | None:
        report = worker.take(steps) if steps else None
        self._work_done += steps
        return report

    def _time_left(self) -> str:
        """How long it will still take, by the time of what is done."""
        spent = time.monotonic() - self._begun
        if not self._work_done:
            return ""
        left = sum(group.work for group in self.groups) - self._work_done
        return f" ({duration(spent)} since the start, about {duration(spent * left / self._work_done)} left)"

    def _write(self, complete: bool) -> dict[str, Any]:
        """Write ``results.json`` and return its content."""
        entries = [entry for group in self.entries.values() for entry in group]
        results = document(self.options, entries, self.peak, complete)
        files.write_json(self.folder / RESULTS, results)
        return results
