"""What is read back from disk, as typed and range-checked models: configurations, manifests, states, results.

A file that comes from outside is read once, by ``parsing``, as one of these.
Imports neither PyTorch nor transformers.
"""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, RootModel

Size = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Stored(BaseModel):
    """Base of what this program writes itself: no other keys, no conversion of types, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Foreign(BaseModel):
    """Base of what others write: keys we don't know are left alone."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, frozen=True)


class UserFile(BaseModel):
    """Base of what a user writes as YAML: no other keys, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


# Models: config.json


class EncoderConfig(Foreign):
    """The fields of a model's ``config.json`` that say what it is made of; also of one written by the paper's code."""

    model_config = ConfigDict(strict=True)

    vocab_size: Size = 30522
    hidden_size: Size = 768
    embedding_size: Size = 128
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 12
    attention_head_size: Annotated[int, Field(ge=-1)] = -1
    intermediate_size: Size = 3072
    max_position_embeddings: Size = 512
    type_vocab_size: Size = 2
    pad_token_id: Count | None = 0
    hidden_act: str = "gelu"
    hidden_dropout_prob: Probability = 0.1
    attention_probs_dropout_prob: Probability = 0.1
    classifier_dropout: Probability | None = None
    initializer_range: Annotated[float, Field(ge=0)] = 0.02
    layer_norm_eps: Annotated[float, Field(gt=0)] = 1e-12
    attention_kernel: str = "dot_product"
    value_forward: str = "feedforward"
    qk: str = "linear"
    remove_qk: bool = False
    remove_position_embeddings: bool = False
    sparse_prediction: bool = False
    position_embedding_type: Literal["absolute", None] = None
    is_decoder: Literal[False] = False
    add_cross_attention: Literal[False] = False


class OriginalsConfig(EncoderConfig):
    """``config.json`` of a checkpoint of the paper's code."""

    architectures: Annotated[list[str], Field(min_length=1, max_length=1)]


# Data sets: what ``bertconv build-dataset`` leaves with its result and in its work folder
class TextRecord(Stored):
    """A text file as it was when it was read: size in bytes, time of its last change in ns."""

    path: str
    size: Count
    mtime_ns: int


class DatasetRecord(Stored):
    """A data set that ``datasets`` reads, at a revision if it is on the hub."""

    path: str
    config: str | None
    split: str
    text_column: str
    revision: str | None


class BuildSettings(Stored):
    """All that decides the content of a data set."""

    tokenizer_hash: Sha256
    vocabulary_size: Size
    output_format: Literal["arrow", "ids"]
    seed: int
    pair_within_documents: bool
    split_sentences: str | None
    """The language to split by; None where a line is a sentence."""
    shard_size_mb: Size
    sources: list[TextRecord]
    """The files of the text; of a data set those that are here."""
    dataset: DatasetRecord | None = None


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
    inner_borders: Count
    """Blank lines (one for several together) between its own sentences."""
    last_document: Count
    """Sentences after the last of these."""
    starts_with_border: bool
    ends_with_border: bool


FileFacts = RootModel[list[list[BlockFacts]]]
"""The facts of the blocks of each text file."""


class DemoSettings(Stored):
    """What a demonstration was started with."""

    seed: int
    quick: bool


# Training: checkpoints and results


class StoredFile(Stored):
    """A file of a checkpoint as its manifest describes it."""

    size: Count
    sha256: Sha256


class CheckpointManifest(Stored):
    """``manifest.json`` of a checkpoint: what a resumed run must agree with, and every other file."""

    format: Literal[1]
    run: dict[str, Any]
    files: dict[str, StoredFile]


class StoredTrainerState(Foreign):
    """``trainer_state.json``, by ``transformers``: those of its values that a resumed run goes by."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=True)

    global_step: Count
    max_steps: int
    epoch: float | None
    num_input_tokens_seen: Count
    total_flos: float
    log_history: list[dict[str, Any]]
    best_metric: float | None
    best_global_step: int | None
    best_model_checkpoint: str | None
    stateful_callbacks: dict[str, Any]


class TrainResults(Foreign):
    """``train_results.json``: the step that the model beside it is of, and what a resumed run must agree with."""

    steps: int = Field(ge=0, strict=True)
    run: dict[str, Any]


# Probes: minimal pairs and local order

Interval = Annotated[tuple[Share, Share], Field(strict=False)]  # JSON has no tuples


class BlimpPair(Foreign):
    """A line of one of BLiMP's files."""

    sentence_good: Annotated[str, Field(min_length=1)]
    sentence_bad: Annotated[str, Field(min_length=1)]
    linguistics_term: str = ""
    field: str = ""


class Accuracy(Stored):
    """Share of pairs whose good sentence is the likelier one, ties counted as half, and 95 % intervals over pairs."""

    accuracy: Share
    interval: Interval
    accuracy_within_word: Share
    interval_within_word: Interval
    pairs: Size


class ParadigmAccuracy(Accuracy):
    """Of one paradigm; ``sha256`` is that of its pairs."""

    phenomenon: str
    field: str
    sha256: str


class ProbeResults(Stored):
    """``minimal_pairs.json`` and ``local_order.json``: by paradigm, and means over the paradigms of each group."""

    model: str
    model_sha256: str
    tokenizer_sha256: str | None = None
    paradigms: dict[str, ParadigmAccuracy]
    phenomena: dict[str, Accuracy]
    fields: dict[str, Accuracy]
    all: Accuracy | None = None


# Experiments

Flags = dict[str, bool | int | float | str | list[bool | int | float | str] | None]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""Of a variant or an evaluation: it becomes the name of a folder."""


class Evaluations(UserFile):
    """What a pre-trained model of an experiment is asked, beside its loss: flags of the commands that ask it."""

    minimal_pairs: dict[Name, Flags] = {}
    local_order: Flags | None = None
    glue: Flags | None = None


class Experiment(UserFile):
    """An experiment file: flags of ``bertconv pretrain`` for all variants, and those by which the variants differ."""

    question: str = ""
    base: Flags
    variants: Annotated[dict[Name, Flags], Field(min_length=1)]
    baseline: str | None = None
    seeds: Annotated[list[Count], Field(min_length=1)]
    evaluate: Evaluations = Evaluations()


class CellRecord(Stored):
    """How a cell of a sweep was run last: the command's words after ``bertconv``, its exit code, and where.

    ``seconds`` are those of all its sessions; ``environment`` holds versions, commit and machine of the last; ``model``
    is the training that made the model it judges, see ``Cell.judged``.
    """

    command: list[str]
    seconds: Annotated[float, Field(ge=0)]
    exit_code: int
    environment: dict[str, str] = {}
    model: str | None = None


# GLUE: hyper-parameters, states, scores


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
    predicted: dict[str, Size] = {}


AccuracyScore = RootModel[Share]
"""An accuracy, or the mean of accuracy and F1, as a file of results has it."""
CorrelationScore = RootModel[Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]]
"""A correlation coefficient, as a file of results has it."""
