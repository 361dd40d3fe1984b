"""Flags and configuration files are read into the fields of a dataclass."""

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from bert_convolutions import files, flags
from bert_convolutions.cli.commands import COMMANDS, Command
from bert_convolutions.cli.trainer_flags import TrainerFlags
from bert_convolutions.errors import UsageError


@dataclass
class Options(flags.Options):
    train_data_file: list[str] = field(metadata={"help": "text, 100 % of it"})
    name: str = "bert"
    block_size: int = field(default=128, metadata={"help": "longest example"})
    mlm_probability: float = 0.15
    line_by_line: bool = False
    pack: bool = True
    order: Literal["sorted", "shuffled"] = "sorted"
    cache_dir: Path | None = None
    num_heads: int | None = None
    seeds: list[int] = field(default_factory=lambda: [1, 2])

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_size < 1:
            raise ValueError("--block_size must be at least 1")


def read(*argv: str, trainer: bool = False) -> tuple[Any, TrainerFlags]:
    return Command("pretrain", "Pre-train.", options=f"{__name__}:Options", work="", trainer=trainer).read(argv)


def options(*argv: str) -> Options:
    return read("--train_data_file", "a.txt", *argv)[0]


def test_a_tilde_is_expanded_where_the_shell_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "run.yaml").write_text("train_data_file: [~/a, b~/c]\ncache_dir: ~/cache\noutput_dir: ~/runs\n")
    mine, trainer = read(f"--config={tmp_path / 'run.yaml'}", "--name=~/name", "--seed=~/1", trainer=True)
    assert (mine.train_data_file, mine.name) == (["/home/me/a", "b~/c"], "/home/me/name")
    assert mine.cache_dir == Path("/home/me/cache")
    assert trainer.argv == ("--seed=/home/me/1",)


def refusal(*argv: str, trainer: bool = False) -> str:
    with pytest.raises(UsageError) as caught:
        read(*argv, trainer=trainer)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_are_those_of_the_dataclass() -> None:
    assert options() == Options(train_data_file=["a.txt"])


def test_values_from_python_are_converted_as_those_of_a_command_line() -> None:
    given: Any = {
        "train_data_file": Path("a.txt"),
        "name": 3,
        "cache_dir": "cache",
        "line_by_line": "yes",
        "seeds": "7",
    }
    words = ("--train_data_file", "a.txt", "--name=3", "--cache_dir=cache", "--line_by_line", "--seeds=7")
    assert Options(**given) == read(*words)[0]
    assert Options([Path("a.txt"), "b.txt"], seeds=range(2)) == options("b.txt", "--seeds", "0", "1")  # type: ignore[arg-type]
    assert all(
        issubclass(command.options_class, flags.Options) for command in COMMANDS.values() if command.name != "doctor"
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("order", "random", "--order: Input should be 'sorted' or 'shuffled', not 'random'"),
        (
            "block_size",
            2.5,
            "--block_size: Input should be a valid integer, got a number with a fractional part, not 2.5",
        ),
        ("train_data_file", None, "--train_data_file: Input should be a valid string, not None"),
        ("name", ["a"], "--name: Input should be a valid string, not ['a']"),
    ],
)
def test_a_value_from_python_that_no_flag_takes(name: str, value: object, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Options(**{"train_data_file": ["a.txt"], name: value})  # type: ignore[arg-type]
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--name", "x y"], "name", "x y"),
        (["--name=a=b"], "name", "a=b"),
        (["--name="], "name", ""),
        (["--block_size", "64"], "block_size", 64),
        (["--block-size=64"], "block_size", 64),
        (["--block_size=1", "--block_size=2"], "block_size", 2),
        (["--mlm_probability", "1e-1"], "mlm_probability", 0.1),
        (["--line_by_line"], "line_by_line", True),
        (["--line_by_line", "--name", "x"], "line_by_line", True),
        (["--line_by_line", "true"], "line_by_line", True),
        (["--line_by_line=False"], "line_by_line", False),
        (["--pack", "false"], "pack", False),
        (["--order", "shuffled"], "order", "shuffled"),
        (["--cache_dir", "c"], "cache_dir", Path("c")),
        (["--num_heads", "4"], "num_heads", 4),
        (["--seeds", "3", "-4"], "seeds", [3, -4]),
        (["--train_data_file", "a", "b", "--pack"], "train_data_file", ["a", "b"]),
    ],
)
def test_values_have_the_type_of_their_field(argv: list[str], name: str, value: object) -> None:
    assert getattr(options(*argv), name) == value


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--block_size", "1.5"], ["--block_size", "whole number", "1.5"]),
        (["--mlm_probability", "x"], ["--mlm_probability", "a number", "'x'"]),
        (["--pack", "maybe"], ["--pack", "true or false", "maybe"]),
        (["--order", "random"], ["--order", "random", "sorted", "shuffled"]),
        (["--block_size"], ["--block_size", "one argument"]),
        (["--block_size", "0"], ["--block_size must be at least 1"]),
        (["--blocksize", "3"], ["--blocksize", "did you mean --block_size?", "--help"]),
        (["--block", "3"], ["--block", "--block_size"]),  # no abbreviations
        (["--zzz"], ["unknown flag --zzz", "--help"]),
        (["--name", "a", "b"], ["unexpected value 'b'"]),
        (["-x"], ["unknown flag -x"]),
    ],
)
def test_bad_flags_are_refused_with_the_reason(argv: list[str], words: list[str]) -> None:
    message = refusal("--train_data_file", "a.txt", *argv)
    for word in words:
        assert word in message


