"""Loads models from folders; no weight is silently dropped or left at its random initial value."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER
from transformers.utils import logging

from bert_convolutions.errors import UsageError, first_line
from bert_convolutions.model.configuration import CompositeBertConfig
from bert_convolutions.terminal import say


def set_max_length(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Limit the tokenizer to the model's length, which ``truncation=True`` uses; return the tokenizer.

    Args:
        config: configuration of the model.
        tokenizer: tokenizer of the model.
    """
    if isinstance(config, CompositeBertConfig):
        endless = config.remove_position_embeddings
        tokenizer.model_max_length = VERY_LARGE_INTEGER if endless else config.max_position_embeddings
    return tokenizer


def load_config(folder: str | Path) -> PreTrainedConfig:
    """Load the configuration of a model folder, of this package or any of ``transformers``.

    Raises:
        UsageError: the model type is unknown, or the configuration is invalid.
    """
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)  # False: don't ask
    except Exception as error:  # each configuration class raises errors of its own
        raise UsageError(f"{folder}: cannot load a model configuration ({first_line(error)})") from error


def count_positions(model: PreTrainedModel) -> int | None:
    """The most tokens, including special ones, that a model takes; None if unlimited."""
    if getattr(model.config, "remove_position_embeddings", False):
        return None
    for name, module in model.base_model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.num_embeddings - module.padding_idx - 1  # RoBERTa's begin after padding_idx
    positions = getattr(model.config, "max_position_embeddings", None) or -1  # XLNet's -1: unlimited
    return positions if positions > 0 else None


def load_strictly(
    model_class: Any, folder: str | Path, config: PreTrainedConfig, *, new_head: bool = False, **options: Any
) -> PreTrainedModel:
    """``from_pretrained``, for weights that must match the configuration.

    Args:
        model_class: a model or an Auto class.
        folder: folder with the weights.
        config: configuration that the weights must match.
        new_head: check only the encoder; weights of the head and the pooler may be missing or of another shape, and are
            then initialised, or unexpected.
        options: other arguments of ``from_pretrained``.

    Raises:
        UsageError: the weights can't be read, or one is missing, unexpected or of another shape; the message names it.
    """
    try:
        with quiet_transformers():
            model, report = model_class.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **options,
            )
    except Exception as error:  # torch, safetensors and transformers each raise errors of their own
        raise UsageError(f"{folder}: the model can't be loaded ({first_line(error)})") from error
    prefix = f"{model.base_model_prefix}."
    parts = tuple(f"{name}." for name, _ in model.base_model.named_children())  # without the prefix in a bare encoder

    def matters(name: str) -> bool:
        if name.endswith(".position_ids"):  # a buffer of old checkpoints
            return False
        return not new_head or (name.removeprefix(prefix).startswith(parts) and "pooler." not in name)

    other_shape = sorted(key for key in report["mismatched_keys"] if matters(key[0]))
    if other_shape:
        name, found, expected = other_shape[0]
        raise UsageError(f"{folder}: {name} has shape {tuple(found)}, but the configuration requires {tuple(expected)}")
    for key, fault in (("missing_keys", "lacks"), ("unexpected_keys", "has weights that its configuration lacks:")):
        names = sorted(filter(matters, report[key]))
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UsageError(f"{folder} {fault} {names[0]}{more}; give the configuration that belongs to the weights")
    new = sorted(name for name in report["missing_keys"] if name.startswith("cls."))
    if new:  # a classifier's are always new
        say(f"{folder} lacks weights of the pre-training heads ({new[0]}, ...), which start at random values")
    return model


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress ``transformers``' progress bars and its report of newly initialised weights."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
