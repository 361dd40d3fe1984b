"""Signals that end a run, and standard streams that can no longer be written to. Imports no PyTorch."""

import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from bert_convolutions.environment import is_first_process, is_one_of_several
from bert_convolutions.errors import EXIT_INTERRUPTED, RunInterrupted

_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))  # Windows has the first two
_WARNINGS = SIGNALS[3:]
"""Signals of batch systems before the time limit (``sbatch --signal=USR1@120``, submitit, ``qsub -notify``)."""
_handlers: list[Callable[[int, FrameType | None], None]] = []
"""The nested handlers of ``signal_handlers``."""
LAUNCHER_ECHO_SECONDS = 2.0
"""torchrun forwards a Ctrl-C that its processes already got from the terminal; this is no second Ctrl-C."""


def ignore_signals() -> None:
    """Ignore signals in a worker process, which gets those to a terminal or job too; its parent ends it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block the signals in this thread. Processes that are started meanwhile inherit this.

    A signal to the whole group then doesn't end them, not even while they import their libraries.
    """
    from multiprocessing import resource_tracker

    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()  # which unblocks some, until Python 3.13
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def exit_on_signal(advice: str) -> Iterator[None]:
    """Exit at once on a signal. For imports, which swallow exceptions, while there is nothing to clean up."""

    def handle(number: int, frame: FrameType | None) -> None:
        _say(f"stopped by {signal.Signals(number).name}; {advice}")
        os._exit(EXIT_INTERRUPTED)

    with signal_handlers(handle):
        yield


@contextmanager
def interruptible(what: str) -> Iterator[None]:
    """Let any signal interrupt this context as Ctrl-C does; a second one ends a command at once.

    Raises:
        RunInterrupted: a signal was received; the message names ``what`` was stopped.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if _is_the_command(sys.argv[0]):
            signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt(signal.Signals(number).name)

    try:
        with signal_handlers(stop):
            yield
    except KeyboardInterrupt as error:
        raise RunInterrupted(f"{what}: stopped by {error}; run the same command again to resume") from error


class SignalWatch:
    """Records requests to stop the run: at once if there is nothing to save, otherwise after the current step.

    Attributes:
        received: the first signal, or None; SIGPIPE if an output failed.
        cause: its description for messages, empty if there is none.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.cause = ""
        self._since = 0.0
        self._process = os.getpid()
        self._scratch: set[Path] = set()

    @contextmanager
    def interrupt_on_signal(self, advice: str) -> Iterator[None]:
        """Raise on a signal. For use while there is nothing to save yet.

        Raises:
            RunInterrupted: a signal was received; the message ends with ``advice``, how to go on.
        """
        raised = False

        def handle(number: int, frame: FrameType | None) -> None:
            nonlocal raised
            if os.getpid() != self._process:  # a forked worker, which has nothing to clean up
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
                return
            self._note(signal.Signals(number))
            raised = True
            raise KeyboardInterrupt  # which code that catches every Exception, or ours, lets pass

        with signal_handlers(handle):
            try:
                yield
            except (Exception, KeyboardInterrupt) as error:  # C++ makes another error of it
                if not raised or isinstance(error, RunInterrupted):
                    raise
                raise RunInterrupted(f"stopped by {self.cause}; {advice}") from error

    @contextmanager
    def finish_step_on_signal(self) -> Iterator["SignalWatch"]:
        """Record the first signal, so that the current step can finish; restore the handlers at the end.

        An output that fails (the terminal was closed, the log's disk is full) counts as a signal.
        """
        stdout, stderr = (stream and _GuardedStream(stream, self._note) for stream in (sys.stdout, sys.stderr))
        with signal_handlers(self._handle), redirect_stdout(stdout), redirect_stderr(stderr):
            yield self

    @contextmanager
    def removed_on_exit(self, folder: Path) -> Iterator[None]:
        """Remove ``folder`` if the process exits at once in this context."""
        self._scratch.add(folder)
        try:
            yield
        finally:
            self._scratch.discard(folder)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked DataLoader worker: its parent decides
            return
        is_echo = "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - self._since < LAUNCHER_ECHO_SECONDS
        if self.received is None:
            self._note(signal.Signals(number))
            _say(f"{self.cause}: finishing this step and saving; a second Ctrl-C stops at once")
        elif number == signal.SIGINT and not is_echo:
            if not _is_the_command(sys.argv[0]):
                raise KeyboardInterrupt  # a notebook keeps its variables
            _say("second Ctrl-C: exiting at once; the last checkpoint is kept")
            for folder in self._scratch:
                shutil.rmtree(folder, ignore_errors=True)
            os._exit(128 + signal.SIGINT)

    def _note(self, received: signal.Signals, cause: str = "") -> None:
        if self.received is None:
            self.received, self.cause, self._since = received, cause or received.name, time.monotonic()


