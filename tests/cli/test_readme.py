"""Each ``bertconv`` command in the README is understood, flag by flag."""

import re
import shlex
from pathlib import Path

import pytest

from bert_convolutions.cli.commands import COMMANDS
from bert_convolutions.training.arguments import BertTrainingArguments

README = Path(__file__).parents[2] / "README.md"


def commands() -> list[str]:
    """The lines of the README's bash blocks that run a sub-command, continuation lines joined, comments left out."""
    blocks = re.findall(
        r"^```(?:bash|sh)\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [match.group(1) for line in lines if (match := re.search(r"(?:^|\s)bertconv ([a-z].*)", line))]


@pytest.mark.parametrize("text", commands())
def test_the_command_is_understood(text: str) -> None:
    name, *argv = shlex.split(text, comments=True)
    _, trainer_flags = COMMANDS[name].read(argv)
    if COMMANDS[name].trainer:
        trainer_flags.parse(BertTrainingArguments)
