"""Library calls as the command lines that do the same, to show the user. Imports neither PyTorch nor transformers."""

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any


def command_line(name: str, options: Any, arguments: Mapping[str, Any] | None = None) -> str:
    """Return the ``bertconv`` command that a library call stands for.

    Args:
        name: The sub-command.
        options: Its options dataclass; values that are the defaults are left out.
        arguments: What is given to the Trainer.
    """
    given = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if getattr(options, field.name) != _default(field)
    }
    words = ["bertconv", name]
    for flag, value in {**given, **(arguments or {})}.items():
        words.append(f"--{flag}")
        if isinstance(value, list):
            words += map(str, value)
        elif value is not True:
            words.append("false" if value is False else str(value))
    return shlex.join(words)


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
