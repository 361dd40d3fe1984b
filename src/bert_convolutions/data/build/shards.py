"""Third stage of the dataset builder: the runs of one shard are merged by key and written, as Arrow or as text."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bert_convolutions.data.build.arrays import ArrayFile, take_rows
from bert_convolutions.files import sha256, whole_file, write_json


@dataclass(frozen=True)
class ShardTask:
    """One shard: which runs to merge, and where to write them."""

    shard: int
    runs: list[Path]
    path: Path
    record: Path
    """Written when the shard is whole: a ``ShardRecord`` as JSON."""
    output_format: str


@dataclass(frozen=True)
class ShardRecord:
    """What the manifest says of a shard."""

    file: str
    num_examples: int
    num_tokens: int
    num_bytes: int
    sha256: str


def write_shard(task: ShardTask) -> ShardRecord:
    """Merge the runs of a shard by shuffle key, write the shard and its record."""
    keys, documents, lengths, ids = _read_runs(task)
    order = np.argsort(keys, kind="stable")
    ids = take_rows(ids, (np.cumsum(lengths) - lengths)[order], lengths[order])
    lengths, documents = lengths[order], documents[order]
    if task.output_format == "arrow":
        _write_arrow(task.path, ids, lengths, documents)
    else:
        _write_text(task.path, ids, lengths)
    record = ShardRecord(task.path.name, lengths.size, ids.size, task.path.stat().st_size, sha256(task.path))
    write_json(task.record, asdict(record))
    return record


def _read_runs(task: ShardTask) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    keys, documents, lengths, ids = [], [], [], []
    for path in task.runs:
        with ArrayFile(path) as run:
            first, last = run.read("pair_starts", task.shard, task.shard + 2).tolist()
            first_id, last_id = run.read("id_starts", task.shard, task.shard + 2).tolist()
            keys.append(run.read("keys", first, last))
            documents.append(run.read("documents", first, last))
            lengths.append(run.read("lengths", first, last))
            ids.append(run.read("ids", first_id, last_id))
    return (
        np.concatenate(keys),
        np.concatenate(documents),
        np.concatenate(lengths).astype(np.int64),
        np.concatenate(ids),
    )


def _write_arrow(path: Path, ids: np.ndarray, lengths: np.ndarray, documents: np.ndarray) -> None:
    """Write one record batch: ``input_ids`` (list of ids) and ``document`` (uint32), uncompressed so that it maps."""
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
