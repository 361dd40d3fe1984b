"""Flags, which are fields of the dataclasses in each ``options.py``, and values as command-line arguments."""

import dataclasses
import json
import os
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from bert_convolutions.errors import UsageError, brief


@dataclasses.dataclass
class Options:
    """The base of the dataclasses of flags: values from Python are converted as those of the command line are.

    So a path may be a string, and one value stands for a list of one.

    Raises:
        UsageError: a value is not of its field's type; the message names the flag.
    """

    def __post_init__(self) -> None:
        """Convert and check all fields."""
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            setattr(self, field.name, convert(field.name, hints[field.name], getattr(self, field.name)))


def convert(name: str, hint: Any, value: Any) -> Any:
    """A flag's value as one of the type ``hint``.

    Raises:
        UsageError: it is not of this type; the message names the flag.
    """
    import pydantic  # slow to import, and not needed for --help

    if typing.get_origin(hint) is list:
        several = isinstance(value, Iterable) and not isinstance(value, str)
        value = [_without_path(item) for item in (value if several else [value])]
    adapter = pydantic.TypeAdapter[Any](hint, config=pydantic.ConfigDict(coerce_numbers_to_str=True))
    try:
        return adapter.validate_python(_without_path(value))
    except pydantic.ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise UsageError(f"--{name}: {fault['msg']}, not {brief(fault['input'])}") from error


def _without_path(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def flag(default: Any, help: str, **metadata: Any) -> Any:
    """A dataclass field with its default, its text for ``--help`` and other metadata for ``cli``."""
    metadata = {"help": help, **metadata}
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def as_argv(values: Mapping[str, Any]) -> list[str]:
    """Values by flag name as command-line arguments; None is left out."""
    argv: list[str] = []
    for name, value in values.items():
        if isinstance(value, list):
            argv += [f"--{name}", *map(as_text, value)]
        elif value is not None:
            argv.append(f"--{name}={as_text(value)}")
    return argv


def as_text(value: Any) -> str:
    """A value as a user would type it: ``true`` for True, list items separated by spaces, JSON for a mapping."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return " ".join(map(as_text, value))
    if isinstance(value, Mapping):
        return json.dumps(value)
    return str(value)
