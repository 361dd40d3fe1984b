"""A text, a tokenizer and a setup small enough to measure everything in seconds."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bert_convolutions.bench.corpus import Setup, prepare
from bert_convolutions.bench.options import BenchOptions
from bert_convolutions.bench.plan import make_plan
from tests.helpers import TINY, trained_tokenizer


class ScriptedConnection:
    """A stand-in for a pipe to the main process, which asks for turns of one step each and keeps what is sent."""

    def __init__(self, turns: int) -> None:
        self._commands: Iterator[int] = iter([1] * turns)
        self.sent: list[Any] = []

    def send(self, value: Any) -> None:
        self.sent.append(value)

    def recv(self) -> int:
        for command in self._commands:
            return command
        raise EOFError


@pytest.fixture(scope="session")
def bench_flags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Flags of a tiny bench: text of random words, a tokenizer of it, and a model of one layer."""
    folder = tmp_path_factory.mktemp("bench")
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefghij", k=generator.randint(2, 7))) for _ in range(200)]
    lines = [" ".join(generator.choices(words, k=generator.randint(2, 12))) for _ in range(400)]
    tokenizer = trained_tokenizer(folder, "".join(f"{line}\n" for line in lines), vocab_size=120)
    config = folder / "config.json"
    config.write_text(json.dumps(TINY | {"num_hidden_layers": 1, "embedding_size": 8, "vocab_size": 300}))
    return {
        "train_data_file": [str(folder / "text.txt")],
        "tokenizer_name": str(tokenizer),
        "config_name": str(config),
        "output_dir": str(folder / "out"),
        "batch_size": 4,
        "rounds": 1,
        "steps": 1,
        "warmup_steps": 0,
        "sequence_lengths": [128, 256],
    }


@pytest.fixture(scope="session")
def bench_setup(bench_flags: dict[str, Any]) -> Setup:
    """What the workers of such a bench receive, with text for three steps."""
    options = BenchOptions(**{**bench_flags, "steps": 3})
    Path(options.output_dir).mkdir(parents=True, exist_ok=True)
    return prepare(options, make_plan(options), lambda line: None)
