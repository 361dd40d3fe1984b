"""``bertconv sweep``: runs the unfinished cells, here or through submitit, or prints them."""

import fnmatch
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bertconv
from bert_convolutions import files
from bert_convolutions.environment import environment
from bert_convolutions.errors import EXIT_INTERRUPTED, CommandError, FolderInUse, RunInterrupted, UsageError, first_line
from bert_convolutions.schemas import CellRecord, Experiment
from bert_convolutions.signals import SIGNALS, signal_handlers
from bert_convolutions.sweep.cells import PRETRAIN, Cell, group_by_model, plan_cells, read_experiment
from bert_convolutions.sweep.options import SweepOptions
from bert_convolutions.terminal import duration, make_console, make_table, say

EXPERIMENT_NAME = "experiment.json"
"""The experiment of a sweep's folder, which ``bertconv report`` reads."""


def run_sweep(options: SweepOptions) -> None:
    """Run, submit or print an experiment's cells.

    Raises:
        UsageError: the experiment is invalid, or its folder holds cells with other flags.
        RunInterrupted: a signal was received; the running cell was saved.
        CommandError: some cells failed; the others were run.
    """
    experiment = read_experiment(options.experiment, options.set)
    cells = plan_cells(experiment, options.output_dir)
    chosen = _select(cells, options.only)
    missing = [cell for cell in cells if not cell.is_finished() and cell in chosen]  # a report reads all
    if options.dry_run:
        if options.format == "commands":
            print("\n".join(shlex.join(["bertconv", *cell.argv]) for cell in missing))
        else:
            _print_plan(experiment, cells, missing)
        return
    files.make_folder(options.output_dir, "--output_dir")
    files.write_text(options.output_dir / EXPERIMENT_NAME, experiment.model_dump_json(indent=2) + "\n")
    say(f"{len(cells)} cells, {len(missing)} of the chosen ones to run")
    if options.executor == "here":
        run_cells(missing)
    else:
        _submit(missing, options)


def _select(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(cell.label, pattern) for cell in cells):
            raise UsageError(f"--only {pattern} matches no cell; cells are named like {cells[0].label}")
    return [cell for cell in cells if not patterns or any(fnmatch.fnmatchcase(cell.label, p) for p in patterns)]


def run_cells(cells: Sequence[Cell]) -> None:
    """Run the unfinished ones of some cells, one after the other; continue after failures.

    Several processes can share the cells of a folder: each takes the next model that no other is working on.

    Raises:
        RunInterrupted: a signal interrupted the sweep or the running command.
        CommandError: some cells failed or had no model to evaluate.
    """
    failed: list[str] = []
    elsewhere: list[str] = []
    durations: dict[str, list[float]] = {}
    for group in group_by_model(cells):
        folder = group[0].folder.parent
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with files.run_lock(folder):
                for cell in group:
                    if not cell.is_finished():  # by another process, meanwhile
                        left = cells[cells.index(cell) :]
                        seconds = _time_left(left, durations)
                        about = f", about {duration(seconds)} left" if seconds else ""
                        say(f"[{len(cells) - len(left) + 1}/{len(cells)}] {cell.label}{about}")
                        failed += _try_cell(cell, durations)
        except FolderInUse:
            elsewhere.append(f"{group[0].variant}/seed{group[0].seed}")
    if elsewhere:
        running = ", ".join(elsewhere)
        say(f"left to other processes, which are running them: {running}; if one is stopped, give the command again")
    if failed:
        raise CommandError(f"{len(failed)} of {len(cells)} cells failed: {', '.join(failed)}")


def _try_cell(cell: Cell, durations: dict[str, list[float]]) -> list[str]:
    """Run a cell and add its duration to those of its name; return its label, with the reason, if it failed."""
    if cell.command != PRETRAIN and not (cell.folder.with_name(PRETRAIN) / "config.json").is_file():
        return [f"{cell.label} (there is no model to evaluate)"]
    earlier = cell.folder.with_name(f"{cell.name}.earlier_model")
    if not cell.is_of_this_model() and cell.folder.is_dir():  # the command refuses to mix them with those of this model
        if earlier.is_dir():  # these here are unfinished
            shutil.rmtree(cell.folder)
        else:
            cell.folder.rename(earlier)
        say(f"{cell.label}: results of an earlier model are kept in {earlier} until there are new ones")
    begun = time.monotonic()
    record = run_cell(cell)
    if record.exit_code == 0:
        shutil.rmtree(earlier, ignore_errors=True)
    durations.setdefault(cell.name, []).append(time.monotonic() - begun)
    if record.exit_code == EXIT_INTERRUPTED:
        raise RunInterrupted(f"stopped in {cell.label}, which is saved; resume with the same command")
    if record.exit_code:
        say(f"{cell.label} failed with exit code {record.exit_code}: {_last_line(cell.log_path)}")
        return [f"{cell.label} (see {cell.log_path})"]
    return []


