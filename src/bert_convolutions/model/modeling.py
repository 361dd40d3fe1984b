"""BERT with composite attention. Parameter names, signatures and outputs are those of BERT in ``transformers``.

Legend: B rows, S sequence, D hidden, E embedding size, V vocabulary, L layers, M masked positions, X examples.

Besides BERT's inputs, the models take those of packed rows (several examples in a row, ``data.packing``).
``attention_mask`` (B, S) may number the examples of a row from 1 (0 is padding), and the integer ``examples_per_row``
bounds these numbers (without it, models with convolutions over tokens read it from the device). ``masked_positions``
(M,) are the flat positions in B*S that the language model head reads, ``example_starts`` (X,) those of first tokens. If
a head reads no others, the last layer's output projection and feed-forward part are computed for these positions only.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, MaskedLMOutput
from transformers.models.bert.modeling_bert import BertForPreTrainingOutput
from transformers.utils import can_return_tuple

from bert_convolutions.attention.autograd import product_dtype
from bert_convolutions.attention.composite import CompositeAttention
from bert_convolutions.attention.segments import Segments
from bert_convolutions.data.masking import IGNORED
from bert_convolutions.model.backends import attention_backend, cache_for_backend
from bert_convolutions.model.configuration import CompositeBertConfig
from bert_convolutions.model.loss import cross_entropy, linear_cross_entropy
from bert_convolutions.model.modules import (
    AttentionInputs,
    BertEmbeddings,
    BertEncoder,
    BertLMPredictionHead,
    BertPooler,
    BertPreTrainingHeads,
)


class CompositeBertPreTrainedModel(PreTrainedModel):
    """The base class of all models: initialisation and loading."""

    config: CompositeBertConfig
    config_class = CompositeBertConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["BertEmbeddings", "BertLayer"]  # noqa: RUF012

    def __init__(self, config: CompositeBertConfig, *args: Any, **kwargs: Any) -> None:
        config.check()
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal for Linear and Embedding weights, zero biases; convolutions keep PyTorch's default."""
        with init.guard_torch_init_functions():  # skips weights that have been loaded
            if isinstance(module, nn.Conv1d):
                module.reset_parameters()
                return
            super()._init_weights(module)
            if isinstance(module, BertLMPredictionHead):
                nn.init.zeros_(module.bias)
            elif isinstance(module, CompositeAttention):
                module.reset_terms()

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # ``transformers`` guesses from the source, wrongly for the single file that is saved with a model

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """Accept ``triton``, which ``transformers`` doesn't know, if Triton is installed."""
        if requested_attention == "triton":
            attention_backend(requested_attention)
            return requested_attention
        return super().get_correct_attn_implementation(requested_attention, is_init_check)


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
        self.embeddings.word_embeddings = cast(nn.Embedding, value)

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
        examples_per_row: int | None = None,
        output_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Encode (B, S) tokens, or (B, S, E) embeddings, into (B, S, D) and pooled (B or X, D).

        With flat ``output_positions`` (P,) in B*S, the last hidden state is (P, D), for these positions only.

        Raises:
            ValueError: not exactly one of ``input_ids`` and ``inputs_embeds`` is given, or a mask of another size, or
                an input for decoders or for masking heads.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        for name in ("head_mask", "encoder_hidden_states", "past_key_values"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name} is not supported: these models are encoders and don't mask heads")
        want_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        want_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states

        hidden = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)
        if hasattr(self, "embeddings_project"):
            hidden = self.embeddings_project(hidden)
        if self.config.convolves_tokens:
            segments = Segments.from_mask(attention_mask, examples_per_row, hidden.shape[:2]).with_count()
        else:  # without the number, a compiler doesn't recompile when it changes
            segments = Segments.from_mask(attention_mask, size=hidden.shape[:2])
        # Fused backends don't keep the probabilities; only eager returns them.
        implementation = "eager" if want_attentions else self.config._attn_implementation
        dtype = product_dtype(hidden)
        cached = cache_for_backend(segments, implementation, dtype)
        inputs = AttentionInputs(cached, attention_backend(implementation), dtype)

        needed = output_positions
        if needed is not None and self.pooler is not None:  # followed by the positions that the pooler reads
            starts = torch.arange(hidden.shape[0], device=hidden.device) * hidden.shape[1]
            needed = torch.cat([needed, starts if example_starts is None else example_starts])
        states: tuple[Tensor, ...] = (hidden,)
        attentions: tuple[Tensor, ...] = ()
        for number, layer in enumerate(self.encoder.layer, start=1):
            is_last = number == len(self.encoder.layer)
            hidden, probabilities = layer(hidden, inputs, needed if is_last and not want_states else None)
            if want_states:
                states += (hidden,)
            if want_attentions:
                attentions += (probabilities,)
        if output_positions is None or needed is None:
            first = hidden[:, 0] if example_starts is None else hidden.flatten(0, 1)[example_starts]
        else:
            hidden = hidden.flatten(0, 1).index_select(0, needed) if want_states else hidden
            hidden, first = hidden[: output_positions.shape[0]], hidden[output_positions.shape[0] :]
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=self.pooler(first) if self.pooler is not None else None,
            hidden_states=states if want_states else None,
            attentions=attentions if want_attentions else None,
        )


