"""Converts the fields of an options dataclass to command-line flags, and parsed flags to the dataclass.

A field gives the flag's name, default and help (``metadata["help"]``). The parser knows only the sub-command's own
flags: other arguments are left to the Trainer (``trainer_flags.py``) or refused.
"""

import argparse
import dataclasses
import difflib
import os
import re
import shutil
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union

from bert_convolutions.errors import UsageError
from bert_convolutions.flags import as_text

OptionsT = TypeVar("OptionsT")

CONFIG_FLAG = "--config"
_TRUE, _FALSE = {"true", "yes", "on", "t", "y", "1"}, {"false", "no", "off", "f", "n", "0"}


class HelpFormatter(argparse.HelpFormatter):
    """One line per flag if it fits: its name, kind of value, help and default."""

    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size((100, 24)).columns, 120) - 2
        super().__init__(prog, max_help_position=38, width=width)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        name = action.option_strings[0] if action.option_strings[0] != "-h" else "-h, --help"
        if action.nargs == 0:
            return name
        return f"{name} {self._format_args(action, self._get_default_metavar_for_optional(action))}"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return "VALUE" if action.choices is None else "{" + ",".join(str(choice) for choice in action.choices) + "}"

    def _get_help_string(self, action: argparse.Action) -> str:
        text = (action.help or "").strip()
        if action.default in (None, argparse.SUPPRESS) or action.default == []:
            return text
        return f"{text} (default: {as_text(action.default).replace('%', '%%')})"


class FlagParser(argparse.ArgumentParser):
    """An argparse parser that raises ``UsageError`` instead of printing its usage and exiting."""

    def __init__(self, command: str, **kwargs: Any) -> None:
        super().__init__(
            prog=f"bertconv {command}",
            usage=argparse.SUPPRESS,
            formatter_class=HelpFormatter,
            add_help=False,
            allow_abbrev=False,
            **kwargs,
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Expand ``~/`` where no shell does: in ``--flag=~/runs`` and in a configuration file."""
        return super().parse_known_args([_expand_home(word) for word in args], namespace)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and exiting."""
        message = re.sub(r"^argument (--\w+)[^:]*", r"\1", message)  # one of a flag's names is enough
        raise UsageError(f"{message} (see {self.prog} --help)")


def options_parser(command: str, options_class: type) -> FlagParser:
    """A parser for the fields of ``options_class`` and ``--config``.

    A field's type is ``str``, ``int``, ``float``, ``bool``, ``Path``, ``Literal[...]``, a list of one of those, or ``X
    | None``; its metadata may have ``help`` and ``metavar``. ``make_options`` checks required flags, since they may
    come from a configuration file.
    """
    parser = FlagParser(command)
    group = parser.add_argument_group("flags")
    hints = typing.get_type_hints(options_class)
    for field in dataclasses.fields(options_class):
        group.add_argument(f"--{field.name}", dest=field.name, **_argument(field, hints[field.name]))
    group.add_argument(
        CONFIG_FLAG, metavar="FILE", help="YAML file with the flags as keys; flags on the command line take precedence"
    )
    return parser


def make_options(command: str, options_class: type[OptionsT], parsed: argparse.Namespace) -> OptionsT:
    """The dataclass with the parsed values.

    Raises:
        UsageError: a required flag is missing, or the dataclass raises a ``ValueError`` for a value.
    """
    names = [field.name for field in dataclasses.fields(options_class)]  # type: ignore[arg-type]
    missing = [name for name in names if not hasattr(parsed, name)]
    if missing:
        flags = " and ".join(f"--{name}" for name in missing)
        raise UsageError(f"{flags} {'is' if len(missing) == 1 else 'are'} required (see bertconv {command} --help)")
    try:
        return options_class(**{name: getattr(parsed, name) for name in names})
    except ValueError as error:
        raise UsageError(str(error)) from error


def with_underscores(argv: Iterable[str]) -> list[str]:
    """Replace dashes by underscores in the names of flags, not in their values."""
    return [re.sub("^--[^=]+", lambda name: "--" + name[0][2:].replace("-", "_"), string) for string in argv]


def refuse_left_over(command: str, left_over: Sequence[str], valid_names: Iterable[str], *, all_flags: str) -> None:
    """Raise for the first argument that no flag has consumed, if any.

    ``valid_names`` are the names of all flags of the sub-command; ``all_flags`` is the flag that lists them.

    Raises:
        UsageError: names the unknown flag and the closest valid one.
    """
    if not left_over:
        return
    flags = [string for string in left_over if string.startswith("-")]
    if not flags:
        raise UsageError(f"unexpected value {left_over[0]!r} (see bertconv {command} --help)")
    flag = flags[0].partition("=")[0]
    hint = nearest(flag.lstrip("-"), valid_names)
    suggestion = f", did you mean --{hint}?" if hint else ""
    raise UsageError(f"unknown flag {flag}{suggestion} (bertconv {command} {all_flags} lists all)")


def nearest(name: str, valid_names: Iterable[str]) -> str | None:
    """The valid name closest to ``name``, or None if none is similar."""
    matches = difflib.get_close_matches(name, list(valid_names), n=1, cutoff=0.5)
    return matches[0] if matches else None


def _expand_home(word: str) -> str:
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{flag}{equals}{os.path.expanduser(value)}"  # noqa: PTH111 - it may not be a path


def _boolean(text: str) -> bool:
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise argparse.ArgumentTypeError(f"takes true or false, not {text!r}")


def _number(kind: type, what: str) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"takes {what}, not {text!r}") from None

    return convert


_CONVERTERS: dict[type, tuple[Any, str]] = {
    int: (_number(int, "a whole number"), "INT"),
    float: (_number(float, "a number"), "FLOAT"),
    str: (str, "TEXT"),
    Path: (Path, "PATH"),
}


def _argument(field: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    """The arguments of ``add_argument`` for a field of type ``hint``."""
    if typing.get_origin(hint) in (Union, types.UnionType):  # X | None
        (hint,) = (argument for argument in typing.get_args(hint) if argument is not type(None))
    many = typing.get_origin(hint) is list
    if many:
        (hint,) = typing.get_args(hint)
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    required = default is dataclasses.MISSING
    argument: dict[str, Any] = {
        "default": argparse.SUPPRESS if required else default,
        "help": field.metadata.get("help", "").replace("%", "%%") + (" (required)" if required else ""),
    }
    if hint is bool:
        argument |= {"nargs": "?", "const": True, "type": _boolean, "metavar": "true|false"}
    elif typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        argument |= {"choices": choices, "type": _CONVERTERS[type(choices[0])][0]}
    else:
        convert, metavar = _CONVERTERS[hint]
        argument |= {"type": convert, "metavar": field.metadata.get("metavar", metavar)}
    if many:
        argument["nargs"] = "+"
    return argument
