"""What is read back from disk, as typed and range-checked models: configurations, manifests, states, results.

A file that comes from outside is parsed once, here; what is wrong is named with its file and place in one sentence.
Imports neither PyTorch nor transformers.
"""

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

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

# Training: checkpoints and results


class StoredFile(Stored):
    """A file of a checkpoint as its manifest describes it."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class CheckpointManifest(Stored):
    """``manifest.json`` of a checkpoint: what a resumed run must agree with, and every other file."""

    format: Literal[1]
    run: dict[str, Any]
    files: dict[str, StoredFile]


class StoredTrainerState(Foreign):
    """``trainer_state.json``, by ``transformers``: those of its values that a resumed run goes by."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=True, frozen=True)

    global_step: int = Field(ge=0)
    max_steps: int
    epoch: float | None
    num_input_tokens_seen: int = Field(ge=0)
    total_flos: float
    log_history: list[dict[str, Any]]
    best_metric: float | None
    best_global_step: int | None
    best_model_checkpoint: str | None
    stateful_callbacks: dict[str, Any]


class TrainResults(Foreign):
    """``train_results.json``: the step that the model beside it is of, and what a resumed run must agree with."""

    steps: int = Field(ge=0, strict=True)
    run: dict[str, Any] = {}
