"""What is read back from disk, as typed and range-checked models: configurations, manifests, states, results.

A file that comes from outside is parsed once, here; what is wrong is named with its file and place in one sentence.
Imports neither PyTorch nor transformers.
"""

import json
import reprlib
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, RootModel

from bert_convolutions.errors import UsageError

ModelT = TypeVar("ModelT", bound=BaseModel)


class Stored(BaseModel):
    """Base of what this program writes itself: no other keys, no conversion of types, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Foreign(BaseModel):
    """Base of what others write: keys we don't know are left alone."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, frozen=True)


def read_text(path: Path) -> str:
    """The text in a file.

    Raises:
        UsageError: it can't be read, is no plain file, or not text in UTF-8.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} can't be read: it is no plain file")  # reading a FIFO would wait for ever
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text in UTF-8 (byte {error.start})") from error


def read_yaml(path: Path) -> Any:
    """The YAML value in a file.

    Raises:
        UsageError: as ``read_text``, or it is not YAML.
    """
    try:
        return yaml.safe_load(read_text(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


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
        found = "" if fault["type"] == "missing" else f", not {_brief(fault['input'])}"
        raise UsageError(f"{source}: {place + ': ' if place else ''}{fault['msg']}{found}") from error


def read_model(model: type[ModelT], path: Path) -> ModelT:
    """``parse`` of a JSON file.

    Raises:
        UsageError: as ``read_json`` and ``parse``.
    """
    return parse(model, read_json(path), path)


def _brief(value: Any) -> str:
    text = reprlib.repr(value)  # bounded also where YAML's anchors have made a small file into a huge value
    return text if len(text) <= 60 else f"{text[:57]}..."


# What bertconv glue reads


def _number_as_text(value: Any) -> Any:
    """``3e-4`` and the like, which YAML reads as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


class Hyperparameters(Stored):
    """How one GLUE task is fine-tuned.

    Attributes:
        learning_rate: peak of the schedule.
        batch_size: examples of one optimizer step over all devices.
        steps: optimizer steps.
    """

    learning_rate: Annotated[float, BeforeValidator(_number_as_text), Field(gt=0)]
    batch_size: Annotated[int, Field(gt=0, lt=2**31)]
    steps: Annotated[int, Field(gt=0, lt=2**31)]


class TaskState(Stored):
    """What has been done in the folder of one GLUE task and round: ``glue_state.json``.

    Attributes:
        task: its name.
        settings: what the result depends on: flags, and hashes of the data, the tokenizer and the model's weights.
        trained: whether training ended and the model was saved.
        saved: files of the model and the tokenizer, below the folder, to their SHA-256.
        dev: dev set to its scores, once evaluated.
        predicted: test set to the number of its rows, once written.
    """

    task: str
    settings: dict[str, JsonValue]
    trained: bool = False
    saved: dict[str, str] = {}
    dev: dict[str, dict[str, float]] = {}
    predicted: dict[str, Annotated[int, Field(gt=0)]] = {}


class Share(RootModel[Annotated[float, Field(ge=0, le=1)]]):
    """An accuracy, or the mean of accuracy and F1."""

    model_config = ConfigDict(allow_inf_nan=False)


class Correlation(RootModel[Annotated[float, Field(ge=-1, le=1)]]):
    """A correlation coefficient."""

    model_config = ConfigDict(allow_inf_nan=False)
