"""A model of 2 layers and 32 dimensions on a store of random pairs, trained by the real trainer."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch

from bert_convolutions.cli.main import main
from bert_convolutions.model import CompositeBertConfig, CompositeBertForMaskedLM, CompositeBertForPreTraining
from bert_convolutions.training.arguments import BertTrainingArguments
from bert_convolutions.training.progress import WordCounter
from bert_convolutions.training.trainer import PretrainingTrainer
from tests.helpers import NO_DROPOUT
from tests.training.helpers import CLS, NUM_EXAMPLES, PAD, PIECES, SEP, SIZE, MakeTrainer, make_collator

SIZES = {
    **{"hidden_size": 32, "embedding_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 48, "attention_kernel": "qk_convfixed_convq_convk 3"},
}


@pytest.fixture(scope="session")
def store() -> list[np.ndarray]:
    draw = np.random.default_rng(5)

    def sentence() -> list[int]:
        return draw.integers(0, PIECES, draw.integers(2, 14)).tolist()

    return [np.array([CLS, *sentence(), SEP, *sentence(), SEP]) for _ in range(NUM_EXAMPLES)]


@pytest.fixture
def make_trainer(store: list[np.ndarray]) -> MakeTrainer:
    """Make a trainer for a folder, by default with 2 examples x 2 micro-batches, 30 steps and dropout."""

    def make(
        folder: Path,
        *,
        dropout: float = 0.1,
        pack: bool = True,
        sentence_order: bool = False,
        trainer: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> PretrainingTrainer:
        torch.manual_seed(0)
        config = CompositeBertConfig(
            vocab_size=SIZE,
            **SIZES,
            max_position_embeddings=32,
            pad_token_id=PAD,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        defaults = {
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": 30,
            "logging_steps": 1,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        return PretrainingTrainer(
            model=(CompositeBertForPreTraining if sentence_order else CompositeBertForMaskedLM)(config),
            args=BertTrainingArguments(output_dir=str(folder), **{**defaults, **arguments}),
            train_dataset=store,
            eval_dataset=store[:21],
            data_collator=make_collator(pack=pack, sentence_order=sentence_order),
            eval_collator=make_collator(seed=0, pack=pack, sentence_order=sentence_order),
            words=WordCounter(torch.zeros(SIZE, dtype=torch.bool), [], folder),
            **(trainer or {}),
        )

    return make


@dataclass(frozen=True)
class Workspace:
    """A folder of what the command needs: ``spm.model``, ``config.json`` (no dropout), ``train.ids``, ``eval.ids``."""

    folder: Path

    def flags(self, output: str, **changes: Any) -> list[str]:
        """The flags of a quick run into ``output``; a change to None leaves a flag out."""
        flags = {
            "tokenizer_name": self.folder / "spm.model",
            "config_name": self.folder / "config.json",
            "train_data_file": self.folder / "train.ids",
            "output_dir": self.folder / output,
            "do_train": "true",
            "train_iterable": "true",
            "data_cache_dir": self.folder / "cache",
            "block_size": 32,
            "max_steps": 12,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.01,
            "logging_steps": 1,
            "save_steps": 100,
            "disable_tqdm": "true",
        } | changes
        return [f"--{name}={value}" for name, value in flags.items() if value is not None]

    def run(self, output: str, **changes: Any) -> int:
        """The exit code of ``bertconv pretrain`` with these flags."""
        return main(["pretrain", *self.flags(output, **changes)])

    def log(self, output: str) -> list[float]:
        """The losses of a finished run."""
        state = json.loads((self.folder / output / "trainer_state.json").read_text())
        return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory, store: list[np.ndarray]) -> Workspace:
    folder = tmp_path_factory.mktemp("corner")
    draw = np.random.default_rng(1)
    words = ["".join(draw.choice(list("abcdefgh"), 4)) for _ in range(300)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(draw.choice(words, 8)) for _ in range(400)),
        model_prefix=str(folder / "spm"),
        vocab_size=PIECES,
        minloglevel=2,
    )
    (folder / "config.json").write_text(json.dumps({**SIZES, **NO_DROPOUT, "max_position_embeddings": 64}))
    for name, examples in (("train", store), ("eval", store[:21])):
        (folder / f"{name}.ids").write_text("".join(" ".join(map(str, ids)) + "\n" for ids in examples))
    return Workspace(folder)