def run_cell(cell: Cell) -> CellRecord:
    """Run one command with its output in its log, and write its record; signals end the command, not the sweep."""
    earlier, start = cell.record(), time.monotonic()
    record = CellRecord(
        command=cell.argv,
        seconds=earlier.seconds if earlier else 0,
        exit_code=EXIT_INTERRUPTED,  # correct if this process is killed
        environment=environment(),
        model=cell.model_key(),
    )
    files.write_text(cell.record_path, record.model_dump_json(indent=2) + "\n")
    process: subprocess.Popen[bytes] | None = None
    received: list[int] = []

    def forward(number: int, frame: object) -> None:
        received.append(number)
        if process is not None and number != signal.SIGINT:  # a terminal sends SIGINT to the command too
            process.terminate()

    with cell.log_path.open("ab") as log, signal_handlers(forward):
        process = subprocess.Popen(
            [sys.executable, bertconv.__file__, *cell.argv],  # by -m, a tokenize.py in the working folder is imported
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        if received:  # before the command was started
            process.terminate()
        try:
            code = process.wait()
        except BaseException:  # submitit is about to requeue the job
            process.terminate()
            process.wait()
            raise
    interrupted = received or code in [-number for number in SIGNALS]
    seconds, code = record.seconds + time.monotonic() - start, EXIT_INTERRUPTED if interrupted else code
    record = record.model_copy(update={"seconds": seconds, "exit_code": code})
    files.write_text(cell.record_path, record.model_dump_json(indent=2) + "\n")
    return record


def _time_left(cells: Sequence[Cell], durations: dict[str, list[float]]) -> float | None:
    """Estimated from the mean duration of cells of the same name; None if one of the cells has no such mean yet."""
    means = {name: sum(times) / len(times) for name, times in durations.items()}
    if any(cell.name not in means for cell in cells):
        return None
    return sum(means[cell.name] for cell in cells)


def _last_line(path: Path) -> str:
    return (path.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it printed nothing"])[-1]


class _Job:
    """Runs cells in order; submitit requeues it after a time-limit warning or preemption."""

    def __call__(self, cells: Sequence[Cell]) -> None:
        run_cells(cells)

    def checkpoint(self, cells: Sequence[Cell]) -> Any:
        """The job to submit again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, cells)


def _submit(cells: Sequence[Cell], options: SweepOptions) -> None:
    """Submit a job per variant and seed, which runs its cells in order."""
    import submitit

    parameters = dict(option.split("=", 1) for option in options.executor_options)
    try:
        executor = submitit.AutoExecutor(folder=str(options.output_dir / "submitted"), cluster=options.executor)
        executor.update_parameters(**{name: int(text) if text.isdigit() else text for name, text in parameters.items()})
    except Exception as error:  # submitit has no error class of its own
        raise UsageError(f"--executor {options.executor}, --executor_options: {first_line(error)}") from error
    jobs = []
    for group in group_by_model(cells):
        jobs.append(executor.submit(_Job(), group))
        say(f"{group[0].variant}/seed{group[0].seed}: job {jobs[-1].job_id}, log {jobs[-1].paths.stderr}")
    if options.executor == "local":
        failed = [job for job in jobs if job.exception() is not None]
        if failed:
            raise CommandError(f"{len(failed)} of {len(jobs)} jobs failed: {_last_line(failed[0].paths.stderr)}")


def _print_plan(experiment: Experiment, cells: Sequence[Cell], missing: Sequence[Cell]) -> None:
    """Print the cost of each variant and the missing commands."""
    from bert_convolutions.sweep.estimate import estimate, measure_flops

    console = make_console()
    speed = measure_flops(bf16=bool(experiment.base.get("bf16")))
    headings = ("parameters", "tokens per run", "training FLOPs per run", "time per run", "missing runs")
    table = make_table(experiment.question, "variant", *headings)
    total = 0.0
    for variant in experiment.variants:
        pretrain = next(cell for cell in cells if cell.variant == variant and cell.command == PRETRAIN)
        cost = estimate(pretrain, speed)
        runs = sum(cell.variant == variant and cell.command == PRETRAIN for cell in missing)
        total += runs * cost.seconds
        numbers = (f"{cost.parameters:,}", f"{cost.tokens:.3g}", f"{cost.flops:.3g}", duration(cost.seconds), str(runs))
        table.add_row(variant, *numbers)
    console.print(table)
    console.print(
        f"time estimated for {speed / 1e9:,.0f} GFLOP/s on this machine, one process: {duration(total)} in all"
    )
    for cell in missing:
        console.print(shlex.join(["bertconv", *cell.argv]), markup=False)
