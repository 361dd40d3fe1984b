"""Flags, which are fields of the dataclasses in each ``options.py``, and values as command-line arguments."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any


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
