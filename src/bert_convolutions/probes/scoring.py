"""Pseudo-log-likelihood of sentences under a masked language model (Salazar et al., ACL 2020), each token masked alone.

The sum over a sentence's tokens of log p(token | all others). In the within-word variant the later pieces of the same
word are masked together with a token, since they give it away (Kauf and Ivanova, ACL 2023). A masked copy is computed
once however many sentences or variants ask for it: where a good sentence and a bad one differ in one token, the two
copies in which it is masked are the same.
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

from bert_convolutions.data.packing import Rows
from bert_convolutions.model import CompositeBertConfig

PACKED_ROW = 128
"""Length of a packed row; longer sentences have rows of their own length."""
_WORD_START = "▁"
_CONTINUATION = "##"


@dataclass(frozen=True)
class Score:
    """Log-likelihoods of a sentence in nats, summed over its tokens in float64."""

    whole: float
    within_word: float


@dataclass(frozen=True)
class _Sentence:
    """Ids with special tokens (S,), and where its own tokens stand: ``positions`` and the ``words`` they belong to."""

    ids: NDArray[np.int64]
    positions: list[int]
    words: list[int]


_Copy = tuple[NDArray[np.int64], int]
"""The ids of a sentence with tokens masked, and the position of the one that is asked for."""


class PseudoLikelihood:
    """Scores sentences in float32.

    Args:
        model: any masked language model of ``transformers``; it is put into evaluation mode.
        tokenizer: the model's own.
        batch_tokens: tokens, padding included, that go through the model at a time.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_tokens: int = 2048) -> None:
        self.model = model.eval().float()
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self.packs = isinstance(model.config, CompositeBertConfig)
        self._outside = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id}

    def __call__(self, texts: Sequence[str]) -> list[Score]:
        """Score sentences."""
        sentences = [self._read(text) for text in texts]
        numbers: dict[tuple[bytes, int], int] = {}
        copies: list[_Copy] = []
        asked: list[tuple[int, int, int, int, int]] = []  # copy, target, sentence, counts as whole, as within word

        def ask(sentence: int, position: int, masked: list[int], variants: tuple[int, int]) -> None:
            ids = sentences[sentence].ids.copy()
            ids[masked] = self.tokenizer.mask_token_id
            number = numbers.setdefault((ids.tobytes(), position), len(copies))
            if number == len(copies):
                copies.append((ids, position))
            asked.append((number, int(sentences[sentence].ids[position]), sentence, *variants))

        for index, sentence in enumerate(sentences):
            for place, position in enumerate(sentence.positions):
                later = [
                    other
                    for other, word in zip(sentence.positions[place + 1 :], sentence.words[place + 1 :], strict=True)
                    if word == sentence.words[place]
                ]
                ask(index, position, [position], (1, 0 if later else 1))
                if later:
                    ask(index, position, [position, *later], (0, 1))
        if not asked:
            return [Score(0.0, 0.0)] * len(texts)
        table = np.array(asked)
        logarithms = self._log_probabilities(copies, table[:, 0], table[:, 1])
        whole, within = (
            np.bincount(table[:, 2], logarithms * table[:, column], minlength=len(texts)) for column in (3, 4)
        )
        return [Score(*scores) for scores in zip(whole.tolist(), within.tolist(), strict=True)]

    def longest(self, texts: Sequence[str]) -> tuple[int, int]:
        """The number of tokens of the longest text, special tokens included, and its index."""
        lengths = [len(ids) for ids in self.tokenizer(list(texts), verbose=False)["input_ids"]]
        return max(lengths), int(np.argmax(lengths))

    def _read(self, text: str) -> _Sentence:
        encoded = self.tokenizer(text, verbose=False)
        ids = np.array(encoded["input_ids"], dtype=np.int64)
        positions = [position for position, token in enumerate(ids.tolist()) if token not in self._outside]
        pieces = self.tokenizer.convert_ids_to_tokens(ids[positions].tolist())
        # Who marks the words parts them at spaces alone, and a word's punctuation would be masked with it.
        if self.tokenizer.is_fast and not any(piece.startswith(_WORD_START) for piece in pieces):
            numbers = encoded.word_ids()
            words = [-position if numbers[position] is None else numbers[position] for position in positions]
        else:
            words = words_of_pieces(pieces)
        return _Sentence(ids, positions, words)

    @torch.inference_mode()
    def _log_probabilities(
        self, copies: list[_Copy], asked: NDArray[np.int64], targets: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """log p of the ``targets`` (N,) at the masked positions of the copies numbered ``asked`` (N,)."""
        lengths = np.array([len(ids) for ids, _ in copies])
        logarithms = np.zeros(len(asked))
        in_order = np.argsort(-lengths, kind="stable")  # the longest first: memory that is too small shows at once
        rank = np.empty_like(in_order)
        rank[in_order] = np.arange(len(in_order))
        questions = np.argsort(rank[asked], kind="stable")
        ranks = rank[asked][questions]
        first = 0
        while first < len(copies):
            count = max(self.batch_tokens // int(lengths[in_order[first]]), 1)
            logits = self._logits([copies[number] for number in in_order[first : first + count]]).float()
            span = slice(*np.searchsorted(ranks, [first, first + count]))
            row = torch.from_numpy(ranks[span] - first).to(logits.device)
            target = torch.from_numpy(targets[questions[span]]).to(logits.device)
            logarithms[questions[span]] = (logits[row, target] - logits.logsumexp(-1)[row]).double().cpu().numpy()
            first += count
        return logarithms

    def _logits(self, copies: list[_Copy]) -> Tensor:
        """The logits (M, V) of M copies, each at its own position alone."""
        lengths = np.array([len(ids) for ids, _ in copies])
        width = max(int(lengths.max()), PACKED_ROW) if self.packs else int(lengths.max())
        rows = Rows.of(lengths, width, packed=self.packs)
        masked = rows.starts + np.array([position for _, position in copies])
        ids = rows.lay_out(np.concatenate([ids for ids, _ in copies]), self.tokenizer.pad_token_id)
        device = self.model.device
        inputs = {"input_ids": ids, "attention_mask": rows.attention_mask()}
        if self.packs:
            inputs |= {"position_ids": rows.lay_out(rows.positions), "masked_positions": masked}
        tensors = {name: torch.from_numpy(value).to(device) for name, value in inputs.items()}
        if self.packs:
            return self.model(**tensors).logits
        return _logits_at(self.model, tensors, torch.from_numpy(masked).to(device))


def _logits_at(model: PreTrainedModel, inputs: Mapping[str, Tensor], masked: Tensor) -> Tensor:
    """The logits (M, V) at the flat positions ``masked`` (M,) of any masked language model.

    Its last matrix, which most models apply as a module of its own, sees those positions only.
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
    """The word that each piece belongs to, where the tokenizer itself doesn't say.

    A word begins at SentencePiece's mark (where no piece has one, at each without BERT's ``##``); punctuation stands
    alone.
    """
    marked = any(piece.startswith(_WORD_START) for piece in pieces)
    words: list[int] = []
    word, after_punctuation = 0, False
    for piece in pieces:
        starts = piece.startswith(_WORD_START) if marked else not piece.startswith(_CONTINUATION)
        bare = piece.removeprefix(_WORD_START)
        is_punctuation = bool(bare) and all(unicodedata.category(character)[0] == "P" for character in bare)
        word += starts or is_punctuation or after_punctuation
        after_punctuation = is_punctuation
        words.append(word)
    return words
