"""Typed and range-checked models of the files that are read: configurations, manifests, states, results.

``parsing`` validates each file from outside once with one of these. Imports neither PyTorch nor transformers.
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
    """Base of files that this program writes: no unknown keys, no type conversion, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Foreign(BaseModel):
    """Base of files that other programs write: unknown keys are ignored."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, frozen=True)


class UserFile(BaseModel):
    """Base of a user's YAML files: no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


# Models: config.json


class EncoderConfig(Foreign):
    """The architecture fields of ``config.json``, ours or one written by the paper's code."""

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


# Datasets: files that ``bertconv build-dataset`` writes with its result and in its work folder
class TextRecord(Stored):
    """A text file when it was read: size in bytes, time of the last modification in ns."""

    path: str
    size: Count
    mtime_ns: int


class DatasetRecord(Stored):
    """A dataset that ``datasets`` reads, with its revision if it is on the Hub."""

    path: str
    config: str | None
    split: str
    text_column: str
    revision: str | None


class BuildSettings(Stored):
    """All settings that determine the content of a dataset."""

    tokenizer_hash: Sha256
    vocabulary_size: Size
    output_format: Literal["arrow", "ids"]
    seed: int
    pair_within_documents: bool
    split_sentences: str | None
    """Language for splitting lines into sentences; None if each line is a sentence."""
    shard_size_mb: Size
    sources: list[TextRecord]
    """The text files, or the local files of a dataset."""
    dataset: DatasetRecord | None = None


class ShardRecord(Stored):
    """A file of examples in the folder of its manifest."""

    file: Annotated[str, Field(pattern=r"^[^/]+$")]
    num_examples: Count
    num_tokens: Count
    num_bytes: Count
    sha256: Sha256


class CorpusCounts(Stored):
    """The sizes of a dataset; ``bytes`` is the size of its text."""

    examples: Count
    tokens: Count
    sentences: Count
    documents: Count
    bytes: Count


class DatasetManifest(Stored):
    """``manifest.json`` of a built dataset. It is written last, so a dataset that has one is complete."""

    format: Literal["bert_convolutions sentence pairs"] = "bert_convolutions sentence pairs"
    version: Literal[1] = 1
    settings: BuildSettings
    counts: CorpusCounts
    shards: Annotated[list[ShardRecord], Field(min_length=1)]


class BlockFacts(Stored):
    """Facts about a block of text from the first stage of a build."""

    num_sentences: Count
    num_tokens: Count
    num_bytes: Count
    inner_borders: Count
    """Number of groups of blank lines between its sentences."""
    last_document: Count
    """Number of sentences after the last of these."""
    starts_with_border: bool
    ends_with_border: bool


AddedTokens = RootModel[dict[str, Count]]
"""``added_tokens.json`` of a tokenizer: the ids of the tokens after its vocabulary."""
FileFacts = RootModel[list[list[BlockFacts]]]
"""The facts of the blocks of each text file."""


class DemoSettings(Stored):
    """The settings with which a demo was started."""

    seed: int
    quick: bool


# Training: checkpoints and results


class StoredFile(Stored):
    """A file of a checkpoint as its manifest describes it."""

    size: Count
    sha256: Sha256


class CheckpointManifest(Stored):
    """``manifest.json`` of a checkpoint: the facts that a resumed run must agree with, and all other files."""

    format: Literal[1]
    run: dict[str, Any]
    files: dict[str, StoredFile]


class StoredTrainerState(Foreign):
    """The entries of ``trainer_state.json``, written by ``transformers``, that a resumed run needs."""

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
    """``train_results.json``: the step of the model beside it, and the facts that a resumed run must agree with.

    Attributes:
        model_name_or_path: the model whose weights the run started from, if any.
    """

    steps: int = Field(ge=0, strict=True)
    run: dict[str, Any]
    model_name_or_path: str | None = None


# Probes: minimal pairs and local order

Interval = Annotated[tuple[Share, Share], Field(strict=False)]  # JSON has no tuples


class BlimpPair(Foreign):
    """A line of one of BLiMP's files."""

    sentence_good: Annotated[str, Field(min_length=1)]
    sentence_bad: Annotated[str, Field(min_length=1)]
    linguistics_term: str = ""
    field: str = ""


class Accuracy(Stored):
    """Fraction of pairs whose good sentence is more probable (ties count half), and 95 % intervals over pairs."""

    accuracy: Share
    interval: Interval
    accuracy_within_word: Share
    interval_within_word: Interval
    pairs: Size


class ParadigmAccuracy(Accuracy):
    """The accuracy on one paradigm; ``sha256`` is the hash of its pairs."""

    phenomenon: str
    field: str
    sha256: str


class ProbeResults(Stored):
    """``minimal_pairs.json`` and ``local_order.json``: accuracy by paradigm, and means over groups of paradigms."""

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
"""Name of a variant or an evaluation, and of its folder."""


