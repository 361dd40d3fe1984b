"""Models of ``transformers`` in the shape of ours, and the Trainer with the collator that its users feed them with."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import (
    ConvBertConfig,
    ConvBertForMaskedLM,
    DataCollatorForLanguageModeling,
    ElectraConfig,
    ElectraForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from bert_convolutions.model import CompositeBertConfig

_SHAPE = (
    *("vocab_size", "pad_token_id", "max_position_embeddings"),
    *("hidden_size", "num_hidden_layers", "num_attention_heads"),
)


def _fields(config: CompositeBertConfig, *others: str) -> dict[str, Any]:
    return {name: getattr(config, name) for name in (*_SHAPE, *others)}


def _electra(config: CompositeBertConfig) -> PreTrainedModel:
    fields = _fields(config, "embedding_size", "intermediate_size")
    return ElectraForMaskedLM._from_config(ElectraConfig(**fields), attn_implementation="sdpa")


def _convbert(config: CompositeBertConfig) -> PreTrainedModel:
    return ConvBertForMaskedLM._from_config(ConvBertConfig(**_fields(config, "embedding_size", "intermediate_size")))


def _modernbert(config: CompositeBertConfig) -> PreTrainedModel:
    """Same width and depth; its gated feed-forward part is 3/2 of the width, as in ModernBERT-base; no dropout."""
    fields: dict[str, Any] = _fields(config) | {"intermediate_size": config.hidden_size * 3 // 2}
    fields |= dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))  # beyond the vocabulary
    modern = ModernBertConfig(**fields)
    return ModernBertForMaskedLM._from_config(modern, attn_implementation="sdpa")


PEERS: dict[str, Callable[[CompositeBertConfig], PreTrainedModel]] = {
    "electra": _electra,
    "convbert": _convbert,
    "modernbert": _modernbert,
}
"""Contestant to a function that builds it in the shape of a configuration of ours."""


def make_peer_trainer(
    name: str,
    config: CompositeBertConfig,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[np.ndarray],
    arguments: dict[str, Any],
) -> Trainer:
    """The Trainer as Hugging Face's own masked-language-model script sets it up for text line by line.

    Each batch is padded to its longest example; the collator masks. Only the order of the examples is given.

    Args:
        name: one of ``PEERS``.
        config: the shape.
        tokenizer: pads and names the special tokens.
        examples: token ids of each example, cut to the block size, in the order they are trained on.
        arguments: of ``TrainingArguments``.
    """
    model = PEERS[name](config)
    special = np.array(tokenizer.all_special_ids)
    dataset = [
        {"input_ids": ids.tolist(), "special_tokens_mask": np.isin(ids, special).astype(int).tolist()}
        for ids in examples
    ]
    training_arguments = TrainingArguments(
        **arguments,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        report_to="none",
        use_cpu=not torch.accelerator.is_available(),
    )
    training_arguments._n_gpu = min(training_arguments.n_gpu, 1)
    trainer = Trainer(
        model=model,
        args=training_arguments,
        train_dataset=dataset,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
