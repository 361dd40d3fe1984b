"""Loads encoders with a classifier and checks that weights, configuration and tokenizer belong together."""

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
from bert_convolutions.model.loading import count_positions, load_config, load_strictly
from bert_convolutions.parsing import read_json

_NON_MODEL_KEYS = ("transformers_version", "_name_or_path")
"""Entries of ``config.json`` that don't describe the model."""


def locate_model(path: str) -> Path:
    """The folder of a model, which is downloaded if ``path`` is a name on the Hugging Face Hub.

    Raises:
        UsageError: there is no such folder, or it holds no model or a checkpoint of the original code.
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
    """A SHA-256 of a model's configuration and weights, independent of its path.

    Raises:
        UsageError: the configuration is missing or not JSON.
    """
    config = read_json(folder / "config.json")
    if isinstance(config, dict):
        config = {key: value for key, value in config.items() if key not in _NON_MODEL_KEYS}
    weights = next((found for pattern in WEIGHTS if (found := sorted(folder.glob(pattern)))), [])
    identity = [config, *([path.name, sha256(path)] for path in weights)]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def load_pretrained(folder: str | Path, task: Task) -> PreTrainedModel:
    """Load an encoder with a new classifier for a task, initialised from PyTorch's global generator.

    Raises:
        UsageError: weights or configuration can't be read, or they don't match.
    """
    config = load_config(folder)
    config.id2label = dict(enumerate(task.labels or ("score",)))
    config.label2id = {label: number for number, label in config.id2label.items()}
    config.problem_type = "single_label_classification" if task.labels else "regression"
    return _load_weights(folder, config, task, new_classifier=True)


def load_finetuned(folder: Path, task: Task) -> PreTrainedModel:
    """Load a model fine-tuned on a task.

    Raises:
        UsageError: it is not a model, weights are missing, or its labels are not the task's.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} does not exist: fine-tune {task.name} first (--do_train)")
    config = load_config(folder)
    words = sorted(label_words(config))
    if len(words) != task.num_outputs or (task.labels and words != sorted(task.labels)):
        raise UsageError(f"{folder} has the labels {', '.join(words)}, which are not {task.name}'s")
    return _load_weights(folder, config, task, new_classifier=False)


def label_words(config: PreTrainedConfig) -> list[str]:
    """The label of each output in the model's own order, which may differ from the task's (MNLI's often does)."""
    words = {int(number): str(word) for number, word in (config.id2label or {}).items()}
    return [words[number] for number in sorted(words)]


def check_fit(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokenizer_is_the_models: bool, max_seq_length: int
) -> None:
    """Check that a model fits a tokenizer and examples of up to ``max_seq_length`` tokens.

    A model may have more embeddings than its own tokenizer has tokens: some architectures round the number up.

    Raises:
        UsageError: the vocabulary sizes differ, or the model has too few positions.
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
    """Load weights as float32, whatever their saved dtype: lower precision would round AdamW's updates away."""
    auto_class = AutoModelForTokenClassification if task.per_token else AutoModelForSequenceClassification
    return load_strictly(auto_class, folder, config, new_head=new_classifier, dtype=torch.float32)