def test_a_missing_required_flag_is_named() -> None:
    assert refusal().startswith("--train_data_file is required")


def test_other_flags_go_to_the_trainer() -> None:
    argv = ["--train_data_file", "a", "b", "--max_steps", "-1", "--pack", "--seed=3"]
    parsed, trainer_flags = read(*argv, trainer=True)
    assert parsed.train_data_file == ["a", "b"]
    assert trainer_flags.argv == ("--max_steps", "-1", "--seed=3")


class TestConfigFile:
    def write(self, folder: Path, text: str) -> str:
        path = folder / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    def test_keys_are_flags_and_the_command_line_overrides_them(self, tmp_path: Path) -> None:
        text = """
            train_data_file: [a.txt, 2.txt]
            block-size: 64
            mlm_probability: 1e-1
            pack: off
            order: shuffled
            num_heads: null
            seeds: 7
            """
        path = self.write(tmp_path, text)
        parsed, _ = read("--config", path, "--block_size", "32")
        assert parsed == Options(["a.txt", "2.txt"], "bert", 32, 0.1, False, False, "shuffled", None, None, [7])

    def test_an_empty_file_sets_nothing(self, tmp_path: Path) -> None:
        assert options("--config", self.write(tmp_path, "# nothing\n")) == options()

    def test_a_list_in_the_file_takes_no_positional_argument_of_the_command_line(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, "only: [a/*, b/*]\n")
        sweep, _ = COMMANDS["sweep"].read(["e.yaml", "--config", path, "--output_dir", "out"])
        assert (sweep.experiment, sweep.only) == (Path("e.yaml"), ["a/*", "b/*"])

    def test_keys_of_the_trainer_go_to_the_trainer(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, "train_data_file: a\nmax_steps: 5\n")
        _, trainer_flags = read("--config", path, "--seed", "1", trainer=True)
        assert trainer_flags.config.values == {"max_steps": 5}
        assert trainer_flags.argv == ("--seed", "1")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("name: a\nblock_sise: 3\n", ["line 2", "'block_sise'", "did you mean 'block_size'"]),
            ("name: a\nblock_size: x\n", ["line 2", "--block_size", "'x'"]),
            ("name: a\n\nname: b\n", ["line 3", "twice", "line 1"]),
            ("block_size: [1, 2]\n", ["line 1", "block_size", "one value"]),
            ("name: {a: b}\n", ["line 1", "name takes text"]),
            ("seeds: [1, null]\n", ["line 1", "seeds takes text"]),
            ("train_data_file: [[a]]\n", ["line 1", "train_data_file takes text"]),
            ("name: !!binary YQ==\n", ["line 1", "name takes text"]),
            ("name: a\n  b: [\n", ["line 2", "YAML"]),
            ("name: [a\n", ["YAML", "line"]),
            ("- name\n", ["flag: value"]),
            ("just text\n", ["flag: value"]),
            ("[a]: b\n", ["line 1"]),
            ("config: other.yaml\n", ["line 1", "another"]),
            ("name: !!timestamp 2020-99-99\n", ["not valid YAML"]),
            ("name: !!python/object:os.system x\n", ["not valid YAML"]),
            ("name: \x00\n", ["not valid YAML"]),
        ],
    )
    def test_bad_files_are_refused_with_the_line(self, tmp_path: Path, text: str, words: list[str]) -> None:
        path = self.write(tmp_path, text)
        message = refusal("--train_data_file", "a", "--config", path)
        for word in [path, *words]:
            assert word in message

    def test_a_missing_file_and_one_that_is_not_text_are_refused(self, tmp_path: Path) -> None:
        assert "No such file" in refusal("--config", str(tmp_path / "none.yaml"))
        (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\xff\n")
        assert "not UTF-8" in refusal("--config", str(tmp_path / "latin.yaml"))

    def test_aliases_that_stand_for_billions_of_values_are_refused(self, tmp_path: Path) -> None:
        levels = [f"k{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 10)]
        path = self.write(tmp_path, "\n".join(["name: &a0 [x, x]", *levels]))
        assert "more than 10,000 values" in refusal("--train_data_file", "a", "--config", path)
        path = self.write(tmp_path, "name: &name x\ncache_dir: *name\n")
        assert options("--config", path).cache_dir == Path("x")

    def test_a_long_value_is_shortened_in_the_message(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, "name: {a: %s}\n" % ("x" * 10_000))
        assert len(refusal("--train_data_file", "a", "--config", path)) < 300

    def test_folders_and_files_without_end_are_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(files, "_TIMEOUT_SECONDS", 0.1)
        os.mkfifo(tmp_path / "fifo")
        assert "nothing could be read" in refusal("--train_data_file", "a", "--config", str(tmp_path / "fifo"))
        assert "give a file that was written by hand" in refusal("--train_data_file", "a", "--config", "/dev/zero")
        assert "directory" in refusal("--train_data_file", "a", "--config", str(tmp_path))

    def test_a_pipe_of_the_shell_is_read(self) -> None:
        reader, writer = os.pipe()
        os.write(writer, b"block_size: 64\n")
        os.close(writer)
        assert options("--config", f"/dev/fd/{reader}").block_size == 64
        os.close(reader)

    def test_a_pipe_with_a_slow_writer_is_read(self, tmp_path: Path) -> None:
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        writer = threading.Timer(0.3, lambda: fifo.write_text("block_size: 64\n"))
        writer.start()
        assert options("--config", str(fifo)).block_size == 64
        writer.join()
