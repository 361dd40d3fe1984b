"""The progress of a run of ``bertconv glue``, printed with an estimate of the time left."""

import time
from collections.abc import Mapping

from rich.console import Console

from bert_convolutions.terminal import duration


class Progress:
    """Counts the jobs and estimates the time left from the ``work`` (steps times batch size) of those to train."""

    def __init__(self, console: Console, work: Mapping[str, int], total: int) -> None:
        self.console, self.work, self.total = console, dict(work), total
        self._started, self._begun = 0, 0.0
        self._seconds: dict[str, float] = {}

    def say(self, line: str, style: str = "") -> None:
        """Print a line."""
        self.console.print(line, style=style)

    def start(self, name: str, what: str) -> None:
        """Announce a job."""
        self._started, self._begun = self._started + 1, time.monotonic()
        left = self.time_left()
        self.say(f"[{self._started}/{self.total}] {name}: {what}" + (f"; about {left} left" if left else ""), "bold")

    def drop(self, name: str) -> None:
        """Don't count a job, which another process has done meanwhile."""
        self.total -= 1
        self.work.pop(name, None)

    def end_training(self, name: str) -> str:
        """Record that the current job's training has ended; return its duration."""
        self._seconds[name] = time.monotonic() - self._begun
        return duration(self._seconds[name])

    def time_left(self) -> str:
        """The estimated time for the jobs not yet trained; empty before the first has ended.

        A task is expected to take as long as in another round (``RTE4`` as ``RTE3``), a new one in proportion to its
        examples.
        """
        if not self._seconds:
            return ""
        per_example = sum(self._seconds.values()) / sum(self.work[name] for name in self._seconds)
        by_task = {name[:-1]: seconds / self.work[name] for name, seconds in self._seconds.items()}
        waiting = [name for name in self.work if name not in self._seconds]
        return duration(sum(self.work[name] * by_task.get(name[:-1], per_example) for name in waiting))
