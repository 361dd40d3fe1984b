"""What is read back from disk, as typed and range-checked models: configurations, manifests, states, results.

A file that comes from outside is parsed once, here; what is wrong is named with its file and place in one sentence.
Imports neither PyTorch nor transformers.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict

from bert_convolutions.errors import UsageError, brief

ModelT = TypeVar("ModelT", bound=BaseModel)


class Stored(BaseModel):
    """Base of what this program writes itself: no other keys, no conversion of types, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Foreign(BaseModel):
    """Base of what others write: keys we don't know are left alone."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, frozen=True)


def read_json(path: Path) -> Any:
    """The JSON value in a file.

    Raises:
        UsageError: it can't be read, is not text, or no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid JSON ({error})") from error


def parse(model: type[ModelT], value: Any, source: str | Path) -> ModelT:
    """A value read from outside as ``model``.

    Args:
        model: what it should be.
        value: what JSON or YAML gave.
        source: the file, for the message.

    Raises:
        UsageError: names the file, the place in it, and what is expected there.
    """
    try:
        return model.model_validate(value)
    except pydantic.ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in fault["loc"])
        found = "" if fault["type"] == "missing" else f", not {brief(fault['input'])}"
        raise UsageError(f"{source}: {place + ': ' if place else ''}{fault['msg']}{found}") from error


def read_model(model: type[ModelT], path: Path) -> ModelT:
    """``parse`` of a JSON file.

    Raises:
        UsageError: as ``read_json`` and ``parse``.
    """
    return parse(model, read_json(path), path)
