"""``build-dataset --dataset``: each row of a data set is a document, and is built as safely as text."""

import csv
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pytest
from pyarrow import parquet

from bert_convolutions.data.build import sources
from bert_convolutions.data.store import read_manifest
from bert_convolutions.errors import CommandError, UsageError
from tests.data.conftest import examples

Build = Callable[..., Path]


@pytest.fixture(scope="module")
def rows(speeches: list[str]) -> list[str | None]:
    """Documents of three lines and a blank one, and between them rows without text."""
    lines = [line[:300] for line in speeches if line][:150]
    documents = [f"{a}\n\n{b}\n{c}" for a, b, c in zip(lines[::3], lines[1::3], lines[2::3], strict=True)]
    return [*documents[:20], None, "", " \n", *documents[20:]]


def write_rows(folder: Path, suffix: str, rows: list[str | None]) -> Path:
    path = folder / f"in{suffix}"
    if suffix == "":  # the layout of the Hub
        (path / "data").mkdir(parents=True)
        for number, part in enumerate((rows[:25], rows[25:])):
            parquet.write_table(pa.table({"body": part}), path / "data" / f"train-0000{number}-of-00002.parquet")
        parquet.write_table(pa.table({"body": ["not this"]}), path / "data" / "test-00000-of-00001.parquet")
    elif suffix == ".parquet":
        parquet.write_table(pa.table({"id": range(len(rows)), "body": rows}), path)
    elif suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["body"], *([row] for row in rows)])
    else:
        path.write_text("".join(json.dumps({"id": 0, "body": row}) + "\n" for row in rows))
    return path


def as_text(rows: list[str | None]) -> str:
    return "".join(row.replace("\n\n", "\n") + "\n\n" for row in rows if row and row.strip())


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv", ""])
@pytest.mark.parametrize("within", [False, True])
def test_a_row_is_a_document(
    build: Build, tmp_path: Path, rows, suffix: str, within: bool, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 5000)
    path = write_rows(tmp_path, suffix, rows)
    given: dict[str, Any] = {"dataset": str(path), "text_column": "body", "pair_within_documents": within}
    built = build([], "rows", **given)
    expected = build(as_text(rows), "text", pair_within_documents=within)
    assert examples(built) == examples(expected)
    found, wanted = (read_manifest(folder / "manifest.json") for folder in (built, expected))
    assert found.counts == wanted.counts
    dataset = found.settings.dataset
    assert (dataset.path, dataset.text_column, dataset.revision) == (str(path), "body", None)
    assert {file.path for file in found.settings.sources} == {
        str(file) for file in (path, *path.rglob("*.parquet")) if file.is_file()
    }
    capsys.readouterr()
    build([], "rows", **given)
    assert "already built" in capsys.readouterr().out


def test_the_kind_of_a_compressed_file_is_known_by_the_ending_before(build: Build, tmp_path: Path, rows) -> None:
    plain, packed = write_rows(tmp_path, ".jsonl", rows), tmp_path / "in.JSONL.xz"
    packed.write_bytes(lzma.compress(plain.read_bytes()))
    built, expected = (build([], f"of{path.suffix}", dataset=str(path), text_column="body") for path in (packed, plain))
    assert examples(built) == examples(expected)
    with pytest.raises(UsageError, match=r"in\.pkl: its name ends in none of \.parquet, \.jsonl"):
        build([], "out", dataset=str(plain.rename(tmp_path / "in.pkl")), text_column="body")


def test_a_folder_with_several_kinds_of_files_is_warned_of(build: Build, tmp_path: Path, rows, capsys) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write_rows(folder, ".jsonl", rows[:6])
    build([], "alone", dataset=str(folder), text_column="body")
    assert "of these kinds" not in capsys.readouterr().err
    write_rows(folder, ".csv", rows[:6])
    build([], "both", dataset=str(folder), text_column="body")
    assert "folder holds .csv, .jsonl files, and only one of these kinds is read" in capsys.readouterr().err


