"""BERT encoders that mix self-attention with convolutions (Chang, Xu, Xu and Tu, ACL 2021, arXiv 2106.05505).

Importing the package registers its classes with the Auto classes of ``transformers``, which loads PyTorch and takes
seconds. The command line defers it until it is needed: ``bertconv`` sets ``BERT_CONVOLUTIONS_LAZY``, and ``python -m
bert_convolutions`` and submitit's jobs, which only start commands, are recognised.
"""

import importlib
import itertools
import os
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "CompositeAttention",
    "CompositeBertConfig",
    "CompositeBertForMaskedLM",
    "CompositeBertForMultipleChoice",
    "CompositeBertForNextSentencePrediction",
    "CompositeBertForPreTraining",
    "CompositeBertForQuestionAnswering",
    "CompositeBertForSequenceClassification",
    "CompositeBertForTokenClassification",
    "CompositeBertModel",
    "CompositeBertTokenizer",
    "__version__",
]

_COMMANDS = (("-m", __name__), ("-m", "submitit.core._submit"))
_is_a_command = any(words in _COMMANDS for words in itertools.pairwise(sys.orig_argv))
if TYPE_CHECKING or not (os.environ.get("BERT_CONVOLUTIONS_LAZY") or _is_a_command):
    from bert_convolutions.attention.composite import CompositeAttention
    from bert_convolutions.data.tokenizer import CompositeBertTokenizer
    from bert_convolutions.model import (
        CompositeBertConfig,
        CompositeBertForMaskedLM,
        CompositeBertForMultipleChoice,
        CompositeBertForNextSentencePrediction,
        CompositeBertForPreTraining,
        CompositeBertForQuestionAnswering,
        CompositeBertForSequenceClassification,
        CompositeBertForTokenClassification,
        CompositeBertModel,
    )
else:

    def __getattr__(name: str) -> Any:
        """Import an exported class at its first use (PEP 562)."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        modules = {"CompositeAttention": "attention.composite", "CompositeBertTokenizer": "data.tokenizer"}
        return getattr(importlib.import_module(f"{__name__}.{modules.get(name, 'model')}"), name)
