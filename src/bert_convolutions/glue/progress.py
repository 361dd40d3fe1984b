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
        self.work = work
        self.total = total
        self._started, self._begun = 0, 0.0
        self._seconds: dict[str, float] = {}

    def say(self, line: str, style: str = "") -> None:
        """Print a line."""
        self.console.print(Text(line, style=style))

    def start(self, name: str, what: str) -> None:
        """Announce a job."""
        self._started, self._begun = self._started + 1, time.monotonic()
        left = self.time_left()
        self.say(f"[{self._started}/{self.total}] {name}: {what}" + (f"; about {left} left" if left else ""), "bold")

    def trained(self, name: str) -> str:
        """Note that the training of the job announced last has ended; return the time it took."""
        self._seconds[name] = time.monotonic() - self._begun
        return duration(self._seconds[name])

    def time_left(self) -> str:
        """Return the time that the jobs not yet trained will take, or nothing before the first has ended.

        A task that was trained before takes its own time again; the others go by the examples.
        """
        if not self._seconds:
            return ""
        per_example = sum(self._seconds.values()) / sum(self.work[name] for name in self._seconds)
        by_task = {_task_of(name): seconds / self.work[name] for name, seconds in self._seconds.items()}
        waiting = [name for name in self.work if name not in self._seconds]
        return duration(sum(self.work[name] * by_task.get(_task_of(name), per_example) for name in waiting))


def _task_of(name: str) -> str:
    """Return a job's name without its round, so ``RTE3`` and ``RTE4`` take each other's time."""
    return name[:-1]
