"""``manifest.json``: what a built dataset is made of. It is written last: where it is, the dataset is whole."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bert_convolutions.data.build.shards import ShardRecord
from bert_convolutions.errors import UsageError
from bert_convolutions.files import write_json

MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """Everything that identifies a built dataset, and its sizes.

    ``settings`` holds what decides the content: tokenizer hash, seed, pairing, source files with size and time of
    change. ``counts`` has ``examples``, ``tokens``, ``sentences``, ``documents`` and ``bytes`` (of text).
    """

    settings: dict[str, Any]
    counts: dict[str, int]
    shards: list[ShardRecord]

    @property
    def tokenizer_hash(self) -> str:
        """The sha256 of the tokenizer that made the ids."""
        return self.settings["tokenizer_hash"]

    def write(self, path: Path) -> None:
        """Write the manifest whole."""
        content = {"format": "bert_convolutions sentence pairs", "version": FORMAT_VERSION, **asdict(self)}
        write_json(path, content)


def manifest_path(ids_file: Path) -> Path:
    """Return where the manifest of an ids file is."""
    return ids_file.with_name(f"{ids_file.name}.{MANIFEST_FILE}")


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        UsageError: it is damaged or of another version.
    """
    try:
        content = json.loads(path.read_bytes())
        version = content["version"]
        if version != FORMAT_VERSION:
            raise UsageError(f"{path}: format version {version}, not {FORMAT_VERSION}; run build-dataset again")
        shards = [ShardRecord(**shard) for shard in content["shards"]]
        return Manifest(content["settings"], content["counts"], shards)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: the manifest is damaged ({error}); run build-dataset again") from error


def write_datasets_files(folder: Path, manifest: Manifest, id_type: str) -> None:
    """Write the two small files that let ``datasets.load_from_disk`` open the folder."""
    features = {
        "input_ids": {"feature": {"dtype": id_type, "_type": "Value"}, "_type": "List"},
        "document": {"dtype": "uint32", "_type": "Value"},
    }
    write_json(folder / "dataset_info.json", {"citation": "", "description": "", "features": features, "license": ""})
    state: dict[str, Any] = {
        "_data_files": [{"filename": shard.file} for shard in manifest.shards],
        "_fingerprint": manifest.shards[0].sha256[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_json(folder / "state.json", state)
