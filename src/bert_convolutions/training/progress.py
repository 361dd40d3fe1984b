"""How many real tokens training has seen, how fast, and the progress line that says so."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import ProgressCallback, TrainerState

from bert_convolutions.terminal import duration


class Throughput:
    """Tokens that are not padding, and the time training took.

    The clock runs from the first step on and stands still during evaluation and saving: the rate is that of the
    training steps, data loading included.

    Attributes:
        seen: real tokens seen since the start of the run, by all processes, earlier sessions included.
        since_start: of those, the tokens of this session.
    """

    def __init__(self) -> None:
        self.seen = 0
        self.since_start = 0
        self._begun: float | None = None
        self._paused = 0.0

    def start(self, seen_before: int) -> None:
        """Begin a session that goes on from ``seen_before`` tokens."""
        self.seen, self.since_start, self._paused = seen_before, 0, 0.0
        self._begun = time.monotonic()

    def add(self, tokens: int) -> None:
        """Count the tokens of a step."""
        self.seen += tokens
        self.since_start += tokens

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
        """Real tokens per second of training in this session."""
        if self._begun is None:
            return 0.0
        return self.since_start / max(time.monotonic() - self._begun - self._paused, 1e-9)

    def figures(self) -> dict[str, float]:
        """The two figures under the names they have in the logs and in ``train_results.json``."""
        return {"non_padding_tokens_seen": self.seen, "real_tokens_per_second": round(self.tokens_per_second)}


class RunProgress(ProgressCallback):
    """The Trainer's progress line and its logs, as lines that read the same with and without the progress line.

    Args:
        note: what the line says at its end, asked anew in each step.
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

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Move the line of an evaluation on."""
        if not args.disable_tqdm:
            super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write a log as a line; what is only known at the end is said by others then."""
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
