"""A flag: a field of one of the dataclasses in the rooms' ``options.py``; and values as the words that give them."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any


def flag(default: Any, help: str, **metadata: Any) -> Any:
    """A field with its default, its text for ``--help`` and other metadata for ``cli``; a list is copied each time."""
    metadata = {"help": help, **metadata}
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def as_argv(values: Mapping[str, Any]) -> list[str]:
    """Values by flag as the words of a command line; None leaves the default and gives no word."""
    argv: list[str] = []
    for name, value in values.items():
        if isinstance(value, list):
            argv += [f"--{name}", *map(as_text, value)]
        elif value is not None:
            argv.append(f"--{name}={as_text(value)}")
    return argv


def as_text(value: Any) -> str:
    """A value as one would type it: ``true`` for True, the items of a list apart, JSON for a mapping."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return " ".join(map(as_text, value))
    if isinstance(value, Mapping):
        return json.dumps(value)
    return str(value)
