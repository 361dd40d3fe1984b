"""Load encoders with a classifier for a task, and check that tokenizer and model belong together."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

import bert_convolutions.model  # noqa: F401  registers CompositeBert* with the Auto classes
from bert_convolutions.errors import UsageError
from bert_convolutions.glue.tasks import Task

SCORE_LABEL = "score"
"""Name of the one output of a real-valued task in a model's configuration."""


def load_pretrained(path: str, task: Task) -> PreTrainedModel:
    """Load an encoder with a new classifier for a task, whose weights are drawn from PyTorch's global generator.

    Args:
        path: folder of a model of ``transformers``; its name has no meaning (``checkpoint-1000`` is a name as any).
        task: sets the number of outputs, the label words and the loss.

    Raises:
        UsageError: no such folder, not a model, or weights of another shape or architecture.
    """
    config = load_config(path)
    labels = task.labels or (SCORE_LABEL,)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = "single_label_classification" if task.labels else "regression"
    return _load_weights(path, config, new_classifier=True)


def load_finetuned(folder: Path, task: Task) -> PreTrainedModel:
    """Load a model fine-tuned on a task.

    Raises:
        UsageError: not a model, weights missing, or label words that are not the task's.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not there: fine-tune {task.name} first (--do_train)")
    config = load_config(str(folder))
    words = sorted(_words(config))
    if len(words) != task.num_outputs or (task.labels and words != sorted(task.labels)):
        raise UsageError(f"{folder} has the labels {', '.join(words)}, which are not {task.name}'s")
    return _load_weights(str(folder), config, new_classifier=False)


def label_words(model: PreTrainedModel) -> list[str]:
    """Return the label word of each output, in the model's own order, which need not be ours (MNLI's often is not)."""
    return _words(model.config)


def _words(config: PreTrainedConfig) -> list[str]:
    words = {int(number): str(word) for number, word in (config.id2label or {}).items()}
    return [words[number] for number in sorted(words)]


def check_fit(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokenizer_is_the_models: bool, max_seq_length: int
) -> None:
    """Check that a model can take what a tokenizer makes.

    Args:
        model: the model.
        tokenizer: the tokenizer.
        tokenizer_is_the_models: it comes from the model's own folder: the model's table may then be larger, as some
            architectures round it up.
        max_seq_length: longest example in tokens.

    Raises:
        UsageError: another vocabulary size, or too few positions.
    """
    rows = model.get_input_embeddings().get_parameter("weight").shape[0]
    if len(tokenizer) > rows or (len(tokenizer) < rows and not tokenizer_is_the_models):
        raise UsageError(
            f"the tokenizer has {len(tokenizer)} tokens and the model {rows} embeddings: "
            "give the --tokenizer_name that the model was pre-trained with"
        )
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions and max_seq_length > positions and not getattr(model.config, "remove_position_embeddings", False):
        raise UsageError(f"--max_seq_length {max_seq_length} is above the model's {positions} positions")


def load_config(path: str) -> PreTrainedConfig:
    """Load the configuration of a model folder.

    Raises:
        UsageError: no such folder, not a model, or a checkpoint of the original code.
    """
    folder = Path(path)
    config_file = folder / "config.json"
    if not folder.is_dir() and (path.startswith((".", "/", "~")) or path.count("/") != 1):
        raise UsageError(f"{path}: no such model folder")
    if folder.is_dir() and not config_file.is_file():
        raise UsageError(f"{path} is not a model folder: it has no config.json")
    try:
        if config_file.is_file() and _is_originals(json.loads(config_file.read_text(encoding="utf-8"))):
            raise UsageError(f"{path} is a checkpoint of the original code: run bertconv convert on it first")
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        where = path if folder.is_dir() else f"{path}: no such folder, and no such model of Hugging Face here"
        raise UsageError(f"{where}: cannot load a model configuration ({_first_line(error)})") from error


def _is_originals(config: object) -> bool:
    return isinstance(config, dict) and config.get("model_type") == "bert" and "attention_kernel" in config


def _load_weights(path: str, config: PreTrainedConfig, new_classifier: bool) -> PreTrainedModel:
    try:
        with quiet_transformers():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                path, config=config, output_loading_info=True
            )
    except Exception as error:  # torch, safetensors and transformers each have their own for a bad file
        raise UsageError(f"{path}: cannot load the model ({_first_line(error)})") from error
    prefix = f"{model.base_model_prefix}."
    missing = sorted(
        name
        for name in report["missing_keys"]
        if not new_classifier or (name.startswith(prefix) and ".pooler." not in name)
    )
    if missing:
        raise UsageError(f"{path} lacks {len(missing)} weights of the model, {missing[0]} for one")
    return model


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without ``transformers``' progress bars and its report of the weights that a fine-tuned model has anew."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
