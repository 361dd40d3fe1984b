"""SIGTERM and SIGINT: remembered, so that the step in hand can be finished and saved before the run ends."""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LAUNCHER_ECHO_SECONDS = 2.0
"""torchrun passes a Ctrl-C on to processes that the terminal has already told; the second is no second wish."""


def ignore_signals(worker: int = 0) -> None:
    """For DataLoader workers, which a Ctrl-C reaches too: they go on serving until their parent needs them no more."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class SignalWatch:
    """Whether the run was asked to stop.

    Attributes:
        received: the first signal that came, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._since = 0.0
        self._process = os.getpid()
        self._scratch: set[Path] = set()

    @contextmanager
    def installed(self) -> Iterator["SignalWatch"]:
        """Take the signals over from Python's handlers, and give them back at the end."""
        previous: dict[signal.Signals, Callable[..., Any] | int | None] = {}
        for number in SIGNALS:
            previous[number] = signal.signal(number, self._handle)
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

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
        now = time.monotonic()
        if self.received is None:
            self.received, self._since = signal.Signals(number), now
            self._say(f"{self.received.name}: finishing this step and saving; a second Ctrl-C leaves at once")
        elif number == signal.SIGINT and not self._is_echo(now):
            self._say("second Ctrl-C: leaving at once, the last checkpoint stands")
            for folder in self._scratch:
                shutil.rmtree(folder, ignore_errors=True)
            os._exit(128 + signal.SIGINT)

    def _is_echo(self, now: float) -> bool:
        return "TORCHELASTIC_RUN_ID" in os.environ and now - self._since < LAUNCHER_ECHO_SECONDS

    @staticmethod
    def _say(message: str) -> None:
        if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\nbertconv: {message}\n".encode())
