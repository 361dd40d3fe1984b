"""The original's tokenizer as a ``transformers`` class, and loading of any tokenizer from a local path.

A tokenizer directory holds ``spm.model`` and ``tokenizer_config.json``; ``AutoTokenizer.from_pretrained`` loads it once
``bert_convolutions`` is imported.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AddedToken, AutoTokenizer, BatchEncoding, PreTrainedConfig, PreTrainedTokenizer
from transformers.tokenization_utils_base import PaddingStrategy, PreTrainedTokenizerBase, TruncationStrategy

from bert_convolutions.data.pieces import MODEL_FILE, PieceTokenizer, find_model_file
from bert_convolutions.errors import UsageError, first_line


class CompositeBertTokenizer(PreTrainedTokenizer):
    """SentencePiece with the original's rules; ``[CLS] a [SEP] b [SEP]`` with token types 0 and 1.

    The ids come from ``PieceTokenizer``, which encodes whole batches in C++; tokens that a user adds to the vocabulary
    take the slower path of the base class.

    Args:
        vocab_file: the ``spm.model``.
        kwargs: those of ``PreTrainedTokenizer``.
    """

    vocab_files_names = {"vocab_file": MODEL_FILE}  # noqa: RUF012 (the base class's declaration)
    model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "right"
    _auto_map = {"AutoTokenizer": ["tokenization_composite_bert.CompositeBertTokenizer", None]}  # noqa: RUF012

    def __init__(self, vocab_file: str | Path, **kwargs: Any) -> None:
        self.pieces = PieceTokenizer(vocab_file)
        self.vocab_file = str(vocab_file)
        self._added_tokens_decoder = {
            token_id: AddedToken(token, special=True, normalized=False)
            for token, token_id in sorted(self.pieces.special_ids.items(), key=lambda item: item[1])
        }
        special_tokens = {
            "unk_token": "<unk>",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "pad_token": "<pad>",
            "mask_token": "[MASK]",
        }
        kwargs.pop("local_files_only", None)  # how it was loaded is no property of it
        kwargs.setdefault("special_tokens_pattern", "cls_sep")
        kwargs.setdefault("token_type_ids_pattern", "bert_style")
        super().__init__(**{**special_tokens, **kwargs})

    @property
    def vocab_size(self) -> int:
        """The number of SentencePiece pieces, without the appended special tokens."""
        return self.pieces.num_pieces

    def get_vocab(self) -> dict[str, int]:
        """Return the id of every token."""
        return {**self._piece_ids, **self._added_tokens_encoder}

    @functools.cached_property
    def _piece_ids(self) -> dict[str, int]:
        pieces = self.pieces.processor.id_to_piece(list(range(self.vocab_size)))
        return {piece: position for position, piece in enumerate(pieces)}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return self.pieces.tokenize(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.pieces.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.pieces.processor.id_to_piece(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join pieces into text; special tokens stand apart."""
        special = set(self.all_special_tokens)
        text = "".join(f" {token} " if token in special else token.replace("▁", " ") for token in tokens)
        return " ".join(text.split())

    def _encode_plus(  # type: ignore[override]  # all other arguments have names and pass through
        self, text: Any, text_pair: Any = None, **kwargs: Any
    ) -> BatchEncoding:
        """Encode strings in one batch; leave pre-tokenized input, added tokens and overflow to the base class."""
        texts = [text] if isinstance(text, str) else text
        pairs = [text_pair] if isinstance(text_pair, str) else text_pair
        if not self._encodes_alone(texts, pairs, kwargs):
            return super()._encode_plus(text, text_pair=text_pair, **kwargs)
        truncation = kwargs.get("truncation_strategy", TruncationStrategy.DO_NOT_TRUNCATE)
        max_length = kwargs.get("max_length")
        first = self.pieces.encode(texts)
        second = self.pieces.encode(pairs) if pairs is not None else [None] * len(first)
        prepared: dict[str, list[Any]] = {}
        for ids, pair_ids in zip(first, second, strict=True):
            example = self.prepare_for_model(
                ids,
                pair_ids,
                add_special_tokens=kwargs.get("add_special_tokens", True),
                truncation=truncation.value,
                max_length=max_length,
                return_token_type_ids=kwargs.get("return_token_type_ids"),
                return_attention_mask=False,
                return_special_tokens_mask=kwargs.get("return_special_tokens_mask", False),
                return_length=kwargs.get("return_length", False),
                verbose=kwargs.get("verbose", True),
            )
            for key, value in example.items():
                prepared.setdefault(key, []).append(value)
        single = isinstance(text, str)
        padding = kwargs.get("padding_strategy", PaddingStrategy.DO_NOT_PAD)
        padded = self.pad(
            {key: values[0] for key, values in prepared.items()} if single else prepared,
            padding=padding.value,
            max_length=max_length,
            pad_to_multiple_of=kwargs.get("pad_to_multiple_of"),
            padding_side=kwargs.get("padding_side"),
            return_attention_mask=kwargs.get("return_attention_mask"),
        )
        return BatchEncoding(padded.data, tensor_type=kwargs.get("return_tensors"), prepend_batch_axis=single)

    def _encodes_alone(self, texts: Any, pairs: Any, kwargs: dict[str, Any]) -> bool:
        """Say whether ``PieceTokenizer`` can take a whole batch at once: strings, and nothing unusual asked for."""
        return (
            _are_strings(texts)
            and (pairs is None or (_are_strings(pairs) and len(pairs) == len(texts)))
            and not kwargs.get("is_split_into_words")
            and not kwargs.get("return_overflowing_tokens")
            and not kwargs.get("split_special_tokens", self.split_special_tokens)
            and not kwargs.get("sanitize_control_tokens")
            and len(self._added_tokens_decoder) == len(self.pieces.special_ids)
        )

    def truncate_sequences(  # type: ignore[override]  # there may be no second sequence
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: str | TruncationStrategy = "longest_first",
        stride: int = 0,
    ) -> tuple[list[int], list[int] | None, list[int]]:
        """Truncate as the base class does; pairs longest-first, without its warning for every pair.

        One token at a time leaves the longer sentence, or the second where both are equally long.
        """
        longest_first = TruncationStrategy(truncation_strategy) == TruncationStrategy.LONGEST_FIRST
        if not (longest_first and pair_ids is not None and self.truncation_side == "right"):
            return super().truncate_sequences(ids, pair_ids, num_tokens_to_remove, truncation_strategy, stride)
        excess = max(num_tokens_to_remove, 0)
        from_longer = min(abs(len(ids) - len(pair_ids)), excess)
        from_first, from_second = (excess - from_longer) // 2, (excess - from_longer + 1) // 2
        if len(ids) > len(pair_ids):
            from_first += from_longer
        else:
            from_second += from_longer
        return ids[: max(len(ids) - from_first, 0)], pair_ids[: max(len(pair_ids) - from_second, 0)], []

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write ``spm.model``, and the code that reads it without this package, into a directory; return the paths."""
        path = Path(save_directory) / ((f"{filename_prefix}-" if filename_prefix else "") + MODEL_FILE)
        path.write_bytes(self.pieces.model_bytes)
        if not __name__.startswith("bert_convolutions."):  # code that came with a model is copied by transformers
            return (str(path),)
        from bert_convolutions.self_contained import write_code

        return (str(path), *map(str, write_code(save_directory, "tokenization_composite_bert")))


class _TokenizerOnlyConfig(PreTrainedConfig):
    """``AutoTokenizer`` learns of a tokenizer class together with a configuration; this one stands for no model."""

    model_type = "composite_bert_tokenizer"


AutoTokenizer.register(_TokenizerOnlyConfig, CompositeBertTokenizer, exist_ok=True)


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer from this machine, never from the network.

    Args:
        path: a bare ``spm.model``, or the directory of any Hugging Face tokenizer.

    Raises:
        UsageError: nothing is there, or what is there is no tokenizer that can be loaded.
    """
    model_file = find_model_file(path)
    if model_file is not None:
        config_file = model_file.parent / "tokenizer_config.json"
        if Path(path).is_file() or not config_file.exists():
            return CompositeBertTokenizer(model_file)
        return _from_directory(CompositeBertTokenizer, path)
    return _from_directory(AutoTokenizer, path)


def _from_directory(loader: Any, path: str | Path) -> PreTrainedTokenizerBase:
    try:
        tokenizer = loader.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except UsageError:
        raise
    except Exception as error:  # a third party's loader may raise anything
        raise UsageError(f"{path}: no tokenizer can be loaded from this directory ({first_line(error)})") from error
    missing = [name for name in ("cls_token", "sep_token", "pad_token", "mask_token") if not getattr(tokenizer, name)]
    if missing:
        raise UsageError(f"{path}: the tokenizer has no {', '.join(missing)}, which BERT needs; choose another")
    return tokenizer


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a sha256 (hexadecimal) that identifies a tokenizer's vocabulary and rules, wherever it was loaded from."""
    if isinstance(tokenizer, CompositeBertTokenizer):
        return tokenizer.pieces.hash
    identity: dict[str, Any] = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        identity = {key: value for key, value in rules.items() if key not in ("padding", "truncation")}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _are_strings(texts: Any) -> bool:
    return isinstance(texts, Sequence) and not isinstance(texts, str) and all(isinstance(text, str) for text in texts)
