"""The flags that a sub-command passes on to ``transformers.Trainer``, which is imported when they are read."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bert_convolutions.cli.config_file import ConfigFile
from bert_convolutions.cli.flags import FlagParser, refuse_left_over
from bert_convolutions.errors import UsageError

if TYPE_CHECKING:
    from transformers import TrainingArguments

ArgumentsT = TypeVar("ArgumentsT", bound="TrainingArguments")


@dataclasses.dataclass(frozen=True)
class TrainerFlags:
    """What a sub-command was given beyond its own flags, not yet understood."""

    command: str
    """Name of the sub-command, for messages."""
    own_names: tuple[str, ...]
    """Names of the sub-command's own flags, which a misspelt flag may have meant."""
    argv: tuple[str, ...] = ()
    """The strings that the sub-command's own flags left over."""
    config: ConfigFile = dataclasses.field(default_factory=lambda: ConfigFile(Path(), {}, {}))
    """The keys of the configuration file that are none of the sub-command's own."""

    def parse(self, arguments_class: type[ArgumentsT]) -> ArgumentsT:
        """The Trainer's arguments.

        Args:
            arguments_class: ``TrainingArguments`` or a class derived from it; its defaults are the flags' defaults.

        Raises:
            UsageError: an unknown flag or key, a value of the wrong type, no ``--output_dir``, or a combination that
                the Trainer's arguments refuse.
        """
        parser = trainer_parser(self.command, arguments_class)
        names = [field.name for field in dataclasses.fields(arguments_class) if field.init]
        valid_names = [*self.own_names, *names]
        self.config.part(names, inside=False).refuse(valid_names)
        argv = [*self.config.argv(parser, mappings=True), *self.argv]
        parsed, left_over = parser.parse_known_args(argv)
        refuse_left_over(self.command, left_over, valid_names, all_flags="--help-all")
        if parsed.output_dir is None:
            raise UsageError(f"--output_dir is required (see bertconv {self.command} --help)")
        try:
            return arguments_class(**{name: getattr(parsed, name) for name in names})
        except (ValueError, ImportError) as error:
            raise UsageError(" ".join(str(error).split())) from error


def trainer_parser(command: str, arguments_class: "type[TrainingArguments]") -> FlagParser:
    """A parser of the flags of ``arguments_class``, made by the Trainer's own ``HfArgumentParser``."""
    from transformers import HfArgumentParser

    class TrainerParser(FlagParser, HfArgumentParser):
        """The Trainer's parser, strict and with our help format."""

    return TrainerParser(command, dataclass_types=arguments_class)
