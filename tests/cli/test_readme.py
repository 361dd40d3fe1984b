"""Each command in the documentation can be parsed, and no link is dead."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from bert_convolutions.cli.commands import COMMANDS
from bert_convolutions.training.arguments import BertTrainingArguments

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")
SITE = tuple(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md")))
"""``test_docs`` checks the links of these."""


def code_lines() -> list[str]:
    """The lines of all blocks of commands, continuation lines joined."""
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in (*DOCUMENTS, *SITE)]
    blocks = re.findall(r"^```(?:bash|sh|text)\n(.*?)^```", "\n".join(texts), flags=re.DOTALL | re.MULTILINE)
    return "\n".join(blocks).replace("\\\n", " ").splitlines()


def commands() -> list[str]:
    """The lines that run a sub-command, from its name up to a redirection."""
    return [
        match.group(1)
        for line in code_lines()
        if (
            match := re.search(r"(?:^|\s)(?:bertconv|-m\s+bert_convolutions) ([a-z][^>]*)", line)
        )  # without redirections
        and not line.startswith("#")
    ]


@pytest.mark.parametrize("text", commands())
def test_the_command_can_be_parsed(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("output_dir: run\n")  # for --config
    name, *argv = shlex.split(text, comments=True)
    _, trainer_flags = COMMANDS[name].read(argv)
    if COMMANDS[name].trainer:
        trainer_flags.parse(BertTrainingArguments)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_link_is_dead(name: str) -> None:
    """Files exist, and so do headings of the same document."""
    text = (ROOT / name).read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(\s*([^)\s]+)\s*\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("https://"):
            assert ((ROOT / name).parent / target).exists(), target


@pytest.mark.parametrize("text", [line for line in code_lines() if "-m benchmarks." in line])
def test_the_flags_of_the_script_can_be_parsed(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *argv = shlex.split(text.partition("-m ")[2], comments=True)
    read: list[argparse.Namespace] = []

    def parse_and_stop(parser: argparse.ArgumentParser) -> None:
        read.append(parse(parser, argv))
        raise StopIteration

    parse = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    with pytest.raises(StopIteration):
        importlib.import_module(name).main()
    assert read


def test_make_targets_exist() -> None:
    named = set(
        re.findall(r"`?make ([a-z-]+)`?", (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text())
    )
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"test", "test-oldest", "lint", "types"} <= named <= targets