class _LanguageModel(CompositeBertPreTrainedModel):
    """The base class of the pre-training models: the tied head, and its loss on masked tokens only."""

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
        bias = new_embeddings.bias
        self.cls.predictions.bias = bias if self.config.tie_word_embeddings else nn.Parameter(bias.detach().clone())

    def predict(
        self,
        hidden: Tensor,
        labels: Tensor | None,
        masked_positions: Tensor | None,
        num_items_in_batch: Tensor | int | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Compute loss and logits from the last hidden state (B, S, D), or (M, D) of ``masked_positions``.

        The head is computed for the ``masked_positions`` (M,), with ``labels`` (M,); or for the positions with a label
        if ``config.sparse_prediction``; otherwise for all positions, as in BERT. In training with ``masked_positions``,
        only the loss is computed, without logits (``model.loss``).

        Returns:
            Loss or None (mean over labels other than -100, or their sum over ``num_items_in_batch``); logits (M, V),
            (B, S, V) or None.
        """
        only_loss = masked_positions is not None and labels is not None and self.training
        if masked_positions is None and labels is not None and self.config.sparse_prediction:
            labelled = (labels.flatten() != IGNORED).nonzero().squeeze(1)
            hidden, labels = hidden.flatten(0, 1).index_select(0, labelled), labels.flatten()[labelled]
        head = self.cls.predictions
        logits = None if only_loss else head(hidden)
        if labels is None:
            return None, logits
        items = (labels != IGNORED).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        if logits is None:
            total = linear_cross_entropy(head.transform(hidden), head.decoder, labels)
        else:  # not a mean, so that the loss is 0, not NaN, without any label
            total = cross_entropy(logits.flatten(0, -2), labels.flatten())
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
        """BERT's signature. ``labels`` (B, S), -100 where nothing is predicted; or (M,) with ``masked_positions``."""
        outputs = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            output_positions=masked_positions,
            return_dict=True,
            **kwargs,
        )
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
        """BERT's signature. The loss is the sum of both losses, and returned if both labels are given.

        ``num_items_in_batch`` (masked tokens) divides the first loss, ``num_examples_in_batch`` the second. If only the
        former is given, as by a stock ``Trainer``, the second is this batch's mean, weighted by its share of the masked
        tokens, so that it too adds up to a mean over the accumulated batches.
        """
        outputs = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            example_starts=example_starts,
            output_positions=masked_positions,
            return_dict=True,
            **kwargs,
        )
        loss, logits = self.predict(outputs.last_hidden_state, labels, masked_positions, num_items_in_batch)
        order_logits = self.cls.seq_relationship(outputs.pooler_output)
        if loss is not None and next_sentence_label is not None:
            order_labels = next_sentence_label.view(-1)
            total = cross_entropy(order_logits.view(-1, 2), order_labels)
            if num_examples_in_batch is None:
                num_examples_in_batch = (order_labels != IGNORED).sum().clamp(min=1)
                if num_items_in_batch is not None and labels is not None:
                    total = total * (labels != IGNORED).sum() / num_items_in_batch
            loss = loss + total / num_examples_in_batch
        else:
            loss = None
        return BertForPreTrainingOutput(
            loss=loss,
            prediction_logits=logits,
            seq_relationship_logits=order_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
