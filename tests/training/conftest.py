"""A model of 2 layers and 32 dimensions on a store of random pairs, trained by the real trainer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.helpers import CLS, NUM_EXAMPLES, PAD, PIECES, SEP, SIZE, MakeTrainer, make_collator

from bert_convolutions.model import CompositeBertConfig, CompositeBertForMaskedLM, CompositeBertForPreTraining
from bert_convolutions.training.arguments import BertTrainingArguments
from bert_convolutions.training.trainer import PretrainingTrainer


@pytest.fixture(scope="session")
def store() -> list[np.ndarray]:
    draw = np.random.default_rng(5)

    def sentence() -> list[int]:
        return draw.integers(0, PIECES, draw.integers(2, 14)).tolist()

    return [np.array([CLS, *sentence(), SEP, *sentence(), SEP]) for _ in range(NUM_EXAMPLES)]


@pytest.fixture
def make_trainer(store: list[np.ndarray]) -> MakeTrainer:
    """A trainer for a folder; what is not said is: 2 examples x 2 micro-batches, 30 steps, dropout, no reports."""

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
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            embedding_size=16,
            max_position_embeddings=32,
            pad_token_id=PAD,
            attention_kernel="qk_convfixed_convq_convk 3",
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
            **(trainer or {}),
        )

    return make
