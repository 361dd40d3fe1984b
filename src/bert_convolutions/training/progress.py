"""Progress of a run: counts of tokens and words, the progress bar and log lines, images of the learned kernels."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, ProgressCallback, TrainerState
from transformers.integrations import TensorBoardCallback
from transformers.integrations.integration_utils import default_logdir

from bert_convolutions.attention.composite import CompositeAttention
from bert_convolutions.attention.terms import TERMS
from bert_convolutions.data.masking import IGNORED
from bert_convolutions.errors import UsageError
from bert_convolutions.terminal import duration, say

WORD_CHECKPOINTS = "chck_*"
"""Folders of the checkpoints at numbers of words, named as BabyLM's evaluation expects: ``chck_1M``."""
_STATE_KEY = "WordCounter"
"""Key in ``stateful_callbacks`` of the Trainer's state."""
_UNITS = {"": 1, "K": 1000, "M": 1_000_000, "B": 1_000_000_000}
_QUIET_SECONDS = 60
_PIXELS = 12
"""Width and height of one offset in an image."""
_NEGATIVE, _POSITIVE = np.array([127, 59, 8]), np.array([45, 0, 75])
"""Brown and violet, a pair that is safe for colour-blind readers; zero is white."""


class Throughput:
    """Counts non-padding tokens and measures tokens per second of training, data loading included.

    The clock starts with ``start`` and is paused during evaluation and saving.

    Attributes:
        seen: non-padding tokens since the start of the run, over all processes and earlier sessions.
    """

    def __init__(self) -> None:
        self.seen = self._seen_before = 0
        self._started = self._paused = 0.0

    def start(self, seen_before: int) -> None:
        """Start a session of a run that has already seen ``seen_before`` tokens."""
        self.seen = self._seen_before = seen_before
        self._started, self._paused = time.monotonic(), 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent in this context."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self._paused += time.monotonic() - begun

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of this session; 0 before the first step."""
        return (self.seen - self._seen_before) / max(time.monotonic() - self._started - self._paused, 1e-9)


def parse_words(text: str) -> int:
    """A number of words such as ``1M``, ``250K`` or ``1000000``.

    Raises:
        UsageError: ``text`` is not such a number.
    """
    match = re.fullmatch(r"(\d+)([KMB]?)", text.upper())
    if match is None or not int(match[1]):
        raise UsageError(f"--save_at_words {text} is not a number of words such as 1M, 250K or 1000000")
    return int(match[1]) * _UNITS[match[2]]


def checkpoint_name(words: int) -> str:
    """``chck_1M``, ``chck_250K``, ``chck_1234``: in the largest unit (M, K or none) that gives a whole number."""
    unit = next(unit for unit in ("M", "K", "") if words % _UNITS[unit] == 0)
    return f"chck_{words // _UNITS[unit]}{unit}"


def word_starts(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """A mask over the vocabulary, bool (V,), of the tokens that start a word, to count the words of a text by its ids.

    Words are separated by white space. SentencePiece marks the first token of each word (``▁``), so the count is exact.
    Byte-level BPE marks every word but the first of a text. WordPiece marks the other tokens (``##``) and splits at
    punctuation; there, tokens without ``##`` that aren't punctuation are counted, and ``well-known`` is two words.
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
    """Counts the words seen in training, in the Trainer's state, and knows the counts (``targets``) at which to save.

    Attributes:
        seen: words since the start of the run, repetitions included; None after resuming from a checkpoint without
            this count.
    """

    def __init__(self, starts: torch.Tensor, targets: list[int], folder: Path) -> None:
        self.starts, self.targets, self.folder = starts, sorted(set(targets)), folder
        self.seen: int | None = 0

    def count(self, batch: Mapping[str, torch.Tensor]) -> int:
        """The number of words in a batch before masking."""
        if not int(batch["num_real_tokens"]):  # a placeholder
            return 0
        ids, chosen = batch["input_ids"].flatten().clone(), batch["labels"] != IGNORED
        ids[batch["masked_positions"][chosen]] = batch["labels"][chosen]
        return int(self.starts[ids].sum())

    def add(self, words: int, state: Any) -> None:
        """Add the words of a step, summed over all processes, and store the total in the Trainer's state."""
        if self.seen is not None:
            self.seen += words
            state.stateful_callbacks[_STATE_KEY] = {"args": {}, "attributes": {"seen": self.seen}}

    def pop_reached(self) -> list[Path]:
        """The checkpoints whose number of words has been reached since the last call."""
        reached = [words for words in self.targets if self.seen is not None and words <= self.seen]
        self.targets = self.targets[len(reached) :]
        return [self.folder / checkpoint_name(words) for words in reached]

    def restore(self, state: Any) -> None:
        """Restore the count from the Trainer's state; report the checkpoints that it is too late for.

        Raises:
            UsageError: there are ``targets``, but the state holds no count.
        """
        if state.global_step:
            stored = state.stateful_callbacks.get(_STATE_KEY)
            self.seen = stored["attributes"]["seen"] if stored else None
        if self.targets and self.seen is None:
            raise UsageError(
                "--save_at_words: the checkpoint to resume from was saved without a word count; start anew, or leave "
                "the flag out"
            )
        late = [destination.name for destination in self.pop_reached() if not destination.is_dir()]
        if late:
            say(f"--save_at_words: the run is at {self.seen:,} words already, too late for {', '.join(late)}")


class RunProgress(ProgressCallback):
    """The Trainer's progress bar, followed by a ``note`` after each step, and its log lines.

    Log lines are the same with and without the bar. Without it, the note is printed after a minute without a line.
    """

    def __init__(self, note: Callable[[], str]) -> None:
        super().__init__()
        self.note = note
        self._loss = ""
        self._started, self._first_step = 0.0, 0
        self._last_line = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar and the clock for the time left."""
        self._started, self._first_step = time.monotonic(), state.global_step
        self._last_line = self._started
        if not args.disable_tqdm:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance the bar."""
        if self.training_bar is not None:
            self.training_bar.set_postfix_str(self.note() + self._loss, refresh=False)
            super().on_step_end(args, state, control, **kwargs)
        elif state.is_world_process_zero and time.monotonic() - self._last_line > _QUIET_SECONDS:
            self._print(state, (self.note() + self._loss).removeprefix(", "))

    def on_prediction_step(self, args: Any, state: Any, control: Any, *more: Any, **kwargs: Any) -> None:
        """Advance the bar of an evaluation."""
        if not args.disable_tqdm:
            super().on_prediction_step(args, state, control, *more, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Print a log as a line; the last one is skipped, since its figures are printed with the results."""
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        if "loss" in logs:
            self._loss = f", loss {logs['loss']:.4f}"
        figures = [f"{name} {_format_value(value)}" for name, value in logs.items() if isinstance(value, int | float)]
        self._print(state, ", ".join(figures))

    def _print(self, state: TrainerState, figures: str) -> None:
        self._last_line = time.monotonic()
        line = f"step {state.global_step:,}{self._time_left(state)}" + (f": {figures}" if figures else "")
        with tqdm.external_write_mode():  # clears all bars, also that of an evaluation
            print(line, flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)

    def _time_left(self, state: TrainerState) -> str:
        """The total number of steps and the estimated time left; empty outside training."""
        done = state.global_step - self._first_step
        if not self._started or done <= 0 or state.max_steps <= 0:
            return ""
        left = (time.monotonic() - self._started) / done * (state.max_steps - state.global_step)
        return f" of {state.max_steps:,}, {duration(left)} left"


def _format_value(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


class KernelBoard(TensorBoardCallback):
    """Writes an image ``kernels/<term>`` at each evaluation, with the first layer on top.

    Each column is an offset of the key from the query, from -n to n. A fixed term has a row per head, its weights less
    their mean; a dynamic term has a row per layer, the norm of each offset's vector. The largest value is darkest.

    Args:
        folder: output folder of the run. The events are in its ``runs``, or below ``TENSORBOARD_LOGGING_DIR`` in a
            folder of the same path, so that a sweep's cells and a model's tasks stay apart there.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        common = self.logging_dir  # of the environment variable
        self.logging_dir = str(Path(common, str(folder).lstrip("./")) if common else folder / default_logdir())

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Write the kernels of the model."""
        if self.tb_writer is None or model is None:
            return
        for name, picture in kernel_pictures(model):
            self.tb_writer.add_image(f"kernels/{name}", picture, state.global_step, dataformats="HWC")
        self.tb_writer.flush()


def kernel_pictures(model: torch.nn.Module) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The name and the image, uint8 (rows x 12, offsets x 12, 3), of each convolution term in a model's attention."""
    attentions = [module for module in model.modules() if isinstance(module, CompositeAttention)]
    for name, term in TERMS.items():
        rows = []
        for attention in attentions:
            if name in attention.kernel.convolution_terms:
                kernel = term.kernel_by_key_offset(getattr(attention, f"{name}_param").detach()).float().cpu().numpy()
                rows.append(term.values_to_draw(kernel))
        if rows:
            yield name, _colour_squares(np.concatenate(rows))


def _colour_squares(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Values (rows, offsets) as coloured squares."""
    share = values[..., None] / max(float(np.abs(values).max()), 1e-12)
    colours = 255 + np.abs(share) * (np.where(share < 0, _NEGATIVE, _POSITIVE) - 255)
    return colours.round().astype(np.uint8).repeat(_PIXELS, 0).repeat(_PIXELS, 1)