def test_a_build_resumes_after_a_lost_connection(build: Build, tmp_path: Path, rows, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 5000)
    path = write_rows(tmp_path, ".jsonl", rows)
    whole = build([], "whole", dataset=str(path), text_column="body")
    load, asked = datasets.load_dataset, []

    def lose_connection(*args: Any, **kwargs: Any) -> Any:
        assert kwargs["streaming"] is True
        asked.append(1)
        for number, row in enumerate(load(*args, **kwargs)):
            if len(asked) == 2 and number == 40:
                raise ConnectionError("the line is dead")
            yield row

    monkeypatch.setattr(datasets, "load_dataset", lose_connection)
    with pytest.raises(CommandError, match=r"can't be read \(the line is dead\); run again to resume"):
        build([], "rows", dataset=str(path), text_column="body")
    assert len(list((tmp_path / "rows" / ".building").glob("*.sentences"))) > 2
    path.write_text(path.read_text() + '{"body": "more"}\n')
    with pytest.raises(UsageError, match="an interrupted build differs in the text, which has changed"):
        build([], "rows", dataset=str(path), text_column="body")
    path.write_text(path.read_text().removesuffix('{"body": "more"}\n'))
    record = read_manifest(whole / "manifest.json").settings.sources[0]
    os.utime(path, ns=(record.mtime_ns, record.mtime_ns))
    assert examples(build([], "rows", dataset=str(path), text_column="body")) == examples(whole)
    assert "resuming an interrupted build" in capsys.readouterr().out


def test_a_data_set_on_the_hub_is_read_at_one_revision(build: Build, tmp_path: Path, rows, monkeypatch) -> None:
    revision = ["a" * 40]
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name: SimpleNamespace(sha=revision[0]))
    asked: list[dict[str, Any]] = []

    def load(path: str, **kwargs: Any) -> list[dict[str, Any]]:
        asked.append({"path": path, **kwargs})
        return [{"text": row} for row in rows]

    monkeypatch.setattr(datasets, "load_dataset", load)
    built = build([], dataset="someone/pages", dataset_config="en", dataset_split="validation")
    given = {"path": "someone/pages", "name": "en", "split": "validation", "revision": "a" * 40, "streaming": True}
    assert asked == [given, given]
    source = read_manifest(built / "manifest.json").settings.dataset
    assert (source.path, source.config, source.split, source.revision) == (
        "someone/pages",
        "en",
        "validation",
        "a" * 40,
    )
    revision[0] = "b" * 40
    with pytest.raises(UsageError, match="holds a dataset that differs in dataset"):
        build([], dataset="someone/pages", dataset_config="en", dataset_split="validation")


def test_bad_rows_and_flags_are_refused_with_the_reason(build: Build, tmp_path: Path) -> None:
    path = write_rows(tmp_path, ".jsonl", ["some text", "more of it"])
    odd = tmp_path / "in [1].jsonl"
    odd.touch()
    for options, message in (
        ({"dataset": str(path)}, r"no column 'text', but id, body; see --dataset_split and --text_column"),
        ({"dataset": str(path), "text_column": "id"}, "row 0: id has 0, which is not text"),
        ({"dataset": str(path), "text_column": "body", "dataset_split": "tset"}, "tset"),
        ({"dataset": "no/where"}, "--dataset no/where: neither here nor on the Hub"),
        (
            {"dataset": str(odd)},
            r"in \[1\]\.jsonl: the package datasets can't read a path with \*, \? or \[; rename it",
        ),
        ({}, "either --train_data_file or --dataset"),
        ({"dataset": str(tmp_path), "output_dir": str(tmp_path / "out")}, "lies in the input --dataset"),
    ):
        with pytest.raises(UsageError, match=message):
            build([], **options)
        assert not (tmp_path / "dataset" / "manifest.json").exists()
    with pytest.raises(UsageError, match="either --train_data_file or --dataset"):
        build("a\nb\n", dataset=str(path))


def test_a_file_with_other_columns_is_named_with_them(
    build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, column in (("a", "text"), ("b", "body")):
        (tmp_path / "in").mkdir(exist_ok=True)
        parquet.write_table(pa.table({column: ["one line\nanother"]}), tmp_path / "in" / f"{name}.parquet")
    with pytest.raises(CommandError, match=r"can't be read \(.*body: string .*'text'.* column names don't match\)"):
        build([], dataset=str(tmp_path / "in"))
    assert "b.parquet" in caplog.text  # logged by datasets
