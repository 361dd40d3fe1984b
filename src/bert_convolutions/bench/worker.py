"""A process for each job, so that its peak memory is its own; they take turns, since only one may work at a time."""

import contextlib
import multiprocessing
import os
import pkgutil
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from transformers.utils import logging

if TYPE_CHECKING:  # what jobs are made of is imported by their processes
    from bert_convolutions.bench.corpus import Setup
    from bert_convolutions.bench.plan import Job

_SECONDS_TO_LEAVE = 10
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
        forward_seconds: of as many forward passes alone, where they are measured too.
    """

    steps: int
    seconds: float
    work: Work
    peak_memory: int
    memory_before: int
    forward_seconds: float | None = None


class FinishedError(Exception):
    """There are no more turns."""


class Turns:
    """The process's side: a connection brings the number of steps to take, and takes the report of them back."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._memory_before: int | None = None
        self._forward: float | None = None
        self._begun = 0.0

    def next(self) -> int:
        """Wait for a turn; the clock runs when this returns.

        Raises:
            FinishedError: there are no more.
        """
        if self._memory_before is None:
            self._memory_before = _memory(peak=False)
            self.connection.send(None)  # ready
        try:
            steps = self.connection.recv()
        except EOFError:  # the bench has ended
            raise FinishedError from None
        if steps is None:
            raise FinishedError
        self._begun = time.perf_counter()
        return int(steps)

    def forward_done(self) -> None:
        """Keep the time so far as that of the forward passes, and let the clock run anew for the steps."""
        self._forward = self._seconds()
        self._begun = time.perf_counter()

    def report(self, steps: int, work: Work) -> None:
        """Stop the clock and send the report."""
        seconds = self._seconds()
        memory = _memory(peak=True), self._memory_before or 0
        self.connection.send(Report(steps, seconds, work, *memory, self._forward))

    def take(self, step: Callable[[], Work]) -> NoReturn:
        """Take turns of steps, each of which says what it did.

        Raises:
            FinishedError: there are no more.
        """
        while True:
            steps = self.next()
            self.report(steps, sum((step() for _ in range(steps)), Work()))

    def _seconds(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - self._begun


def _memory(peak: bool) -> int:
    """Bytes that this process holds, or the most it has held at once; on CUDA those allocated there."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated())
    if _STATUS.exists():  # getrusage would count what the parent held when it started this process
        name = "VmHWM:" if peak else "VmRSS:"
        lines = _STATUS.read_text(encoding="ascii", errors="ignore").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


class Worker:
    """The bench's side of a job's process; ``failure`` says why it could not be measured, if so.

    Args:
        job: what it measures.
        setup: what it needs besides.
    """

    def __init__(self, job: "Job", setup: "Setup") -> None:
        self.job = job
        self.failure: str | None = None
        self._connection, other = multiprocessing.Pipe()
        self._process = self._start(other, job, setup)

    def _start(self, connection: Connection, job: "Job", setup: "Setup") -> Any:
        # What takes seconds to import is imported once, by the process that all others are forked from.
        context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        context.set_forkserver_preload(["bert_convolutions.bench.jobs"])
        process = context.Process(target=_work, args=(connection, job, setup), daemon=True)
        process.start()
        connection.close()  # here: or else the end of the process would go unnoticed
        return process

    def wait_until_ready(self) -> None:
        """Wait until the model is built."""
        self._receive()

    def take(self, steps: int) -> Report | None:
        """Have it take steps; None if it fails now or has failed before."""
        if self.failure is None:
            with contextlib.suppress(OSError):  # it has died; ``_receive`` finds out how
                self._connection.send(steps)
            return self._receive()
        return None

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join(_SECONDS_TO_LEAVE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self) -> Report | None:
        try:
            answer = self._connection.recv()
        except EOFError:
            self._process.join()
            answer = f"its process ended with exit code {self._process.exitcode} (-9: killed, out of memory?)"
        if isinstance(answer, str):
            self.failure = answer
            return None
        return answer


def _work(connection: Connection, job: "Job", setup: "Setup") -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the bench's to handle, which then ends this process
    serve(connection, job, setup)


def serve(connection: Connection, job: "Job", setup: "Setup") -> None:
    """Build, take turns, leave; or say why not."""
    try:
        run_job(job, setup, Turns(connection))
    except FinishedError:
        pass
    except Exception as error:
        if os.environ.get("BERTCONV_TRACEBACK"):
            raise
        lines = str(error).strip().splitlines()
        connection.send(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)


def run_job(job: "Job", setup: "Setup", turns: Turns) -> None:
    """Build what a job needs and take turns.

    Raises:
        FinishedError: there are no more turns.
    """
    logging.set_verbosity_error()
    if setup.options.threads is not None:
        torch.set_num_threads(setup.options.threads)
    pkgutil.resolve_name(job.run)(job, setup, turns)
