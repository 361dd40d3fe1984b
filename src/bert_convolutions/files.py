"""Files and folders: atomic writes, replacement that survives crashes, locks, checks of output paths."""

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
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

import filelock

from bert_convolutions.errors import FolderInUse, UsageError

LOCK_NAME = ".bertconv.lock"
ASIDE_NAME = ".replaced"
"""Subfolder of an output folder that holds an overwritten run until the new one has saved something."""
_ASIDE_COMPLETE = ".complete"
"""Marker in that folder that everything has been moved there: only then may a new run have started."""
_TEMPORARY = ".writing"
_NEW_NAME = f".new{_TEMPORARY}"
_MAX_SMALL_BYTES = 1 << 20
_TIMEOUT_SECONDS = 10
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)
Inputs = str | Path | Sequence[str] | None
"""The files or folders that a flag names as inputs."""


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk; on Windows, which can't open folders, do nothing."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # "does not support synchronization": folders of some network file systems
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """``sync`` everything in ``folder``, which this program has written, and ``folder`` itself.

    Files that only their owner may read, as safetensors creates them, get the mode that the umask allows.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_file() and stat.S_IMODE(path.stat().st_mode) == stat.S_IRUSR | stat.S_IWUSR:
            _set_default_mode(path)
        sync(path)
    sync(folder)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary sibling for writing; after it has been written and synced, it replaces ``path``.

    The sibling ``.NAME.RANDOM.writing`` is removed if writing fails; ``remove_temporaries`` removes those that killed
    processes left.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_TEMPORARY, dir=path.parent)
    temporary = Path(name)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
            yield file
            file.flush()
            _set_default_mode(temporary)  # mkstemp's files are only for their owner
            os.fsync(descriptor)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


@contextlib.contextmanager
def folder_inside(target: Path, flag: str) -> Iterator[Path]:
    """Make a temporary folder in ``target``, in which to write files before they are moved to ``target``.

    ``target`` is made too, and removed again if it is new and empty. A sibling of it would not do: it may be on another
    disk, or in a folder that this user can't write to.

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
            with contextlib.suppress(OSError):  # it is not empty
                target.rmdir()


def install(source: Path, target: Path, old: Collection[Path] = ()) -> None:
    """Move the files of ``source`` to ``target``, then delete the ``old`` files there; if it fails, undo it all.

    ``config.json`` is moved last, since it makes a folder a model.
    """
    if old:
        # Files of the same name that a killed call set aside are the older ones, and these its unfinished ones.
        set_aside(target, [path for path in old if not (target / ASIDE_NAME / path.name).exists()])
    new = sorted(source.iterdir(), key=lambda path: path.name == "config.json")
    try:
        for path in new:
            path.replace(target / path.name)
    except OSError:
        for path in new:
            (target / path.name).unlink(missing_ok=True)
        put_back(target)
        raise
    discard_aside(target)


def is_empty(folder: Path) -> bool:
    """Whether a folder is empty, apart from what a killed ``folder_inside`` may have left."""
    return all(path.name == _NEW_NAME for path in folder.iterdir())


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``path`` atomically: a crash leaves the old file or the new one."""
    with whole_file(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """``write_bytes`` a text in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """``write_text`` a JSON value, indented, without sorting keys."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """``write_text`` rows, the headings first, as comma-separated values."""
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
    """The bytes of a small file, or of a pipe such as the shell's ``<(command)``.

    Raises:
        UsageError: it holds more than a mebibyte, or nothing was written to the pipe within ten seconds.
        OSError: it can't be read.
    """
    content, waited = bytearray(), False
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # opening a pipe must not wait for a writer
    try:
        may_wait = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
        while len(content) <= _MAX_SMALL_BYTES:
            try:
                block = os.read(descriptor, _MAX_SMALL_BYTES)
            except BlockingIOError:  # its writer has written nothing yet
                block, waited = None, False
            if block:
                content += block
            elif block is not None and (content or waited or not may_wait):
                return bytes(content)
            elif select.select([descriptor], [], [], _TIMEOUT_SECONDS)[0]:
                waited = True
            else:
                raise UsageError(f"{path}: nothing could be read for {_TIMEOUT_SECONDS} seconds; give a file")
    finally:
        os.close(descriptor)
    raise UsageError(f"{path} has more than {_MAX_SMALL_BYTES:,} bytes; give a file that was written by hand")


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes (hexadecimal)."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def refuse_overlap(output: str | Path, output_flag: str, inputs: Mapping[str, Inputs]) -> None:
    """Refuse an output that is, holds or lies in an input, also through links and other spellings of a path.

    ``inputs`` are given by flag; ``output`` need not exist.

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


