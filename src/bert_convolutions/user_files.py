"""What a user writes as YAML, as typed and range-checked models: experiments, hyper-parameters, tasks of one's own.

Such a file is read once, by ``parsing``, as one of these. Imports neither PyTorch nor transformers.
"""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from bert_convolutions.schemas import Count, Stored


class UserFile(BaseModel):
    """Base of what a user writes as YAML: no other keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# Experiments

FlagValue = bool | int | float | str | list[bool | int | float | str] | None
Flags = dict[str, FlagValue]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""Of a variant or an evaluation: it becomes the name of a folder."""


class Evaluations(UserFile):
    """What a pre-trained model of an experiment is asked, beside its loss: flags of the commands that ask it."""

    minimal_pairs: dict[Name, Flags] = {}
    local_order: Flags | None = None
    glue: Flags | None = None


class Experiment(UserFile):
    """An experiment file: flags of ``bertconv pretrain`` for all variants, and those by which the variants differ."""

    model_config = ConfigDict(allow_inf_nan=False)

    question: str = ""
    base: Flags
    variants: Annotated[dict[Name, Flags], Field(min_length=1)]
    baseline: str | None = None
    seeds: Annotated[list[Count], Field(min_length=1)]
    evaluate: Evaluations = Evaluations()


# GLUE


def _text_as_number(value: Any) -> Any:
    """A number for ``3e-4`` and the like, which YAML reads as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


class Hyperparameters(Stored):
    """How one GLUE task is fine-tuned: peak of the schedule, examples of one optimizer step over all devices, steps."""

    learning_rate: Annotated[float, BeforeValidator(_text_as_number), Field(gt=0)]
    batch_size: Annotated[int, Field(gt=0, lt=2**31)]
    steps: Annotated[int, Field(gt=0, lt=2**31)]


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


Column = Annotated[str, Field(strict=True, min_length=1)] | Annotated[int, Field(strict=True, ge=-1)]
"""A column's name; in CoNLL's files, which have none, its number from 0, or -1 for the last."""
Joined = Annotated[list[Column], BeforeValidator(_listed), Field(min_length=1)]


def _word(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"YAML takes yes, no, on and off for truth values, here {value}; put it in quotes")
    return str(value) if isinstance(value, int) else value


LabelWord = Annotated[str, BeforeValidator(_word), Field(strict=True, min_length=1)]


class TaskFiles(UserFile):
    """Paths below the folder of the YAML file."""

    train: Annotated[str, Field(min_length=1)]
    dev: Annotated[str, Field(min_length=1)]
    test: str | None = None


class TaskColumns(UserFile):
    """Where one or two texts (of one column each, or of several joined by a space) or the words are, and the label."""

    text: Annotated[list[Joined], BeforeValidator(_listed), Field(max_length=2)] = []
    tokens: Column | None = None
    label: Column


class TaskFile(UserFile):
    """The YAML file of a task: classes, numbers (where there are no ``labels``) or a class for each word."""

    name: Name | None = None
    files: TaskFiles
    columns: TaskColumns
    labels: list[LabelWord] = []
    metric: Literal["accuracy", "accuracy_and_f1", "accuracy_and_macro_f1", "matthews", "correlation", "entity_f1"]

    @pydantic.model_validator(mode="after")
    def _fits(self) -> "TaskFile":
        faults = {
            "columns: give text or tokens": bool(self.columns.text) == (self.columns.tokens is not None),
            "labels: a word comes twice": len(set(self.labels)) != len(self.labels),
            "labels: give two at least, or none for numbers": len(self.labels) == 1,
            "labels: words have labels": self.columns.tokens is not None and not self.labels,
            "metric: correlation is for numbers, so without labels, and numbers have no other": (
                (self.metric == "correlation") != (not self.labels)
            ),
            "metric: entity_f1 is for tokens": self.metric == "entity_f1" and self.columns.tokens is None,
            "metric: accuracy_and_f1 is for two labels; take accuracy_and_macro_f1": (
                self.metric == "accuracy_and_f1" and len(self.labels) != 2
            ),
        }
        for fault, holds in faults.items():
            if holds:
                raise ValueError(fault)
        return self
