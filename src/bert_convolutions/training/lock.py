"""One run a folder: the second is refused while the first lives.

The lock is the kernel's (``flock``), so it ends with the process that holds it, however that process ends; what the
file says (process and machine) is only for the message. On NFS, Linux turns ``flock`` into a lock of the server's, so
other machines are refused as well; a file system that has no locks (some cluster and FUSE mounts) gives a warning,
and there only the user keeps two runs apart.
"""

import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from bert_convolutions.errors import UsageError

LOCK_NAME = ".bertconv.lock"

logger = logging.getLogger(__name__)
_held: set[int] = set()


def _close_in_child() -> None:
    """A forked DataLoader worker must not keep the lock of a parent that was killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process; it must exist.

    Raises:
        UsageError: another living process holds it.
    """
    path = folder / LOCK_NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    _held.add(descriptor)
    try:
        _take(descriptor, path)
        yield
    finally:
        if descriptor in _held:  # not so in a forked child that unwinds through here
            _held.discard(descriptor)
            os.close(descriptor)


def _take(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(
            f"{path.parent} is in use by another run ({_holder(path)}); wait for it, stop it, or use another folder"
        ) from error
    except OSError as error:
        logger.warning("%s has no file locks (%s): nothing keeps a second run out of it", path.parent, error)
        return
    about = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(timezone.utc).isoformat()}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(about).encode(), 0)


def _holder(path: Path) -> str:
    try:
        about = json.loads(path.read_text())
        return f"process {about['pid']} on {about['host']}, since {about['since']}"
    except (OSError, ValueError, KeyError):
        return "it did not say which"
