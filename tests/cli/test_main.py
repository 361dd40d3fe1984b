"""The command as a whole: its list, its help, what it says when something goes wrong, and its exit codes."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from bert_convolutions import __version__
from bert_convolutions.cli import command, convert
from bert_convolutions.cli.main import COMMANDS, main
from bert_convolutions.errors import RunInterrupted, TrainingDiverged, UsageError

SUB_COMMANDS = ("train-tokenizer", "build-dataset", "pretrain", "glue", "compile-glue", "convert", "demo")


def python(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **environment}
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, env=environment, timeout=120)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], int]:
    """Run a sub-command whose work raises the given exception."""

    def run_and_fail(error: BaseException) -> int:
        def run(options: Any, trainer_flags: Any) -> None:
            raise error

        module = SimpleNamespace(OPTIONS=convert.ConvertOptions, TRAINER=False, run=run)
        monkeypatch.setattr(command.importlib, "import_module", lambda name: module)
        return main(["convert", "--input", "a", "--output_dir", "b"])

    return run_and_fail


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_the_list_of_sub_commands(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    output = capsys.readouterr().out
    for name in SUB_COMMANDS:
        assert f"  {name} " in output
        assert COMMANDS[name].purpose in output


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"bertconv {__version__}\n"


@pytest.mark.parametrize("name", SUB_COMMANDS)
def test_help_loads_neither_torch_nor_transformers(name: str) -> None:
    heavy = "[name for name in ('torch', 'transformers', 'datasets', 'scipy', 'matplotlib') if name in sys.modules]"
    script = f"import sys, bertconv; sys.argv = ['bertconv', {name!r}, '--help']; code = bertconv.main(); "
    result = python("-c", script + f"print('loaded:', {heavy}); sys.exit(code)", COLUMNS="120")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "loaded: []" in result.stdout
    assert COMMANDS[name].purpose in result.stdout
    assert "--config FILE" in result.stdout


def test_python_m_is_as_light_and_leaves_the_environment_alone() -> None:
    result = python("-X", "importtime", "-m", "bert_convolutions", "convert", "--help")
    assert result.returncode == 0
    assert "bert_convolutions.cli.main" in result.stderr
    assert "torch" not in result.stderr
    script = "import os, bertconv; bertconv.main(); print('BERT_CONVOLUTIONS_LAZY' in os.environ)"
    assert python("-c", script).stdout.endswith("False\n")


def test_help_all_adds_the_flags_of_the_trainer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--help-all"]) == 0
    output = capsys.readouterr().out
    for flag in ("--train_data_file", "--lr_scheduler_type", "--ddp_timeout"):
        assert flag in output


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["pretrian"], ["pretrian", "'pretrain'"]),
        (["compile_glue"], ["'compile-glue'"]),
        (["xyz"], ["train-tokenizer", "demo"]),
        (["convert"], ["--input and --output_dir are required"]),
        (["convert", "--inptu", "x"], ["--inptu", "--input"]),
        (["pretrain", "--max_step", "3"], ["--max_step,", "--max_steps", "--help-all"]),
        (["pretrain", "--attention_kernl", "qk 8"], ["--attention_kernel"]),
        (["pretrain"], ["--output_dir is required"]),
        (["pretrain", "--output_dir", "x", "--max_steps", "many"], ["--max_steps: ", "many"]),
        (["pretrain", "--output_dir", "x", "--load_best_model_at_end"], ["--load_best_model_at_end"]),
    ],
)
def test_bad_usage_is_one_sentence(argv: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("bertconv: error: ")
    assert captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("a.txt is empty"), 2, "bertconv: error: a.txt is empty\n"),
        (UsageError("a\nb.txt is empty"), 2, "bertconv: error: a b.txt is empty\n"),
        (TrainingDiverged("the loss is nan in step 3"), 3, "bertconv: the loss is nan in step 3\n"),
        (RunInterrupted("saved in x"), 75, "bertconv: saved in x\n"),
        (KeyboardInterrupt(), 130, "bertconv: interrupted\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "bertconv: error: /x: Permission denied\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x"),
            1,
            "bertconv: error: /x: No space left on device; make room and run the same command again\n",
        ),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, "bertconv: error: Broken pipe\n"),  # a worker's, not stdout's
        (OSError("Can't load\nthis."), 1, "bertconv: error: Can't load this.\n"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, message: str, failing: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(error) == code
    assert capsys.readouterr().err == message


def test_memory_and_disk_in_the_words_of_libraries(failing: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(MemoryError()) == 1
    assert "--per_device_train_batch_size" in capsys.readouterr().err
    assert failing(RuntimeError("Error: StorageFull")) == 1
    assert "make room" in capsys.readouterr().err


def test_the_unexpected_has_a_traceback_only_on_request(
    failing: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert failing(KeyError("x")) == 1
    quiet = capsys.readouterr().err
    assert "unexpected KeyError: 'x'" in quiet
    assert "Traceback" not in quiet
    monkeypatch.setenv("BERTCONV_TRACEBACK", "1")
    assert failing(KeyError("x")) == 1
    assert "Traceback" in capsys.readouterr().err


def test_other_ranks_say_who_they_are(
    failing: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    assert failing(UsageError("no")) == 2
    assert capsys.readouterr().err == "bertconv [rank 3]: error: no\n"


def test_a_reader_that_leaves_early_gets_no_traceback() -> None:
    slow_help = f"{sys.executable} -c 'import time, bertconv; time.sleep(0.3); raise SystemExit(bertconv.main())'"
    result = subprocess.run(
        ["bash", "-c", f"{slow_help} | true; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True, timeout=60
    )
    assert result.stderr == ""
    assert result.stdout == "141\n"
