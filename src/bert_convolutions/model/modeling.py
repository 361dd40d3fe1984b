"""BERT with composite attention. Parameter names, signatures and outputs are those of BERT in ``transformers``.

Legend: B rows, S sequence, D hidden, E embedding size, V vocabulary, L layers, M masked positions, X examples.

Beside BERT's inputs the models take those of packed rows (several examples in a row, ``data.packing``):
``attention_mask`` (B, S) may number the examples of a row from 1 (0 is padding), ``masked_positions`` (M,) are the
flat positions in B*S that the language model head is for, ``example_starts`` (X,) those of the first tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    SequenceClassifierOutput,
)
from transformers.models.bert.modeling_bert import BertForPreTrainingOutput
from transformers.utils import can_return_tuple

from bert_convolutions.attention.borders import Borders
from bert_convolutions.attention.composite import CompositeAttention
from bert_convolutions.model.backends import attention_backend
from bert_convolutions.model.configuration import CompositeBertConfig
from bert_convolutions.attention.dropout import Dropout


@dataclass(frozen=True, eq=False)
class AttentionInputs:
    """What all layers of a forward pass share: the borders, their score mask, and the backend's name."""

    borders: Borders
    mask: Tensor | None
    implementation: str | None


class BertEmbeddings(nn.Module):
    """Word, token-type and, unless removed, position embeddings: (B, S) -> (B, S, E)."""

    def __init__(self, config: CompositeBertConfig) -> None:
        super().__init__()
        size = config.embedding_size
        self.word_embeddings = nn.Embedding(config.vocab_size, size, padding_idx=config.pad_token_id)
        if not config.remove_position_embeddings:
            self.position_embeddings = nn.Embedding(config.max_position_embeddings, size)
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
        """Sum, normalise and drop out.

        Raises:
            ValueError: for a sequence longer than the position embeddings.
        """
        embeddings = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if token_type_ids is None:
            embeddings = embeddings + self.token_type_embeddings.weight[0]
        else:
            embeddings = embeddings + self.token_type_embeddings(token_type_ids)
        if hasattr(self, "position_embeddings"):
            embeddings = embeddings + self._positions(position_ids, embeddings.shape[1])
        return self.dropout(self.LayerNorm(embeddings))

    def _positions(self, position_ids: Tensor | None, length: int) -> Tensor:
        if position_ids is not None:
            return self.position_embeddings(position_ids)
        most = self.position_embeddings.num_embeddings
        if length > most:
            raise ValueError(
                f"a sequence of {length} tokens is longer than max_position_embeddings = {most}; truncate it, or train "
                "a model with remove_position_embeddings, which takes any length"
            )
        return self.position_embeddings.weight[:length]


