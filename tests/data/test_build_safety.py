"""What a build refuses, what it keeps of an older dataset, and how it reacts to signals and other builds."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bert_convolutions.data.build import pipeline, sources
from bert_convolutions.data.build.examples import open_examples
from bert_convolutions.data.build.parallel import run_tasks
from bert_convolutions.data.build.train_tokenizer import train_tokenizer
from bert_convolutions.data.loading import load_tokenizer
from bert_convolutions.data.options import TrainTokenizerOptions
from bert_convolutions.data.store import ArrowStore
from bert_convolutions.errors import RunInterrupted, UsageError
from bert_convolutions.signals import SIGNALS
from tests.helpers import contents

Build = Callable[..., Path]
OLD, NEW = "the union\nof states\n", "in years\nof war\nas it was\nbefore\n"


@pytest.mark.parametrize(
    ("output", "relation"),
    [
        ({"output_dir": "corpus"}, "is the input --train_data_file"),
        ({"output_dir": "corpus/sub/pairs"}, "lies in the input --train_data_file"),
        ({"output_dir": "."}, "holds the input"),
        ({"output_dir": "link/pairs"}, "lies in the input --train_data_file"),
        ({"output_dir": "tokenizer"}, "is the input --tokenizer_name"),
        ({"output_dir": "tokenizer/pairs"}, "lies in the input --tokenizer_name"),
        ({"output_format": "ids", "output_file": "a.txt"}, "is the input --train_data_file"),
        ({"output_format": "ids", "output_file": "corpus/ids.txt"}, "lies in the input --train_data_file"),
        ({"output_format": "ids", "output_file": "tokenizer/spm.model"}, "lies in the input --tokenizer_name"),
    ],
)
def test_an_output_that_overlaps_an_input_is_refused(
    tmp_path: Path, tokenizer_dir: Path, output: dict[str, str], relation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "corpus" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "corpus")
    shutil.copytree(tokenizer_dir, tmp_path / "tokenizer")
    for file in (tmp_path / "a.txt", tmp_path / "corpus" / "b.txt", tmp_path / "corpus" / "manifest.json"):
        file.write_text(OLD)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.chdir(tmp_path)
    options = pipeline.BuildDatasetOptions("tokenizer", ["a.txt", "corpus"], overwrite_output_dir=True, **output)
    with pytest.raises(UsageError, match=relation):
        pipeline.build_dataset(options)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_tokenizer_or_a_cache_that_overlaps_an_input_is_refused(tmp_path: Path, tokenizer_dir: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "spm.model").write_text(OLD)
    for folder in (corpus, corpus / "tokenizer", tmp_path):
        with pytest.raises(UsageError, match=r"--output_dir .* the input --input"):
            train_tokenizer(TrainTokenizerOptions([str(corpus)], str(folder), overwrite_output_dir=True))
    tokenizer = load_tokenizer(tokenizer_dir)
    with pytest.raises(UsageError, match=r"--data_cache_dir .* lies in the input --train_data_file"):
        open_examples([corpus], tokenizer=tokenizer, line_by_line=True, cache_dir=corpus / "cache")
    assert [path.name for path in tmp_path.rglob("*")] == ["corpus", "spm.model"]


def test_the_old_dataset_is_kept_until_the_new_one_is_complete(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build(OLD)
    ids = build(OLD, output_format="ids", output_file=str(tmp_path / "ids.txt"))
    manifest = tmp_path / "ids.txt.manifest.json"
    (folder / "notes.arrow").write_text("mine")
    before, ids_before = contents(folder), (ids.read_bytes(), manifest.read_bytes())
    overwrite: dict[str, Any] = {"overwrite_output_dir": True}
    ids_options = {"output_format": "ids", "output_file": str(ids), **overwrite}

    def check_and_stop(*_: object) -> None:
        assert contents(folder).items() >= before.items() and (ids.read_bytes(), manifest.read_bytes()) == ids_before
        raise KeyboardInterrupt

    for stage in ("write_runs", "write_json"):  # the second writes the facts, records and the manifest
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, stage, check_and_stop)
            for options in (overwrite, ids_options):
                with pytest.raises(RunInterrupted):
                    build(NEW, **options)
    before.pop("state.json")  # for ``datasets`` only: written before the manifest, when the new shards are complete
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Target, "finish", check_and_stop)
        with pytest.raises(RunInterrupted):
            build(NEW, **overwrite)
    assert len(ArrowStore(folder)) == 1
    with pytest.raises(UsageError, match=r"bad\.txt"):
        (tmp_path / "bad.txt").write_bytes(b"\xff")
        build(tmp_path / "bad.txt", **overwrite)
    assert contents(folder).items() >= before.items()
    assert len(ArrowStore(build(NEW, **overwrite))) == 2
    assert len(list(folder.glob("examples-*.arrow"))) == 1 and (folder / "notes.arrow").exists()
    assert len(build(NEW, **ids_options).read_text().splitlines()) == 2


def change_while_read(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Change something when the first block of text has been read."""
    real = sources.read_text
    done: list[object] = []

    def read(block: sources.Block) -> str:
        text = real(block)
        if not done:
            done.append(change())
        return text

    monkeypatch.setattr("bert_convolutions.data.build.sentences.read_text", read)


