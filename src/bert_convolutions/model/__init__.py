"""The Hugging Face model around composite attention; importing it registers it with the Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoModelForTokenClassification,
)

from bert_convolutions.model.configuration import CompositeBertConfig
from bert_convolutions.model.heads import (
    CompositeBertForMultipleChoice,
    CompositeBertForNextSentencePrediction,
    CompositeBertForQuestionAnswering,
    CompositeBertForTokenClassification,
)
from bert_convolutions.model.modeling import (
    CompositeBertForMaskedLM,
    CompositeBertForPreTraining,
    CompositeBertForSequenceClassification,
    CompositeBertModel,
)

AutoConfig.register(CompositeBertConfig.model_type, CompositeBertConfig)
AutoModel.register(CompositeBertConfig, CompositeBertModel)
AutoModelForMaskedLM.register(CompositeBertConfig, CompositeBertForMaskedLM)
AutoModelForPreTraining.register(CompositeBertConfig, CompositeBertForPreTraining)
AutoModelForSequenceClassification.register(CompositeBertConfig, CompositeBertForSequenceClassification)
AutoModelForTokenClassification.register(CompositeBertConfig, CompositeBertForTokenClassification)
AutoModelForQuestionAnswering.register(CompositeBertConfig, CompositeBertForQuestionAnswering)
AutoModelForMultipleChoice.register(CompositeBertConfig, CompositeBertForMultipleChoice)
AutoModelForNextSentencePrediction.register(CompositeBertConfig, CompositeBertForNextSentencePrediction)
AutoModelForTextEncoding.register(CompositeBertConfig, CompositeBertModel)

__all__ = [
    "CompositeBertConfig",
    "CompositeBertForMaskedLM",
    "CompositeBertForMultipleChoice",
    "CompositeBertForNextSentencePrediction",
    "CompositeBertForPreTraining",
    "CompositeBertForQuestionAnswering",
    "CompositeBertForSequenceClassification",
    "CompositeBertForTokenClassification",
    "CompositeBertModel",
]
