"""Configuration of a BERT with composite attention: BERT's own fields and those of the paper's code."""

from typing import Any

from transformers import BertConfig

from bert_convolutions.attention.spec import AttentionKernel, Projection, parse_kernel, parse_projection
from bert_convolutions.errors import UsageError


class CompositeBertConfig(BertConfig):
    """BERT's fields as in ``transformers``, and these.

    Attributes:
        embedding_size: size of the word, position and token-type embeddings; projected to ``hidden_size`` if different.
        attention_kernel: terms of the score and their reach, as ``qk_convfixed_convq_convk 8``, or ``dot_product``.
        value_forward: ``feedforward`` or ``convolution[_depth][_mixed][_no_act] REACH GROUPS``.
        qk: ``linear`` or a convolution of the same form, for queries and keys.
        remove_qk: use the hidden states as queries and keys.
        remove_position_embeddings: no absolute positions; any sequence length works then.
        attention_head_size: d; -1 for ``hidden_size / num_attention_heads``.

    Raises:
        UsageError: for an option string that can't be read; it names the bad term and the valid ones.
    """

    model_type = "composite_bert"

    embedding_size: int = 128
    attention_kernel: str = "dot_product"
    value_forward: str = "feedforward"
    qk: str = "linear"
    remove_qk: bool = False
    remove_position_embeddings: bool = False
    attention_head_size: int = -1

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the options and bring their strings into canonical form."""
        super().__post_init__(**kwargs)
        self.attention_kernel = str(self.kernel)
        self.value_forward = str(self.value_projection)
        self.qk = str(self.query_key_projection)
        if self.attention_head_size != -1 and self.attention_head_size < 1:
            raise UsageError(f"--attention_head_size {self.attention_head_size} must be at least 1, or -1 for D/H")
        if self.attention_head_size == -1 and self.hidden_size % self.num_attention_heads:
            raise UsageError(
                f"--num_attention_heads {self.num_attention_heads} doesn't divide hidden_size {self.hidden_size}; "
                "choose a divisor or set --attention_head_size"
            )

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
    def head_size(self) -> int:
        """d, the size of one attention head."""
        if self.attention_head_size == -1:
            return self.hidden_size // self.num_attention_heads
        return self.attention_head_size


__all__ = ["CompositeBertConfig"]
