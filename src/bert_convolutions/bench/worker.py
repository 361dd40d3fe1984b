"""Processes: each job has one of its own, so that its peak memory is its own; only one of them works at a time."""

import contextlib
import multiprocessing
import os
import pkgutil
import signal
from multiprocessing.connection import Connection
from typing import Any

import torch
from transformers.utils import logging

from bert_convolutions.bench.corpus import Setup
from bert_convolutions.bench.plan import Job
from bert_convolutions.bench.turns import FinishedError, Report, Turns

_SECONDS_TO_LEAVE = 10


class Worker:
    """The bench's side of a job's process.

    Args:
        job: what it measures.
        setup: what it needs besides.
    """

    def __init__(self, job: Job, setup: Setup) -> None:
        self.job = job
        self.failure: str | None = None
        self._connection, other = multiprocessing.Pipe()
        self._process = self._start(other, job, setup)

    def _start(self, connection: Connection, job: Job, setup: Setup) -> Any:
        process = multiprocessing.get_context("spawn").Process(target=_work, args=(connection, job, setup), daemon=True)
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
            report = self._receive()
            if isinstance(report, Report):
                return report
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
        if isinstance(answer, str):  # why it could not be measured
            self.failure = answer
            return None
        return answer


def _work(connection: Connection, job: Job, setup: Setup) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the bench's to handle, which then ends this process
    serve(connection, job, setup)


def serve(connection: Connection, job: Job, setup: Setup) -> None:
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


def run_job(job: Job, setup: Setup, turns: Turns) -> None:
    """Build what a job needs and take turns.

    Raises:
        FinishedError: there are no more turns.
    """
    logging.set_verbosity_error()
    if setup.options.threads is not None:
        torch.set_num_threads(setup.options.threads)
    pkgutil.resolve_name(job.run)(job, setup, turns)
