"""BERT encoders that mix self-attention with convolutions (Chang, Xu, Xu and Tu, ACL 2021, arXiv 2106.05505).

Importing the package registers its classes with the Auto classes of ``transformers``, which loads PyTorch and takes
seconds. The command line defers it until it is needed: ``bertconv`` sets ``BERT_CONVOLUTIONS_LAZY``, and ``python -m
bert_convolutions`` and submitit's jobs, which only start commands, are recognised.
"""

import importlib
import itertools
import os
import sys
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "CompositeBertConfig": "model",
    "CompositeBertForMaskedLM": "model",
    "CompositeBertForMultipleChoice": "model",
    "CompositeBertForNextSentencePrediction": "model",
    "CompositeBertForPreTraining": "model",
    "CompositeBertForQuestionAnswering": "model",
    "CompositeBertForSequenceClassification": "model",
    "CompositeBertForTokenClassification": "model",
    "CompositeBertModel": "model",
    "CompositeBertTokenizer": "data.tokenizer",
    "CompositeAttention": "attention.composite",
}
__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str) -> Any:
    """Import an exported class at its first use (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)


_COMMANDS = (("-m", __name__), ("-m", "submitit.core._submit"))
_is_a_command = any(words in _COMMANDS for words in itertools.pairwise(sys.orig_argv))
if not (os.environ.get("BERT_CONVOLUTIONS_LAZY") or _is_a_command):
    importlib.import_module(f"{__name__}.model")
    importlib.import_module(f"{__name__}.data.tokenizer")
