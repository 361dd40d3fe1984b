import json
import os
import pickle
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bert_convolutions import data
from bert_convolutions.data.build.examples import open_examples
from bert_convolutions.data.loading import load_tokenizer
from bert_convolutions.data.pieces import PieceTokenizer
from bert_convolutions.data.store import ArrowStore, ExampleView
from bert_convolutions.data.store_ids import IdsStore, write_line_index
from bert_convolutions.errors import UsageError

Build = Callable[..., Path]


@pytest.fixture
def folder(build: Build, speeches: list[str]) -> Path:
    return build("\n".join(speeches))


def test_examples_are_whole_pairs_in_any_order_and_process(
    folder: Path, tokenizer_dir: Path, encoder: PieceTokenizer
) -> None:
    store = open_examples(folder, tokenizer=load_tokenizer(tokenizer_dir))
    assert str(len(store)) in store.description.replace(",", "")
    reopened = pickle.loads(pickle.dumps(store))
    for index in np.random.default_rng(0).permutation(len(store))[:50]:
        ids = store[int(index)]
        assert ids.ndim == 1 and ids.dtype == np.int64
        assert ids[0] == encoder.cls_id and ids[-1] == encoder.sep_id and (ids == encoder.sep_id).sum() == 2
        assert np.array_equal(reopened[int(index)], ids)
    with pytest.raises(IndexError):
        store[len(store)]


def test_on_windows_a_store_is_read_as_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [ids.tolist() for ids in map(ArrowStore(folder).__getitem__, (5, 0, 5))]
    monkeypatch.delattr(os, "pread")
    monkeypatch.setitem(sys.modules, "resource", None)
    store = pickle.loads(pickle.dumps(ArrowStore(folder)))
    assert [store[index].tolist() for index in (5, 0, 5)] == expected


def test_another_tokenizer_is_refused(folder: Path, tmp_path: Path, tokenizer_dir: Path) -> None:
    other = load_tokenizer(tokenizer_dir)
    other.pieces.__dict__["hash"] = "0" * 64
    with pytest.raises(UsageError, match=f"{folder.name}: built with another tokenizer"):
        open_examples(folder, tokenizer=other)


