"""A flag: a field of one of the dataclasses in the rooms' ``options.py``."""

import dataclasses
from typing import Any


def flag(default: Any, help: str, **metadata: Any) -> Any:
    """A field with a default and a help text.

    Args:
        default: of the flag; a list is copied for each instance.
        help: what ``--help`` says of it.
        metadata: what else ``cli`` is to know.
    """
    metadata = {"help": help, **metadata}
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