class Evaluations(UserFile):
    """Evaluations of an experiment's models besides their loss: flags of the commands that run them."""

    minimal_pairs: dict[Name, Flags] = {}
    local_order: Flags | None = None
    glue: Flags | None = None


class Experiment(UserFile):
    """An experiment file: flags of ``bertconv pretrain`` common to all variants, and those of each variant."""

    question: str = ""
    base: Flags
    variants: Annotated[dict[Name, Flags], Field(min_length=1)]
    baseline: str | None = None
    seeds: Annotated[list[Count], Field(min_length=1)]
    evaluate: Evaluations = Evaluations()


class CellRecord(Stored):
    """The last run of a cell of a sweep: the arguments of ``bertconv``, the exit code, and the environment.

    ``seconds`` is the sum over all sessions; ``environment`` holds versions, commit and machine of the last one;
    ``model`` identifies the training run whose model it evaluates, see ``Cell.model_key``.
    """

    command: list[str]
    seconds: Annotated[float, Field(ge=0)]
    exit_code: int
    environment: dict[str, str] = {}
    model: str | None = None


# GLUE: hyper-parameters, states, scores


def _text_as_number(value: Any) -> Any:
    """Convert ``3e-4`` and the like, which YAML reads as text, to a number."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


class Hyperparameters(Stored):
    """Peak learning rate, examples per optimizer step over all devices, and steps of one GLUE task."""

    learning_rate: Annotated[float, BeforeValidator(_text_as_number), Field(gt=0)]
    batch_size: Annotated[int, Field(gt=0, lt=2**31)]
    steps: Annotated[int, Field(gt=0, lt=2**31)]


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


Column = Annotated[str, Field(strict=True, min_length=1)] | Annotated[int, Field(strict=True, ge=-1)]
"""A column's name; in CoNLL files, which have no names, its number from 0, or -1 for the last."""
Joined = Annotated[list[Column], BeforeValidator(_as_list), Field(min_length=1)]


def _as_label(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"YAML reads it as a truth value, here {value}; put it in quotes")
    return str(value) if isinstance(value, int) else value


LabelWord = Annotated[str, BeforeValidator(_as_label), Field(strict=True, min_length=1)]


class TaskFiles(UserFile):
    """Paths relative to the folder of the YAML file."""

    train: Annotated[str, Field(min_length=1)]
    dev: Annotated[str, Field(min_length=1)]
    test: str | None = None


class TaskColumns(UserFile):
    """The columns of one or two texts (several columns are joined by a space) or of the words, and of the label."""

    text: Annotated[list[Joined], BeforeValidator(_as_list), Field(max_length=2)] = []
    tokens: Column | None = None
    label: Column


class TaskFile(UserFile):
    """The YAML file of a task: classification, regression (without ``labels``) or classification of words."""

    name: Name | None = None
    files: TaskFiles
    columns: TaskColumns
    labels: list[LabelWord] = []
    metric: Literal["accuracy", "accuracy_and_f1", "accuracy_and_macro_f1", "matthews", "correlation", "entity_f1"]

    @pydantic.model_validator(mode="after")
    def _check_consistency(self) -> "TaskFile":
        faults = {
            "columns: give text or tokens": bool(self.columns.text) == (self.columns.tokens is not None),
            "labels: a label occurs twice": len(set(self.labels)) != len(self.labels),
            "labels: give at least two, or none for numbers": len(self.labels) == 1,
            "labels: tokens need labels": self.columns.tokens is not None and not self.labels,
            "metric: numbers (a task without labels) need correlation, and labels another metric": (
                (self.metric == "correlation") != (not self.labels)
            ),
            "metric: entity_f1 is for tokens": self.metric == "entity_f1" and self.columns.tokens is None,
            "metric: accuracy_and_f1 is for two labels; use accuracy_and_macro_f1": (
                self.metric == "accuracy_and_f1" and len(self.labels) != 2
            ),
        }
        for fault, holds in faults.items():
            if holds:
                raise ValueError(fault)
        return self


class TaskState(Stored):
    """``glue_state.json``: the finished stages in the folder of one GLUE task and round.

    Attributes:
        task: name of the task.
        settings: what the result depends on: flags, and hashes of the data, the tokenizer and the model's weights.
        trained: whether training ended and the model was saved.
        saved: SHA-256 of the model's and tokenizer's files, by path relative to the folder.
        dev: scores by dev set, once evaluated.
        predicted: number of rows by test set, once written.
        data: SHA-256 of the files that were scored and predicted, by the name of the file with their results.
    """

    task: str
    settings: dict[str, JsonValue]
    trained: bool = False
    saved: dict[str, str] = {}
    dev: dict[str, dict[str, float]] = {}
    predicted: dict[str, Size] = {}
    data: dict[str, str] = {}


AccuracyScore = RootModel[Share]
"""An accuracy, or the mean of accuracy and F1, in a results file."""
CorrelationScore = RootModel[Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]]
"""A correlation coefficient in a results file."""
