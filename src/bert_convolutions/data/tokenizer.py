"""The original's tokenizer as a ``transformers`` class.

A tokenizer directory holds ``spm.model`` and ``tokenizer_config.json``. ``AutoTokenizer.from_pretrained`` can load it
after ``bert_convolutions`` has been imported.
"""

import functools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Encoding
from tokenizers.processors import BertProcessing
from transformers import AddedToken, AutoTokenizer, BatchEncoding, PreTrainedConfig, PreTrainedTokenizer
from transformers.tokenization_utils_base import PaddingStrategy, TruncationStrategy

from bert_convolutions.data.pieces import (
    AUTO_MAP,
    CODE_FILE,
    MODEL_FILE,
    SPECIAL_TOKENS,
    WORD_START,
    AlignedPiece,
    PieceTokenizer,
)

_Example = tuple[Any, Any]
"""A text and its pair or None, each a string or a list of words."""
_OUTPUTS = (
    ("return_token_type_ids", "token_type_ids", "type_ids"),
    ("return_attention_mask", "attention_mask", "attention_mask"),
    ("return_special_tokens_mask", "special_tokens_mask", "special_tokens_mask"),
    ("return_offsets_mapping", "offset_mapping", "offsets"),
)
"""Argument of ``__call__``, key of the output, attribute of ``Encoding``."""


