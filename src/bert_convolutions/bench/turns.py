"""The worker's side of taking turns: wait to be asked, take so many steps, tell how long they took."""

import resource
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Work:
    """What some steps do.

    Attributes:
        examples: how many.
        tokens: of them, padding not counted.
        flops: model FLOPs (``model.flops``), or None where they are not counted.
    """

    examples: int = 0
    tokens: int = 0
    flops: float | None = 0.0

    def __add__(self, other: "Work") -> "Work":
        flops = None if self.flops is None or other.flops is None else self.flops + other.flops
        return Work(self.examples + other.examples, self.tokens + other.tokens, flops)


@dataclass(frozen=True)
class Report:
    """A turn.

    Attributes:
        steps: taken.
        seconds: they took, the device's work included.
        work: they did.
        peak_memory: of the process so far, in bytes: resident memory, or on CUDA the memory allocated there.
        memory_before: the same before the first step, in bytes.
    """

    steps: int
    seconds: float
    work: Work
    peak_memory: int
    memory_before: int


class FinishedError(Exception):
    """There are no more turns."""


class Turns:
    """Commands come through a connection as the number of steps to take; reports go back through it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._memory_before: int | None = None
        self._begun = 0.0

    def next(self) -> int:
        """Wait for a turn; the clock runs when this returns.

        Raises:
            FinishedError: there are no more.
        """
        if self._memory_before is None:
            self._memory_before = _memory_now()
            self.connection.send(None)  # ready
        try:
            steps = self.connection.recv()
        except EOFError:  # the bench has ended
            raise FinishedError from None
        if steps is None:
            raise FinishedError
        self._begun = time.perf_counter()
        return int(steps)

    def report(self, steps: int, work: Work) -> None:
        """Stop the clock and send the report."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._begun
        self.connection.send(Report(steps, seconds, work, _peak_memory(), self._memory_before or 0))


def _peak_memory() -> int:
    """Bytes: the most this process has held at once."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if _STATUS.exists():  # getrusage would count what the parent held when it started this process
        return _from_status("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _memory_now() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.memory_allocated())
    return _from_status("VmRSS") if _STATUS.exists() else _peak_memory()


def _from_status(name: str) -> int:
    lines = _STATUS.read_text(encoding="ascii", errors="ignore").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
