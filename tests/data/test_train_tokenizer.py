import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from bert_convolutions.data.build import train_tokenizer as module
from bert_convolutions.data.build.train_tokenizer import train_tokenizer
from bert_convolutions.data.options import TrainTokenizerOptions
from bert_convolutions.data.pieces import PieceTokenizer
from bert_convolutions.data.tokenizer import CompositeBertTokenizer
from bert_convolutions.errors import EXIT_INTERRUPTED, UsageError


@pytest.fixture
def text(tmp_path: Path, speeches: list[str]) -> str:
    file = tmp_path / "text.txt"
    file.write_text("\n".join(speeches[:400]), encoding="utf-8")
    return str(file)


def test_the_folder_loads_offline(tokenizer_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    assert isinstance(tokenizer, CompositeBertTokenizer)
    assert len(tokenizer) == 1004
    assert json.loads((tokenizer_dir / "tokenizer_config.json").read_bytes())["mask_token"] == "[MASK]"
    names = ["spm.model", "tokenization_composite_bert.py", "tokenizer_config.json"]
    assert sorted(file.name for file in tokenizer_dir.iterdir()) == names


def test_pieces_are_learnt_from_lower_case_text(encoder: PieceTokenizer) -> None:
    pieces = encoder.processor.id_to_piece(list(range(encoder.num_pieces)))
    assert all(piece == piece.lower() for piece in pieces)
    assert "▁the" in pieces


def test_the_same_seed_gives_the_same_model(text: str, tmp_path: Path) -> None:
    def train(name: str, seed: int) -> bytes:
        options = TrainTokenizerOptions(
            [text], str(tmp_path / name), vocab_size=200, input_sentence_size=100, seed=seed
        )
        return (train_tokenizer(options) / "spm.model").read_bytes()

    first = train("a", 1)
    assert train("b", 1) == first != train("c", 2)


def test_lines_are_drawn_uniformly(tmp_path: Path) -> None:
    file = tmp_path / "numbers.txt"
    file.write_text("".join(f"{number}\n" for number in range(10_000)), encoding="utf-8")
    options = TrainTokenizerOptions([str(file)], str(tmp_path), input_sentence_size=2000, seed=5)
    sources = module.find_sources(options.input)
    drawn = [int(line) for line in module._sample(sources, 10_000, options)]
    assert abs(len(drawn) - 2000) < 200 and len(set(drawn)) == len(drawn)
    assert abs(sum(number < 5000 for number in drawn) / len(drawn) - 0.5) < 0.05
    options.input_sentence_size = 20_000
    assert len(list(module._sample(sources, 10_000, options))) == 10_000


def test_a_line_of_a_megabyte_can_be_learnt_from(tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text("of the several states " * 50_000 + "\nand 三国志" + "三国志" * 5000, encoding="utf-8")
    folder = train_tokenizer(TrainTokenizerOptions([str(file)], str(tmp_path / "out"), vocab_size=24))
    pieces = PieceTokenizer(folder / "spm.model").processor
    assert pieces.piece_to_id("国") != pieces.unk_id()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 10**6}, "--vocab_size 1000000: too large for this text, which has at most"),
        ({"vocab_size": 8}, "--vocab_size 8: too small for the characters"),
        ({"vocab_size": 0}, "--vocab_size 0"),
        ({"input": ["missing.txt"]}, "missing.txt: no such file"),
    ],
)
def test_bad_options_are_refused_and_leave_nothing(
    text: str, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    arguments = {"input": [text], "output_dir": str(tmp_path / "out"), **options}
    with pytest.raises(UsageError) as error:
        train_tokenizer(TrainTokenizerOptions(**arguments))  # type: ignore[arg-type]
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_made_is_refused_before_the_work(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.txt").write_text("one line\n")
    monkeypatch.setattr(module, "_train_sentencepiece", lambda *_: pytest.fail("learned"))
    for output, message in ((text, "is a file; give a folder"), (f"{text}/tokenizer", "can't be made")):
        with pytest.raises(UsageError, match=f"--output_dir {output} {message}"):
            train_tokenizer(TrainTokenizerOptions([str(tmp_path / "other.txt")], output))


def test_a_tokenizer_is_not_overwritten_without_the_flag(text: str, tokenizer_dir: Path) -> None:
    with pytest.raises(UsageError, match="already holds a tokenizer"):
        train_tokenizer(TrainTokenizerOptions([text], str(tokenizer_dir)))


def test_bad_text_is_refused_with_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "bad.txt"
    for content, message in [(b"a\nb \xff", "line 2"), (b"\n \n", "the text has only blank lines"), (b"", "empty")]:
        file.write_bytes(content)
        with pytest.raises(UsageError, match=r"bad\.txt") as error:
            train_tokenizer(TrainTokenizerOptions([str(file)], str(tmp_path / "out"), vocab_size=20))
        assert message in str(error.value)


def test_lines_end_where_those_of_a_text_file_end(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes("one\u2028line\rtwo\x85\x0clines\r\n\r\nthree\n".encode())
    lines = list(module.text_lines(module.find_sources([str(file)]), "reading"))
    assert lines == ["one\u2028line", "two\x85\x0clines", "three"]


def test_text_that_changes_while_it_is_read_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module._train_sentencepiece

    def learn(*arguments: object) -> bytes:
        with Path(text).open("a") as file:
            file.write("one more\n")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_train_sentencepiece", learn)
    with pytest.raises(UsageError, match=r"text\.txt: has changed while it was read"):
        train_tokenizer(TrainTokenizerOptions([text], str(tmp_path / "out"), vocab_size=100))
    assert not (tmp_path / "out").exists()


STOPPED = """
import hashlib, itertools, os, signal, sys, threading
import sentencepiece
from bert_convolutions.cli.main import main
from bert_convolutions.data.build import train_tokenizer as module

def learn(**_):
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # like SentencePiece's C++: takes long, and sees no signal

def sample(*_):
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    return itertools.repeat("a line")

module._sample = sample
if sys.argv[3] == "learning":
    sentencepiece.SentencePieceTrainer.train = learn
sys.exit(main(["train-tokenizer", "--input", sys.argv[1], "--output_dir", sys.argv[2]]))
"""


@pytest.mark.parametrize("stage", ["sampling", "learning"])
def test_a_signal_ends_the_learning(stage: str, text: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", STOPPED, text, str(tmp_path / "out"), stage]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == EXIT_INTERRUPTED and "stopped by SIGTERM" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "share"),
    [("น้ำ อยู่ ที่", "33%"), ("がぎぐ かき", "50%"), ("한국어 텍스트", None), ("中文", None), ("plain English", None)],
)
def test_marks_that_are_stripped_are_named(line: str, share: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert module._count_lines(iter([line] * 3)) == 3
    said = capsys.readouterr().err
    assert (f"{share} of the characters" in said) if share else not said