class BertSelfOutput(nn.Module):
    """Linear, dropout, residual, post-layer-norm."""

    def __init__(self, size_in: int, config: CompositeBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(size_in, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        """(B, S, size_in), (B, S, D) -> (B, S, D)."""
        return self.LayerNorm(self.dropout(self.dense(hidden)) + residual)


class BertAttention(nn.Module):
    """Composite attention and its output projection H*d -> D."""

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
        self.output = BertSelfOutput(config.num_attention_heads * config.head_size, config)

    def forward(self, hidden: Tensor, inputs: AttentionInputs) -> tuple[Tensor, Tensor | None]:
        """(B, S, D) -> (B, S, D), probabilities (B, H, S, S) or None."""
        attend = attention_backend(inputs.implementation)
        output, probabilities = self.self(hidden, inputs.borders, inputs.mask, attend)
        return self.output(output, hidden), probabilities


class BertIntermediate(nn.Module):
    """The first half of the feed-forward part."""

    def __init__(self, config: CompositeBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, intermediate)."""
        return self.activation(self.dense(hidden))


class BertLayer(GradientCheckpointingLayer):
    """Attention, then feed-forward, each with residual and post-layer-norm."""

    def __init__(self, config: CompositeBertConfig) -> None:
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertSelfOutput(config.intermediate_size, config)

    def forward(self, hidden: Tensor, inputs: AttentionInputs) -> tuple[Tensor, Tensor | None]:
        """(B, S, D) -> (B, S, D), probabilities or None."""
        hidden, probabilities = self.attention(hidden, inputs)
        return self.output(self.intermediate(hidden), hidden), probabilities


class BertEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: CompositeBertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList([BertLayer(config) for _ in range(config.num_hidden_layers)])


class BertPooler(nn.Module):
    """Linear and tanh on the first token of each example."""

    def __init__(self, config: CompositeBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, example_starts: Tensor | None = None) -> Tensor:
        """(B, S, D) -> (B, D), or (X, D) for flat ``example_starts`` (X,)."""
        first = hidden[:, 0] if example_starts is None else hidden.flatten(0, 1)[example_starts]
        return torch.tanh(self.dense(first))


class BertPredictionHeadTransform(nn.Module):
    """D -> E, activation, layer norm."""

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
    """The language model's head and, with ``sentence_order``, the linear layer that tells the order of the sentences."""

    def __init__(self, config: CompositeBertConfig, sentence_order: bool) -> None:
        super().__init__()
        self.predictions = BertLMPredictionHead(config)
        if sentence_order:
            self.seq_relationship = nn.Linear(config.hidden_size, 2)


class CompositeBertPreTrainedModel(PreTrainedModel):
    """Initialisation and loading, shared by all models."""

    config: CompositeBertConfig
    config_class = CompositeBertConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["BertEmbeddings", "BertLayer"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal for Linear and Embedding weights, zero biases; convolutions keep PyTorch's default."""
        if isinstance(module, nn.Conv1d):
            bound = (module.in_channels // module.groups * module.kernel_size[0]) ** -0.5
            for parameter in (module.weight, module.bias):  # PyTorch's kaiming_uniform_(a=sqrt(5)) comes to this bound
                init.uniform_(parameter, -bound, bound)
            return
        super()._init_weights(module)
        if isinstance(module, BertLMPredictionHead):
            init.zeros_(module.bias)
        elif isinstance(module, CompositeAttention):
            for name, parameter in module.named_parameters(recurse=False):
                if name == "convolution_scalar":
                    init.ones_(parameter)
                elif name == "convfixed_param":
                    init.zeros_(parameter)
                else:
                    init.kaiming_uniform_(parameter, a=5**0.5)


class CompositeBertModel(CompositeBertPreTrainedModel):
    """The encoder, with BERT's pooler unless ``add_pooling_layer`` is false."""

    def __init__(self, config: CompositeBertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.gradient_checkpointing = False
        self.embeddings = BertEmbeddings(config)
        if config.embedding_size != config.hidden_size:
            self.embeddings_project = nn.Linear(config.embedding_size, config.hidden_size)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings (V, E)."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.embeddings.word_embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        example_starts: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Encode (B, S) tokens, or (B, S, E) embeddings, into (B, S, D) and pooled (B or X, D).

        Raises:
            ValueError: unless exactly one of ``input_ids`` and ``inputs_embeds`` is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        want_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        want_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states

        hidden = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)
        if hasattr(self, "embeddings_project"):
            hidden = self.embeddings_project(hidden)
        borders = Borders.from_mask(attention_mask)
        # Fused backends don't keep the probabilities, so whoever asks for them gets the readable one.
        implementation = "eager" if want_attentions else self.config._attn_implementation
        inputs = AttentionInputs(borders, borders.score_mask(hidden.dtype), implementation)

        states: tuple[Tensor, ...] = (hidden,)
        attentions: tuple[Tensor, ...] = ()
        for layer in self.encoder.layer:
            hidden, probabilities = layer(hidden, inputs)
            if want_states:
                states += (hidden,)
            if want_attentions:
                attentions += (probabilities,)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=self.pooler(hidden, example_starts) if self.pooler is not None else None,
            hidden_states=states if want_states else None,
            attentions=attentions if want_attentions else None,
        )


class _LanguageModel(CompositeBertPreTrainedModel):
    """What the two pre-training models share: the tied head, and its loss on the masked tokens alone."""

    _tied_weights_keys = {  # noqa: RUF012
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def __init__(self, config: CompositeBertConfig, sentence_order: bool) -> None:
        super().__init__(config)
        self.bert = CompositeBertModel(config, add_pooling_layer=sentence_order)
        self.cls = BertPreTrainingHeads(config, sentence_order)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The decoder, tied to the word embeddings."""
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the decoder."""
        self.cls.predictions.decoder = new_embeddings
        self.cls.predictions.bias = new_embeddings.bias

    def predict(
        self,
        hidden: Tensor,
        labels: Tensor | None,
        masked_positions: Tensor | None,
        num_items_in_batch: Tensor | int | None,
    ) -> tuple[Tensor | None, Tensor]:
        """The loss and the logits.

        Only what the loss needs goes through the head: the ``masked_positions`` (M,), whose ``labels`` are (M,); or, in
        training, the positions with a label. Otherwise, as in BERT, logits are for all positions.

        Returns:
            Loss or None (mean over labels other than -100, or their sum over ``num_items_in_batch``); logits (M, V) or
            (B, S, V).
        """
        if masked_positions is None and labels is not None and self.training:
            masked_positions = (labels.flatten() != -100).nonzero().squeeze(1)
            labels = labels.flatten()[masked_positions]
        if masked_positions is not None:
            hidden = hidden.flatten(0, 1).index_select(0, masked_positions)
        logits = self.cls.predictions(hidden)
        if labels is None:
            return None, logits
        # float32: the sum over 30,000 exponentials; with a sum over no label at all the loss is 0, not NaN
        total = functional.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), reduction="sum")
        items = (labels != -100).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return total / items, logits


class CompositeBertForMaskedLM(_LanguageModel):
    """Masked language model."""

    def __init__(self, config: CompositeBertConfig) -> None:
        super().__init__(config, sentence_order=False)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        masked_positions: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """BERT's signature. ``labels`` (B, S), -100 where there is nothing to predict, or (M,) with positions."""
        outputs = self.bert(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        loss, logits = self.predict(outputs.last_hidden_state, labels, masked_positions, num_items_in_batch)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class CompositeBertForPreTraining(_LanguageModel):
    """Masked language model and sentence order (label 1: the two sentences are swapped)."""

    def __init__(self, config: CompositeBertConfig) -> None:
        super().__init__(config, sentence_order=True)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        masked_positions: Tensor | None = None,
        example_starts: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        num_examples_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> BertForPreTrainingOutput:
        """BERT's signature; the loss is the sum of the two, and given if both labels are.

        As ``num_items_in_batch`` divides the first (masked tokens), ``num_examples_in_batch`` divides the second.
        """
        outputs = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            example_starts=example_starts,
            **kwargs,
        )
        loss, logits = self.predict(outputs.last_hidden_state, labels, masked_positions, num_items_in_batch)
        order_logits = self.cls.seq_relationship(outputs.pooler_output)
        if loss is not None and next_sentence_label is not None:
            order_labels = next_sentence_label.view(-1)
            total = functional.cross_entropy(order_logits.view(-1, 2).float(), order_labels, reduction="sum")
            examples = (order_labels != -100).sum().clamp(min=1)
            loss = loss + total / (examples if num_examples_in_batch is None else num_examples_in_batch)
        else:
            loss = None
        return BertForPreTrainingOutput(
            loss=loss,
            prediction_logits=logits,
            seq_relationship_logits=order_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class CompositeBertForSequenceClassification(CompositeBertPreTrainedModel):
    """Classification, or regression for one label, from the pooled first token."""

    def __init__(self, config: CompositeBertConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = CompositeBertModel(config)
        rate = config.classifier_dropout if config.classifier_dropout is not None else config.hidden_dropout_prob
        self.dropout = Dropout(rate)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        example_starts: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """BERT's signature; ``labels`` (B,) classes, (B,) reals for one label, or (B, labels) for several at once."""
        kwargs.pop("num_items_in_batch", None)
        outputs = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            example_starts=example_starts,
            **kwargs,
        )
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
