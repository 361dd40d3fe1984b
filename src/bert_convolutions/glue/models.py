"""Load encoders with a classifier for a task, and check that weights, configuration and tokenizer belong together."""

import hashlib
import json
from pathlib import Path

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bert_convolutions.errors import UsageError
from bert_convolutions.files import sha256
from bert_convolutions.glue.tasks import Task
from bert_convolutions.hub import WEIGHTS, local_folder
from bert_convolutions.model.loading import count_positions, load_config, load_strictly, quiet_transformers
from bert_convolutions.parsing import read_json

_NOT_OF_THE_MODEL = ("transformers_version", "_name_or_path")
"""Entries of ``config.json`` that say nothing about the model."""


def locate_model(path: str) -> Path:
    """Return the folder of a model, which is fetched from Hugging Face where ``path`` is a name there.

    Raises:
        UsageError: no such folder, not a model, or a checkpoint of the original code.
    """
    folder = local_folder(path)
    if not folder.is_dir():
        raise UsageError(f"{path}: no such model folder")
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise UsageError(f"{path} is not a model folder: it has no config.json")
    config = read_json(config_file)
    if isinstance(config, dict) and config.get("model_type") == "bert" and "attention_kernel" in config:
        raise UsageError(f"{path} is a checkpoint of the original code: run bertconv convert on it first")
    load_config(folder)
    return folder


def fingerprint(folder: Path) -> str:
    """Return a SHA-256 of a model's configuration and weights, the same wherever its folder is.

    Raises:
        UsageError: there is no configuration, or it is not JSON.
    """
    config = read_json(folder / "config.json")
    if isinstance(config, dict):
        config = {key: value for key, value in config.items() if key not in _NOT_OF_THE_MODEL}
    weights = next((found for pattern in WEIGHTS if (found := sorted(folder.glob(pattern)))), [])
    identity = [config, *([path.name, sha256(path)] for path in weights)]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def load_pretrained(folder: str | Path, task: Task) -> PreTrainedModel:
    """Load an encoder with a new classifier for a task, whose weights are drawn from PyTorch's global generator.

    Raises:
        UsageError: weights or configuration can't be read, or they are not each other's.
    """
    config = load_config(folder)
    config.id2label = dict(enumerate(task.labels or ("score",)))
    config.label2id = {label: number for number, label in config.id2label.items()}
    config.problem_type = "single_label_classification" if task.labels else "regression"
    return _load_weights(folder, config, task, new_classifier=True)


def load_finetuned(folder: Path, task: Task) -> PreTrainedModel:
    """Load a model fine-tuned on a task.

    Raises:
        UsageError: not a model, weights missing, or label words that are not the task's.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not there: fine-tune {task.name} first (--do_train)")
    config = load_config(folder)
    words = sorted(label_words(config))
    if len(words) != task.num_outputs or (task.labels and words != sorted(task.labels)):
        raise UsageError(f"{folder} has the labels {', '.join(words)}, which are not {task.name}'s")
    return _load_weights(folder, config, task, new_classifier=False)


def label_words(config: PreTrainedConfig) -> list[str]:
    """Return the label word of each output, in the model's own order, which need not be ours (MNLI's often is not)."""
    words = {int(number): str(word) for number, word in (config.id2label or {}).items()}
    return [words[number] for number in sorted(words)]


def check_fit(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokenizer_is_the_models: bool, max_seq_length: int
) -> None:
    """Check that a model can take what a tokenizer makes, examples of ``max_seq_length`` tokens at most.

    The table of a model may be larger than its own tokenizer, the one in its folder: some architectures round it up.

    Raises:
        UsageError: another vocabulary size, or too few positions.
    """
    rows = model.get_input_embeddings().get_parameter("weight").shape[0]
    if len(tokenizer) > rows or (len(tokenizer) < rows and not tokenizer_is_the_models):
        raise UsageError(
            f"the tokenizer has {len(tokenizer)} tokens and the model {rows} embeddings: "
            "give the --tokenizer_name that the model was pre-trained with"
        )
    positions = count_positions(model)
    if positions is not None and positions < max_seq_length:
        raise UsageError(f"--max_seq_length {max_seq_length} is above the model's {positions} positions")


def _load_weights(folder: str | Path, config: PreTrainedConfig, task: Task, new_classifier: bool) -> PreTrainedModel:
    """Load weights as float32, whatever they were saved as: AdamW's steps are lost in less."""
    auto_class = AutoModelForTokenClassification if task.per_token else AutoModelForSequenceClassification
    with quiet_transformers():
        return load_strictly(auto_class, folder, config, new_head=new_classifier, dtype=torch.float32)
