"""``bertconv sweep``: run the cells that are missing, here or through submitit, or say what they are."""

import fnmatch
import shlex
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
from bert_convolutions.errors import EXIT_INTERRUPTED, CommandError, RunInterrupted, UsageError, first_line
from bert_convolutions.schemas import CellRecord, Experiment
from bert_convolutions.signals import SIGNALS, handled_by
from bert_convolutions.sweep.cells import PRETRAIN, Cell, by_model, plan_cells, read_experiment
from bert_convolutions.sweep.options import SweepOptions
from bert_convolutions.terminal import duration, make_console, make_table, say

EXPERIMENT_NAME = "experiment.json"
"""What the folder's sweep was, for ``bertconv report``."""


def run_sweep(options: SweepOptions) -> None:
    """Run, submit or print an experiment's cells.

    Raises:
        UsageError: the experiment is not one, or its folder holds cells of other flags.
        RunInterrupted: a signal came; what was running has been saved.
        CommandError: some cells failed; the others were run.
    """
    experiment = read_experiment(options.experiment, options.set)
    cells = plan_cells(experiment, options.output_dir)
    missing = [cell for cell in _chosen(cells, options.only) if not cell.is_finished()]
    if options.dry_run:
        if options.format == "commands":
            print("\n".join(shlex.join(["bertconv", *cell.argv]) for cell in missing))
        else:
            _describe(experiment, cells, missing)
        return
    files.make_folder(options.output_dir, "--output_dir")
    with files.run_lock(options.output_dir):
        files.write_text(options.output_dir / EXPERIMENT_NAME, experiment.model_dump_json(indent=2) + "\n")
        say(f"{len(cells)} cells, {len(missing)} of the chosen ones to run")
        if options.executor == "here":
            run_cells(missing)
        else:
            _submit(missing, options)


def _chosen(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(cell.label, pattern) for cell in cells):
            raise UsageError(f"--only {pattern} matches no cell; cells are named like {cells[0].label}")
    return [cell for cell in cells if not patterns or any(fnmatch.fnmatchcase(cell.label, p) for p in patterns)]


def run_cells(cells: Sequence[Cell]) -> None:
    """Run cells one after the other, past those that fail.

    Raises:
        RunInterrupted: a signal came, or the command in hand was interrupted by one.
        CommandError: some failed, or could not be run for lack of a model.
    """
    failed: list[str] = []
    took: dict[str, list[float]] = {}
    for number, cell in enumerate(cells):
        left = _time_left(cells[number:], took)
        say(f"[{number + 1}/{len(cells)}] {cell.label}{f', about {duration(left)} left' if left else ''}")
        if cell.command != PRETRAIN and not (cell.folder.with_name(PRETRAIN) / "config.json").is_file():
            failed.append(f"{cell.label} (there is no model to judge)")
            continue
        begun = time.monotonic()
        record = run_cell(cell)
        took.setdefault(cell.name, []).append(time.monotonic() - begun)
        if record.exit_code == EXIT_INTERRUPTED:
            raise RunInterrupted(f"stopped in {cell.label}, which is saved; go on with the same command")
        if record.exit_code:
            say(f"{cell.label} failed with exit code {record.exit_code}: {_last_line(cell.log_path)}")
            failed.append(f"{cell.label} (see {cell.log_path})")
    if failed:
        raise CommandError(f"{len(failed)} of {len(cells)} cells failed, the others are done: {', '.join(failed)}")


def run_cell(cell: Cell) -> CellRecord:
    """Run one command, its output to its log, and leave a record of it; signals end the command and not the sweep."""
    cell.folder.parent.mkdir(parents=True, exist_ok=True)
    earlier, start = cell.record(), time.monotonic()
    record = CellRecord(
        command=cell.argv,
        seconds=earlier.seconds if earlier else 0,
        exit_code=EXIT_INTERRUPTED,  # as is true if this process is killed
        environment=environment(),
        model=cell.judged(),
    )
    files.write_text(cell.record_path, record.model_dump_json(indent=2) + "\n")
    process: subprocess.Popen[bytes] | None = None
    received: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        received.append(number)
        if process is not None and number != signal.SIGINT:  # which a terminal sends to the command too
            process.terminate()

    with cell.log_path.open("ab") as log, handled_by(pass_on):
        process = subprocess.Popen(
            [sys.executable, bertconv.__file__, *cell.argv],  # by -m, a tokenize.py in the working folder is imported
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        if received:  # before there was a command to pass it on to
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


def _time_left(cells: Sequence[Cell], took: dict[str, list[float]]) -> float | None:
    """By the mean time of cells of the same name; None as long as one has none."""
    means = {name: sum(times) / len(times) for name, times in took.items()}
    if any(cell.name not in means for cell in cells):
        return None
    return sum(means[cell.name] for cell in cells)


def _last_line(path: Path) -> str:
    return (path.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"])[-1]


class _Job:
    """Cells that run one after the other; warned of the time limit or preempted, submitit requeues them."""

    def __call__(self, cells: Sequence[Cell]) -> None:
        run_cells([cell for cell in cells if not cell.is_finished()])

    def checkpoint(self, cells: Sequence[Cell]) -> Any:
        """What is to run in the job's place."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, cells)


def _submit(cells: Sequence[Cell], options: SweepOptions) -> None:
    """A job for each variant and seed, whose cells run in order."""
    import submitit

    parameters = dict(option.split("=", 1) for option in options.executor_options)
    try:
        executor = submitit.AutoExecutor(folder=str(options.output_dir / "submitted"), cluster=options.executor)
        executor.update_parameters(**{name: int(text) if text.isdigit() else text for name, text in parameters.items()})
    except Exception as error:  # it has no class of its own for them
        raise UsageError(f"--executor {options.executor}, --executor_options: {first_line(error)}") from error
    jobs = []
    for group in by_model(cells):
        jobs.append(executor.submit(_Job(), group))
        say(f"{group[0].variant}/seed{group[0].seed}: job {jobs[-1].job_id}, log {jobs[-1].paths.stderr}")
    if options.executor == "local":
        failed = [job for job in jobs if job.exception() is not None]
        if failed:
            raise CommandError(f"{len(failed)} of {len(jobs)} jobs failed: {_last_line(failed[0].paths.stderr)}")


def _describe(experiment: Experiment, cells: Sequence[Cell], missing: Sequence[Cell]) -> None:
    """Print what each variant costs, and the commands that are missing."""
    from bert_convolutions.sweep.estimate import estimate, measure_flops

    console = make_console()
    speed = measure_flops()
    headings = ("parameters", "tokens a run", "training FLOPs a run", "time a run", "runs missing")
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
