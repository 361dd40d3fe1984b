"""Third stage of the dataset builder: the runs of each shard are merged by key and written as Arrow or text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bert_convolutions.data.build.arrays import open_arrays, take_rows, write_arrays
from bert_convolutions.files import sha256, whole_file, write_json
from bert_convolutions.schemas import ShardRecord


@dataclass(frozen=True)
class ShardTask:
    """One shard: the runs to merge and where to write it."""

    shard: int
    runs: list[Path]
    path: Path
    record: Path
    """A ``ShardRecord`` as JSON, written after the shard is complete."""
    output_format: str


@dataclass(frozen=True)
class JoinTask:
    """Runs to merge into one file of the same form."""

    runs: list[Path]
    path: Path


def join_runs(task: JoinTask) -> None:
    """Merge whole runs, since a shard opens every run; then delete them."""
    starts: Any = 0
    for run in task.runs:
        with open_arrays(run) as read:
            starts = starts + np.stack([read("pair_starts"), read("id_starts")])
    pair_starts, id_starts = starts
    keys, documents, lengths, ids = _merge(task.runs, 0, pair_starts.size - 1)
    arrays = {"keys": keys, "documents": documents, "lengths": lengths.astype(np.uint32), "ids": ids}
    write_arrays(task.path, {"pair_starts": pair_starts, "id_starts": id_starts, **arrays}, {"num_pairs": keys.size})
    for run in task.runs:
        run.unlink()


def write_shard(task: ShardTask) -> None:
    """Merge the runs of a shard by shuffle key; write the shard and its record."""
    _, documents, lengths, ids = _merge(task.runs, task.shard, task.shard + 1)
    if task.output_format == "arrow":
        _write_arrow(task.path, ids, lengths, documents)
    else:
        _write_text(task.path, ids, lengths)
    write_json(task.record, record_of(task.path, lengths.size, ids.size).model_dump())


def record_of(path: Path, num_examples: int, num_tokens: int) -> ShardRecord:
    """The manifest's record of a file of examples."""
    return ShardRecord(
        file=path.name,
        num_examples=num_examples,
        num_tokens=num_tokens,
        num_bytes=path.stat().st_size,
        sha256=sha256(path),
    )


def _merge(runs: list[Path], first: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The pairs of the shards ``first`` to ``stop`` (exclusive), by key: keys, documents, lengths (int64) and ids."""
    parts = zip(*(_read_run(path, first, stop) for path in runs), strict=True)
    keys, documents, lengths, ids = map(np.concatenate, parts)
    order = np.argsort(keys, kind="stable")
    ids = take_rows(ids, (np.cumsum(lengths) - lengths)[order], lengths[order])
    return keys[order], documents[order], lengths[order], ids


def _read_run(path: Path, first: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The pairs of a run that belong to the shards: keys, documents, lengths (int64) and ids."""
    with open_arrays(path) as read:
        begin, end = read("pair_starts", first, stop + 1)[[0, -1]].tolist()
        first_id, last_id = read("id_starts", first, stop + 1)[[0, -1]].tolist()
        keys, documents, lengths = (read(name, begin, end) for name in ("keys", "documents", "lengths"))
        return keys, documents, lengths.astype(np.int64), read("ids", first_id, last_id)


def _write_arrow(path: Path, ids: np.ndarray, lengths: np.ndarray, documents: np.ndarray) -> None:
    """Write one uncompressed record batch: ``input_ids`` (list of ids) and ``document`` (uint32)."""
    import pyarrow as pa

    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    rows = pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids))
    batch = pa.record_batch([rows, pa.array(documents)], names=["input_ids", "document"])
    with whole_file(path) as file, pa.ipc.new_stream(file, batch.schema) as writer:
        writer.write_batch(batch)


def _write_text(path: Path, ids: np.ndarray, lengths: np.ndarray) -> None:
    ends = np.cumsum(lengths).tolist()
    with whole_file(path) as file:
        begin = 0
        for end in ends:
            file.write((" ".join(map(str, ids[begin:end].tolist())) + "\n").encode("ascii"))
            begin = end


def write_datasets_files(folder: Path, shards: list[ShardRecord], id_type: str) -> None:
    """Write the two small files that let ``datasets.load_from_disk`` open the folder."""
    features = {
        "input_ids": {"feature": {"dtype": id_type, "_type": "Value"}, "_type": "List"},
        "document": {"dtype": "uint32", "_type": "Value"},
    }
    write_json(folder / "dataset_info.json", {"citation": "", "description": "", "features": features, "license": ""})
    state: dict[str, Any] = {
        "_data_files": [{"filename": shard.file} for shard in shards],
        "_fingerprint": shards[0].sha256[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_json(folder / "state.json", state)
