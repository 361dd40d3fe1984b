"""Ending a run from outside: signals, and a standard stream that can't be written to any more. Imports no PyTorch."""

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

from bert_convolutions.errors import EXIT_INTERRUPTED, CommandError, RunInterrupted

_WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
"""What batch systems send before the time limit (``sbatch --signal=USR1@120``, submitit, ``qsub -notify``)."""
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, *_WARNINGS)
_handlers: list[Callable[[int, FrameType | None], None]] = []
"""Those of ``handled_by``, one inside the other."""
LAUNCHER_ECHO_SECONDS = 2.0
"""torchrun passes a Ctrl-C on to processes that the terminal has already told; the second is no second wish."""


def ignore_signals(worker: int = 0) -> None:
    """For worker processes, which signals to a whole terminal or job reach too: their parent ends them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def leaving_at_once(advice: str) -> Iterator[None]:
    """While there is nothing to tidy up, as in imports, whose loaders swallow exceptions: a signal ends the process."""

    def handle(number: int, frame: FrameType | None) -> None:
        _say(f"stopped by {signal.Signals(number).name}; {advice}")
        os._exit(EXIT_INTERRUPTED)

    with handled_by(handle):
        yield


@contextmanager
def interruptible(what: str) -> Iterator[None]:
    """Let any signal end what is inside as Ctrl-C does; a second one ends the process at once.

    Raises:
        RunInterrupted: a signal came; the message names ``what`` was stopped.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt(signal.Signals(number).name)

    try:
        with handled_by(stop):
            yield
    except KeyboardInterrupt as error:
        raise RunInterrupted(f"{what}: stopped by {error}; run the same command again to go on from here") from error


class SignalWatch:
    """Whether the run was asked to stop: at once where there is nothing to save, else when the step in hand is done.

    Attributes:
        received: the first signal that came, or None; SIGPIPE if it was an output that failed.
        cause: the same for messages, empty if there is none.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.cause = ""
        self._since = 0.0
        self._process = os.getpid()
        self._scratch: set[Path] = set()

    @contextmanager
    def ending_at_once(self, advice: str) -> Iterator[None]:
        """While there is nothing to save yet: a signal ends the run where it is.

        Raises:
            RunInterrupted: a signal came; the message ends with ``advice``, how to go on.
        """

        def handle(number: int, frame: FrameType | None) -> None:
            if os.getpid() != self._process:  # a forked worker, which has nothing of its own to tidy up
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
                return
            self._note(signal.Signals(number))
            raise RunInterrupted(f"stopped by {self.cause}; {advice}")

        with handled_by(handle):
            try:
                yield
            except Exception as error:
                if self.received is None or isinstance(error, CommandError):
                    raise
                raise RunInterrupted(f"stopped by {self.cause}; {advice}") from error  # in a library's words, till here

    @contextmanager
    def installed(self) -> Iterator["SignalWatch"]:
        """While a step may be in hand: remember the first signal, and give the handlers back at the end.

        An output that fails (the terminal is gone, the disk under the log is full) counts as one.
        """
        stdout, stderr = (stream and _GuardedStream(stream, self._note) for stream in (sys.stdout, sys.stderr))
        with handled_by(self._handle), redirect_stdout(stdout), redirect_stderr(stderr):
            yield self

    @contextmanager
    def scratch(self, folder: Path) -> Iterator[None]:
        """A folder that is to vanish should the process leave at once."""
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
            _say(f"{self.cause}: finishing this step and saving; a second Ctrl-C leaves at once")
        elif number == signal.SIGINT and not is_echo:
            _say("second Ctrl-C: leaving at once, the last checkpoint stands")
            for folder in self._scratch:
                shutil.rmtree(folder, ignore_errors=True)
            os._exit(128 + signal.SIGINT)

    def _note(self, received: signal.Signals, cause: str = "") -> None:
        if self.received is None:
            self.received, self.cause, self._since = received, cause or received.name, time.monotonic()


class _GuardedStream:
    """A standard stream whose first failure is noted and breaks nothing; what comes after it is dropped."""

    def __init__(self, stream: Any, note: Callable[[signal.Signals, str], None]) -> None:
        self._stream, self._note = stream, note

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        self._note(signal.SIGPIPE, f"an output that failed ({error.strerror})")
        with suppress(OSError, ValueError):  # else what is buffered would fail again at the very end
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


@contextmanager
def handled_by(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let ``handle`` have the signals that are not ignored (as by nohup), and give them back at the end.

    Of a batch system's warnings not those that somebody else handles: submitit requeues a job by them.
    Of several processes one that ends by an exception goes on ignoring SIGTERM: the launcher sends it as soon as
    another has ended, and it must not cut off what is still to be said. Outside the main thread, as in a worker of Ray,
    Python lets nobody handle signals.
    """
    in_main = threading.current_thread() is threading.main_thread()
    taken = {number: signal.getsignal(number) for number in SIGNALS}
    handled = [
        number
        for number, handler in taken.items()
        if in_main
        and handler != signal.SIG_IGN
        and (number not in _WARNINGS or handler in (signal.SIG_DFL, *_handlers))
    ]
    before = {number: signal.signal(number, handle) for number in handled}
    _handlers.append(handle)
    try:
        yield
    except BaseException:
        if os.environ.get("WORLD_SIZE", "1") != "1" and before.pop(signal.SIGTERM, None) is not None:
            signal.signal(signal.SIGTERM, lambda number, frame: None)
        raise
    finally:
        _handlers.pop()
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(message: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
        with suppress(OSError):  # the terminal may be what is gone
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\nbertconv: {message}\n".encode())


def resume_command(argv: Sequence[str] | None = None) -> str:
    """The command line, by default this process's, as it goes on from the newest checkpoint; launcher included."""
    argv = sys.argv if argv is None else argv
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


def _program(arguments: Sequence[str]) -> list[str]:
    """What stands before ``arguments`` on the command line: ours, or torchrun's (or accelerate's) as far as known."""
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
        return [Path(launcher[1]).name, *launcher[2:]]  # the script of torchrun itself
    return launcher
