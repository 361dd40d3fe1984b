"""BERT's heads for fine-tuning: texts, tokens, spans, choices, next sentence, with BERT's names and signatures.

Legend: B rows, S sequence, C choices, D hidden, N labels.
"""

from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import (
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import can_return_tuple

from bert_convolutions.attention.cpu import Dropout
from bert_convolutions.model.configuration import CompositeBertConfig
from bert_convolutions.model.loss import cross_entropy
from bert_convolutions.model.modeling import CompositeBertModel, CompositeBertPreTrainedModel


class HeadedModel(CompositeBertPreTrainedModel):
    """The base class of models for fine-tuning: an encoder and dropout before the head.

    Losses are means over the given batch, so a Trainer that accumulates gradients has to average them.
    """

    accepts_loss_kwargs = False

    def __init__(self, config: CompositeBertConfig, pooled: bool) -> None:
        super().__init__(config)
        self.num_labels = len(config.id2label or {})
        self.bert = CompositeBertModel(config, add_pooling_layer=pooled)
        rate = config.classifier_dropout if config.classifier_dropout is not None else config.hidden_dropout_prob
        self.dropout = Dropout(rate)


class CompositeBertForSequenceClassification(HeadedModel):
    """Classification, or regression for one label, from the pooled first token."""

    def __init__(self, config: CompositeBertConfig) -> None:
        super().__init__(config, pooled=True)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
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
        """BERT's signature; ``labels`` (B,) classes, (B,) reals for one label, or (B, N) for multi-label problems."""
        outputs = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            example_starts=example_starts,
            output_positions=None if example_starts is None else example_starts[:0],  # only the pooler reads any
            return_dict=True,
            **kwargs,
        )
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None if labels is None else self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class CompositeBertForTokenClassification(HeadedModel):
    """A label for each token, such as a part of speech or a named entity."""

    def __init__(self, config: CompositeBertConfig) -> None:
        super().__init__(config, pooled=False)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
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
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """BERT's signature; ``labels`` (B, S), -100 for tokens that don't count. Logits (B, S, N)."""
        outputs = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None if labels is None else cross_entropy(logits.flatten(0, -2), labels.flatten(), "mean")
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class CompositeBertForQuestionAnswering(HeadedModel):
    """Extractive question answering: the first and the last token of the answer."""

    def __init__(self, config: CompositeBertConfig) -> None:
        super().__init__(config, pooled=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> QuestionAnsweringModelOutput:
        """BERT's signature; positions (B,), ignored if outside the sequence. Logits (B, S) each."""
        outputs = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class CompositeBertForMultipleChoice(HeadedModel):
    """Multiple choice between continuations, each scored from its pooled first token."""

    def __init__(self, config: CompositeBertConfig) -> None:
        super().__init__(config, pooled=True)
        self.classifier = nn.Linear(config.hidden_size, 1)
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
        **kwargs: Any,
    ) -> MultipleChoiceModelOutput:
        """BERT's signature; all inputs (B, C, S), ``labels`` (B,) the right choice. Logits (B, C)."""
        shaped = input_ids if input_ids is not None else inputs_embeds
        if shaped is None:
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        outputs = self.bert(
            *(None if tensor is None else tensor.flatten(0, 1) for tensor in inputs), return_dict=True, **kwargs
        )
        logits = self.classifier(self.dropout(outputs.pooler_output)).view(shaped.shape[:2])
        loss = None if labels is None else cross_entropy(logits, labels, "mean")
        return MultipleChoiceModelOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class CompositeBertForNextSentencePrediction(HeadedModel):
    """Next sentence prediction: whether the second sentence follows the first (label 0) or not (label 1)."""

    def __init__(self, config: CompositeBertConfig) -> None:
        super().__init__(config, pooled=True)
        self.cls = nn.ModuleDict({"seq_relationship": nn.Linear(config.hidden_size, 2)})
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
        **kwargs: Any,
    ) -> NextSentencePredictorOutput:
        """BERT's signature; ``labels`` (B,). Logits (B, 2). The head is that of ``CompositeBertForPreTraining``."""
        outputs = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        logits = self.cls["seq_relationship"](outputs.pooler_output)
        loss = None if labels is None else cross_entropy(logits, labels.view(-1), "mean")
        return NextSentencePredictorOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
