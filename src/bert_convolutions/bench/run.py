"""``bertconv bench``: prepares, measures group by group, and prints and writes results after each group."""

import os
import time
from pathlib import Path
from typing import Any

import torch
from rich.text import Text

from bert_convolutions import files
from bert_convolutions.bench.corpus import Setup, prepare
from bert_convolutions.bench.options import BenchOptions
from bert_convolutions.bench.plan import CONTESTANTS, START_WORK, Group, Job, make_plan
from bert_convolutions.bench.results import document, draw, fastest_setting, group_results, group_table
from bert_convolutions.bench.worker import Report, Worker
from bert_convolutions.cpu import cpu_has_bf16
from bert_convolutions.errors import CommandError, UsageError
from bert_convolutions.model.flops import peak_flops
from bert_convolutions.terminal import duration, make_console

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
    groups = make_plan(options, *find_device())
    folder = Path(options.output_dir)
    files.make_folder(folder, "--output_dir")
    with files.run_lock(folder):
        Bench(options, groups, folder).run()


def find_device() -> tuple[bool, float]:
    """Whether there is a GPU, and the memory of the GPU or, without one, of the machine in bytes."""
    if torch.cuda.is_available():
        return True, torch.cuda.get_device_properties(0).total_memory
    return False, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Bench:
    """Runs the groups of a bench in one output folder."""

    def __init__(self, options: BenchOptions, groups: list[Group], folder: Path) -> None:
        self.options, self.groups, self.folder = options, groups, folder
        self.console = make_console()
        self.entries: dict[str, list[dict[str, Any]]] = {}
        on_gpu = torch.cuda.is_available()
        self.peak = peak_flops(torch.cuda.get_device_name(), options.peak_tflops) if on_gpu else None
        self._work_done = 0.0
        self._begun = time.monotonic()

    def run(self) -> None:
        """Measure all groups and write the results after each."""
        setup = prepare(self.options, self.groups, self.say)
        results = document(self.options, self.peak)
        machine = results["machine"]
        self.say(f"{machine['gpu'] or machine['cpu']}, {machine['threads']} threads")
        for name in dict.fromkeys(job.contestant for group in self.groups for job in group.jobs):
            self.say(f"  {name:<22}{CONTESTANTS[name].description}", style="dim")
        self._begun = time.monotonic()
        for number, group in enumerate(self.groups, start=1):
            self.say(f"\n[{number}/{len(self.groups)}] {group.title}{self._time_left()}", style="bold cyan")
            reports, failures = self._measure(group, setup)
            self.entries[group.title] = group_results(group, reports, failures, self.peak)
            entries = [entry for group in self.entries.values() for entry in group]
            results |= {"complete": number == len(self.groups), "measurements": entries}
            files.write_json(self.folder / RESULTS, results)
            self.console.print(group_table(group.title, self.entries[group.title]))
        if not any("medians" in entry for entry in entries):
            raise CommandError(f"nothing could be measured: {entries[0]['failure']}")
        if fastest := fastest_setting(entries):
            self.say(f"\nFastest here: {fastest}" + (", roughly" if self.options.quick else ""), style="bold")
        draw(self.entries, machine, self.folder / PICTURE)
        spent = duration(time.monotonic() - self._begun)
        self.say(f"\nMeasured in {spent}: {self.folder / RESULTS}, {self.folder / PICTURE}", style="bold")

    def say(self, line: str, style: str = "") -> None:
        """Print a line."""
        self.console.print(Text(line, style=style))

    def _measure(self, group: Group, setup: Setup) -> tuple[dict[Job, list[Report]], dict[Job, str]]:
        """Let the jobs of a group take turns; return the reports of those that completed, and the others' failures."""
        workers: list[Worker] = []
        reports: dict[Job, list[Report]] = {job: [] for job in group.jobs}
        try:
            workers.extend(Worker(job, setup) for job in group.jobs)
            with self.console.status("") as status:
                for worker in workers:
                    status.update(f"{worker.job.name}: starting")
                    worker.receive()
                    self._work_done += START_WORK
                for number in range(0 if group.warmup_steps else 1, group.rounds + 1):
                    steps = group.steps if number else group.warmup_steps
                    what = f"round {number} of {group.rounds}" if number else "warm-up"
                    self.say(f"{what}{self._time_left()}", style="dim")
                    for worker in workers[:: 1 if number % 2 else -1]:  # so that drift favours no contestant
                        status.update(f"{worker.job.name}: {what}")
                        report = worker.take(steps)
                        self._work_done += steps
                        if number and report is not None:
                            reports[worker.job].append(report)
        finally:
            for worker in workers:
                worker.close()
        failures = {worker.job: worker.failure for worker in workers if worker.failure is not None}
        return {job: reports[job] for job in group.jobs if job not in failures}, {**failures, **group.left_out}

    def _time_left(self) -> str:
        """The elapsed and the estimated remaining time; empty at the start."""
        spent = time.monotonic() - self._begun
        if not self._work_done:
            return ""
        left = sum(group.work for group in self.groups) - self._work_done
        return f" ({duration(spent)} since the start, about {duration(spent * left / self._work_done)} left)"
