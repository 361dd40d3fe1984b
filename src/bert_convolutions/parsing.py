"""Reading what comes from outside: text, JSON and YAML, and values of ``schemas``' models.

What is wrong is named with its file and place in one sentence. Imports neither PyTorch nor transformers.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from bert_convolutions.errors import UsageError, brief
from bert_convolutions.files import read_small

ModelT = TypeVar("ModelT", bound=pydantic.BaseModel)


def read_text(path: Path) -> str:
    """The text in a file.

    Raises:
        UsageError: it can't be read, is no plain file, or not text in UTF-8.
    """
    try:
        return _read(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text in UTF-8 (byte {error.start})") from error


def read_json(path: Path) -> Any:
    """The JSON value in a file.

    Raises:
        UsageError: it can't be read, is no plain file, or no JSON.
    """
    content = _read(path)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid JSON ({error})") from error


def _read(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} can't be read: it is no plain file")  # reading a pipe could wait for ever
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error


def read_yaml(path: Path, where: str) -> Any:
    """The value in a small YAML file, or what comes through a pipe; a message names it ``where``, flag and file.

    Raises:
        UsageError: it can't be read, or is no YAML.
    """
    try:
        return yaml.safe_load(read_small(path))
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"{where} can't be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        raise UsageError(f"{where} is not YAML: {' '.join(str(error).split())}") from error


def parse(model: type[ModelT], value: Any, source: str | Path) -> ModelT:
    """The ``value`` that JSON or YAML gave, as ``model``.

    Raises:
        UsageError: names ``source`` (the file), the place in it, and what is expected there.
    """
    try:
        return model.model_validate(value)
    except pydantic.ValidationError as error:
        raise UsageError(f"{source}: {describe(error)}") from error


def describe(error: pydantic.ValidationError) -> str:
    """The first fault in one line: its place, what is expected there, what was found."""
    fault = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in fault["loc"])
    found = "" if fault["type"] in ("missing", "value_error") else f", not {brief(fault['input'])}"
    return f"{place + ': ' if place else ''}{fault['msg'].removeprefix('Value error, ')}{found}"


def read_model(model: type[ModelT], path: Path) -> ModelT:
    """``parse`` of a JSON file.

    Raises:
        UsageError: as ``read_json`` and ``parse``.
    """
    return parse(model, read_json(path), path)