class _GuardedStream:
    """A standard stream whose first failure is recorded, not raised; later output is dropped."""

    def __init__(self, stream: Any, note: Callable[[signal.Signals, str], None]) -> None:
        self._stream, self._note = stream, note

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except OSError as error:
            self._redirect_to_null(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._redirect_to_null(error)

    def _redirect_to_null(self, error: OSError) -> None:
        self._note(signal.SIGPIPE, f"an output that failed ({error.strerror})")
        with suppress(OSError, ValueError):  # or flushing the buffer at exit would fail again
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


@contextmanager
def signal_handlers(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle the signals that are not ignored (as under nohup) by ``handle``; restore the handlers at the end.

    A batch system's warning signals that are already handled stay so: submitit requeues a job by them.
    After an exception in one of several processes, SIGTERM stays ignored: the launcher sends it as soon as another
    process has ended, and it must not cut off the message. Outside the main thread, as in a worker of Ray, Python
    allows no signal handlers, and nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = {number: signal.getsignal(number) for number in SIGNALS}
    handled = [
        number
        for number, handler in taken.items()
        if handler != signal.SIG_IGN and (number not in _WARNINGS or handler in (signal.SIG_DFL, *_handlers))
    ]
    before = {number: signal.signal(number, handle) for number in handled}
    _handlers.append(handle)
    try:
        yield
    except BaseException:
        if is_one_of_several() and before.pop(signal.SIGTERM, None) is not None:
            signal.signal(signal.SIGTERM, lambda number, frame: None)
        raise
    finally:
        _handlers.pop()
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(message: str) -> None:
    if is_first_process():
        with suppress(OSError):  # the terminal may be closed
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\nbertconv: {message}\n".encode())


def resume_command(argv: Sequence[str] | None = None) -> str:
    """The command line (default: this process's), launcher included, that resumes from the newest checkpoint.

    Or words for it, if the process is no command of this package but, for example, a notebook.
    """
    argv = sys.argv if argv is None else argv
    if not _is_the_command(argv[0]):
        return "the same call and resume_from_checkpoint=True"
    words = _program(argv[1:])
    drops_value = False
    for word in argv[1:]:
        if drops_value and not word.startswith("-"):
            drops_value = False
            continue
        flag = word.replace("-", "_").partition("=")[0].strip("_")
        drops = word.startswith("--") and flag in ("overwrite_output_dir", "resume_from_checkpoint")
        drops_value = drops and "=" not in word
        if not drops:
            words.append(word)
    return shlex.join([*words, "--resume_from_checkpoint", "true"])


def _is_the_command(program: str) -> bool:
    """Whether ``sys.argv[0]`` is that of ``bertconv`` or ``python -m bert_convolutions``."""
    path = Path(program)
    return path.stem == "bertconv" or path.parts[-2:] == ("bert_convolutions", "__main__.py")


def _program(arguments: Sequence[str]) -> list[str]:
    """The command before ``arguments``: ``bertconv``, or as far as known the one of torchrun or accelerate."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ["bertconv"]
    try:
        parent = Path(f"/proc/{os.getppid()}/cmdline").read_text(errors="replace").split("\0")[:-1]
    except OSError:
        parent = []
    launcher = parent[: len(parent) - len(arguments)]
    if not launcher or parent[len(launcher) :] != list(arguments):
        nodes, processes = (os.environ.get(name, "1") for name in ("GROUP_WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        return ["torchrun", f"--nnodes={nodes}", f"--nproc_per_node={processes}", "-m", "bert_convolutions"]
    if len(launcher) > 1 and Path(launcher[0]).name.startswith("python") and Path(launcher[1]).is_file():
        return [Path(launcher[1]).name, *launcher[2:]]  # torchrun's own script
    return launcher
