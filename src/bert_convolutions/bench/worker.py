"""A process for each job, so that its peak memory is its own; they take turns, since only one may work at a time."""

import contextlib
import multiprocessing
import os
import pkgutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import torch
from transformers.utils import logging

from bert_convolutions.bench.corpus import Setup
from bert_convolutions.bench.plan import Job
from bert_convolutions.environment import memory_held
from bert_convolutions.errors import first_line


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
            EOFError: there are no more.
        """
        if self._memory_before is None:
            self._memory_before = memory_held(peak=False)
            self.connection.send(None)  # ready
        steps = int(self.connection.recv())
        self._begun = time.perf_counter()
        return steps

    def forward_done(self) -> None:
        """Keep the time so far as that of the forward passes, and let the clock run anew for the steps."""
        self._forward = self._seconds()
        self._begun = time.perf_counter()

    def report(self, steps: int, work: Work) -> None:
        """Stop the clock and send the report."""
        seconds, peak = self._seconds(), memory_held(peak=True)
        self.connection.send(Report(steps, seconds, work, peak, self._memory_before or 0, self._forward))

    def take(self, step: Callable[[], Work]) -> NoReturn:
        """Take turns of steps, each of which says what it did.

        Raises:
            EOFError: there are no more.
        """
        while True:
            steps = self.next()
            self.report(steps, sum((step() for _ in range(steps)), Work()))

    def _seconds(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - self._begun


class Worker:
    """The bench's side of a job's process; ``failure`` says why it could not be measured, if so."""

    def __init__(self, job: Job, setup: Setup) -> None:
        self.job = job
        self.failure: str | None = None
        self._connection, other = multiprocessing.Pipe()
        self._process = self._start(other, job, setup)

    def _start(self, connection: Connection, job: Job, setup: Setup) -> Any:
        # Forked from a process that has imported what takes seconds to import; but CUDA can't be forked
        forks = sys.platform == "linux" and not torch.cuda.is_available()
        context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        context.set_forkserver_preload(["bert_convolutions.bench.jobs"])
        process = context.Process(target=serve, args=(connection, job, setup), daemon=True)
        process.start()
        connection.close()  # here: or else the end of the process would go unnoticed
        return process

    def take(self, steps: int) -> Report | None:
        """Have it take steps; None if it fails now or has failed before."""
        if self.failure is not None:
            return None
        with contextlib.suppress(OSError):  # it has died; ``receive`` finds out how
            self._connection.send(steps)
        return self.receive()

    def receive(self) -> Report | None:
        """Wait for the report of its turn; before the first one, until it is ready (None)."""
        try:
            answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            answer = f"its process ended with exit code {self._process.exitcode} (-9: killed, out of memory?)"
        if isinstance(answer, str):
            self.failure = answer
            return None
        return answer

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(10)  # seconds
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def serve(connection: Connection, job: Job, setup: Setup) -> None:
    """Build, take turns, leave; or say why not."""
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the bench's to handle, which then ends this process
    try:
        run_job(job, setup, Turns(connection))
    except EOFError:  # the bench has ended
        pass
    except Exception as error:
        if os.environ.get("BERTCONV_TRACEBACK"):
            raise
        connection.send(f"{type(error).__name__}: {first_line(error)}")


def run_job(job: Job, setup: Setup, turns: Turns) -> None:
    """Build what a job needs and take turns.

    Raises:
        EOFError: there are no more turns.
    """
    logging.set_verbosity_error()
    if setup.options.threads is not None:
        torch.set_num_threads(setup.options.threads)
    pkgutil.resolve_name(job.run)(job, setup, turns)