def test_damaged_shards_are_refused_by_name(folder: Path) -> None:
    shard = next(folder.glob("*.arrow"))
    content = bytearray(shard.read_bytes())
    shard.write_bytes(content[:-1000])
    with pytest.raises(UsageError, match=f"{shard.name}: the shard has .* truncated"):
        ArrowStore(folder)
    content[len(content) // 2] ^= 0x40
    shard.write_bytes(content)
    with pytest.raises(UsageError, match=f"{shard.name}: the shard is damaged"):
        ArrowStore(folder).verify()
    shard.unlink()
    with pytest.raises(UsageError, match=f"{shard.name}: the shard is missing"):
        ArrowStore(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 99}', '{"version": 1, "shards": [{}]}'])
def test_damaged_manifests_are_refused(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=r"manifest\.json"):
        ArrowStore(folder)


def test_more_shards_than_files_may_be_open_can_be_read(folder: Path, tmp_path: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    shards = [{**manifest["shards"][0], "file": f"{number}.arrow"} for number in range(150)]
    for shard in shards:
        shutil.copy(folder / manifest["shards"][0]["file"], tmp_path / shard["file"])
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "shards": shards}))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, limits[1]))
    try:
        store = ArrowStore(tmp_path)
        every = len(store) // len(shards)
        assert all(np.array_equal(store[number * every], store[0]) for number in range(len(shards)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_documents_are_held_out_whole(build: Build, encoder: PieceTokenizer) -> None:
    documents = [[f"speech {number}", "of the union"] * 5 for number in range(200)]
    store = ArrowStore(build("\n\n".join("\n".join(document) for document in documents)))
    train, held_out = store.split_by_document(0.2, seed=3)
    assert len(train) + len(held_out) == len(store) == 1000
    assert 20 < len(held_out) // 5 < 60 and len(held_out) % 5 == 0
    texts = [{tuple(view[index]) for index in range(len(view))} for view in (train, held_out)]
    assert not texts[0] & texts[1]
    again = pickle.loads(pickle.dumps(held_out))
    assert [again[index].tolist() for index in range(5)] == [held_out[index].tolist() for index in range(5)]
    assert len(store.split_by_document(0.2, seed=4)[1]) + len(store.split_by_document(0.2, seed=4)[0]) == 1000
    with pytest.raises(UsageError, match="too few to hold out"):
        store.split_by_document(1e-6, seed=3)


def test_a_part_is_held_out_without_a_list_of_all_others(build: Build) -> None:
    store = ArrowStore(build("".join(f"{number}\n\n" for number in range(2000)), pair_within_documents=False))
    train, held_out = store.split_by_document(0.05, seed=3)
    texts = [view[index].tobytes() for view in (train, held_out) for index in range(len(view))]
    assert sorted(texts) == sorted(store[index].tobytes() for index in range(1000)) and 20 < len(held_out) < 80
    assert len(pickle.dumps(train)) - len(pickle.dumps(store)) < 2 * len(train)
    held = np.array([0, 3, 4, 999])
    listed, others = ExampleView(store, np.delete(np.arange(1000), held)), ExampleView(store, held, others=True)
    assert others.fingerprint == listed.fingerprint and len(others) == len(listed) == 996
    assert all((others[index] == listed[index]).all() for index in range(996))


def test_text_without_blank_lines_counts_as_documents_of_a_thousand_sentences(build: Build) -> None:
    store = ArrowStore(build("".join(f"{number}\n" for number in range(20_000))))
    train, held_out = store.split_by_document(0.3, seed=0)
    assert len(held_out) % 500 == 0 and len(train) % 500 == 0


def test_plain_text_is_built_once(tmp_path: Path, tokenizer_dir: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the union\nof states\n\nin years\nof war\n", encoding="utf-8")
    arguments = {"tokenizer": load_tokenizer(tokenizer_dir), "cache_dir": tmp_path / "cache", "num_proc": 1}
    first = open_examples([text], line_by_line=True, **arguments)
    built = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("pairs-*/*")}
    open_examples([text], line_by_line=True, **arguments)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("pairs-*/*")} == built
    text.write_text("another text\nof states\n", encoding="utf-8")
    assert len(first) == 2 and len(open_examples([text], line_by_line=True, **arguments)) == 1


def test_data_that_cannot_be_opened_are_refused_with_the_reason(
    tmp_path: Path, folder: Path, tokenizer_dir: Path
) -> None:
    text = tmp_path / "a.txt"
    text.write_text("the union\n", encoding="utf-8")
    for paths, options, message in [
        ([tmp_path / "none"], {}, "none: no such file"),
        ([text], {}, "give --line_by_line"),
        ([folder, folder], {}, "only one folder"),
        ([text, text], {"train_iterable": True}, "takes one ids file"),
        ([text], {"train_iterable": True, "line_by_line": True}, "contradict"),
        ([], {}, "no file given"),
    ]:
        with pytest.raises(UsageError, match=message):
            open_examples(paths, tokenizer=load_tokenizer(tokenizer_dir), cache_dir=tmp_path / "cache", **options)


@pytest.mark.parametrize("form", ["line_by_line", "train_iterable"])
def test_a_cache_that_cannot_be_made_is_refused_by_its_flag(tmp_path: Path, tokenizer_dir: Path, form: str) -> None:
    text = tmp_path / "a.txt"
    text.write_text("1 2\n3 4\n", encoding="utf-8")
    (tmp_path / "cache").touch()
    with pytest.raises(UsageError, match=r"--data_cache_dir .*cache is a file; give a folder"):
        open_examples([text], tokenizer=load_tokenizer(tokenizer_dir), cache_dir=tmp_path / "cache", **{form: True})


def test_ids_files_equal_the_arrow_folder(
    build: Build, speeches: list[str], tmp_path: Path, tokenizer_dir: Path
) -> None:
    text = "\n".join(speeches[:200])
    arrow = ArrowStore(build(text))
    file = build(text, output_format="ids", output_file=str(tmp_path / "ids.txt"))
    store = open_examples(file, tokenizer=load_tokenizer(tokenizer_dir), train_iterable=True, cache_dir=tmp_path)
    assert len(store) == len(arrow)
    reopened = pickle.loads(pickle.dumps(store))
    for index in range(len(store)):
        assert np.array_equal(store[index], arrow[index]) and np.array_equal(reopened[index], arrow[index])
    other = load_tokenizer(tokenizer_dir)
    other.pieces.__dict__["hash"] = "0" * 64
    with pytest.raises(UsageError, match=r"ids\.txt: built with another tokenizer"):
        open_examples(file, tokenizer=other, train_iterable=True, cache_dir=tmp_path)
    with pytest.raises(UsageError, match="does not say which document"):
        store.split_by_document(0.1, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1 2\n3 four\n", "line 2: 'four' is not a token id between 0 and 99"),
        (b"1 2\n\n3 100", "line 3: '100' is not a token id"),
        (b"-1 2\n", "line 1: '-1' is not"),
        (b"1 99999999999999999999\n", "line 1: '99999999999999999999'"),
        (b"1\t2\n", "line 1"),
        (b"1 2.5\n", "line 1: '2.5'"),
        (b"", "the file is empty"),
        (b"\n \n", "no example in the file"),
    ],
)
def test_bad_ids_files_are_refused_with_the_line(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=r"bad\.txt") as error:
        IdsStore(file, vocabulary_size=100, cache_dir=tmp_path)
    assert message in str(error.value)
    assert not list(tmp_path.glob("*.lines*"))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.one_of(st.binary(max_size=6), st.sampled_from([b"1", b"23", b" ", b"\n", b"\r", b"\r\n", b"7 8\n"])))
)
@example([b"0000000005"])
def test_any_bytes_are_read_as_by_python_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: list[bytes]
) -> None:
    monkeypatch.setattr("bert_convolutions.data.store_ids._CHUNK_BYTES", 7)
    content = b"".join(parts)
    file, index = tmp_path / "ids.txt", tmp_path / "index.lines"
    file.write_bytes(content)
    with file.open(encoding="latin-1") as lines:  # ends at a newline, a carriage return, or both
        words = [[word.encode("latin-1") for word in line.strip("\n").split(" ") if word] for line in lines]
    valid = all(word.isdigit() and len(word) < 10 and int(word) < 50 for row in words for word in row)
    if valid and any(words):
        write_line_index(file, index, 50)
        bounds = np.frombuffer(index.read_bytes()[:-32], np.int64).reshape(-1, 2)
        read = [[int(word) for word in content[start:end].split()] for start, end in bounds]
        assert read == [[int(word) for word in row] for row in words if row]
    else:
        with pytest.raises(UsageError):
            write_line_index(file, index, 50)


