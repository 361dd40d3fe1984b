"""Files and folders: written whole or not at all, replaced without a moment of loss, held by one run at a time."""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import select
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

import filelock

from bert_convolutions.errors import UsageError

LOCK_NAME = ".bertconv.lock"
ASIDE_NAME = ".replaced"
"""Folder inside an output folder that holds what an overwrite replaces, until the new run stands."""
_ALL_ASIDE = ".complete"
"""Inside the set-aside folder, once everything is: only then may a new run have begun."""
_TEMPORARY = ".writing"
_NEW_NAME = f".new{_TEMPORARY}"
_SMALL = 1 << 20
_PATIENCE = 10
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)
Inputs = str | Path | Sequence[str] | None
"""What a flag gives to be read: a file or folder, several, or none."""


def sync(path: Path) -> None:
    """Have the kernel put a file, or the entries of a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # "does not support synchronization": folders of some network file systems
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """``sync`` for everything under ``folder``, which this program has written, and for ``folder`` itself.

    Files for their owner alone, as safetensors leaves them, get the mode that the umask allows.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_file() and stat.S_IMODE(path.stat().st_mode) == stat.S_IRUSR | stat.S_IWUSR:
            _give_usual_mode(path)
        sync(path)
    sync(folder)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary sibling for writing; it takes the place of ``path`` once all is written and synced.

    The sibling ``.NAME.RANDOM.writing`` is removed where writing fails; ``remove_temporaries`` removes what a killed
    process left.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_TEMPORARY, dir=path.parent)
    temporary = Path(name)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
            yield file
            file.flush()
            _give_usual_mode(descriptor)  # mkstemp's files are for their owner alone
            os.fsync(descriptor)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


@contextlib.contextmanager
def folder_inside(target: Path, flag: str) -> Iterator[Path]:
    """Make a temporary folder in ``target``, and that too; both go again, ``target`` where it was made and is empty.

    What is to appear in ``target`` is written there first. Beside it would be another disk where it is a mount point,
    or a folder that this user can't write to.

    Raises:
        UsageError: as ``make_folder``.
    """
    is_new, folder = not target.exists(), target / _NEW_NAME
    make_folder(target, flag)
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):  # there is something in it
                target.rmdir()


