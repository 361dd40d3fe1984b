"""The output of a dataset build: refuses foreign files, allows one build at a time, continues an interrupted one.

An existing dataset stays valid until the new one is complete: shards of different builds have different names, and the
manifest, which lists the valid ones, is replaced last.
"""

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bert_convolutions.data.options import BuildDatasetOptions
from bert_convolutions.data.store import MANIFEST_FILE, manifest_path, read_manifest
from bert_convolutions.errors import UsageError
from bert_convolutions.files import LOCK_NAME, make_folder, refuse_overlap, remove_temporaries, run_lock, write_json
from bert_convolutions.parsing import read_model
from bert_convolutions.schemas import BuildSettings, DatasetManifest

_ADVICE = "choose another output or give --overwrite_output_dir"
_SHARD_NAME = re.compile(r"examples-([0-9a-f]{8}-)?\d{5,}-of-\d{5,}\.arrow")


@dataclass(frozen=True)
class Target:
    """The paths of the result, its manifest and the work files."""

    result: Path
    manifest: Path
    work: Path
    output_format: str

    @classmethod
    def from_options(cls, options: BuildDatasetOptions) -> "Target":
        """Derive the paths from the options.

        Raises:
            UsageError: an option is missing or bad, or the output is, holds or lies in an input.
        """
        if options.num_proc is not None and options.num_proc < 1:
            raise UsageError(f"--num_proc {options.num_proc}: give at least one process")
        if options.shard_size_mb < 1:
            raise UsageError(f"--shard_size_mb {options.shard_size_mb}: give at least one MiB")
        if bool(options.train_data_file) == bool(options.dataset):
            raise UsageError("give the text: either --train_data_file or --dataset")
        if options.output_format == "ids":
            if not options.output_file:
                raise UsageError("--output_format ids needs --output_file, the text file to write")
            file = Path(options.output_file)
            if file.is_dir():
                raise UsageError(f"--output_file {file}: is a folder; give the path of a file")
            target = cls(file, manifest_path(file), file.with_name(file.name + ".building"), "ids")
        else:
            if not options.output_dir:
                raise UsageError("--output_dir is needed: the folder for the Arrow shards")
            folder = Path(options.output_dir)
            if folder.exists() and not folder.is_dir():
                raise UsageError(f"--output_dir {folder}: is a file; give a folder")
            target = cls(folder, folder / MANIFEST_FILE, folder / ".building", "arrow")
        for written in (target.result, target.manifest, target.work):
            flag = "--output_file" if options.output_format == "ids" else "--output_dir"
            inputs = {"--tokenizer_name": options.tokenizer_name or None, "--dataset": options.dataset}
            refuse_overlap(written, flag, {**inputs, "--train_data_file": options.train_data_file})
        return target

    def shard(self, number: int, num_shards: int, settings: BuildSettings) -> Path:
        """The path of a shard; shards of other builds in the folder have other names."""
        name = f"{number:05}-of-{num_shards:05}"
        if self.output_format == "ids":
            return self.work / f"examples-{name}.txt"
        return self.result / f"examples-{identity(settings)[:8]}-{name}.arrow"

    def is_finished(self, settings: BuildSettings, overwrite: bool) -> bool:
        """Whether the same dataset already exists; an output that holds something else is refused."""
        if self.manifest.exists():
            difference = self._difference(settings)
            if difference is None:
                shutil.rmtree(self.work, ignore_errors=True)  # left by a build that was killed at its end
                return True
            if not overwrite:
                raise UsageError(f"{self.result}: holds a dataset that differs in {difference}; {_ADVICE}")
        elif self.work.exists() or overwrite or not self.result.exists():
            return False
        elif self.output_format == "ids" or any(self.result.iterdir()):
            raise UsageError(f"{self.result}: is not empty; {_ADVICE}")
        return False

    def _difference(self, settings: BuildSettings) -> str | None:
        """How the existing dataset differs from the requested one, or None."""
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
    def locked_work_folder(self, settings: BuildSettings, overwrite: bool) -> Iterator[None]:
        """Lock the work folder for this process; remove it after success."""
        with contextlib.ExitStack() as stack:
            make_folder(self.work, "--output_file" if self.output_format == "ids" else "--output_dir")
            try:
                stack.enter_context(run_lock(self.work))
            except UsageError as error:
                raise UsageError(f"{self.result}: another build-dataset is writing it; wait for its end") from error
            remove_temporaries(self.work)
            self._check_work(settings, overwrite)
            try:
                yield
            except UsageError:  # the text must change, so the work files are useless
                kept: set[str] = set()
                with contextlib.suppress(UsageError):
                    kept = {shard.file for shard in read_manifest(self.manifest).shards}
                self._remove_shards(keep=kept)
                shutil.rmtree(self.work, ignore_errors=True)  # on NFS open files, such as the lock, stay for a moment
                raise
            shutil.rmtree(self.work, ignore_errors=True)

    def _check_work(self, settings: BuildSettings, overwrite: bool) -> None:
        file = self.work / "settings.json"
        if file.exists():
            try:
                difference = _difference(read_model(BuildSettings, file), settings)
            except UsageError as error:
                difference = f"its settings, which are damaged ({error})"
            if difference is None:
                print(f"{self.result}: resuming an interrupted build")
                return
            if not overwrite:
                raise UsageError(f"{self.result}: an interrupted build differs in {difference}; {_ADVICE}")
        for path in self.work.iterdir():
            if path.name != LOCK_NAME:
                path.unlink()
        write_json(file, settings.model_dump())

    def finish(self, manifest: DatasetManifest) -> None:
        """Write the manifest, which makes the new dataset valid, and remove the shards of the old one."""
        write_json(self.manifest, manifest.model_dump())
        if self.output_format == "arrow":
            self._remove_shards(keep={shard.file for shard in manifest.shards})
            remove_temporaries(self.result)

    def _remove_shards(self, keep: set[str]) -> None:
        """Remove the shards of all builds except ``keep``, and no other files."""
        if self.output_format == "arrow":
            for path in self.result.iterdir():
                if _SHARD_NAME.fullmatch(path.name) and path.name not in keep:
                    path.unlink()


def identity(settings: BuildSettings) -> str:
    """A SHA-256 (hexadecimal) of what determines the content of a dataset."""
    text = json.dumps(settings.model_dump(), ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()  # file names may not be UTF-8


def _difference(before: BuildSettings, now: BuildSettings) -> str | None:
    """The names of the settings that differ, or None."""
    names = [name for name in BuildSettings.model_fields if getattr(before, name) != getattr(now, name)]
    if names == ["sources"]:
        old, new = ({source.path: source for source in settings.sources} for settings in (before, now))
        changed = [path for path in new if path in old and old[path] != new[path]]
        return f"the text, which has changed ({', '.join(changed[:3])})" if changed else "its list of text files"
    return ", ".join(names) or None
