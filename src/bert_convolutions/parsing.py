"""Reads text, JSON and YAML from outside, and validates them with the models of ``schemas``.

Errors name the file and the location in one sentence. Imports neither PyTorch nor transformers.
"""

import json
import re
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from bert_convolutions.errors import UsageError, brief
from bert_convolutions.files import read_small

ModelT = TypeVar("ModelT", bound=pydantic.BaseModel)


class YamlLoader(yaml.SafeLoader):
    """Reads as in YAML 1.2 what the library reads as in 1.1: ``no``, ``on``, ``010``, ``1:30`` and dates are text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - of the library
        first: [(tag, form) for tag, form in forms if tag.rpartition(":")[2] not in ("bool", "int", "timestamp")]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


YamlLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("(true|True|TRUE|false|False|FALSE)$"), [*"tTfF"])
YamlLoader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile("-?(0|[1-9][0-9]*)$"), [*"-0123456789"])


def read_text(path: Path) -> str:
    """The text in a file.

    Raises:
        UsageError: it can't be read, is not a regular file, or not UTF-8 text.
    """
    try:
        return _read(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start})") from error


def read_json(path: Path) -> Any:
    """The JSON value in a file.

    Raises:
        UsageError: it can't be read, is not a regular file, or not JSON.
    """
    content = _read(path)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid JSON ({error})") from error


def _read(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} can't be read: it is not a regular file")  # reading a pipe could block
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error


def read_yaml(path: Path, where: str) -> Any:
    """The value in a small YAML file or pipe; messages call it ``where`` (flag and file).

    Raises:
        UsageError: it can't be read or is not YAML.
    """
    try:
        return yaml.load(read_small(path), YamlLoader)
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"{where} can't be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: the value of a !!tag
        raise UsageError(f"{where} is not YAML: {' '.join(str(error).split())}") from error


def parse(model: type[ModelT], value: Any, source: str | Path) -> ModelT:
    """Validate a JSON or YAML ``value`` as ``model``.

    Raises:
        UsageError: names ``source`` (the file), the location in it, and what is expected there.
    """
    try:
        return model.model_validate(value)
    except pydantic.ValidationError as error:
        raise UsageError(f"{source}: {describe(error)}") from error


def describe(error: pydantic.ValidationError) -> str:
    """The first error in one line: its location, what is expected there, what was found."""
    fault = error.errors(include_url=False)[0]
    location = ".".join(str(part) for part in fault["loc"])
    found = "" if fault["type"] in ("missing", "value_error") else f", not {brief(fault['input'])}"
    return f"{location + ': ' if location else ''}{fault['msg'].removeprefix('Value error, ')}{found}"


def read_model(model: type[ModelT], path: Path) -> ModelT:
    """``parse`` a JSON file.

    Raises:
        UsageError: like ``read_json`` and ``parse``.
    """
    return parse(model, read_json(path), path)
