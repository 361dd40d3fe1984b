"""How many real tokens training has seen, how fast, and the progress line that says so."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments


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


class ReadableProgress(ProgressCallback):
    """The Trainer's progress line, with logs as lines instead of dictionaries."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a log above the line; what is only known at the end is said by others then."""
        if self.training_bar is None or not logs or "train_runtime" in logs:
            return
        figures = [f"{name} {value:.4g}" for name, value in logs.items() if isinstance(value, float)]
        self.training_bar.write(f"step {state.global_step}: {', '.join(figures)}")


class TokenProgress(ReadableProgress):
    """The Trainer's progress line with the loss, the tokens seen and the tokens per second at its end."""

    def __init__(self, throughput: Throughput | None = None) -> None:
        super().__init__()
        self.throughput = throughput or Throughput()
        self.loss = ""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the line on."""
        if state.is_world_process_zero and self.training_bar is not None:
            tokens = f"{self.throughput.seen:,} tokens, {self.throughput.tokens_per_second:,.0f} tokens/s{self.loss}"
            self.training_bar.set_postfix_str(tokens, refresh=False)
        super().on_step_end(args, state, control, **kwargs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the log above the line and keep the loss for the line."""
        if logs and "loss" in logs:
            self.loss = f", loss {logs['loss']:.4f}"
        super().on_log(args, state, control, logs=logs, **kwargs)