class CompositeBertTokenizer(PreTrainedTokenizer):
    """SentencePiece with the original's rules; ``[CLS] a [SEP] b [SEP]`` with token types 0 and 1.

    ``PieceTokenizer`` computes the ids, encoding whole batches in C++. The ``tokenizers`` library can't: its Unigram
    model breaks ties of scores differently, and it has no counterpart of the comma-digit rule. As the outputs are the
    same ``Encoding``s, this still counts as a fast tokenizer. It has no ``backend_tokenizer``: one with these rules in
    Python would give the ids but not the offsets, and could not be saved.

    Args:
        vocab_file: the ``spm.model``.
        kwargs: those of ``PreTrainedTokenizer``.
    """

    vocab_files_names = {"vocab_file": MODEL_FILE}  # noqa: RUF012 (the base class's declaration)
    model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "right"
    _auto_map = AUTO_MAP

    def __init__(self, vocab_file: str | Path, **kwargs: Any) -> None:
        self.pieces = PieceTokenizer(vocab_file)
        self.vocab_file = str(vocab_file)
        self._added_tokens_decoder = {
            token_id: AddedToken(token, special=True, normalized=False)
            for token, token_id in sorted(self.pieces.special_ids.items(), key=lambda item: item[1])
        }
        kwargs.pop("local_files_only", None)  # not a property of the tokenizer
        kwargs.setdefault("special_tokens_pattern", "cls_sep")
        kwargs.setdefault("token_type_ids_pattern", "bert_style")
        super().__init__(**{**SPECIAL_TOKENS, **kwargs})

    @property
    def vocab_size(self) -> int:
        """The number of SentencePiece pieces, without the appended special tokens."""
        return self.pieces.num_pieces

    def get_vocab(self) -> dict[str, int]:
        """The id of every token."""
        pieces = self.pieces.processor.id_to_piece(list(range(self.vocab_size)))
        return {**{piece: position for position, piece in enumerate(pieces)}, **self._added_tokens_encoder}

    @property
    def vocab(self) -> dict[str, int]:
        """Like ``get_vocab``, as in fast tokenizers."""
        return self.get_vocab()

    def tokenize(self, text: Any, pair: Any = None, add_special_tokens: bool = False, **kwargs: Any) -> list[str]:
        """The tokens that a call with the same arguments yields, as in fast tokenizers."""
        return self._encode_plus(text, pair, add_special_tokens=add_special_tokens, **kwargs).tokens()

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return self.pieces.tokenize(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.pieces.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        if index >= self.vocab_size:  # embeddings may be padded to a multiple of 8
            return str(self.unk_token)
        return self.pieces.processor.id_to_piece(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join pieces into text, with spaces around special and added tokens."""
        added = self._added_tokens_encoder
        text = "".join(f" {token} " if token in added else token.replace(WORD_START, " ") for token in tokens)
        return " ".join(text.split())

    @property
    def is_fast(self) -> bool:
        """True: it supports what fast tokenizers do in ``transformers``: offsets, word ids, overflowing tokens."""
        return True

    def _encode_plus(  # type: ignore[override]  # the other arguments are keywords and pass through
        self, text: Any, text_pair: Any = None, **kwargs: Any
    ) -> BatchEncoding:
        """Encode strings in one batch if possible, else one by one with offsets; ids go to the base class."""
        split = bool(kwargs.get("is_split_into_words"))
        batched = isinstance(text, list | tuple) and not (split and (not text or isinstance(text[0], str)))
        if isinstance(text, str) and _are_strings(text_pair):  # the base class would treat them as tokens
            raise ValueError("text is one string and text_pair a list of them: give two strings, or two lists")
        examples = _examples(text, text_pair, batched, split)
        if examples is None or kwargs.get("sanitize_control_tokens"):
            return super()._encode_plus(text, text_pair=text_pair, **kwargs)
        encodings: Sequence[Encoding] = _LazyEncodings(lambda: self._encode_aligned(examples, kwargs), len(examples))
        overflows = kwargs.get("return_overflowing_tokens", False)
        if overflows or kwargs.get("return_offsets_mapping") or not self._can_batch_encode(examples, kwargs):
            mains = list(encodings)
            encodings = [part for main in mains for part in (main, *(main.overflowing if overflows else ()))]
            samples = [n for n, main in enumerate(mains) for _ in range(1 + len(main.overflowing) * overflows)]
            data = self._as_data(encodings, kwargs)
            data |= {"overflow_to_sample_mapping": samples} if overflows else {}
        else:
            data = self._batch_encode(examples, kwargs)
        single = not batched and not overflows
        if single:
            data = {name: values[0] if isinstance(values[0], list) else values for name, values in data.items()}
        sequences = 1 + any(second is not None for _, second in examples)
        return BatchEncoding(data, encodings, kwargs.get("return_tensors"), single, n_sequences=sequences)

    def _can_batch_encode(self, examples: list[_Example], kwargs: dict[str, Any]) -> bool:
        """Whether ``PieceTokenizer`` can encode the whole batch: strings, and no added tokens besides its own."""
        return (
            not kwargs.get("is_split_into_words")
            and not kwargs.get("split_special_tokens", self.split_special_tokens)
            and len({second is None for _, second in examples}) < 2
            and (kwargs.get("add_special_tokens", True) or not any(second is not None for _, second in examples))
            and len(self._added_tokens_decoder) == len(self.pieces.special_ids)
        )

    def _batch_encode(self, examples: list[_Example], kwargs: dict[str, Any]) -> dict[str, list[Any]]:
        first = self.pieces.encode([one for one, _ in examples])
        paired = bool(examples) and examples[0][1] is not None
        second = self.pieces.encode([two for _, two in examples]) if paired else [None] * len(first)
        prepared: dict[str, list[Any]] = {"input_ids": []}
        for ids, pair_ids in zip(first, second, strict=True):
            example = self.prepare_for_model(
                ids,
                pair_ids,
                add_special_tokens=kwargs.get("add_special_tokens", True),
                truncation=kwargs.get("truncation_strategy", TruncationStrategy.DO_NOT_TRUNCATE).value,
                max_length=kwargs.get("max_length"),
                return_token_type_ids=kwargs.get("return_token_type_ids"),
                return_attention_mask=False,
                return_special_tokens_mask=kwargs.get("return_special_tokens_mask", False),
                verbose=kwargs.get("verbose", True),
            )
            for key, value in example.items():
                prepared.setdefault(key, []).append(value)
        return self._with_lengths(self._pad_data(prepared, kwargs), kwargs)

    def _as_data(self, encodings: Sequence[Encoding], kwargs: dict[str, Any]) -> dict[str, list[Any]]:
        """The requested outputs of padded encodings."""
        wanted = {"input_ids": "ids"}
        for flag, name, attribute in _OUTPUTS:
            value = kwargs.get(flag)
            if name in self.model_input_names if value is None else value:
                wanted[name] = attribute
        data = {name: [getattr(encoding, attribute) for encoding in encodings] for name, attribute in wanted.items()}
        for ids in data["input_ids"]:
            self._eventual_warn_about_too_long_sequence(ids, kwargs.get("max_length"), kwargs.get("verbose", True))
        return self._with_lengths(data, kwargs)

    def _with_lengths(self, data: dict[str, list[Any]], kwargs: dict[str, Any]) -> dict[str, list[Any]]:
        return data | ({"length": [*map(len, data["input_ids"])]} if kwargs.get("return_length") else {})

    def _encode_aligned(self, examples: list[_Example], kwargs: dict[str, Any]) -> list[Encoding]:
        """Truncated and padded encodings with offsets; truncated parts are in ``overflowing``."""
        add = kwargs.get("add_special_tokens", True)
        processor = BertProcessing((str(self.sep_token), self.sep_token_id), (str(self.cls_token), self.cls_token_id))
        unpadded = []
        for example in examples:
            parts = [self._encoding(part, n, kwargs) for n, part in enumerate(example) if part is not None]
            self._truncate(parts, processor.num_special_tokens_to_add(len(parts) > 1) if add else 0, kwargs)
            unpadded.append(processor.process(parts[0], parts[1] if len(parts) > 1 else None, add))
        if kwargs.get("padding_strategy", PaddingStrategy.DO_NOT_PAD) != PaddingStrategy.DO_NOT_PAD:
            padded = self._pad_data({"input_ids": [encoding.ids for encoding in unpadded]}, kwargs)["input_ids"]
            for encoding, ids in zip(unpadded, padded, strict=True):
                encoding.pad(
                    len(ids),
                    direction=kwargs.get("padding_side") or self.padding_side,
                    pad_id=self.pad_token_id,
                    pad_type_id=self.pad_token_type_id,
                    pad_token=str(self.pad_token),
                )
        return unpadded

    def _encoding(self, text: str | Sequence[str], token_type: int, kwargs: dict[str, Any]) -> Encoding:
        """The ``Encoding`` of a text or of a list of words, before truncation and padding."""
        tokens: list[tuple[int, str, int | None, tuple[int, int]]] = []
        word = -1
        for number, piece_of_text in enumerate([text] if isinstance(text, str) else text):
            for part, start, token in self._split_at_added_tokens(piece_of_text, kwargs):
                if token:
                    word += 1
                    found = [(self._added_tokens_encoder[token], AlignedPiece(token, 0, len(part)))]
                else:
                    found = [(self.pieces.piece_to_id(piece.piece), piece) for piece in self.pieces.align(part)]
                for token_id, (piece, begin, end) in found:
                    word += piece.startswith(WORD_START)
                    tokens.append(
                        (token_id, piece, word if isinstance(text, str) else number, (begin + start, end + start))
                    )
        ids, names, words, offsets = zip(*tokens, strict=True) if tokens else ((), (), (), ())
        state: dict[str, Any] = {"ids": ids, "tokens": names, "words": words, "offsets": offsets}
        for name, value in (("type_ids", token_type), ("special_tokens_mask", 0), ("attention_mask", 1)):
            state[name] = [value] * len(ids)
        state |= {"overflowing": [], "sequence_ranges": {}}
        encoding = Encoding()
        encoding.__setstate__(json.dumps(state).encode())  # the only constructor: that of its pickles
        return encoding

    def _split_at_added_tokens(self, text: str, kwargs: dict[str, Any]) -> Iterator[tuple[str, int, str | None]]:
        """Split a text at added tokens; yield each part, its offset, and the token if it is one (otherwise None)."""
        if kwargs.get("split_special_tokens", self.split_special_tokens):
            yield text, 0, None
            return
        added = self._added_tokens_decoder.values()
        case_insensitive = {token.content.lower(): token.content for token in added if token.normalized}
        start = 0
        pattern = _added_tokens_pattern(tuple((token.content, token.single_word, token.normalized) for token in added))
        for number, part in enumerate(pattern.split(text)):
            if part:
                token = part if part in self._added_tokens_encoder else case_insensitive.get(part.lower())
                yield part, start, token if number % 2 else None
            start += len(part)

    def _truncate(self, parts: list[Encoding], special_tokens: int, kwargs: dict[str, Any]) -> None:
        """Truncate encodings in place as ``truncate_sequences`` truncates ids."""
        strategy = kwargs.get("truncation_strategy", TruncationStrategy.DO_NOT_TRUNCATE)
        limit = kwargs.get("max_length")
        if strategy == TruncationStrategy.DO_NOT_TRUNCATE or limit is None:
            return
        excess = sum(map(len, parts)) + special_tokens - limit
        if excess > 0:
            first, second = parts[0].ids, parts[1].ids if len(parts) > 1 else None
            kept = self.truncate_sequences(first, second, excess, strategy)
            for part, ids in zip(parts, kept, strict=False):
                if len(ids or ()) < len(part):
                    stride = min(kwargs.get("stride", 0), max(len(ids or ()) - 1, 0))
                    part.truncate(len(ids or ()), stride=stride, direction=self.truncation_side)

    def _pad_data(self, data: dict[str, list[Any]], kwargs: dict[str, Any]) -> dict[str, list[Any]]:
        padded = self.pad(
            data,
            padding=kwargs.get("padding_strategy", PaddingStrategy.DO_NOT_PAD).value,
            max_length=kwargs.get("max_length"),
            pad_to_multiple_of=kwargs.get("pad_to_multiple_of"),
            padding_side=kwargs.get("padding_side"),
            return_attention_mask=kwargs.get("return_attention_mask"),
        )
        return dict(padded)

    def truncate_sequences(  # type: ignore[override]  # there may be no second sequence
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: str | TruncationStrategy = "longest_first",
        stride: int = 0,
    ) -> tuple[list[int], list[int] | None, list[int]]:
        """Truncate like the base class, but without its warning for every pair that is truncated longest-first.

        Longest-first removes one token at a time from the longer sequence, or from the second if both are equal.

        Raises:
            ValueError: the only sequence to truncate has fewer tokens than must be removed.
        """
        strategy = TruncationStrategy(truncation_strategy)
        cut = {TruncationStrategy.ONLY_FIRST: ids, TruncationStrategy.ONLY_SECOND: pair_ids}.get(strategy)
        if cut is not None and len(cut) < num_tokens_to_remove:
            raise ValueError(
                f"truncation={strategy.value!r}: the text has {len(cut)} tokens, and {num_tokens_to_remove} are too "
                "many; give a larger max_length, or truncation='longest_first'"
            )
        if strategy != TruncationStrategy.LONGEST_FIRST or pair_ids is None:
            return super().truncate_sequences(ids, pair_ids, num_tokens_to_remove, truncation_strategy, stride)
        excess = max(num_tokens_to_remove, 0)
        from_longer = min(abs(len(ids) - len(pair_ids)), excess)
        from_first, from_second = (excess - from_longer) // 2, (excess - from_longer + 1) // 2
        if len(ids) > len(pair_ids):
            from_first += from_longer
        else:
            from_second += from_longer
        if self.truncation_side == "left":
            return ids[from_first:], pair_ids[from_second:], []
        return ids[: max(len(ids) - from_first, 0)], pair_ids[: max(len(pair_ids) - from_second, 0)], []

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write ``spm.model`` and the code that loads it without this package; return the paths."""
        path = Path(save_directory) / ((f"{filename_prefix}-" if filename_prefix else "") + MODEL_FILE)
        path.write_bytes(self.pieces.model_bytes)
        if not __name__.startswith("bert_convolutions."):  # transformers copies code that came with a model
            return (str(path),)
        from bert_convolutions.self_contained import write_code

        return (str(path), *map(str, write_code(save_directory, CODE_FILE)))


class _TokenizerOnlyConfig(PreTrainedConfig):
    """``AutoTokenizer`` registers a tokenizer class by a configuration; this one belongs to no model."""

    model_type = "composite_bert_tokenizer"


AutoTokenizer.register(_TokenizerOnlyConfig, CompositeBertTokenizer, exist_ok=True)


class _LazyEncodings(Sequence[Encoding]):
    """Encodings that are computed at the first access: training needs only the ids."""

    def __init__(self, make: Callable[[], list[Encoding]], length: int) -> None:
        self._make, self._length = make, length
        self._cache: list[Encoding] | None = None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, item: Any) -> Any:
        return self._encodings[item]

    @property
    def _encodings(self) -> list[Encoding]:
        if self._cache is None:
            self._cache = self._make()
        return self._cache

    def __reduce__(self) -> tuple[type, tuple[list[Encoding]]]:
        return list, (self._encodings,)


@functools.lru_cache
def _added_tokens_pattern(added: tuple[tuple[str, bool, bool], ...]) -> re.Pattern[str]:
    """A pattern that matches the added tokens ``(content, single_word, normalized)``, the longest first.

    ``single_word`` tokens match only between spaces; ``normalized`` ones match in any case, as the text is lower-cased.
    """
    names = []
    for name, single_word, normalized in sorted(added, key=lambda token: -len(token[0])):
        found = f"(?i:{re.escape(name)})" if normalized else re.escape(name)
        names.append(f"(?<![^ ]){found}(?![^ ])" if single_word else found)
    return re.compile(f"({'|'.join(names)})")


def _examples(text: Any, text_pair: Any, batched: bool, split: bool) -> list[_Example] | None:
    """The texts with their pairs, from any of the accepted argument forms; None if they are not texts."""

    def is_text(part: Any) -> bool:
        return _are_strings(part) if split else isinstance(part, str)

    examples: list[Any] = [(text, text_pair)]
    if batched and text_pair is None:
        pair = tuple if split else (tuple, list)
        examples = [one if isinstance(one, pair) and len(one) == 2 and is_text(one[0]) else (one, None) for one in text]
    elif batched:
        given = isinstance(text_pair, list | tuple) and len(text_pair) == len(text)
        examples = list(zip(text, text_pair, strict=True)) if given else [(None, None)]
    fits = all(is_text(one) and (two is None or is_text(two)) for one, two in examples)
    return [(one, two) for one, two in examples] if fits else None


def _are_strings(texts: Any) -> bool:
    return isinstance(texts, Sequence) and not isinstance(texts, str) and all(isinstance(text, str) for text in texts)
