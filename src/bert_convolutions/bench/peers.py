"""Models of ``transformers`` in the shape of ours, and the Trainer with the collator that its users feed them with."""

from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from bert_convolutions.model import CompositeBertConfig

_SHAPE = (
    *("vocab_size", "pad_token_id", "max_position_embeddings"),
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "embedding_size", "intermediate_size"),
)
_MODERNBERTS_TOKENS = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")


def _make_model(name: str, config: CompositeBertConfig) -> PreTrainedModel:
    """Of our width, depth, heads and vocabulary; ELECTRA and ConvBERT are of our shape in all."""
    fields = {field: getattr(config, field) for field in _SHAPE}
    if name == "modernbert":  # its gated feed-forward part is 3/2 of the width, as in ModernBERT-base
        del fields["embedding_size"]
        fields |= {"intermediate_size": config.hidden_size * 3 // 2}
        fields |= dict.fromkeys(_MODERNBERTS_TOKENS)  # which lie beyond the vocabulary
    attention = None if name == "convbert" else "sdpa"
    return AutoModelForMaskedLM.from_config(AutoConfig.for_model(name, **fields), attn_implementation=attention)


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
        name: electra, convbert or modernbert.
        config: the shape.
        tokenizer: pads and names the special tokens.
        examples: token ids of each example, cut to the block size, in the order they are trained on.
        arguments: of ``TrainingArguments``.
    """
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
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    trainer = Trainer(_make_model(name, config), training_arguments, collator, train_dataset=dataset)
    trainer.remove_callback(PrinterCallback)
    return trainer
