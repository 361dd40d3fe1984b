"""A few worker processes for many tasks: bounded memory, clean interruption by any signal, no orphans."""

import concurrent.futures
import contextlib
import itertools
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from bert_convolutions.signals import ignore_signals

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")
_WORKER_ENVIRONMENT = {"BERT_CONVOLUTIONS_LAZY": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def run_tasks(
    function: Callable[[TaskT], ResultT],
    tasks: Iterable[TaskT],
    num_proc: int,
    initializer: Callable[..., object] = tuple,
    initargs: tuple[Any, ...] = (),
) -> Iterator[ResultT]:
    """Yield ``function(task)`` of every task, in the order in which they finish.

    Tasks are drawn from their iterable only when one of ``num_proc`` processes is about to be free, so that it may be
    longer than memory. With one process, or one task, everything happens in this one. ``initializer`` is called with
    ``initargs`` once in every process; like ``function`` it is defined at the top of a module.
    """
    tasks = iter(tasks)
    first = list(itertools.islice(tasks, 2))
    tasks = itertools.chain(first, tasks)
    if num_proc == 1 or len(first) < 2:  # a small text is done before another process would have started
        initializer(*initargs)
        yield from map(function, tasks)
        return
    with _worker_environment():
        # "spawn": workers do not inherit the memory of this process, nor the threads of a PyTorch that it may hold.
        pool = concurrent.futures.ProcessPoolExecutor(
            num_proc, multiprocessing.get_context("spawn"), _start_worker, (initializer, initargs)
        )
        try:
            waiting: set[concurrent.futures.Future[ResultT]] = set()
            for task in tasks:
                waiting.add(pool.submit(function, task))
                if len(waiting) > num_proc:
                    done, waiting = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            for future in concurrent.futures.as_completed(waiting):
                yield future.result()
        except BaseException:
            for process in list((pool._processes or {}).values()):
                process.kill()  # they write whole files only
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(initializer: Callable[..., object], initargs: tuple[Any, ...]) -> None:
    ignore_signals()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    initializer(*initargs)


def _end_with_parent() -> None:
    """End this process when its parent is gone, also when that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


@contextlib.contextmanager
def _worker_environment() -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(_WORKER_ENVIRONMENT)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
