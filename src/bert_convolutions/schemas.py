"""What is read back from disk, as typed and range-checked models: configurations, manifests, states, results.

A file that comes from outside is parsed once, here; what is wrong is named with its file and place in one sentence.
Imports neither PyTorch nor transformers.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, Field, RootModel

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


# Data sets: what ``bertconv build-dataset`` leaves with its result and in its work folder.

Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class TextRecord(Stored):
    """A text file as it was when it was read: size in bytes, time of its last change in ns."""

    path: str
    size: Count
    mtime_ns: int


class BuildSettings(Stored):
    """All that decides the content of a data set."""

    tokenizer_hash: Sha256
    vocabulary_size: Annotated[int, Field(ge=1)]
    output_format: Literal["arrow", "ids"]
    seed: int
    pair_within_documents: bool
    split_sentences: str | None
    """The language to split by; None where a line is a sentence."""
    shard_size_mb: Annotated[int, Field(ge=1)]
    sources: list[TextRecord]


class ShardRecord(Stored):
    """A file of examples, beside its manifest."""

    file: Annotated[str, Field(pattern=r"^[^/]+$")]
    num_examples: Count
    num_tokens: Count
    num_bytes: Count
    sha256: Sha256


class CorpusCounts(Stored):
    """The sizes of a data set; ``bytes`` are those of its text."""

    examples: Count
    tokens: Count
    sentences: Count
    documents: Count
    bytes: Count


class DatasetManifest(Stored):
    """``manifest.json``: what a built data set is made of. It is written last: where it is, the data set is whole."""

    format: Literal["bert_convolutions sentence pairs"] = "bert_convolutions sentence pairs"
    version: Literal[1] = 1
    settings: BuildSettings
    counts: CorpusCounts
    shards: Annotated[list[ShardRecord], Field(min_length=1)]


class BlockFacts(Stored):
    """What the first stage of a build found in a block of text."""

    num_sentences: Count
    num_tokens: Count
    num_bytes: Count
    num_borders: Count
    starts_with_border: bool
    ends_with_border: bool
    since_last_border: Count


class FileFacts(RootModel[list[list[BlockFacts]]]):
    """The facts of the blocks of each text file."""
