"""The command as a whole: the list of sub-commands, help, error messages and exit codes."""

import dataclasses
import errno
import inspect
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bertconv
from bert_convolutions import __version__
from bert_convolutions.attention.spec import parse_kernel, parse_projection
from bert_convolutions.cli import commands
from bert_convolutions.cli.commands import COMMANDS, Command
from bert_convolutions.cli.main import main
from bert_convolutions.cli.trainer_flags import TrainerFlags
from bert_convolutions.errors import EXIT_INTERRUPTED, RunInterrupted, TrainingDiverged, UsageError, with_flag_names
from bert_convolutions.training.options import PretrainOptions

SUB_COMMANDS = ("train-tokenizer", "build-dataset", "pretrain", "glue", "compile-glue", "convert", "demo")


def python(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **environment}
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, env=environment, timeout=120)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], int]:
    """Run a sub-command whose work raises the given exception."""

    def run_and_fail(error: BaseException) -> int:
        def work(options: Any) -> None:
            raise error

        locate = commands.pkgutil.resolve_name
        monkeypatch.setattr(
            commands.pkgutil, "resolve_name", lambda name: work if name.endswith(":run_convert") else locate(name)
        )
        return main(["convert", "--input", "a", "--output_dir", "b"])

    return run_and_fail


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_lists_the_sub_commands(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    output = capsys.readouterr().out
    for name in SUB_COMMANDS:
        assert f"  {name} " in output
        assert COMMANDS[name].purpose in output


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_each_command_has_a_dataclass_of_options_and_a_function(command: Command) -> None:
    assert dataclasses.is_dataclass(command.options_class)
    parameters = inspect.signature(commands._locate(command.work)).parameters
    assert len(parameters) == (2 if command.trainer else 1)


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_python_m_and_a_job_of_submitit_load_no_torch_and_leave_no_variable_in_the_environment() -> None:
    result = python("-X", "importtime", "-m", "bert_convolutions", "convert", "--help")
    assert result.returncode == 0
    assert "bert_convolutions.cli.main" in result.stderr
    assert "torch" not in result.stderr
    script = "import sys, bert_convolutions; print('torch' in sys.modules)"
    assert python("-c", script, "-m", "submitit.core._submit", "job").stdout == "False\n"
    script = "import os, bertconv; bertconv.main(); print('BERT_CONVOLUTIONS_LAZY' in os.environ)"
    assert python("-c", script).stdout.endswith("False\n")


def test_a_signal_while_modules_are_imported_is_reported() -> None:
    script = """
import os, signal, sys, bertconv

class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == "yaml":
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Stop())
bertconv.main()
"""
    result = python("-c", script)
    assert result.returncode == 75
    assert result.stderr == "\nbertconv: stopped by SIGTERM; run the same command again\n"


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
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            2,
            "bertconv: error: /x: Permission denied; give a path that this user may use\n",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "/x"),
            2,
            "bertconv: error: /x: Read-only file system; give a path that this user may use\n",
        ),
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


ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(ALLOCATOR),
        RuntimeError("CUDA error: out of memory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_out_of_memory_is_recognised_in_the_errors_of_libraries(
    error: Exception, failing: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(error) == 1
    message = capsys.readouterr().err
    assert "out of memory; a smaller --per_device_train_batch_size" in message
    assert "unexpected" not in message


def test_errors_of_libraries_about_memory_and_disk_say_what_to_do(
    failing: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(MemoryError()) == 1
    assert "--per_device_train_batch_size" in capsys.readouterr().err
    assert failing(RuntimeError("Error while serializing: I/O error: Read-only file system (os error 30)")) == 2
    assert "give a path that this user may use" in capsys.readouterr().err
    assert failing(RuntimeError("Error: StorageFull")) == 1
    assert "make room" in capsys.readouterr().err
    assert failing(RuntimeError("DataLoader worker (pid 5) is killed by signal: Bus error. ")) == 1
    assert "--dataloader_num_workers 0" in capsys.readouterr().err


def test_an_unexpected_error_has_a_traceback_only_on_request(
    failing: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert failing(KeyError("x")) == 1
    quiet = capsys.readouterr().err
    assert "unexpected KeyError: 'x'" in quiet
    assert "Traceback" not in quiet
    monkeypatch.setenv("BERTCONV_TRACEBACK", "1")
    assert failing(KeyError("x")) == 1
    assert "Traceback" in capsys.readouterr().err


def test_errors_of_other_ranks_begin_with_the_rank(
    failing: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    assert failing(UsageError("no")) == 2
    assert capsys.readouterr().err == "bertconv [rank 3]: error: no\n"


def test_a_closed_pipe_causes_no_traceback() -> None:
    slow_help = f"{sys.executable} -c 'import time, bertconv; time.sleep(0.3); raise SystemExit(bertconv.main())'"
    result = subprocess.run(
        ["bash", "-c", f"{slow_help} | true; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True, timeout=60
    )
    assert result.stderr == ""
    assert result.stdout == "141\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&-"])
def test_closed_streams_change_no_exit_code(closed: str, tmp_path: Path) -> None:
    """And no output is written to a file that is opened meanwhile."""
    script = "import bertconv; file = open('file', 'w'); code = bertconv.main(); file.close(); raise SystemExit(code)"
    for argv, code in (("--version", 0), ("no-such-command", 2)):
        line = f'{sys.executable} -c "{script}" {argv} {closed}; echo $? > code'
        subprocess.run(["bash", "-c", line], cwd=tmp_path, timeout=60, check=True)
        assert (tmp_path / "code").read_text() == f"{code}\n"
        assert (tmp_path / "file").read_text() == ""


def test_any_character_can_be_printed_to_an_ascii_output() -> None:
    script = "import bertconv; from bert_convolutions.cli import main; main.run = lambda argv: print('path: \u00f6')"
    result = python(
        "-c", f"{script}; raise SystemExit(bertconv.main())", PYTHONIOENCODING="ascii", BERT_CONVOLUTIONS_LAZY="1"
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "path: \\xf6\n", "")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORLD_SIZE", "abc"),
        ("WORLD_SIZE", "0"),
        ("RANK", ""),
        ("RANK", "-1"),
        ("LOCAL_RANK", "1.5"),
        ("MASTER_PORT", "x"),
    ],
)
def test_a_bad_variable_of_the_launcher_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    assert main(["pretrain", "--output_dir", "x"]) == 2
    assert f"{name}={value} in the environment is not a whole number" in capsys.readouterr().err
    assert main(["--version"]) == 0


def test_a_bad_variable_of_the_launcher_changes_no_exit_code() -> None:
    script = "import bertconv; raise SystemExit(bertconv.main())"
    assert python("-c", script, "--version", WORLD_SIZE="abc").returncode == 0
    assert python("-c", script, "pretrain", WORLD_SIZE="abc").returncode == 2


def parse_a_kernel(options: PretrainOptions) -> None:
    parse_kernel(str(options.attention_kernel))


def parse_a_value_projection(options: PretrainOptions) -> None:
    parse_projection(str(options.value_forward), "value_forward")


def fail_in_numpy(options: PretrainOptions) -> None:
    np.zeros(2).reshape(3)


@pytest.mark.parametrize(
    ("work", "argv", "beginning"),
    [
        (parse_a_kernel, ["--attention_kernel", "qk_conv 8"], 'error: --attention_kernel "qk_conv 8" has the unknown'),
        (parse_a_kernel, ["--attention_kernel", "qk x"], 'error: the reach in --attention_kernel "qk x" is "x"'),
        (parse_a_value_projection, ["--value_forward", "conv"], 'error: --value_forward "conv" is not known'),
    ],
)
def test_errors_of_the_attention_package_name_flags(
    work: Any, argv: list[str], beginning: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = COMMANDS["pretrain"].options
    command = Command("pretrain", "", options=options, work=f"{__name__}:{work.__name__}")
    monkeypatch.setitem(COMMANDS, "pretrain", command)
    assert main(["pretrain", *argv]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"bertconv: {beginning}")
    assert message.count("\n") == 1


def test_a_value_error_of_a_library_stays_unexpected(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Command("pretrain", "", options=COMMANDS["pretrain"].options, work=f"{__name__}:fail_in_numpy")
    monkeypatch.setitem(COMMANDS, "pretrain", command)
    assert main(["pretrain"]) == 1
    assert "unexpected ValueError" in capsys.readouterr().err


def test_names_of_arguments_in_messages_become_flags() -> None:
    names = ("qk", "remove_qk", "num_attention_heads", "input")
    said = {
        'the reach in num_attention_heads "x"': 'the reach in --num_attention_heads "x"',
        'qk "convolution 3" needs two numbers': '--qk "convolution 3" needs two numbers',
        "remove_qk needs num_attention_heads of 4": "--remove_qk needs --num_attention_heads of 4",
        'the term "qk" of input and --remove_qk': 'the term "qk" of input and --remove_qk',
    }
    assert {message: with_flag_names(message, names) for message in said} == said


def test_convert_overwrites_only_with_the_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Path(__file__).parents[1] / "parity" / "fixtures" / "dot_product"
    argv = ["convert", "--input", str(source), "--output_dir", str(tmp_path / "converted")]
    assert main(argv) == 0
    assert capsys.readouterr().out == f"converted checkpoint: {tmp_path / 'converted'}\n"
    (tmp_path / "converted" / "model.safetensors").write_bytes(b"old")
    assert main(argv) == 2
    assert "--overwrite_output_dir" in capsys.readouterr().err
    assert (tmp_path / "converted" / "model.safetensors").read_bytes() == b"old"
    assert main([*argv, "--overwrite_output_dir"]) == 0
    assert (tmp_path / "converted" / "model.safetensors").stat().st_size > 1000


class ExitedError(BaseException):
    """Raised in place of ending the process."""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("stage", ["while its modules are imported", "while it works", "while it works, in a library"])
def test_a_signal_ends_a_sub_command_with_a_message(
    stage: str, name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also where the import system or a library swallows the exception or raises another one."""
    number = signal.Signals[name]

    def raise_exit(code: int) -> None:
        raise ExitedError(code)

    def work(options: Any) -> None:
        try:
            os.kill(os.getpid(), number)
        except RunInterrupted as error:
            if "library" not in stage:
                raise
            raise ModuleNotFoundError("Could not import module 'TrainingArguments'") from error

    def resolve(name: str) -> Any:
        if "imported" in stage:
            os.kill(os.getpid(), number)
        return work

    monkeypatch.setattr(Command, "read", lambda *_: (None, TrainerFlags("convert", ())))
    monkeypatch.setattr(commands.pkgutil, "resolve_name", resolve)
    monkeypatch.setattr(os, "_exit", raise_exit)
    before = signal.getsignal(number)
    if "imported" in stage:
        monkeypatch.setattr(sys, "argv", ["bertconv", "convert"])
        with pytest.raises(ExitedError, match=str(EXIT_INTERRUPTED)):
            bertconv.main()
    else:
        assert main(["convert"]) == EXIT_INTERRUPTED
    assert f"stopped by {name}; run the same command again" in capfd.readouterr().err
    assert signal.getsignal(number) == before


def test_on_windows_the_command_asks_for_wsl(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bertconv.os", types.SimpleNamespace(name="nt"))
    assert bertconv.main() == 2
    assert "on Windows, run it in WSL" in capsys.readouterr().err
