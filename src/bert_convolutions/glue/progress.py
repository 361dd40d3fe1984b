"""What the user sees of a run over tasks and rounds: which of how many, how long still. Imports no torch."""

import time
from collections.abc import Mapping

from rich.console import Console
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