def refuse_pattern(path: str, flag: str) -> None:
    """Refuse a local path that the package ``datasets`` would take for a pattern, and find nothing.

    Raises:
        UsageError: names the flag and the path.
    """
    found = Path(path).absolute()
    if found.exists() and {*"*?["} & {*str(found)}:
        raise UsageError(f"{flag} {found}: the package datasets can't read a path with *, ? or [; rename it")


def set_aside(folder: Path, paths: Iterable[Path]) -> None:
    """Move the files of an overwritten run into ``folder/.replaced``; call ``put_back`` or ``discard_aside`` later.

    ``paths`` must lie directly in the output folder, whose lock must be held; those that don't exist are skipped.
    """
    aside = folder / ASIDE_NAME
    aside.mkdir(exist_ok=True)
    for path in paths:
        if path.exists() or path.is_symlink():
            path.rename(aside / path.name)
    (aside / _ASIDE_COMPLETE).touch()
    sync(aside)
    sync(folder)


def put_back(folder: Path) -> None:
    """Move files that were set aside back, unless a new file has the same name; remove the others."""
    aside = folder / ASIDE_NAME
    if not aside.is_dir():
        return
    (aside / _ASIDE_COMPLETE).unlink(missing_ok=True)
    sync(aside)
    for path in aside.iterdir():
        if not (folder / path.name).exists():
            path.rename(folder / path.name)
    sync(folder)
    discard_aside(folder)


def discard_aside(folder: Path) -> None:
    """Remove the files that were set aside; a kill in the middle leaves nothing that would be put back."""
    aside = folder / ASIDE_NAME
    if aside.is_dir():
        removed = folder / f"{ASIDE_NAME}{_TEMPORARY}"
        shutil.rmtree(removed, ignore_errors=True)
        aside.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)


def settle_aside(folder: Path, *, keep_new: bool, debris: Iterable[Path] = ()) -> None:
    """After a crash, ``discard_aside`` if the new run is to be kept, otherwise ``put_back``.

    Args:
        folder: the output folder; its lock must be held.
        keep_new: whether the folder holds a checkpoint or a result. It is ignored if the crash came while the old run
            was being moved, as these may be the old run's.
        debris: files of a new run that is not kept, to be removed with those that have the name of an old file.
    """
    aside = folder / ASIDE_NAME
    if (aside / _ASIDE_COMPLETE).exists():
        if keep_new:
            discard_aside(folder)
            return
        for path in (*debris, *(folder / path.name for path in aside.iterdir())):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    put_back(folder)


def make_folder(folder: Path, flag: str) -> None:
    """Create an output folder if necessary and check that it can be written to.

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
    """Lock ``folder``, which must exist, for this process; with ``wait``, wait for another process instead of raising.

    The lock is the kernel's (``flock``, on NFS the server's), so it ends with the process in any case; the content of
    the lock file is used only in messages. A file system without locks gives a warning.

    Raises:
        FolderInUse: another running process holds the lock.
        UsageError: this is Windows.
    """
    if os.name == "nt":  # its locks, renames and signals are other ones
        raise UsageError(f"{folder}: runs and datasets are made on Linux or macOS; on Windows, run this in WSL")
    from bert_convolutions.terminal import say

    path = folder / LOCK_NAME
    lock = filelock.FileLock(path, fallback_to_soft=False)
    try:
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout as error:
            in_use = f"{folder} is in use by another run ({_describe_holder(path)})"
            if not wait:
                raise FolderInUse(f"{in_use}; wait for it, stop it, or use another folder") from error
            say(f"{in_use}; waiting until it ends")
            lock.acquire()
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(timezone.utc).isoformat()}
        path.write_text(json.dumps(holder))
    except OSError as error:
        if lock.is_locked or error.errno not in _NO_LOCKS:
            raise
        say(f"{folder} has no file locks ({error.strerror}): nothing keeps a second run out of it")
    try:
        yield
    finally:
        lock.release()  # does nothing if it is not held


def _set_default_mode(file: Path) -> None:
    """Give a file the mode that the umask allows, except on disks without modes, such as Windows' in WSL."""
    mask = os.umask(0o077)
    os.umask(mask)
    with contextlib.suppress(OSError):
        file.chmod(0o666 & ~mask)


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths are the same file, also with bind mounts and on disks that ignore case."""
    try:
        return one.samefile(other)
    except OSError:  # one of them does not exist
        return one == other


def _describe_holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "of which nothing is known"
