"""One sub-command: its flags read, its help printed, its work started."""

import argparse
import importlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, cast

from bert_convolutions.cli.config_file import read_config_file
from bert_convolutions.cli.flags import (
    FlagParser,
    make_options,
    options_parser,
    refuse_left_over,
    with_underscores,
)
from bert_convolutions.cli.trainer_flags import TrainerFlags, trainer_parser

_HELP = {"-h", "--help"}
_HELP_ALL = {"--help-all", "--help_all"}


class CommandModule(Protocol):
    """What a file of this package gives to be a sub-command."""

    OPTIONS: type
    """The dataclass of its own flags."""
    TRAINER: bool
    """Whether it takes the Trainer's flags too."""

    def run(self, options: Any, trainer_flags: TrainerFlags) -> None:
        """Do the work."""


@dataclass(frozen=True)
class Command:
    """A sub-command, whose module is imported when it is run."""

    name: str
    purpose: str

    def run(self, argv: Sequence[str]) -> None:
        """Print the help asked for, or read the flags and do the work.

        Args:
            argv: the command line after the sub-command's name.

        Raises:
            UsageError: a flag, a value or a key of the configuration file is wrong.
        """
        module = cast(CommandModule, importlib.import_module(f"bert_convolutions.cli.{self.name.replace('-', '_')}"))
        if _HELP_ALL & set(argv):
            print(self._help(module, all_flags=True))
        elif _HELP & set(argv):
            print(self._help(module, all_flags=False))
        else:
            options, trainer_flags = self.read(module, argv)
            module.run(options, trainer_flags)

    def read(self, module: CommandModule, argv: Sequence[str]) -> tuple[Any, TrainerFlags]:
        """The sub-command's options, and what is left for the Trainer.

        Raises:
            UsageError: a flag, a value or a key of the configuration file is wrong.
        """
        parser = options_parser(self.name, module.OPTIONS)
        own_names = tuple(field.name for field in fields(module.OPTIONS))
        argv = with_underscores(argv)
        config_path = parser.parse_known_args(argv)[0].config
        trainer_flags = TrainerFlags(self.name, own_names)
        if config_path is not None:
            config = read_config_file(Path(config_path))
            argv = [*config.part(own_names, inside=True).argv(parser), *argv]
            trainer_flags = TrainerFlags(self.name, own_names, config=config.part(own_names, inside=False))
        parsed, left_over = parser.parse_known_args(argv)
        if not module.TRAINER:
            trainer_flags.config.refuse(own_names)
            refuse_left_over(self.name, left_over, own_names, all_flags="--help")
        options: Any = make_options(self.name, module.OPTIONS, parsed)
        return options, TrainerFlags(self.name, own_names, tuple(left_over), trainer_flags.config)

    def _help(self, module: CommandModule, *, all_flags: bool) -> str:
        parser = options_parser(self.name, module.OPTIONS)
        parser.description = self.purpose
        parser.usage = f"bertconv {self.name} [--flag value ...]"
        group = parser.add_argument_group("help")
        group.add_argument("-h", "--help", action="store_true", default=None, help="show this and leave")
        if not module.TRAINER:
            return parser.format_help()
        group.add_argument("--help-all", action="store_true", default=None, help="show the Trainer's flags too")
        if not all_flags:
            _add_common_trainer_flags(parser)
            return parser.format_help()
        from bert_convolutions.training.arguments import BertTrainingArguments

        trainer = trainer_parser(self.name, BertTrainingArguments)
        return f"{parser.format_help()}\nflags of transformers.Trainer\n{trainer.format_help()}"


def _add_common_trainer_flags(parser: FlagParser) -> None:
    from bert_convolutions.cli.trainer_help import COMMON_TRAINER_FLAGS

    group = parser.add_argument_group("flags of transformers.Trainer most in use (--help-all shows all)")
    for flag in COMMON_TRAINER_FLAGS:
        nargs = argparse.OPTIONAL if flag.kind == "true|false" else None
        group.add_argument(f"--{flag.name}", metavar=flag.kind, default=flag.default, help=flag.help, nargs=nargs)