def overwrite(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(len(file.read_bytes()) // 2)
        opened.write(bytes(200))


@pytest.mark.parametrize("form", ["arrow", "ids"])
@pytest.mark.parametrize("in_worker", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        overwrite,
        lambda file: os.truncate(file, 100),  # a memory-mapped file would end the process by SIGBUS
        lambda file: os.truncate(file, 0),
        lambda file: (
            file.with_name("new").write_bytes(bytes(file.stat().st_size)),
            file.with_name("new").replace(file),
        ),
    ],
)
def test_data_that_changes_during_training_is_refused(
    build: Build, speeches: list[str], tmp_path: Path, change: Callable[[Path], object], in_worker: bool, form: str
) -> None:
    if form == "arrow":
        folder = build("\n".join(speeches[:200]))
        store: ArrowStore | IdsStore = ArrowStore(folder)
        file = next(folder.glob("*.arrow"))
    else:
        file = build("\n".join(speeches[:200]), output_format="ids", output_file=str(tmp_path / "ids.txt"))
        store = IdsStore(file, vocabulary_size=1004, cache_dir=tmp_path)
    before = [store[index].tolist() for index in range(len(store))]
    if in_worker:
        store = pickle.loads(pickle.dumps(store))
    content = file.read_bytes()
    os.utime(file)  # touched, and replaced by a copy of itself: nothing has changed
    assert [store[index].tolist() for index in range(len(store))] == before
    file.unlink()
    file.write_bytes(content)
    assert [store[index].tolist() for index in range(len(store))] == before
    change(file)
    with pytest.raises(UsageError, match=f"{file.name}: is damaged: it has changed"):
        store[len(store) // 2]


def test_different_data_have_different_fingerprints_wherever_they_lie(build: Build, tmp_path: Path) -> None:
    texts = ["the union\nof states\nin years\nof war\n", "in years\nof war\nthe union\nof states\n"]
    arrow = [ArrowStore(build(text, f"folder-{number}")) for number, text in enumerate(texts)]
    files = [
        build(text, output_format="ids", output_file=str(tmp_path / f"{number}.txt"))
        for number, text in enumerate(texts)
    ]
    ids = [IdsStore(file, vocabulary_size=1004, cache_dir=tmp_path) for file in files]
    assert files[0].stat().st_size == files[1].stat().st_size
    assert len({store.fingerprint for store in (*arrow, *ids)}) == 4
    shutil.copytree(tmp_path / "folder-0", tmp_path / "moved")
    assert ArrowStore(tmp_path / "moved").fingerprint == arrow[0].fingerprint
    assert ArrowStore(build(texts[0], "again")).fingerprint == arrow[0].fingerprint
    shutil.copy(files[0], tmp_path / "copy.txt")
    copy = IdsStore(tmp_path / "copy.txt", vocabulary_size=1004, cache_dir=tmp_path / "other")
    assert copy.fingerprint == ids[0].fingerprint
    views = [ExampleView(arrow[0], np.array(indices)) for indices in ([0, 1], [1, 0], [0])]
    assert len({view.fingerprint for view in views}) == 3


def test_an_ids_file_that_does_not_match_its_manifest_is_refused(
    build: Build, tmp_path: Path, tokenizer_dir: Path
) -> None:
    file = build("a\nb\n" * 20, output_format="ids", output_file=str(tmp_path / "ids.txt"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UsageError, match=r"ids\.txt: has 100 bytes, and .* delete ids\.txt\.manifest\.json"):
        open_examples(file, tokenizer=load_tokenizer(tokenizer_dir), train_iterable=True, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"version": 2}, "version"),
        ({"version": "1"}, "version"),
        ({"settings": []}, "settings"),
        ({"settings.vocabulary_size": "many"}, r"settings\.vocabulary_size"),
        ({"settings.vocabulary_size": 0}, r"settings\.vocabulary_size"),
        ({"settings.tokenizer_hash": None}, r"settings\.tokenizer_hash"),
        ({"settings.sources": [{"path": 1}]}, r"settings\.sources\.0\.path"),
        ({"counts.documents": -1}, r"counts\.documents"),
        ({"counts.documents": 1.5}, r"counts\.documents"),
        ({"shards": []}, "shards"),
        ({"shards.0.file": "../../elsewhere"}, r"shards\.0\.file"),
        ({"shards.0.num_examples": True}, r"shards\.0\.num_examples"),
        ({"shards.0.num_bytes": 10**30}, "examples-"),
        ({"shards.0.sha256": "0"}, r"shards\.0\.sha256"),
        ({"more": 1}, "more"),
    ],
)
def test_manifests_with_wrong_types_are_refused_with_the_field(
    folder: Path, change: dict[str, object], place: str
) -> None:
    file = folder / "manifest.json"
    content = json.loads(file.read_bytes())
    for path, value in change.items():
        *parents, last = path.split(".")
        part = content
        for name in parents:
            part = part[int(name) if name.isdigit() else name]
        part[last] = value
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UsageError, match=f"{place}.*run build-dataset again"):
        ArrowStore(folder)


def test_code_that_reads_a_store_imports_none_that_builds_one() -> None:
    """``data.build`` imports the code that reads, never the other way round."""
    folder = Path(data.__file__).parent
    for file in folder.glob("*.py"):
        assert "bert_convolutions.data.build" not in file.read_text(encoding="utf-8"), file
    assert "store_ids" not in (folder / "store.py").read_text(encoding="utf-8")
