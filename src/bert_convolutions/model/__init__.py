"""The Hugging Face model around composite attention; importing it registers it with the Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
)

from bert_convolutions.model.configuration import CompositeBertConfig
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

__all__ = [
    "CompositeBertConfig",
    "CompositeBertForMaskedLM",
    "CompositeBertForPreTraining",
    "CompositeBertForSequenceClassification",
    "CompositeBertModel",
]
