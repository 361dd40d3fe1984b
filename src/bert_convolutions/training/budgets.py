"""Budgets other than steps: checkpoints at given numbers of words, and as many steps as given minutes have room for."""

import copy
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import ExportableState

from bert_convolutions.data.masking import IGNORED
from bert_convolutions.errors import UsageError
from bert_convolutions.terminal import duration, say

if TYPE_CHECKING:
    from bert_convolutions.training.arguments import BertTrainingArguments
    from bert_convolutions.training.trainer import PretrainingTrainer

    MakeTrainer = Callable[[BertTrainingArguments], PretrainingTrainer]

WORD_CHECKPOINTS = "chck_*"
"""Names of the folders of checkpoints by words, as BabyLM's evaluation expects them: ``chck_1M``."""
_UNITS = {"": 1, "K": 1000, "M": 1_000_000, "B": 1_000_000_000}
_WARM_UP_STEPS, _MEASURED_STEPS = 3, 10
_MEASURED_SHARE = 0.05
"""Of the minutes, at most, that are spent on measuring."""


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
    """Which ids begin a word of the text, bool (V,), so that ids tell how many words they are.

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


class WordCounter(TrainerCallback, ExportableState):
    """The words that training has seen, kept in the trainer's state, and the numbers at which to save.

    Args:
        starts: of ``word_starts``; None counts nothing.
        targets: numbers of words.
        folder: where the checkpoints go.

    Attributes:
        seen: words since the start of the run, repetitions included; None where nothing is counted, as after going on
            from a checkpoint that doesn't say.
    """

    def __init__(self, starts: torch.Tensor | None, targets: list[int], folder: Path) -> None:
        self.starts, self.targets, self.folder = starts, sorted(set(targets)), folder
        self.seen: int | None = 0 if starts is not None else None

    def count(self, batch: Mapping[str, torch.Tensor]) -> int:
        """The words of a batch as it was before masking."""
        if self.starts is None or not int(batch["num_real_tokens"]):  # a placeholder
            return 0
        ids, chosen = batch["input_ids"].flatten().clone(), batch["labels"] != IGNORED
        ids[batch["masked_positions"][chosen]] = batch["labels"][chosen]
        return int(self.starts[ids].sum())

    def add(self, words: int) -> None:
        """Count the words of a step, of all processes."""
        if self.seen is not None:
            self.seen += words

    def due(self) -> list[Path]:
        """The checkpoints whose number of words has been reached since this was asked last."""
        reached = [words for words in self.targets if self.seen is not None and words <= self.seen]
        self.targets = self.targets[len(reached) :]
        return [self.folder / checkpoint_name(words) for words in reached]

    def restore(self, state: Any) -> None:
        """Take the count from a trainer's state.

        Raises:
            UsageError: it has none, and checkpoints are to be saved by it.
        """
        stored = state.stateful_callbacks.get(type(self).__name__)
        if stored and self.starts is not None:
            self.seen = stored["attributes"]["seen"]
        elif state.global_step:
            self.seen = None
        if self.targets and self.seen is None:
            raise UsageError(
                "--save_at_words: the checkpoint to go on from was saved without counting words; start anew, or leave "
                "the flag out"
            )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go on counting; say which checkpoints can't be had any more."""
        self.restore(state)
        state.stateful_callbacks[type(self).__name__] = self.state()
        late = [place.name for place in self.due() if not place.is_dir()]
        if late and state.is_world_process_zero:
            say(f"--save_at_words: the run is at {self.seen:,} words already, too late for {', '.join(late)}")

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"args": {}, "attributes": {"seen": self.seen}}


def steps_in(minutes: float, arguments: "BertTrainingArguments", make_trainer: "MakeTrainer") -> int:
    """Train some steps on a copy, to be thrown away, and say how many fit.

    Evaluation and saving are not counted. The random states are those of before for whoever sets its seed again.

    Args:
        minutes: of training, of which those spent here are taken off.
        arguments: of the run.
        make_trainer: makes a trainer of a copy of the model, given the arguments.
    """
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        trial = copy.copy(arguments)
        trial.output_dir, trial.max_steps, trial.report_to = folder, _WARM_UP_STEPS + _MEASURED_STEPS, []
        trial.save_strategy = trial.eval_strategy = trial.logging_strategy = "no"
        trial.load_best_model_at_end, trial.disable_tqdm = False, True
        trainer = make_trainer(trial)
        clock = _Stopwatch(trainer, minutes * 60 * _MEASURED_SHARE)
        trainer.add_callback(clock)
        trainer.train()
    spent = time.monotonic() - begun
    steps = max(int((minutes * 60 - spent) / clock.seconds_a_step), 1)
    steps = trainer.collectives.from_first(steps)
    if trainer.is_world_process_zero():
        took = f"{clock.seconds_a_step:.3g} s a step, {duration(spent)} of measuring"
        say(f"--train_minutes {minutes:g}: {steps:,} steps ({took})")
    return steps


class _Stopwatch(TrainerCallback):
    """Times steps until there are enough of them, or enough time has passed."""

    def __init__(self, trainer: "PretrainingTrainer", enough: float) -> None:
        self.trainer, self.enough = trainer, enough
        self.ends: list[float] = []

    @property
    def seconds_a_step(self) -> float:
        """Of the steps after those that warm up, or of all but the first where there are too few."""
        ends = self.ends[min(_WARM_UP_STEPS, len(self.ends) - 2) :]
        return (ends[-1] - ends[0]) / (len(ends) - 1)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.monotonic())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.monotonic())
        enough = len(self.ends) > 2 and self.ends[-1] - self.ends[0] > self.enough
        control.should_training_stop = self.trainer.collectives.from_first(enough)
