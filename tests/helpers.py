"""What tests of several rooms are built of: the sizes of tiny models, and tokenizers for them."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from bert_convolutions.data.build.train_tokenizer import train_tokenizer
from bert_convolutions.data.options import TrainTokenizerOptions

TINY: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
"""Sizes that every encoder of ``transformers`` knows by these names."""
NO_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def trained_tokenizer(folder: Path, text: str, vocab_size: int) -> Path:
    """A tokenizer of ours trained on a text; its folder, below ``folder``, which gets the text too."""
    (folder / "text.txt").write_text(text)
    return train_tokenizer(TrainTokenizerOptions([str(folder / "text.txt")], str(folder / "tokenizer"), vocab_size))


def fast_tokenizer(
    kind: type[models.WordLevel | models.WordPiece], before: pre_tokenizers.PreTokenizer, words: list[str]
) -> PreTrainedTokenizerFast:
    """A tokenizer of Hugging Face's, whose vocabulary is BERT's special tokens and some words."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL_TOKENS, *words])}
    backend = Tokenizer(kind(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = before
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS},
    )