@pytest.mark.parametrize(
    "change",
    [
        lambda file: os.truncate(file, 1000),
        lambda file: file.write_bytes(file.read_bytes()[:-700]),
        lambda file: file.open("a").write("one more\n"),
    ],
)
def test_text_that_changes_while_it_is_read_is_refused(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object]
) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 300)
    file = tmp_path / "growing.txt"
    file.write_text("the union\nof states\n" * 100)
    with monkeypatch.context() as patch:
        change_while_read(patch, lambda: change(file))
        with pytest.raises(UsageError, match=r"growing\.txt"):
            build(file)
    assert not list((tmp_path / "dataset").glob("**/*"))
    file.write_text("the union\nof states\n" * 100)
    assert len(ArrowStore(build(file))) == 100


def test_a_folder_that_cannot_be_read_is_refused(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "corpus" / "closed"
    closed.mkdir(parents=True)
    (closed / "a.txt").write_text(OLD)
    (tmp_path / "corpus" / "b.txt").write_text(NEW)
    real = os.scandir

    def scan(path: Any) -> Any:  # as for a user without permission; the tests may run as root
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(UsageError, match=r"closed: can't be read \(Permission denied\)"):
        build(tmp_path / "corpus")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("facts.json", "[[{}]]", r"facts\.json: 0\.0\.num_sentences"),
        ("facts.json", '[[{"num_sentences": -1}]]', r"facts\.json: 0\.0\.num_sentences: .* not -1"),
        ("facts.json", "{}", r"facts\.json: "),
        ("settings.json", '{"seed": "42"}', r"settings\.json: "),
        ("settings.json", "", r"settings\.json is not valid JSON"),
        ("000000.shard.json", '{"file": "../other"}', r"000000\.shard\.json: file"),
        ("000000-000000.runs", "not safetensors", r"000000-000000\.runs: the work file is damaged"),
    ],
)
def test_damaged_work_files_are_refused_by_name_and_place(
    build: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, content: str, message: str
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    text = tmp_path / "old.txt"
    text.write_text(OLD)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Target, "finish", stop)
        with pytest.raises(RunInterrupted):
            build(text)
    (tmp_path / "dataset" / ".building" / name).write_text(content)
    if name.endswith(".runs"):
        (tmp_path / "dataset" / ".building" / "000000.shard.json").unlink()
    with pytest.raises(UsageError, match=message):
        build(text)
    assert len(ArrowStore(build(text, overwrite_output_dir=True))) == 1


def test_a_second_run_on_the_same_text_waits_for_the_first(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(NEW)
    tokenizer = load_tokenizer(tokenizer_dir)
    building, proceed = threading.Event(), threading.Event()
    built: list[object] = []
    real = pipeline.write_runs

    def slow(task: Any) -> None:
        built.append(task)
        building.set()
        assert proceed.wait(60)
        real(task)

    monkeypatch.setattr(pipeline, "write_runs", slow)
    stores = []

    def run() -> None:
        stores.append(
            open_examples([text], tokenizer=tokenizer, line_by_line=True, cache_dir=tmp_path / "cache", num_proc=1)
        )

    first, second = (threading.Thread(target=run) for _ in range(2))
    first.start()
    assert building.wait(60)
    second.start()
    said, end = "", time.monotonic() + 60
    while "waiting until it ends" not in said and time.monotonic() < end:
        time.sleep(0.01)
        said += capsys.readouterr().err
    proceed.set()
    for thread in (first, second):
        thread.join(60)
    assert "in use by another run (process" in said and "waiting until it ends" in said
    assert len(built) == 1 and [len(store) for store in stores] == [2, 2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_build_before_training_with_a_message(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(NEW)
    arguments: dict[str, Any] = {"tokenizer": load_tokenizer(tokenizer_dir), "line_by_line": True, "num_proc": 1}
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_runs", lambda task: os.kill(os.getpid(), number))
        with pytest.raises(RunInterrupted, match=f"stopped by {number.name}; run the same command again") as error:
            open_examples([text], **arguments)
    assert error.value.exit_code == 75 and signal.getsignal(number) is before
    assert len(open_examples([text], **arguments)) == 2


def test_a_signal_to_all_processes_does_not_reach_workers_that_still_import_their_libraries() -> None:
    """They would print a traceback each; until they ignore signals, these must be blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    for blocked in run_tasks(functools.partial(signal.pthread_sigmask, signal.SIG_BLOCK), [(), ()], 2):
        assert blocked >= {*SIGNALS}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_a_build_whose_processes_all_get_a_signal_ends_with_a_message_and_resumes(
    tmp_path: Path, tokenizer_dir: Path, speeches: list[str]
) -> None:
    """As a closed terminal or a scheduler sends it."""
    text, folder = tmp_path / "text.txt", tmp_path / "pairs"
    block = "\n".join(speeches)
    text.write_text(block * (12_000_000 // len(block)))
    flags = {"train_data_file": text, "tokenizer_name": tokenizer_dir, "output_dir": folder, "num_proc": 2}
    command = [sys.executable, "-m", "bert_convolutions", "build-dataset"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list((folder / ".building").glob("*.sentences")) and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75 and "stopped by SIGTERM; run the same command again" in said
    assert "Traceback" not in said
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "resuming an interrupted build" in done.stdout and len(ArrowStore(folder)) > 1000
    assert not [path.name for path in folder.rglob(".*")]
    assert json.loads((folder / "manifest.json").read_bytes())["counts"]["bytes"] == text.stat().st_size