def is_empty(folder: Path) -> bool:
    """Whether there is nothing in a folder, but perhaps what a killed process has left of ``folder_inside``."""
    return all(path.name == _NEW_NAME for path in folder.iterdir())


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``path`` so that a crash leaves the old file or the new one, never a part."""
    with whole_file(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """``write_bytes`` of a text in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """``write_text`` of a JSON value, indented, keys in their order."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """``write_text`` of rows, the headings first, as comma-separated values."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    write_text(path, buffer.getvalue())


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes left half-written or half-removed in ``folder``; its lock must be held."""
    for path in folder.glob(f".*{_TEMPORARY}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def read_small(path: Path) -> bytes:
    """The bytes of a file that a person has written, or of a pipe such as the shell's ``<(command)``.

    Raises:
        UsageError: more than a mebibyte, or a pipe that nobody has written to within ten seconds.
        OSError: it can't be read.
    """
    content, waited = bytearray(), False
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # or opening a pipe would wait for a writer for ever
    try:
        may_wait = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
        while len(content) <= _SMALL:
            try:
                block = os.read(descriptor, _SMALL)
            except BlockingIOError:  # there is a writer that has nothing yet
                block, waited = None, False
            if block:
                content += block
            elif block is not None and (content or waited or not may_wait):
                return bytes(content)
            elif select.select([descriptor], [], [], _PATIENCE)[0]:
                waited = True
            else:
                raise UsageError(f"{path}: nothing has come from there for {_PATIENCE} seconds; give a file")
    finally:
        os.close(descriptor)
    raise UsageError(f"{path} has more than {_SMALL:,} bytes; that is no file that a person has written")


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def refuse_overlap(output: str | Path, output_flag: str, inputs: Mapping[str, Inputs]) -> None:
    """Refuse an output that is, holds or lies in an input, by whatever links and spellings.

    ``inputs`` are named by their flags; ``output`` need not exist.

    Raises:
        UsageError: names both flags and paths.
    """
    target = Path(output).resolve()
    for flag, given in inputs.items():
        for path in [given] if isinstance(given, str | Path) else given or ():
            source = Path(path).resolve()
            if _is_same(target, source):
                relation = "is"
            elif any(_is_same(target, parent) for parent in source.parents):
                relation = "holds"
            elif any(_is_same(source, parent) for parent in target.parents):
                relation = "lies in"
            else:
                continue
            raise UsageError(f"{output_flag} {output} {relation} the input {flag} {path}; give another output")


def set_aside(folder: Path, paths: Iterable[Path]) -> None:
    """Move what an overwrite replaces into ``folder/.replaced``; ``put_back`` or ``discard_aside`` must follow.

    ``paths`` lie directly in the output folder, whose lock must be held; those that exist are moved.
    """
    aside = folder / ASIDE_NAME
    aside.mkdir(exist_ok=True)
    for path in paths:
        if path.exists() or path.is_symlink():
            path.rename(aside / path.name)
    (aside / _ALL_ASIDE).touch()
    sync(aside)
    sync(folder)


def put_back(folder: Path) -> None:
    """Move what was set aside back, where nothing new has taken its name, and remove the rest."""
    aside = folder / ASIDE_NAME
    if not aside.is_dir():
        return
    (aside / _ALL_ASIDE).unlink(missing_ok=True)
    sync(aside)
    for path in aside.iterdir():
        if not (folder / path.name).exists():
            path.rename(folder / path.name)
    sync(folder)
    discard_aside(folder)


def discard_aside(folder: Path) -> None:
    """Remove what was set aside: the new run stands. A kill on the way leaves nothing that would be put back."""
    aside = folder / ASIDE_NAME
    if aside.is_dir():
        doomed = folder / f"{ASIDE_NAME}{_TEMPORARY}"
        shutil.rmtree(doomed, ignore_errors=True)
        aside.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def settle_aside(folder: Path, *, new_stands: bool, debris: Iterable[Path] = ()) -> None:
    """After a crash: ``discard_aside`` where the new run has left a checkpoint or a result, else ``put_back``.

    Args:
        folder: the output folder; its lock must be held.
        new_stands: whether a checkpoint or a result is there. Where the crash came while the old run's files were
            moved, it may be the old run's, and is not looked at.
        debris: what to remove of a new run that has left neither, beside what has taken the name of an old file.
    """
    aside = folder / ASIDE_NAME
    if (aside / _ALL_ASIDE).exists():
        if new_stands:
            discard_aside(folder)
            return
        for path in (*debris, *(folder / path.name for path in aside.iterdir())):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    put_back(folder)


def make_folder(folder: Path, flag: str) -> None:
    """Make an output folder, if it isn't there, and see that it can be written to.

    Raises:
        UsageError: names the flag and the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UsageError(f"{flag} {folder} is a file; give a folder") from error
    except OSError as error:
        raise UsageError(f"{flag} {folder} can't be made: {error.strerror}; give another folder") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{flag} {folder} can't be written to; give another folder")


@contextlib.contextmanager
def run_lock(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold ``folder``, which must exist, for this process; ``wait`` for another process's end, instead of raising.

    The lock is the kernel's (``flock``, on NFS one of the server's), so it ends with the process however that ends;
    what the lock file says is only for the message. A file system without locks gives a warning.

    Raises:
        UsageError: another living process holds it.
    """
    from bert_convolutions.terminal import say

    path = folder / LOCK_NAME
    lock = filelock.FileLock(path, fallback_to_soft=False)
    try:
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout as error:
            in_use = f"{folder} is in use by another run ({_holder(path)})"
            if not wait:
                raise UsageError(f"{in_use}; wait for it, stop it, or use another folder") from error
            say(f"{in_use}; waiting for its end")
            lock.acquire()
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(timezone.utc).isoformat()}
        path.write_text(json.dumps(about))
    except OSError as error:
        if lock.is_locked or error.errno not in _NO_LOCKS:
            raise
        say(f"{folder} has no file locks ({error.strerror}): nothing keeps a second run out of it")
    try:
        yield
    finally:
        lock.release()  # of one that is not held, nothing happens


def _give_usual_mode(file: int | Path) -> None:
    """Give a file of ours the mode that the umask allows, but on disks without modes, as are Windows' in WSL."""
    mask = os.umask(0o077)
    os.umask(mask)
    with contextlib.suppress(OSError):
        os.chmod(file, 0o666 & ~mask)  # noqa: PTH101 - it may be a descriptor


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths are one place: there are bind mounts, and disks that don't tell ``out`` from ``Out``."""
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there
        return one == other


def _holder(path: Path) -> str:
    try:
        about = json.loads(path.read_text())
        return f"process {about['pid']} on {about['host']}, since {about['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it did not say which"
