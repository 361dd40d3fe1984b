"""Short forms of a run of ``bertconv glue`` on the tiny data and model."""

import os
from pathlib import Path

import pytest

from bert_convolutions.glue.finetune import GlueTrainer
from bert_convolutions.glue.options import GlueOptions
from bert_convolutions.training.arguments import BertTrainingArguments


def arguments(folder: Path, **changes) -> BertTrainingArguments:
    given = {"max_steps": 2, "learning_rate": 1e-3, "use_cpu": True, "disable_tqdm": True, "save_steps": 9999999}
    return BertTrainingArguments(output_dir=str(folder), **{**given, **changes})


def options(glue_dir: Path, model_dir: Path, task_name: str = "RTE", **changes) -> GlueOptions:
    given = {"data_dir": str(glue_dir), "task_name": task_name, "model_name_or_path": str(model_dir)}
    return GlueOptions(**{**given, "max_seq_length": 32, **changes})


def kill_in_step(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """Send this process a signal in a training step (from 1), once."""
    original = GlueTrainer.training_step
    seen = []

    def training_step(self, *args, **kwargs):
        seen.append(1)
        if len(seen) == step:
            os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(GlueTrainer, "training_step", training_step)
