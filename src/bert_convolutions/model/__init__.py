"""Hugging Face models with composite attention; importing this package registers them with the Auto classes."""

import transformers

from bert_convolutions.model.configuration import AUTO_CLASSES, CompositeBertConfig
from bert_convolutions.model.heads import (
    CompositeBertForMultipleChoice,
    CompositeBertForNextSentencePrediction,
    CompositeBertForQuestionAnswering,
    CompositeBertForSequenceClassification,
    CompositeBertForTokenClassification,
)
from bert_convolutions.model.modeling import (
    CompositeBertForMaskedLM,
    CompositeBertForPreTraining,
    CompositeBertModel,
)

transformers.AutoConfig.register(CompositeBertConfig.model_type, CompositeBertConfig)
for _auto, _ours in AUTO_CLASSES.items():
    if _auto != "AutoConfig":
        getattr(transformers, _auto).register(CompositeBertConfig, globals()[_ours])

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
