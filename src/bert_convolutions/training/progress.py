"""What a run counts and shows: tokens and words, the progress line and the log, the learned kernels as pictures."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase, ProgressCallback, TrainerState
from transformers.integrations import TensorBoardCallback

from bert_convolutions.attention.composite import CompositeAttention
from bert_convolutions.attention.terms import TERMS
from bert_convolutions.data.masking import IGNORED
from bert_convolutions.errors import UsageError
from bert_convolutions.terminal import duration, say

WORD_CHECKPOINTS = "chck_*"
"""Names of the folders of checkpoints by words, as BabyLM's evaluation expects them: ``chck_1M``."""
_IN_STATE = "WordCounter"
"""Under ``stateful_callbacks`` of the trainer's state."""
_UNITS = {"": 1, "K": 1000, "M": 1_000_000, "B": 1_000_000_000}
_PIXELS = 12
"""Of an offset, in each direction."""
_NEGATIVE, _POSITIVE = np.array([127, 59, 8]), np.array([45, 0, 75])
"""Brown and violet, which the colour-blind tell apart; zero is white."""


class Throughput:
    """Tokens that are not padding, and how many a second of training, data loading included.

    The clock runs from ``start`` on and stands still during evaluation and saving.

    Attributes:
        seen: real tokens since the start of the run, of all processes, earlier sessions included.
    """

    def __init__(self) -> None:
        self.seen = self._seen_before = 0
        self._begun = self._paused = 0.0

    def start(self, seen_before: int) -> None:
        """Begin a session that goes on from ``seen_before`` tokens."""
        self.seen = self._seen_before = seen_before
        self._begun, self._paused = time.monotonic(), 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is not training."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self._paused += time.monotonic() - begun

    @property
    def tokens_per_second(self) -> float:
        """Of this session; 0 before anything was trained."""
        return (self.seen - self._seen_before) / max(time.monotonic() - self._begun - self._paused, 1e-9)


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


class RunProgress(ProgressCallback):
    """The Trainer's progress line, which ends with a ``note`` of each step, and its logs.

    Logs are lines that read the same with and without the progress line.
    """

    def __init__(self, note: Callable[[], str]) -> None:
        super().__init__()
        self.note = note
        self._loss = ""
        self._begun, self._first_step = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the line and the clock that says how long it will take."""
        self._begun, self._first_step = time.monotonic(), state.global_step
        if not args.disable_tqdm:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the line on."""
        if self.training_bar is not None:
            self.training_bar.set_postfix_str(self.note() + self._loss, refresh=False)
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(self, args: Any, state: Any, control: Any, *more: Any, **kwargs: Any) -> None:
        """Move the line of an evaluation on."""
        if not args.disable_tqdm:
            super().on_prediction_step(args, state, control, *more, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write a log as a line, but for the last one, whose figures are told with the results."""
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        if "loss" in logs:
            self._loss = f", loss {logs['loss']:.4f}"
        figures = [f"{name} {_figure(value)}" for name, value in logs.items() if isinstance(value, int | float)]
        line = f"step {state.global_step:,}{self._so_far(state)}: {', '.join(figures)}"
        if self.training_bar is not None:
            self.training_bar.write(line)
        else:
            print(line, flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the line."""
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)

    def _so_far(self, state: TrainerState) -> str:
        """How much of the run is done and how long the rest will take; nothing outside of training."""
        done = state.global_step - self._first_step
        if not self._begun or done <= 0 or state.max_steps <= 0:
            return ""
        left = (time.monotonic() - self._begun) / done * (state.max_steps - state.global_step)
        return f" of {state.max_steps:,}, {duration(left)} left"


def _figure(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


class KernelBoard(TensorBoardCallback):
    """Writes ``kernels/<term>`` at each evaluation: a row a head (a layer, of a dynamic term), the layers downwards.

    From left to right is the offset of the key from the query, from -n to n. Of a fixed term the weights less their
    mean are drawn, of a dynamic one the norm of each offset's vector; the darkest colour is the largest in a picture.
    """

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Draw the kernels of the model, after the evaluation's figures have been written."""
        if self.tb_writer is None or model is None:
            return
        for name, picture in kernel_pictures(model):
            self.tb_writer.add_image(f"kernels/{name}", picture, state.global_step, dataformats="HWC")
        self.tb_writer.flush()


def kernel_pictures(model: torch.nn.Module) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Term and picture, uint8 (rows x 12, offsets x 12, 3), of each convolution term that a model's attention has."""
    attentions = [module for module in model.modules() if isinstance(module, CompositeAttention)]
    for name, term in TERMS.items():
        rows = []
        for attention in attentions:
            if name in attention.kernel.convolution_terms:
                kernel = term.seen_from_query(getattr(attention, f"{name}_param").detach()).float().cpu().numpy()
                norm, less_mean = np.linalg.norm(kernel, axis=0, keepdims=True), kernel - kernel.mean(1, keepdims=True)
                rows.append(norm if term.dynamic else less_mean)
        if rows:
            yield name, _coloured(np.concatenate(rows))


def _coloured(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """(rows, offsets) as squares of colour."""
    share = values[..., None] / max(float(np.abs(values).max()), 1e-12)
    colours = 255 + np.abs(share) * (np.where(share < 0, _NEGATIVE, _POSITIVE) - 255)
    return colours.round().astype(np.uint8).repeat(_PIXELS, 0).repeat(_PIXELS, 1)
