"""The model that ``bertconv pretrain`` trains: a preset or a config file, changed by flags, sized by the tokenizer."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from bert_convolutions.data.tokenizer import load_tokenizer
from bert_convolutions.errors import UsageError
from bert_convolutions.model import CompositeBertConfig, CompositeBertForMaskedLM, CompositeBertForPreTraining
from bert_convolutions.model.loading import load_strictly
from bert_convolutions.model.presets import PRESETS, load_config, read_config
from bert_convolutions.schemas import read_json
from bert_convolutions.training.options import ARCHITECTURE_FLAGS, PretrainOptions


def choose_tokenizer(options: PretrainOptions) -> PreTrainedTokenizerBase:
    """The tokenizer of ``--tokenizer_name`` or, left out, the one saved beside the model."""
    tokenizer = load_tokenizer(options.tokenizer_name or options.model_name_or_path or "")
    missing = [name for name in ("cls", "sep", "pad", "mask") if getattr(tokenizer, f"{name}_token_id") is None]
    if missing:
        raise UsageError(f"{options.tokenizer_name}: the tokenizer has no {' and no '.join(missing)} token")
    return tokenizer


def compose_config(options: PretrainOptions, tokenizer: PreTrainedTokenizerBase) -> CompositeBertConfig:
    """The configuration of the model.

    Raises:
        UsageError: the tokenizer's size is not the model's, ``--block_size`` is more than the model has positions, or
            an architecture flag contradicts the model of ``--model_name_or_path``.
    """
    if options.model_name_or_path:
        config = _config_of_model(options)
        stated: int | None = config.vocab_size
    else:
        config = _changed(load_config(options.config_name or ""), options)
        stated = _stated_vocab_size(options.config_name or "")
    source = options.model_name_or_path or options.config_name
    if stated is not None and stated != len(tokenizer):
        tokenizer_path = options.tokenizer_name or options.model_name_or_path
        raise UsageError(
            f"{source} has a vocabulary of {stated} and the tokenizer {tokenizer_path} one of {len(tokenizer)}; "
            f"give the tokenizer that belongs to it"
            + ("" if options.model_name_or_path else f", or set vocab_size to {len(tokenizer)} there")
        )
    config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    if not options.model_name_or_path and options.config_name in PRESETS:  # a preset has as many positions as needed
        config.max_position_embeddings = max(config.max_position_embeddings, options.block_size)
    if not config.remove_position_embeddings and options.block_size > config.max_position_embeddings:
        raise UsageError(
            f"--block_size {options.block_size} is more than {source} has positions, "
            f"{config.max_position_embeddings}; lower it, raise max_position_embeddings there, or give "
            f"--remove_position_embeddings"
        )
    return config


def compose_model(options: PretrainOptions, config: CompositeBertConfig, seed: int) -> PreTrainedModel:
    """The model with its heads: random weights drawn from ``seed``, or those of ``--model_name_or_path``."""
    model_class = CompositeBertForPreTraining if options.use_sop_head else CompositeBertForMaskedLM
    backend: dict[str, Any] = (
        {"attn_implementation": options.attn_implementation} if options.attn_implementation else {}
    )
    set_seed(seed)
    if options.model_name_or_path:
        path = options.model_name_or_path
        return load_strictly(model_class, path, config, new_head=True, dtype=torch.float32, **backend)
    try:
        return model_class._from_config(config, **backend)
    except ValueError as error:  # the only input left to judge is the backend's name
        raise UsageError(f"--attn_implementation {options.attn_implementation}: {error}") from error


def _config_of_model(options: PretrainOptions) -> CompositeBertConfig:
    path = options.model_name_or_path or ""
    if not (Path(path) / "config.json").is_file():
        raise UsageError(f"--model_name_or_path {path} holds no config.json; give the directory of a saved model")
    values = read_json(Path(path) / "config.json")
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if model_type != CompositeBertConfig.model_type:
        raise UsageError(f"{path} holds a {model_type} model; run bertconv convert on one of the original's")
    config = read_config(Path(path) / "config.json")
    changed = _changed(config, options)
    for name in ARCHITECTURE_FLAGS:
        if getattr(changed, name) != getattr(config, name):
            raise UsageError(
                f"--{name} {getattr(options, name)} contradicts --model_name_or_path: the model in {path} has "
                f"{getattr(config, name)}; leave the flag out"
            )
    return config


def _changed(config: CompositeBertConfig, options: PretrainOptions) -> CompositeBertConfig:
    """A config with the architecture flags applied; a flag left out (None or false) changes nothing."""
    flags = {name: getattr(options, name) for name in ARCHITECTURE_FLAGS}
    flags = {name: value for name, value in flags.items() if value is not None and value is not False}
    try:
        return CompositeBertConfig(**{**config.to_dict(), **flags}) if flags else config
    except ValueError as error:  # which begins with the name of a field
        raise UsageError(f"--{error}") from error


def _stated_vocab_size(config_name: str) -> int | None:
    """``vocab_size`` as a config file states it; None for a preset, which is of any size."""
    path = Path(config_name)
    path = path / "config.json" if path.is_dir() else path
    return read_json(path).get("vocab_size") if path.is_file() else None
