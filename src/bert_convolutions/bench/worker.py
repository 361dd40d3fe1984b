"""A process per job, for separate peak memory; they take turns, so that only one works at a time."""

import contextlib
import multiprocessing
import os
import pkgutil
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
from bert_convolutions.signals import signals_blocked


@dataclass(frozen=True)
class Work:
    """The work of some steps.

    Attributes:
        examples: number of examples.
        tokens: their non-padding tokens.
        flops: model FLOPs (``model.flops``), or None if they are not counted.
    """

    examples: int = 0
    tokens: int = 0
    flops: float | None = 0.0

    def __add__(self, other: "Work") -> "Work":
        flops = None if self.flops is None or other.flops is None else self.flops + other.flops
        return Work(self.examples + other.examples, self.tokens + other.tokens, flops)


@dataclass(frozen=True)
class Report:
    """The measurements of a turn.

    Attributes:
        steps: number of steps.
        seconds: their duration, the device's work included.
        work: their work.
        peak_memory: peak of the process so far, in bytes: resident memory, or memory allocated on the GPU.
        memory_before: the memory before the first step, in bytes.
        forward_seconds: duration of as many forward passes alone, if measured.
    """

    steps: int
    seconds: float
    work: Work
    peak_memory: int
    memory_before: int
    forward_seconds: float | None = None


class Turns:
    """The process's end: receives numbers of steps through a connection and sends reports."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._memory_before: int | None = None
        self._forward: float | None = None
        self._begun = 0.0

    def next(self) -> int:
        """Wait for a turn, return its number of steps and start the clock.

        Raises:
            EOFError: there are no more turns.
        """
        if self._memory_before is None:
            self._memory_before = memory_held(peak=False)
            self.connection.send(None)  # ready
        steps = int(self.connection.recv())
        self._begun = time.perf_counter()
        return steps

    def forward_done(self) -> None:
        """Store the time so far as that of the forward passes, and restart the clock for the steps."""
        self._forward = self._seconds()
        self._begun = time.perf_counter()

    def report(self, steps: int, work: Work) -> None:
        """Stop the clock and send the report."""
        seconds, peak = self._seconds(), memory_held(peak=True)
        self.connection.send(Report(steps, seconds, work, peak, self._memory_before or 0, self._forward))

    def take(self, step: Callable[[], Work]) -> NoReturn:
        """Take turns of ``step``, which returns its work.

        Raises:
            EOFError: there are no more turns.
        """
        while True:
            steps = self.next()
            self.report(steps, sum((step() for _ in range(steps)), Work()))

    def _seconds(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - self._begun


class Worker:
    """The bench's end of a job's process; ``failure`` is the reason if it could not be measured."""

    def __init__(self, job: Job, setup: Setup) -> None:
        self.job = job
        self.failure: str | None = None
        self._connection, other = multiprocessing.Pipe()
        self._process = self._start(other, job, setup)

    def _start(self, connection: Connection, job: Job, setup: Setup) -> Any:
        # Fork from a server that has already imported the slow libraries; but CUDA can't be forked
        forks = sys.platform == "linux" and not torch.cuda.is_available()
        context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        context.set_forkserver_preload(["bert_convolutions.bench.jobs"])
        process = context.Process(target=serve, args=(connection, job, setup), daemon=True)
        with signals_blocked():  # the bench handles them and ends this process
            process.start()
        connection.close()  # or the end of the process would go unnoticed
        return process

    def take(self, steps: int) -> Report | None:
        """Let it take steps; None if it fails now or has failed before."""
        if self.failure is not None:
            return None
        with contextlib.suppress(OSError):  # it has died; ``receive`` reports how
            self._connection.send(steps)
        return self.receive()

    def receive(self) -> Report | None:
        """Wait for the report of its turn or, before the first turn, for the process to be ready (None)."""
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
    """Build the job and take its turns; send the error if that fails."""
    try:
        run_job(job, setup, Turns(connection))
    except (EOFError, ConnectionError):  # the bench has ended
        pass
    except Exception as error:
        if os.environ.get("BERTCONV_TRACEBACK"):
            raise
        connection.send(f"{type(error).__name__}: {first_line(error)}")


def run_job(job: Job, setup: Setup, turns: Turns) -> None:
    """Build a job and take its turns.

    Raises:
        EOFError: there are no more turns.
    """
    logging.set_verbosity_error()
    if setup.options.threads is not None:
        torch.set_num_threads(setup.options.threads)
    pkgutil.resolve_name(job.run)(job, setup, turns)
