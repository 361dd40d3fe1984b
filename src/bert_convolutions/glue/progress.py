"""What the user sees of a run over tasks and rounds: which of how many, how long still. Imports no torch."""

import time
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bert_convolutions.terminal import duration


class Progress:
    """Counts jobs and estimates the time left from examples trained on so far.

    Args:
        console: where to print.
        work: job to its examples (steps times batch), of all jobs that are to be trained.
        total: number of all jobs.
    """

    def __init__(self, console: Console, work: Mapping[str, int], total: int) -> None:
        self.console = console
        self.work = dict(work)
        self.total = total
        self.started = 0
        self._seconds: dict[str, float] = {}
        self._begun: float | None = None

    def start(self, name: str, what: str) -> None:
        """Announce a job."""
        self.started += 1
        self._begun = time.monotonic()
        left = self.time_left()
        line = f"[{self.started}/{self.total}] {name}: {what}" + (f"; about {left} left" if left else "")
        self.console.print(Text(line, style="bold"))

    def trained(self, name: str) -> float:
        """Note that a job's training has ended; return the seconds it took."""
        seconds = time.monotonic() - (self._begun or time.monotonic())
        self._seconds[name] = seconds
        return seconds

    def say(self, line: str) -> None:
        """Print a line."""
        self.console.print(Text(line))

    def time_left(self) -> str:
        """Return the time that the jobs not yet trained will take, or nothing before the first has ended.

        A task that was trained before takes its own time again; the others go by the examples.
        """
        done = sum(self.work.get(name, 0) for name in self._seconds)
        if not done:
            return ""
        per_example = sum(self._seconds.values()) / done
        by_task = {_task_of(name): seconds / max(1, self.work[name]) for name, seconds in self._seconds.items()}
        left = sum(
            work * by_task.get(_task_of(name), per_example)
            for name, work in self.work.items()
            if name not in self._seconds
        )
        return duration(left)


def _task_of(name: str) -> str:
    """Return a job's name without its round, so ``RTE3`` and ``RTE4`` take each other's time."""
    return name[:-1]


def score_table(scores: Mapping[str, Mapping[int, float]], title: str) -> Table:
    """Return the dev table: a row each round, then mean, standard deviation and best, times 100.

    Args:
        scores: column title to round to score (0 to 1).
        title: line above the table.
    """
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("round")
    for column in scores:
        table.add_column(column, justify="right")
    rounds = sorted({number for column in scores.values() for number in column})
    for number in rounds:
        table.add_row(str(number), *(_percent(column.get(number)) for column in scores.values()))
    table.add_section()
    for name, value in (("mean", mean), ("std", standard_deviation), ("best", best)):
        table.add_row(name, *(_percent(value(list(column.values()))) for column in scores.values()))
    return table


def mean(values: list[float]) -> float | None:
    """Return the mean, or None of no values."""
    return sum(values) / len(values) if values else None


def standard_deviation(values: list[float]) -> float | None:
    """Return the sample standard deviation (divided by N - 1), or None of fewer than two values."""
    if len(values) < 2:
        return None
    centre = sum(values) / len(values)
    return (sum((value - centre) ** 2 for value in values) / (len(values) - 1)) ** 0.5


def best(values: list[float]) -> float | None:
    """Return the greatest value, or None of no values."""
    return max(values, default=None)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
