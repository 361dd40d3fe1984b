"""The modules of BERT: embeddings, layers, pooler, heads. Parameter names are those of BERT in ``transformers``.

Legend: B rows, S sequence, D hidden, E embedding size, V vocabulary, X examples.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from bert_convolutions.attention.composite import Attend, CompositeAttention
from bert_convolutions.attention.cpu import Dropout
from bert_convolutions.attention.segments import Segments
from bert_convolutions.model.configuration import CompositeBertConfig


@dataclass(frozen=True, eq=False)
class AttentionInputs:
    """The inputs that all layers of a forward pass share.

    Attributes:
        segments: the segments, with the mask or the spans that the backend reads.
        attend: the backend.
        dtype: dtype of matrix products (autocast's where it is enabled).
    """

    segments: Segments
    attend: Attend
    dtype: torch.dtype

    def to(self, device: torch.device | str | int) -> "AttentionInputs":
        """Move to another device, as ``accelerate`` does with the inputs of a layer."""
        return replace(self, segments=self.segments.to(device))


class BertEmbeddings(nn.Module):
    """Word, token-type and, unless removed, position embeddings: (B, S) -> (B, S, E)."""

    def __init__(self, config: CompositeBertConfig) -> None:
        super().__init__()
        size = config.embedding_size
        self.word_embeddings = nn.Embedding(config.vocab_size, size, padding_idx=config.pad_token_id)
        if not config.remove_position_embeddings:
            self.positions = config.max_position_embeddings
            self.position_embeddings = nn.Embedding(self.positions, size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.LayerNorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> Tensor:
        """Sum the embeddings, then apply layer norm and dropout.

        Raises:
            ValueError: the sequence is longer than the position embeddings.
        """
        embeddings = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        length, device = embeddings.shape[1], embeddings.device
        if token_type_ids is None:
            token_type_ids = torch.zeros(1, 1, dtype=torch.long, device=device)
        embeddings = embeddings + self.token_type_embeddings(token_type_ids)
        if hasattr(self, "position_embeddings"):
            if position_ids is None and length > self.positions:
                raise ValueError(
                    f"a sequence of {length} tokens is longer than max_position_embeddings = {self.positions}; "
                    "truncate it, or train a model with remove_position_embeddings, which takes any length"
                )
            position_ids = torch.arange(length, device=device) if position_ids is None else position_ids
            embeddings = embeddings + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(embeddings))


class BertSelfOutput(nn.Module):
    """Linear layer, dropout, residual connection and post-layer-norm."""

    def __init__(self, size_in: int, config: CompositeBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(size_in, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        """(B, S, size_in), (B, S, D) -> (B, S, D)."""
        return self.LayerNorm(self.dropout(self.dense(hidden)) + residual)


class BertAttention(nn.Module):
    """Composite attention and its output projection H*d (2*H*d with ``convspan``) -> D."""

    def __init__(self, config: CompositeBertConfig) -> None:
        super().__init__()
        self.self = CompositeAttention(
            config.hidden_size,
            config.num_attention_heads,
            config.kernel,
            head_size=config.head_size,
            query_key=config.query_key_projection,
            value=config.value_projection,
            remove_query_key=config.remove_qk,
            dropout=config.attention_probs_dropout_prob,
            activation=ACT2FN[config.hidden_act],
        )
        self.output = BertSelfOutput(self.self.output_size, config)

    def forward(
        self, hidden: Tensor, inputs: AttentionInputs, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, S, D) -> (B, S, D), or (P, D) at the flat ``positions`` (P,); and probabilities (B, H, S, S) or None."""
        # Cast once: autocast would cast anew for each projection, and sum the gradients in float32.
        output, probabilities = self.self(hidden.to(inputs.dtype), inputs.segments, inputs.attend)
        if positions is not None:
            output, hidden = (part.flatten(0, 1).index_select(0, positions) for part in (output, hidden))
        return self.output(output, hidden), probabilities


class BertIntermediate(nn.Module):
    """The first linear layer of the feed-forward part, with activation."""

    def __init__(self, config: CompositeBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, intermediate)."""
        return self.activation(self.dense(hidden))


class BertLayer(GradientCheckpointingLayer):
    """Attention, then feed-forward, each with residual connection and post-layer-norm."""

    def __init__(self, config: CompositeBertConfig) -> None:
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertSelfOutput(config.intermediate_size, config)

    def forward(
        self, hidden: Tensor, inputs: AttentionInputs, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, S, D) -> (B, S, D), or (P, D) if only flat ``positions`` (P,) are needed; and probabilities."""
        hidden, probabilities = self.attention(hidden, inputs, positions)
        return self.output(self.intermediate(hidden), hidden), probabilities


class BertEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: CompositeBertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList([BertLayer(config) for _ in range(config.num_hidden_layers)])


class BertPooler(nn.Module):
    """Linear layer and tanh on the first token of each example."""

    def __init__(self, config: CompositeBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, first: Tensor) -> Tensor:
        """(X, D) -> (X, D)."""
        return torch.tanh(self.dense(first))


class BertPredictionHeadTransform(nn.Module):
    """Linear layer D -> E, activation and layer norm."""

    def __init__(self, config: CompositeBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.embedding_size)
        self.activation = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        """(.., D) -> (.., E)."""
        return self.LayerNorm(self.activation(self.dense(hidden)))


class BertLMPredictionHead(nn.Module):
    """The masked language model's head; its decoder is tied to the word embeddings."""

    def __init__(self, config: CompositeBertConfig) -> None:
        super().__init__()
        self.transform = BertPredictionHeadTransform(config)
        self.decoder = nn.Linear(config.embedding_size, config.vocab_size, bias=True)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor) -> Tensor:
        """(.., D) -> (.., V)."""
        return self.decoder(self.transform(hidden))


class BertPreTrainingHeads(nn.Module):
    """The language model's head and, with ``sentence_order``, the classifier of sentence order."""

    def __init__(self, config: CompositeBertConfig, sentence_order: bool) -> None:
        super().__init__()
        self.predictions = BertLMPredictionHead(config)
        if sentence_order:
            self.seq_relationship = nn.Linear(config.hidden_size, 2)
