"""Words seen in training, and checkpoints at given numbers of them (``--save_at_words``)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from bert_convolutions.data.masking import IGNORED
from bert_convolutions.errors import UsageError
from bert_convolutions.terminal import say

WORD_CHECKPOINTS = "chck_*"
"""Names of the folders of checkpoints by words, as BabyLM's evaluation expects them: ``chck_1M``."""
_IN_STATE = "WordCounter"
"""Under ``stateful_callbacks`` of the trainer's state."""
_UNITS = {"": 1, "K": 1000, "M": 1_000_000, "B": 1_000_000_000}


def parse_words(text: str) -> int:
    """A number of words such as ``1M``, ``250K`` or ``1000000``.

    Raises:
        UsageError: it is none.
    """
    match = re.fullmatch(r"(\d+)([KMB]?)", text.upper())
    if match is None or not int(match[1]):
        raise UsageError(f"--save_at_words {text} is no number of words such as 1M, 250K or 1000000")
    return int(match[1]) * _UNITS[match[2]]


def checkpoint_name(words: int) -> str:
    """``chck_1M``, ``chck_250K``, ``chck_1234``: in the largest unit of at most a million that gives a whole number."""
    unit = next(unit for unit in ("M", "K", "") if words % _UNITS[unit] == 0)
    return f"chck_{words // _UNITS[unit]}{unit}"


def word_starts(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Which ids begin a word, bool (V,), to count the words of a text by its ids.

    A word is what stands between white space. SentencePiece marks the first piece of each (``▁``), so the count is
    exact. Byte-level BPE marks all but the first of a text. WordPiece marks the later pieces (``##``) and cuts
    punctuation off; pieces that are neither are counted there, so that ``well-known`` is two words.
    """
    pieces = [str(piece) for piece in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
    special = set(tokenizer.all_special_ids)
    mark = next((mark for mark in "▁Ġ" if sum(piece.startswith(mark) for piece in pieces) > 1), None)

    def starts(piece: str) -> bool:
        if mark is not None:
            return piece.startswith(mark)
        return not piece.startswith("##") and any(character.isalnum() for character in piece)

    return torch.tensor([starts(piece) and number not in special for number, piece in enumerate(pieces)])


class WordCounter:
    """The words that training has seen, kept in the trainer's state, and the numbers (``targets``) at which to save.

    Attributes:
        seen: words since the start of the run, repetitions included; None after going on from a checkpoint that
            doesn't say.
    """

    def __init__(self, starts: torch.Tensor, targets: list[int], folder: Path) -> None:
        self.starts, self.targets, self.folder = starts, sorted(set(targets)), folder
        self.seen: int | None = 0

    def count(self, batch: Mapping[str, torch.Tensor]) -> int:
        """The words of a batch as it was before masking."""
        if not int(batch["num_real_tokens"]):  # a placeholder
            return 0
        ids, chosen = batch["input_ids"].flatten().clone(), batch["labels"] != IGNORED
        ids[batch["masked_positions"][chosen]] = batch["labels"][chosen]
        return int(self.starts[ids].sum())

    def add(self, words: int, state: Any) -> None:
        """Count the words of a step, of all processes, and note them in the trainer's state, which is saved."""
        if self.seen is not None:
            self.seen += words
            state.stateful_callbacks[_IN_STATE] = {"args": {}, "attributes": {"seen": self.seen}}

    def due(self) -> list[Path]:
        """The checkpoints whose number of words has been reached since this was asked last."""
        reached = [words for words in self.targets if self.seen is not None and words <= self.seen]
        self.targets = self.targets[len(reached) :]
        return [self.folder / checkpoint_name(words) for words in reached]

    def restore(self, state: Any) -> None:
        """Go on counting; say which checkpoints can't be had any more.

        Raises:
            UsageError: the state doesn't say how many there were, and checkpoints are to be saved by it.
        """
        if state.global_step:
            stored = state.stateful_callbacks.get(_IN_STATE)
            self.seen = stored["attributes"]["seen"] if stored else None
        if self.targets and self.seen is None:
            raise UsageError(
                "--save_at_words: the checkpoint to go on from was saved without counting words; start anew, or leave "
                "the flag out"
            )
        late = [place.name for place in self.due() if not place.is_dir()]
        if late and state.is_world_process_zero:
            say(f"--save_at_words: the run is at {self.seen:,} words already, too late for {', '.join(late)}")
