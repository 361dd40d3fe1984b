"""``bertconv completion bash``: completion of sub-commands, flags and their values, from the table of sub-commands."""

import argparse
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import shtab

from bert_convolutions.cli.flags import options_parser


@dataclass
class CompletionOptions:
    """Which shell."""

    shell: Literal["bash", "zsh", "fish"] = field(
        metadata={
            "help": 'bash: eval "$(bertconv completion bash)" in ~/.bashrc; zsh likewise in ~/.zshrc, after compinit; '
            "fish: bertconv completion fish > ~/.config/fish/completions/bertconv.fish; --shell may be left out",
            "bare": True,
        }
    )


def print_completion(options: CompletionOptions) -> None:
    """Print the shell's script, which completes without starting Python.

    It is made of a parser of all sub-commands; the command itself makes that of the one it is called for.
    """
    from bert_convolutions.cli.commands import COMMANDS
    from bert_convolutions.cli.trainer_flags import trainer_parser
    from bert_convolutions.training.arguments import BertTrainingArguments

    whole = argparse.ArgumentParser("bertconv")
    sub_commands = whole.add_subparsers()
    for command in COMMANDS.values():
        parents: list[Any] = [options_parser(command.name, command.options_class)]
        if command.trainer:
            parents.append(trainer_parser(command.name, BertTrainingArguments))
        parser = sub_commands.add_parser(
            command.name, help=command.purpose, parents=parents, conflict_handler="resolve"
        )
        for option in fields(command.options_class):
            if option.metadata.get("bare"):
                values = parser._option_string_actions[f"--{option.name}"].choices
                parser.add_argument(f"bare_{option.name}", choices=values, metavar=option.name, type=Path)
        for action in parser._actions:
            if action.choices is None and action.type in (str, Path):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(whole, options.shell))
