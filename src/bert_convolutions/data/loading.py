"""Loading any tokenizer from a local path or the Hub, and a hash that identifies it."""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from bert_convolutions.data.pieces import find_model_file
from bert_convolutions.data.tokenizer import CompositeBertTokenizer
from bert_convolutions.errors import UsageError, first_line
from bert_convolutions.hub import local_folder

OF_PRETRAINING = ("cls_token", "sep_token", "pad_token", "mask_token")
"""Attributes of a tokenizer, the special tokens that pre-training needs."""
NOTED_CUT = 0.1
"""Share of the tokens (pre-training) or examples (fine-tuning) from which on it is reported that they are cut off."""


def load_tokenizer(
    path: str | Path, model: str | Path | None = None, needs: Sequence[str] = OF_PRETRAINING
) -> PreTrainedTokenizerBase:
    """Load a bare ``spm.model``, or any Hugging Face tokenizer from a directory or by its name on the Hub.

    If it is for a trained ``model`` whose folder holds a tokenizer, it must have the same tokens as that one. ``needs``
    are the special tokens that it must have.

    Raises:
        UsageError: the path does not exist, holds no tokenizer that can be loaded, or not the model's.
    """
    own = None
    if model is not None and model != path:
        with contextlib.suppress(UsageError):
            own = _load(model, needs)
    tokenizer = _load(path, needs)
    if own is not None and not tokenizer.get_vocab().items() <= own.get_vocab().items():  # that one may have fillers
        raise UsageError(
            f"--tokenizer_name {path} has other tokens than the tokenizer saved in {model}, with which it was trained; "
            "leave the flag out"
        )
    return tokenizer


def _load(path: str | Path, needs: Sequence[str]) -> PreTrainedTokenizerBase:
    path = local_folder(path, "tokenizer")
    model_file = find_model_file(path)
    if model_file and (Path(path).is_file() or not model_file.with_name("tokenizer_config.json").exists()):
        return CompositeBertTokenizer(model_file)
    loader: Any = CompositeBertTokenizer if model_file else AutoTokenizer
    try:
        tokenizer = loader.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except UsageError:
        raise
    except Exception as error:  # third-party loaders may raise anything
        raise UsageError(f"{path}: no tokenizer can be loaded from this directory ({first_line(error)})") from error
    missing = [name for name in needs if not getattr(tokenizer, name)]
    if missing:
        raise UsageError(f"{path}: the tokenizer has no {', '.join(missing)}, which is needed here; choose another")
    if not tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys():  # transformers accepts that
        raise UsageError(f"{path}: no vocabulary, as the tokenizer's files are missing; copy them or choose another")
    return tokenizer


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """A SHA-256 (hexadecimal) of a tokenizer's vocabulary and rules, independent of its path."""
    if isinstance(tokenizer, CompositeBertTokenizer) and len(tokenizer) == len(tokenizer.pieces):
        return tokenizer.pieces.hash
    identity: dict[str, Any] = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        identity = {key: value for key, value in rules.items() if key not in ("padding", "truncation")}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
