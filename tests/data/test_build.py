import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer

from bert_convolutions.data.build import pipeline as build_module
from bert_convolutions.data.build import shards
from bert_convolutions.data.build import sources as build_sources
from bert_convolutions.data.build.parallel import run_tasks
from bert_convolutions.data.build.sentences import smallest_id_type, split_sentences
from bert_convolutions.data.options import BuildDatasetOptions
from bert_convolutions.data.pieces import PieceTokenizer
from bert_convolutions.errors import CommandError, RunInterrupted, UsageError
from bert_convolutions.terminal import say
from tests.data.conftest import examples

Build = Callable[..., Path]
zstd = partial(pa.compress, codec="zstd", asbytes=True)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 300 bytes, so that a short text has many; in this process only, so with num_proc=1."""
    monkeypatch.setattr(build_sources, "BLOCK_BYTES", 300)


def expected_pairs(encoder: PieceTokenizer, documents: list[list[str]]) -> list[list[int]]:
    pairs = []
    for sentences in documents:
        encoded = encoder.encode(sentences)
        pairs += [
            [encoder.cls_id, *first, encoder.sep_id, *second, encoder.sep_id]
            for first, second in zip(encoded[::2], encoded[1::2], strict=False)
        ]
    return pairs


def lines_of(text: str) -> list[str]:
    """The lines of a text file as Python iterates over them."""
    return [line.removesuffix("\n") for line in io.StringIO(text, newline=None)]


def documents_of(text: str) -> list[list[str]]:
    documents: list[list[str]] = [[]]
    for line in lines_of(text):
        if line.strip():
            documents[-1].append(line)
        else:
            documents.append([])
    return documents


def test_consecutive_lines_are_paired_across_blank_lines_and_blocks(
    build: Build, encoder: PieceTokenizer, speeches: list[str], small_blocks: None
) -> None:
    text = "\n".join(speeches[:151])
    built = examples(build(text))
    expected = expected_pairs(encoder, [[line for line in text.splitlines() if line.strip()]])
    assert sorted(built) == sorted(expected)
    assert built != expected, "not shuffled"


def test_files_of_few_pairs_beside_large_ones(
    build: Build, encoder: PieceTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have no pair for most shards, and a shard opens the work file of every block, unless they are joined."""
    opened: list[Path] = []
    open_arrays = shards.open_arrays
    monkeypatch.setattr(shards, "open_arrays", lambda path: opened.append(path) or open_arrays(path))
    texts = ["of " * 400_000 + "\nthe union" * 3, *(f"in {n}\nit was\n" for n in range(20))] * 2
    files = [tmp_path / f"{number:02}.txt" for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    apart = examples(build(files, shard_size_mb=1))
    assert sorted(apart) == sorted(pair for text in texts for pair in expected_pairs(encoder, [lines_of(text)]))
    assert len(opened) == len(files) * 2, "shards"
    monkeypatch.setattr(build_module, "_MAX_OPENINGS", 10)
    monkeypatch.setattr(build_module, "_JOINED_BYTES", 1 << 20)
    opened.clear()
    finish = build_module.Target.finish
    monkeypatch.setattr(build_module.Target, "finish", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(RunInterrupted):
        build(files, "joined", shard_size_mb=1)
    monkeypatch.setattr(build_module.Target, "finish", finish)
    (tmp_path / "joined" / ".building" / "000001.shard.json").unlink()
    assert examples(build(files, "joined", shard_size_mb=1)) == apart
    assert len(opened) == len(files) * 2 + 2 * 2 + 2, "twice to join them, then twice 2 runs, and once more"


def test_pair_within_documents_pairs_nothing_across_a_blank_line(
    build: Build, encoder: PieceTokenizer, small_blocks: None, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "one\n\n\nfirst of two\nsecond of two\n \na\nb\nc\n" * 30
    built = examples(build(text, pair_within_documents=True))
    assert "partner in their file or document: 2" in capsys.readouterr().out
    assert sorted(built) == sorted(expected_pairs(encoder, documents_of(text)))


lines = st.sampled_from(
    [
        "",
        " ",
        "the union",
        "of the several states, as it was " * 4,
        "\u2003",
        "a",
        "no\u2028line",
        "\x0c",
        "of\x85 a\x1cll",
    ]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(lines, min_size=1, max_size=40), st.booleans(), st.sampled_from(["\n", "\r\n", "\r"]))
def test_any_mix_of_lines_and_blank_lines_is_paired_or_refused(
    build: Build, encoder: PieceTokenizer, small_blocks: None, rows: list[str], within: bool, ending: str
) -> None:
    text = ending.join(rows)
    sentences = [row for row in lines_of(text) if row.strip()]
    expected = expected_pairs(encoder, documents_of(text) if within else [sentences])
    if expected:
        folder = build(text, pair_within_documents=within, overwrite_output_dir=True)
        assert sorted(examples(folder)) == sorted(expected)
    else:
        with pytest.raises(UsageError, match=r"text\.txt: (the text has no pair|the file is empty)"):
            build(text, pair_within_documents=within, overwrite_output_dir=True)


def test_the_number_of_processes_and_compression_change_no_pair(
    build: Build, speeches: list[str], tmp_path: Path
) -> None:
    text = "\n".join(speeches[:300]).encode()
    plain = tmp_path / "a.txt"
    plain.write_bytes(text)
    compressed = {
        "gz": gzip.compress(text),
        "bz2": bz2.compress(text),
        "xz": lzma.compress(text),
        "zst": b"".join(map(zstd, (text[:100], text[100:]))),
    }
    reference = examples(build(plain, "one", shard_size_mb=1))
    files = [tmp_path / "b.txt", plain]  # two tasks, since a single one would stay in this process
    files[0].write_bytes(text[: len(text) // 2])
    assert examples(build(files, "two", num_proc=2)) == examples(build(files, "both"))
    for suffix, data in compressed.items():
        file = tmp_path / f"a.txt.{suffix}"
        file.write_bytes(data)
        assert examples(build(file, suffix)) == reference
    assert examples(build(plain, "other", seed=1)) != reference
    assert sorted(examples(tmp_path / "other")) == sorted(reference)


def test_the_shuffle_is_uniform_over_the_corpus(build: Build, encoder: PieceTokenizer) -> None:
    numbers = range(4000)
    text = "".join(f"{number}\nx\n" for number in numbers)
    position_of = {tuple(ids): position for position, ids in enumerate(examples(build(text)))}
    pairs = expected_pairs(encoder, [[word for number in numbers for word in (str(number), "x")]])
    positions = np.array([position_of[tuple(pair)] for pair in pairs])
    assert abs(np.corrcoef(np.arange(4000), positions)[0, 1]) < 0.06
    halves = np.histogram2d(np.arange(4000), positions, bins=4)[0]
    assert np.abs(halves - 250).max() < 75


def test_paragraphs_are_split_into_sentences(build: Build, encoder: PieceTokenizer) -> None:
    text = "Mr. Smith came. He saw. He won!\n\nWas it so? Nobody knows.\n"
    built = examples(build(text, split_sentences=True, pair_within_documents=True))
    cut = [["Mr. Smith came.", "He saw.", "He won!"], ["Was it so?", "Nobody knows."]]
    assert sorted(built) == sorted(expected_pairs(encoder, cut))
    assert split_sentences("  ", "en") == [] == split_sentences("", "en")


def test_long_paragraphs_are_split_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call would take hours for a long Chinese line, and split nothing between two quotation marks far apart."""
    sentencex = pytest.importorskip("sentencex")
    sentences = ['"It was late," she said.', *(f"This is sentence {number} of it." for number in range(2000)), '"Oh!"']
    assert [sentence.strip() for sentence in split_sentences(" ".join(sentences), "en")][-100:] == sentences[-100:]
    assert len(split_sentences(" ".join(sentences), "en")) > 1900
    longest, segment = 0, sentencex.segment

    def watched(language: str, text: str) -> list[str]:
        nonlocal longest
        longest = max(longest, len(text))
        return segment(language, text)

    monkeypatch.setattr(sentencex, "segment", watched)
    chinese = "他说这件事情很重要。我们必须马上去做！" * 9000
    assert "".join(split_sentences(chinese, "zh")) == chinese and len(split_sentences(chinese, "zh")) == 18000
    assert longest < 20_000


def test_folders_are_read_without_hidden_files_and_byte_order_marks(
    build: Build, encoder: PieceTokenizer, tmp_path: Path
) -> None:
    folder = tmp_path / "corpus"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.txt").write_bytes(b"\xef\xbb\xbfthe union\nof states\nan odd last line")
    latin_1 = os.fsdecode(b"\xe9") if sys.platform == "linux" else "a"  # macOS allows names in UTF-8 only
    (folder / "sub" / latin_1).write_bytes(b"in years\nof war\n")
    (folder / ".hidden").write_bytes(b"\xff\xff")
    (folder / "empty").touch()
    built = examples(build(folder))
    assert sorted(built) == sorted(expected_pairs(encoder, [["the union", "of states"], ["in years", "of war"]]))


def test_lines_of_megabytes_are_read_and_very_long_ones_are_split_between_words(
    build: Build, encoder: PieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "of the union " * 90_000
    built = examples(build(f"{long}\nshort\n"))
    assert built == expected_pairs(encoder, [[long, "short"]])
    monkeypatch.setattr(build_sources, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(build_sources, "MAX_REST_BYTES", 500)
    words = [f"é{number}" for number in range(100, 1000)]
    cut = examples(build(" ".join(words), "cut"))
    sentences = [encoder.processor.decode(ids) for pair in cut for ids in _sentences_of(pair, encoder)]
    assert sorted(" ".join(sentences).split()) == [word.replace("é", "e") for word in words]


def _sentences_of(pair: list[int], encoder: PieceTokenizer) -> list[list[int]]:
    end = pair.index(encoder.sep_id)
    return [pair[1:end], pair[end + 1 : -1]]


def test_the_ids_format_is_that_of_the_original(build: Build, speeches: list[str], tmp_path: Path) -> None:
    text = "\n".join(speeches[:100])
    reference = examples(build(text))
    file = tmp_path / "ids.txt"
    assert build(text, output_format="ids", output_file=str(file)) == file
    rows = file.read_text(encoding="ascii").splitlines()
    assert [[int(word) for word in row.split(" ")] for row in rows] == reference
    assert not list(tmp_path.glob("*.building")) and not list(tmp_path.glob("*.tmp"))


def test_the_folder_can_be_read_by_datasets_and_its_manifest_has_the_counts(build: Build, speeches: list[str]) -> None:
    import datasets

    text = "\n".join(speeches[:100])
    folder = build(text)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    built = examples(folder)
    assert manifest["counts"]["examples"] == len(built)
    assert manifest["counts"]["tokens"] == sum(map(len, built))
    assert manifest["counts"]["bytes"] == len(text.encode())
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1.2 * len(text.encode())
    assert datasets.load_from_disk(str(folder))["input_ids"][:] == built


def test_ids_take_two_bytes_where_the_largest_fits() -> None:
    assert [smallest_id_type(size) for size in (2**16, 2**16 + 1)] == [np.uint16, np.uint32]


def test_a_finished_build_is_not_repeated_and_not_replaced_without_the_flag(
    build: Build, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build("the union\nof states\n")
    before = (folder / "manifest.json").stat().st_mtime_ns
    text = folder.parent / "text.txt"
    assert build(text) == folder
    assert "already built" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setenv("RANK", "1")
        assert build(text) == folder
        say("which the first process says too")
    assert not "".join(capsys.readouterr()), "all eight processes of a node would repeat it"
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="differs in seed"):
        build(text, seed=7)
    with pytest.raises(UsageError, match="which has changed"):
        build("other text\nof other states\n")
    build("other text\nof other states\n", overwrite_output_dir=True)
    (folder / "notes.txt").touch()
    (folder / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match="its files, which are damaged"):
        build("more text\nof other states\n")
    build("more text\nof other states\n", overwrite_output_dir=True)
    assert (folder / "notes.txt").exists(), "removed a file that is not ours"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"good line\nand \xff bad\n", "not UTF-8 text: byte 0xff at offset 14, line 2"),
        (b"\xef\xbb\xbfgood\n\xc3(", "offset 8, line 2"),
        (b"only one line\n\n", "the text has no pair of sentences"),
        (b" \n\n", "the text has no pair of sentences"),
    ],
)
def test_bad_text_is_refused_by_name_and_leaves_nothing(
    build: Build, tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=r"bad\.txt") as error:
        build(file)
    assert message in str(error.value)
    assert not list((tmp_path / "dataset").glob("**/*"))
    file.write_text("the union\nof states\n", encoding="utf-8")
    assert len(examples(build(file))) == 1


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_damaged_archives_are_refused(build: Build, tmp_path: Path, suffix: str) -> None:
    text = b"the union\nof states\n" * 50
    data = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}[suffix](text)
    file = tmp_path / f"bad.{suffix}"
    file.write_bytes(b"plain text, not an archive\n")
    with pytest.raises(UsageError, match=f"bad.{suffix}: cannot be decompressed"):
        build(file)
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match=f"bad.{suffix}: cannot be decompressed"):
        build(file)


def test_a_small_text_starts_no_process(build: Build, speeches: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting one takes longer than the work."""
    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", None)
    build("\n".join(speeches[:50]), num_proc=2)


def test_bad_text_that_a_worker_process_finds_is_refused_by_name(build: Build, tmp_path: Path) -> None:
    file = tmp_path / "bad.txt"
    file.write_bytes(b"good line\n" * 1_000_000 + b"and \xff bad\n")
    with pytest.raises(UsageError, match=r"bad\.txt: not UTF-8 text: byte 0xff at offset 10000004, line 1000001"):
        build(file, num_proc=2)
    assert not list((tmp_path / "dataset").glob("**/*"))


def test_a_build_resumes_after_an_interruption_or_a_lost_worker(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the union\nof states\n", encoding="utf-8")
    real = build_module.write_runs
    for error, expected in [
        (KeyboardInterrupt(), RunInterrupted),
        (BrokenProcessPool(), CommandError),
        (OSError(28, "No space left on device", "x.runs"), UsageError),
    ]:

        def fail(task: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(build_module, "write_runs", fail)
        with pytest.raises(expected, match="again to resume"):
            build(text)
        monkeypatch.setattr(build_module, "write_runs", real)
    capsys.readouterr()
    folder = build(text)
    assert "resuming an interrupted build" in capsys.readouterr().out
    assert len(examples(folder)) == 1 and not (folder / ".building").exists()


def test_a_tokenizer_of_hugging_face_with_ids_beyond_16_bits_can_be_used(build: Build, tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{number}" for number in range(70_000)), "union"]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(tmp_path / "tokenizer")
    file = tmp_path / "text.txt"
    file.write_text("Union\nword3 union\n", encoding="utf-8")
    options = BuildDatasetOptions(
        str(tmp_path / "tokenizer"), [str(file)], output_dir=str(tmp_path / "dataset"), num_proc=1
    )
    assert examples(build_module.build_dataset(options)) == [[2, 70_005, 3, 8, 70_005, 3]]


def test_bad_options_are_refused(build: Build, tmp_path: Path) -> None:
    text = "the union\nof states\n"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    for options, message in [
        ({"output_dir": None}, "--output_dir is needed"),
        ({"output_format": "ids"}, "needs --output_file"),
        ({"num_proc": 0}, "--num_proc 0"),
        ({"split_sentences": True, "language": "german"}, "--language german is no language code in small letters, as"),
        ({"output_dir": str(tmp_path / "full")}, "is not empty"),
        ({"output_dir": str(tmp_path / "text.txt")}, "is a file"),
    ]:
        with pytest.raises(UsageError, match=message):
            build(text, **options)
    with pytest.raises(UsageError, match=r"missing\.txt: no such file"):
        build(tmp_path / "missing.txt")


def test_workers_do_not_run_the_script_that_called(tmp_path: Path) -> None:
    """One that doesn't test ``__name__``, of which each worker would start workers of its own."""
    script = tmp_path / "script.py"
    script.write_text(
        "from bert_convolutions.data.build.parallel import run_tasks\nprint(sorted(run_tasks(abs, [-1, -2, -3], 2)))\n"
    )
    environment = {**os.environ, "BERT_CONVOLUTIONS_LAZY": "1"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[1, 2, 3]\n", "")


def test_builds_in_several_threads_leave_the_process_as_it_was() -> None:
    before = sys.modules["__main__"], dict(os.environ)
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(lambda _: sorted(run_tasks(abs, [-1, -2], 2)), range(2))) == [[1, 2]] * 2
    assert (sys.modules["__main__"], dict(os.environ)) == before


@pytest.fixture
def corpus(tmp_path: Path, speeches: list[str]) -> Iterator[Path]:
    file = tmp_path / "corpus.txt"
    text = "\n".join(speeches)
    file.write_text(text * (16_000_000 // len(text)), encoding="utf-8")
    yield file
    file.unlink()


def test_a_killed_build_resumes_where_it_stopped(
    tmp_path: Path, tokenizer_dir: Path, build: Build, corpus: Path
) -> None:
    program = (
        "import sys\nfrom bert_convolutions.data.build.pipeline import build_dataset\n"
        "from bert_convolutions.data.options import BuildDatasetOptions\n"
        "places = dict(tokenizer_name=sys.argv[2], train_data_file=[sys.argv[1]], output_dir=sys.argv[3])\n"
        "build_dataset(BuildDatasetOptions(**places, num_proc=2, shard_size_mb=1))\n"
    )
    script = tmp_path / "build.py"
    script.write_text(program, encoding="utf-8")
    folder = tmp_path / "killed"
    command = [sys.executable, str(script), str(corpus), str(tokenizer_dir), str(folder)]
    process = subprocess.Popen(command, env={**os.environ, "BERT_CONVOLUTIONS_LAZY": "1"}, stderr=subprocess.DEVNULL)
    while not list((folder / ".building").glob("*.sentences")) and process.poll() is None:
        time.sleep(0.02)
    with pytest.raises(UsageError, match="another build-dataset is writing"):
        build(corpus, "killed", shard_size_mb=1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {file: file.stat().st_mtime_ns for file in (folder / ".building").glob("*.sentences")}
    assert done and not (folder / "manifest.json").exists()
    time.sleep(1)
    with pytest.raises(UsageError, match="an interrupted build differs in seed"):
        build(corpus, "killed", shard_size_mb=1, seed=1)
    kept: dict[Path, int] = {}

    real_unlink = Path.unlink

    def remember(self: Path, missing_ok: bool = False) -> None:
        if self in done:
            kept[self] = self.stat().st_mtime_ns
        real_unlink(self, missing_ok)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", remember)
        build(corpus, "killed", shard_size_mb=1)
    assert kept == done, "finished blocks were encoded again"
    build(corpus, "whole", num_proc=2, shard_size_mb=1)
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (folder / file.name).read_bytes()
    shutil.rmtree(folder)


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_lines_end_only_where_those_of_a_text_file_end(
    build: Build, encoder: PieceTokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ending: str
) -> None:
    """The other characters at which ``str.splitlines`` splits are white space within a line."""
    rows = [f"the union{mark}of states {number}" for number, mark in enumerate("\v\f\x1c\x1d\x1e\x85\u2028\u2029 \t")]
    text = ending.join(rows * 20)
    expected = sorted(expected_pairs(encoder, [rows * 20]))
    for size, rest in ((1 << 20, 1 << 20), (300, 500), (300, 40), (7, 64)):
        monkeypatch.setattr(build_sources, "BLOCK_BYTES", size)
        monkeypatch.setattr(build_sources, "MAX_REST_BYTES", rest)
        assert sorted(examples(build(text, f"pairs-{size}-{rest}"))) == expected
    compressed = tmp_path / "text.gz"
    compressed.write_bytes(gzip.compress(text.encode()))
    monkeypatch.setattr(build_sources, "BLOCK_BYTES", 300)
    monkeypatch.setattr(build_sources, "MAX_REST_BYTES", 300)
    assert sorted(examples(build(compressed, "compressed"))) == expected


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab \r\n\u2028\f", max_size=60), st.integers(1, 20))
def test_blocks_are_whole_lines_of_the_text(tmp_path_factory: pytest.TempPathFactory, text: str, size: int) -> None:
    file = tmp_path_factory.mktemp("blocks") / "a.txt"
    file.write_text("a" + text, encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_sources, "BLOCK_BYTES", size)
        (source,) = build_sources.find_sources([str(file)])
        parts = [build_sources.read_text(block) for block in build_sources.blocks(source)]
    assert "".join(parts) == "a" + text
    assert [line for part in parts for line in build_sources.split_lines(part)] == lines_of("a" + text)
