"""Worker processes for many tasks, with bounded memory, clean interruption by signals and no orphans."""

import concurrent.futures
import contextlib
import itertools
import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from bert_convolutions.signals import ignore_signals, signals_blocked

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")
_WORKER_ENVIRONMENT = {"BERT_CONVOLUTIONS_LAZY": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_STARTING = threading.Lock()
"""Held while what the whole process shares is changed, as builds may run in several threads."""


def run_tasks(
    function: Callable[[TaskT], ResultT],
    tasks: Iterable[TaskT],
    num_proc: int,
    initializer: Callable[..., object] = tuple,
    initargs: tuple[Any, ...] = (),
) -> Iterator[ResultT]:
    """Yield ``function(task)`` of every task, in the order in which they finish.

    Tasks are drawn from ``tasks`` only as processes become free, so that not all need fit in memory. With one process
    or one task, everything runs in this process. ``initializer(*initargs)`` is called once in every process; like
    ``function``, it must be defined at the top level of a module.
    """
    tasks = iter(tasks)
    first = list(itertools.islice(tasks, 2))
    tasks = itertools.chain(first, tasks)
    if num_proc == 1 or len(first) < 2:  # faster for a small text than starting processes
        initializer(*initargs)
        yield from map(function, tasks)
        return
    # "spawn": workers must not inherit this process's memory, nor the threads of PyTorch.
    pool = concurrent.futures.ProcessPoolExecutor(
        num_proc, multiprocessing.get_context("spawn"), _start_worker, (initializer, initargs)
    )
    try:
        waiting: set[concurrent.futures.Future[ResultT]] = set()
        for task in tasks:
            with _for_workers(), signals_blocked():
                waiting.add(pool.submit(function, task))
            if len(waiting) > num_proc:
                done, waiting = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
                yield from (future.result() for future in done)
        for future in concurrent.futures.as_completed(waiting):
            yield future.result()
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.kill()  # safe, as they write files atomically
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(initializer: Callable[..., object], initargs: tuple[Any, ...]) -> None:
    ignore_signals()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    initializer(*initargs)


def _end_with_parent() -> None:
    """Exit when the parent process has ended, even if it was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


@contextlib.contextmanager
def _for_workers() -> Iterator[None]:
    """Start processes with ``_WORKER_ENVIRONMENT``, and without the user's script, which they would run again."""
    with _STARTING:
        main = sys.modules["__main__"]
        replaced = {name: os.environ[name] for name in _WORKER_ENVIRONMENT if name in os.environ}
        sys.modules["__main__"] = types.ModuleType("__main__")
        os.environ.update(_WORKER_ENVIRONMENT)
        try:
            yield
        finally:
            sys.modules["__main__"] = main
            for name in _WORKER_ENVIRONMENT:
                del os.environ[name]
            os.environ.update(replaced)
