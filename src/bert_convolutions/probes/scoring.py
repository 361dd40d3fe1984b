"""Pseudo-log-likelihood of sentences under a masked language model (Salazar et al., ACL 2020).

It is the sum over a sentence's tokens of log p(token | all others), where each token is masked in a separate copy of
the sentence. In the within-word variant the later tokens of the same word are masked as well, since they give the token
away (Kauf and Ivanova, ACL 2023). Equal copies are computed once: if a good and a bad sentence differ in one token, the
two copies in which that token is masked are the same.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bert_convolutions.cpu import fast_float32_products
from bert_convolutions.data.packing import Rows, token_budget_batches
from bert_convolutions.data.pieces import WORD_START
from bert_convolutions.model import CompositeBertConfig

PACKED_ROW = 128
"""Length of a packed row, unless a sentence is longer."""
_CONTINUATION = "##"


@dataclass(frozen=True)
class Score:
    """Log-likelihoods of a sentence in nats, summed over its tokens in float64."""

    whole: float
    within_word: float


@dataclass(frozen=True)
class _Sentence:
    """``ids`` with special tokens (S,); ``positions`` and word numbers ``words`` of the T other tokens, both (T,)."""

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    words: NDArray[np.int64]


_MaskedCopy = tuple[NDArray[np.int64], int]
"""The ids of a sentence with masked tokens, and the position of the token to predict."""


class PseudoLikelihood:
    """Scores sentences in float32.

    Args:
        model: any masked language model of ``transformers``; it is set to evaluation mode.
        tokenizer: the model's tokenizer.
        batch_tokens: tokens per batch, padding included.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_tokens: int = 2048) -> None:
        self.model = model.eval().float()
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self.is_packed = isinstance(model.config, CompositeBertConfig)

    def __call__(self, texts: Sequence[str]) -> list[Score]:
        """Score sentences."""
        copy_numbers: dict[tuple[bytes, int], int] = {}
        copies: list[_MaskedCopy] = []
        queries: list[tuple[int, int, int, int]] = []  # (copy, target, sentence, variant: 0 whole, 1 within words)
        for number, sentence in enumerate(map(self._encode, texts)):
            for index, position in enumerate(sentence.positions.tolist()):
                rest_of_word = sentence.positions[index:][sentence.words[index:] == sentence.words[index]]
                for variant, masked in enumerate((position, rest_of_word)):
                    ids = sentence.ids.copy()
                    ids[masked] = self.tokenizer.mask_token_id
                    copy = copy_numbers.setdefault((ids.tobytes(), position), len(copies))
                    if copy == len(copies):
                        copies.append((ids, position))
                    queries.append((copy, int(sentence.ids[position]), number, variant))
        table = np.array(queries, dtype=np.int64).reshape(-1, 4)
        scores = np.zeros((len(texts), 2))
        np.add.at(scores, (table[:, 2], table[:, 3]), self._log_probabilities(copies, table[:, 0], table[:, 1]))
        return [Score(*pair) for pair in scores.tolist()]

    def longest(self, texts: Sequence[str]) -> tuple[int, int]:
        """The length of the longest text in tokens, special tokens included, and its index."""
        lengths = [len(ids) for ids in self.tokenizer(list(texts), verbose=False)["input_ids"]]
        return max(lengths), int(np.argmax(lengths))

    def _encode(self, text: str) -> _Sentence:
        encoded = self.tokenizer(text, return_special_tokens_mask=True, verbose=False)
        ids = np.array(encoded["input_ids"], dtype=np.int64)
        positions = np.flatnonzero(np.array(encoded["special_tokens_mask"]) == 0)
        pieces = self.tokenizer.convert_ids_to_tokens(ids[positions].tolist())
        # With SentencePiece's marks, words would end at spaces only, and include their punctuation.
        if self.tokenizer.is_fast and not any(piece.startswith(WORD_START) for piece in pieces):
            words = [-index if number is None else number for index, number in enumerate(encoded.word_ids())]
            return _Sentence(ids, positions, np.array(words)[positions])
        return _Sentence(ids, positions, np.array(words_of_pieces(pieces)))

    @fast_float32_products()
    @torch.inference_mode()
    def _log_probabilities(
        self, copies: list[_MaskedCopy], queries: NDArray[np.int64], targets: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """log p of the ``targets`` (N,) at the masked positions of the copies with indices ``queries`` (N,)."""
        logarithms = np.zeros(len(queries))
        row_of = np.zeros(len(copies), dtype=np.int64)
        lengths = np.array([len(ids) for ids, _ in copies])
        batches = token_budget_batches(lengths, self.batch_tokens)
        if not self.is_packed:  # unpadded, as FNet and ConvBERT include padding
            batches = [
                part for batch in batches for part in np.split(batch, np.flatnonzero(np.diff(lengths[batch])) + 1)
            ]
        for batch in batches:
            logits = self._logits([copies[number] for number in batch]).float()
            row_of[batch] = np.arange(len(batch))
            chosen = np.flatnonzero(np.isin(queries, batch))
            row = torch.from_numpy(row_of[queries[chosen]]).to(logits.device)
            target = torch.from_numpy(targets[chosen]).to(logits.device)
            logarithms[chosen] = (logits[row, target] - logits.logsumexp(-1)[row]).cpu().numpy()
        return logarithms

    def _logits(self, copies: list[_MaskedCopy]) -> Tensor:
        """The logits (M, V) of M copies, each at its masked position."""
        lengths = np.array([len(ids) for ids, _ in copies])
        width = max(int(lengths.max()), PACKED_ROW) if self.is_packed else int(lengths.max())
        rows = Rows.of(lengths, width, packed=self.is_packed)
        masked = rows.starts + np.array([position for _, position in copies])
        ids = rows.lay_out(np.concatenate([ids for ids, _ in copies]), self.tokenizer.pad_token_id)
        device = self.model.device
        inputs = {"input_ids": ids, "attention_mask": rows.attention_mask()}
        if self.is_packed:
            inputs |= {"position_ids": rows.lay_out(rows.positions), "masked_positions": masked}
        tensors = {name: torch.from_numpy(value).to(device) for name, value in inputs.items()}
        if self.is_packed:
            return self.model(**tensors).logits
        return _logits_at(self.model, tensors, torch.from_numpy(masked).to(device))


def _logits_at(model: PreTrainedModel, inputs: Mapping[str, Tensor], masked: Tensor) -> Tensor:
    """The logits (M, V) at the flat positions ``masked`` (M,) of any masked language model.

    The output embedding, which is a separate module in most models, is applied only at those positions.
    """

    def choose(module: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden = arguments[0]
        return (hidden.flatten(0, 1)[masked], *arguments[1:]) if hidden.dim() == 3 else None

    decoder = model.get_output_embeddings()
    hook = decoder.register_forward_pre_hook(choose) if isinstance(decoder, torch.nn.Module) else None
    try:
        logits: Tensor = model(**inputs).logits
    finally:
        if hook is not None:
            hook.remove()
    return logits if logits.dim() == 2 else logits.flatten(0, 1)[masked]


def words_of_pieces(pieces: Sequence[str]) -> list[int]:
    """The number of the word that each piece belongs to, for tokenizers that don't return it.

    A word starts at SentencePiece's mark or, if no piece has one, at a piece without BERT's ``##``. Each punctuation
    piece is a word.
    """
    marked = any(piece.startswith(WORD_START) for piece in pieces)
    words: list[int] = []
    word, after_punctuation = 0, False
    for piece in pieces:
        starts = piece.startswith(WORD_START) if marked else not piece.startswith(_CONTINUATION)
        bare = piece.removeprefix(WORD_START)
        is_punctuation = bool(bare) and all(unicodedata.category(character)[0] == "P" for character in bare)
        word += starts or is_punctuation or after_punctuation
        after_punctuation = is_punctuation
        words.append(word)
    return words
