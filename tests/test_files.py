import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bert_convolutions import files
from bert_convolutions.errors import UsageError
from bert_convolutions.files import LOCK_NAME, run_lock

HOLDER = """
import os, sys, time
from pathlib import Path
from bert_convolutions.files import run_lock
with run_lock(Path(sys.argv[1])):
    if os.fork():
        print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    environment = {**os.environ, "BERT_CONVOLUTIONS_LAZY": "1"}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, env=environment, start_new_session=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match=rf"in use by another run \(process {holder.pid} on "), run_lock(tmp_path):
            pass
        holder.kill()  # its forked child lives on and must not keep the lock
        holder.wait()
        time.sleep(0.05)
        with run_lock(tmp_path):
            assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
    finally:
        os.killpg(holder.pid, signal.SIGKILL)


def test_a_lock_is_released_after_use_and_its_file_alone_does_not_lock(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_text("not even JSON")
    for _ in range(2):
        with run_lock(tmp_path):
            pass


def old_run(folder: Path) -> dict[str, str]:
    for name in ("one", "two", "three"):
        (folder / name).write_text(f"old {name}")
    (folder / "notes").write_text("not the run's")
    return texts(folder)


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


class KilledError(Exception):
    pass


@pytest.mark.parametrize("keep_new", [False, True])
@pytest.mark.parametrize("moment", range(12))
def test_an_overwrite_killed_at_any_rename_leaves_either_the_old_or_the_new_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int, keep_new: bool
) -> None:
    """Killed while the old run is set aside, put back or discarded, and perhaps again while that is settled."""
    before = old_run(tmp_path)
    genuine = Path.rename
    left = [moment]

    def rename(source: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] < 0:
            raise KilledError
        return genuine(source, target)

    def overwrite() -> None:
        files.set_aside(tmp_path, [tmp_path / name for name in ("one", "two", "three")])
        if keep_new:
            (tmp_path / "one").write_text("new")
            files.discard_aside(tmp_path)
        else:
            files.put_back(tmp_path)

    monkeypatch.setattr(Path, "rename", rename)
    for _ in range(2):
        try:
            overwrite() if left[0] == moment else files.settle_aside(tmp_path, keep_new=(tmp_path / "one").exists())
        except KilledError:
            left[0] = 1
    monkeypatch.setattr(Path, "rename", genuine)
    files.settle_aside(tmp_path, keep_new=(tmp_path / "one").exists())
    files.remove_temporaries(tmp_path)
    assert texts(tmp_path) in ([before, {"one": "new", "notes": "not the run's"}] if keep_new else [before])
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_only_files_of_mode_600_get_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        for name, mode in (("model.safetensors", 0o600), ("shared", 0o664), ("script", 0o755)):
            (tmp_path / name).write_text("")
            (tmp_path / name).chmod(mode)
        files.sync_tree(tmp_path)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"model.safetensors": 0o640, "shared": 0o664, "script": 0o755}


def test_files_can_be_written_to_a_disk_without_modes_and_without_syncing_of_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows' disks in WSL and on some network file systems."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    def sync_files_only(descriptor: int, genuine: Callable[[int], None] = os.fsync) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        genuine(descriptor)

    for name in ("chmod", "fchmod"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(os, "fsync", sync_files_only)
    files.write_text(tmp_path / "text", "written")
    files.sync_tree(tmp_path)
    assert texts(tmp_path) == {"text": "written"}


def test_on_windows_files_are_written_and_read_and_runs_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a model can be saved there: it carries its code. Before Python 3.13, ``chmod`` takes no descriptor there."""

    class Windows:
        name = "nt"

        def __getattr__(self, name: str) -> Any:
            if name in ("O_NONBLOCK", "pread"):
                raise AttributeError(name)
            return getattr(os, name)

        def open(self, path: Path, flags: int) -> int:
            if path.is_dir():
                raise PermissionError(errno.EACCES, "Permission denied")
            return os.open(path, flags)

        def chmod(self, path: Path, mode: int) -> None:
            Path(os.fspath(path)).chmod(mode)

    monkeypatch.setattr(files, "os", Windows())
    files.write_text(tmp_path / "text", "written")
    files.sync_tree(tmp_path)
    assert files.read_small(tmp_path / "text") == b"written"
    assert texts(tmp_path) == {"text": "written"}
    with pytest.raises(UsageError, match="on Windows, run this in WSL"), run_lock(tmp_path):
        pass


@pytest.mark.parametrize(("output", "relation"), [("Text", "is"), ("DATA", "holds"), ("data/TEXT/out", "lies in")])
def test_an_input_is_recognised_on_a_disk_that_ignores_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, relation: str
) -> None:
    """As macOS's disks do. On Linux, a folder has several names by bind mounts."""
    monkeypatch.setattr(Path, "samefile", lambda one, other: str(one).lower() == str(other).lower())
    (tmp_path / "data" / "text").mkdir(parents=True)
    place = tmp_path / "data" / output if relation == "is" else tmp_path / output
    with pytest.raises(UsageError, match=f"--output_dir .* {relation} the input --input"):
        files.refuse_overlap(place, "--output_dir", {"--input": tmp_path / "data" / "text"})
    files.refuse_overlap(tmp_path / "other", "--output_dir", {"--input": tmp_path / "data" / "text"})


def test_a_new_folder_inside_the_output_is_removed_after_a_failure(tmp_path: Path) -> None:
    target = tmp_path / "parent" / "new"
    for _ in range(2):
        with pytest.raises(KilledError), files.folder_inside(target, "--output_dir") as folder:
            assert folder.parent == target and files.is_empty(target)
            raise KilledError
        assert not target.exists()
    target.mkdir()
    (target / folder.name).mkdir()  # of a killed process
    (target / folder.name / "half").touch()
    with files.folder_inside(target, "--output_dir") as folder:
        assert not list(folder.iterdir())
        (target / "model").touch()
    assert [path.name for path in target.iterdir()] == ["model"] and not files.is_empty(target)
