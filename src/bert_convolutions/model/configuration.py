"""Configuration of a BERT with composite attention: the fields of BERT and those of the paper's code."""

import os
from pathlib import Path
from typing import Any

import pydantic
from transformers import BertConfig
from transformers.activations import ACT2FN

from bert_convolutions.attention.projections import check_projection
from bert_convolutions.attention.spec import AttentionKernel, Projection, parse_kernel, parse_projection
from bert_convolutions.parsing import describe
from bert_convolutions.schemas import EncoderConfig

AUTO_CLASSES = {
    "AutoConfig": "CompositeBertConfig",
    "AutoModel": "CompositeBertModel",
    "AutoModelForTextEncoding": "CompositeBertModel",
    "AutoModelForMaskedLM": "CompositeBertForMaskedLM",
    "AutoModelForPreTraining": "CompositeBertForPreTraining",
    "AutoModelForSequenceClassification": "CompositeBertForSequenceClassification",
    "AutoModelForTokenClassification": "CompositeBertForTokenClassification",
    "AutoModelForQuestionAnswering": "CompositeBertForQuestionAnswering",
    "AutoModelForMultipleChoice": "CompositeBertForMultipleChoice",
    "AutoModelForNextSentencePrediction": "CompositeBertForNextSentencePrediction",
}
"""The classes of this package, by the Auto class of ``transformers`` that creates them."""
_IN_THE_PACKAGE = __name__.startswith("bert_convolutions.")
"""False in the copy of this code that is saved with a model (``self_contained``)."""


class CompositeBertConfig(BertConfig):
    """BERT's configuration of ``transformers`` with additional fields.

    Attributes:
        embedding_size: size of the word, position and token-type embeddings; projected to ``hidden_size`` if different.
        attention_kernel: terms of the score, optionally a convolution beside attention, and their reach, such as
            ``qk_convfixed_convq_convk 8``; or ``dot_product``.
        value_forward: ``feedforward`` or ``convolution[_depth][_mixed][_no_act] REACH GROUPS``.
        qk: ``linear`` or a convolution of the same form, for queries and keys.
        remove_qk: use the hidden states, unprojected, as queries and keys.
        remove_position_embeddings: no absolute positions, so that sequences may have any length.
        attention_head_size: d; -1 for ``hidden_size / num_attention_heads``.
        sparse_prediction: with ``labels``, compute logits (M, V) for the masked tokens alone instead of (B, S, V), as
            ModernBERT does under this name.

    Raises:
        ValueError: a field has the wrong type or is out of range, sizes are inconsistent, or an option string is
            invalid; the message then names the invalid term and the valid ones.
    """

    model_type = "composite_bert"

    embedding_size: int = 128
    attention_kernel: str = "dot_product"
    value_forward: str = "feedforward"
    qk: str = "linear"
    remove_qk: bool = False
    remove_position_embeddings: bool = False
    attention_head_size: int = -1
    sparse_prediction: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the fields and bring the option strings into canonical form."""
        if _IN_THE_PACKAGE:  # it belongs to the folder it was loaded from; save_pretrained writes it anew
            kwargs.pop("auto_map", None)
        super().__post_init__(**kwargs)
        self.check()
        self.attention_kernel = str(self.kernel)
        self.value_forward = str(self.value_projection)
        self.qk = str(self.query_key_projection)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write ``config.json`` and the code of the models, with which they can be loaded without this package."""
        if not _IN_THE_PACKAGE:  # transformers copies code that came with a model
            super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
            return
        from bert_convolutions.self_contained import write_code

        Path(save_directory).mkdir(parents=True, exist_ok=True)
        write_code(save_directory, "configuration_composite_bert", "modeling_composite_bert")
        files = {"AutoConfig": "configuration_composite_bert"}
        self.auto_map = {
            auto: f"{files.get(auto, 'modeling_composite_bert')}.{AUTO_CLASSES[auto]}" for auto in AUTO_CLASSES
        }
        try:
            super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        finally:
            del self.auto_map

    def check(self) -> None:
        """Validate the fields. Models call this again, since ``from_pretrained`` may have changed a field.

        Raises:
            ValueError: as for the class.
        """
        try:
            given = {name: getattr(self, name) for name in EncoderConfig.model_fields if hasattr(self, name)}
            EncoderConfig.model_validate(given)
        except pydantic.ValidationError as error:
            raise ValueError(describe(error)) from error
        if self.hidden_act not in ACT2FN:
            raise ValueError(f'hidden_act "{self.hidden_act}" is unknown; valid are {", ".join(sorted(ACT2FN))}')
        if self.pad_token_id is not None and self.pad_token_id >= self.vocab_size:
            raise ValueError(f"pad_token_id {self.pad_token_id} is not in a vocabulary of vocab_size {self.vocab_size}")
        if self.attention_head_size == 0:
            raise ValueError("attention_head_size must be at least 1, or -1 for hidden_size / num_attention_heads")
        if self.attention_head_size == -1 and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} doesn't divide hidden_size {self.hidden_size}; "
                "choose a divisor or set attention_head_size"
            )
        size = self.num_attention_heads * self.head_size
        if self.remove_qk and size != self.hidden_size:
            raise ValueError(
                f"remove_qk needs num_attention_heads x attention_head_size = {size} to be hidden_size "
                f"{self.hidden_size}"
            )
        check_projection(self.value_projection, "value_forward", self.hidden_size, size)
        if not self.remove_qk:
            check_projection(self.query_key_projection, "qk", self.hidden_size, size)

    @property
    def kernel(self) -> AttentionKernel:
        """``attention_kernel``, parsed."""
        return parse_kernel(self.attention_kernel)

    @property
    def value_projection(self) -> Projection:
        """``value_forward``, parsed."""
        return parse_projection(self.value_forward, "value_forward")

    @property
    def query_key_projection(self) -> Projection:
        """``qk``, parsed."""
        return parse_projection(self.qk, "qk")

    @property
    def convolves_tokens(self) -> bool:
        """Whether a convolution acts on the hidden states of neighbouring tokens, not only on the scores."""
        projected = self.value_projection.convolution or (self.query_key_projection.convolution and not self.remove_qk)
        return projected or self.kernel.convolution is not None

    @property
    def head_size(self) -> int:
        """d, the size of one attention head."""
        if self.attention_head_size == -1:
            return self.hidden_size // self.num_attention_heads
        return self.attention_head_size


__all__ = ["CompositeBertConfig"]
