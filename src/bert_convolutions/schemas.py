"""What is read back from disk, as typed and range-checked models: configurations, manifests, states, results.

A file that comes from outside is parsed once, here; what is wrong is named with its file and place in one sentence.
Imports neither PyTorch nor transformers.
"""

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, Field

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


# Probes: minimal pairs and local order

Share = Annotated[float, Field(ge=0, le=1)]
Interval = tuple[Share, Share]


class BlimpPair(Foreign):
    """A line of one of BLiMP's files."""

    sentence_good: Annotated[str, Field(min_length=1)]
    sentence_bad: Annotated[str, Field(min_length=1)]
    linguistics_term: str = ""
    field: str = ""


class Accuracy(Stored):
    """Share of pairs whose good sentence is the likelier one, ties counted as half, and 95 % intervals over pairs."""

    model_config = ConfigDict(strict=False)  # JSON has no tuples

    accuracy: Share
    interval: Interval
    accuracy_within_word: Share
    interval_within_word: Interval
    pairs: Annotated[int, Field(ge=1)]


class ParadigmAccuracy(Accuracy):
    """Of one paradigm; ``sha256`` is that of its pairs."""

    phenomenon: str
    field: str
    sha256: str


class ProbeResults(Stored):
    """``minimal_pairs.json`` and ``local_order.json``: by paradigm, and means over the paradigms of each group."""

    model_config = ConfigDict(strict=False)

    model: str
    model_sha256: str
    paradigms: dict[str, ParadigmAccuracy]
    phenomena: dict[str, Accuracy]
    fields: dict[str, Accuracy]
    all: Accuracy | None = None
