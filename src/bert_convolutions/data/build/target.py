"""Where a dataset is built: refusing what is not ours, one build at a time, going on where the last one ended."""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_convolutions.data.manifest import MANIFEST_FILE, manifest_path, read_manifest
from bert_convolutions.data.options import BuildDatasetOptions
from bert_convolutions.errors import UsageError
from bert_convolutions.files import write_json

_SHARD_PATTERN = "examples-*.arrow"


@dataclass(frozen=True)
class Target:
    """Where the result, its manifest and the work files are."""

    result: Path
    manifest: Path
    work: Path
    output_format: str

    @classmethod
    def from_options(cls, options: BuildDatasetOptions) -> "Target":
        """Derive the places from the options.

        Raises:
            UsageError: an option is missing or bad.
        """
        if options.num_proc is not None and options.num_proc < 1:
            raise UsageError(f"--num_proc {options.num_proc}: give at least one process")
        if options.shard_size_mb < 1:
            raise UsageError(f"--shard_size_mb {options.shard_size_mb}: give at least one MiB")
        if options.output_format == "ids":
            if not options.output_file:
                raise UsageError("--output_format ids needs --output_file, the text file to write")
            file = Path(options.output_file)
            if file.is_dir():
                raise UsageError(f"--output_file {file}: is a folder; give the path of a file")
            return cls(file, manifest_path(file), file.with_name(file.name + ".building"), "ids")
        if not options.output_dir:
            raise UsageError("--output_dir is needed: the folder for the Arrow shards")
        folder = Path(options.output_dir)
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--output_dir {folder}: is a file; give a folder")
        return cls(folder, folder / MANIFEST_FILE, folder / ".building", "arrow")

    def is_finished(self, settings: dict[str, Any], overwrite: bool) -> bool:
        """Say whether the same dataset is already there; refuse an output that holds something else."""
        if self.manifest.exists():
            difference = self._difference(settings)
            if difference is None:
                shutil.rmtree(self.work, ignore_errors=True)  # of a build that was killed at its very end
                return True
            if not overwrite:
                raise UsageError(
                    f"{self.result}: holds a dataset that differs in {difference}; choose another output or give "
                    "--overwrite_output_dir"
                )
        elif not (self.work.exists() or overwrite) and self._is_occupied():
            raise UsageError(f"{self.result}: is not empty; choose another output or give --overwrite_output_dir")
        return False

    def _is_occupied(self) -> bool:
        return self.result.exists() and (self.output_format == "ids" or any(self.result.iterdir()))

    def _difference(self, settings: dict[str, Any]) -> str | None:
        """Say what keeps the dataset that is there from being the one that is wanted."""
        damage = "its files, which are damaged"
        try:
            manifest = read_manifest(self.manifest)
        except UsageError:
            return damage
        files = [(self.manifest.parent / shard.file, shard.num_bytes) for shard in manifest.shards]
        if not all(path.is_file() and path.stat().st_size == size for path, size in files):
            return damage
        return _difference(manifest.settings, settings)

    @contextlib.contextmanager
    def locked_work_folder(self, settings: dict[str, Any], overwrite: bool) -> Iterator[None]:
        """Open the work folder for this process alone; it is removed when all went well."""
        self.work.mkdir(parents=True, exist_ok=True)
        with (self.work / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(f"{self.result}: another build-dataset is writing it; wait for its end") from error
            self._check_work(settings, overwrite)
            try:
                yield
            except UsageError:  # the text itself must change, and with it everything made so far
                self._remove()
                shutil.rmtree(self.work)
                raise
        shutil.rmtree(self.work)

    def _check_work(self, settings: dict[str, Any], overwrite: bool) -> None:
        file = self.work / "settings.json"
        if file.exists():
            difference = _difference(json.loads(file.read_bytes()), settings)
            if difference is None:
                print(f"{self.result}: going on with an interrupted build")
                return
            if not overwrite:
                raise UsageError(
                    f"{self.result}: an interrupted build differs in {difference}; choose another output or give "
                    "--overwrite_output_dir"
                )
        self._remove()
        write_json(file, settings)

    def remove_leftovers(self) -> None:
        """Remove half-written shards of builds that were killed."""
        if self.output_format == "arrow":
            for path in self.result.glob(f"{_SHARD_PATTERN}.*.tmp"):
                path.unlink()

    def _remove(self) -> None:
        """Remove what an earlier build has made, and nothing else."""
        self.manifest.unlink(missing_ok=True)
        if self.output_format == "arrow":
            for path in [
                *self.result.glob(_SHARD_PATTERN),
                self.result / "dataset_info.json",
                self.result / "state.json",
            ]:
                path.unlink(missing_ok=True)
        for path in self.work.iterdir():
            if path.name != "lock":
                path.unlink()


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Name the settings that differ."""
    names = [name for name in now if before.get(name) != now[name]]
    if names == ["sources"]:
        old, new = ({source["path"]: source for source in settings["sources"]} for settings in (before, now))
        changed = [path for path in new if path in old and old[path] != new[path]]
        return f"the text, which has changed ({', '.join(changed[:3])})" if changed else "its list of text files"
    return ", ".join(names) or None
