"""What a run shows: how fast it trains, the progress line and the log, the learned kernels as pictures."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import ProgressCallback, TrainerState
from transformers.integrations import TensorBoardCallback

from bert_convolutions.attention.composite import CompositeAttention
from bert_convolutions.attention.terms import TERMS
from bert_convolutions.terminal import duration

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
