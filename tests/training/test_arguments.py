"""The Trainer's flags: which values they may have, for every sub-command that trains."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from bert_convolutions import CompositeBertConfig, CompositeBertForMaskedLM
from bert_convolutions.cli.main import main
from bert_convolutions.errors import UsageError
from bert_convolutions.training import arguments
from bert_convolutions.training.arguments import RANGES, BertTrainingArguments
from bert_convolutions.training.resumable import ResumableTrainer
from tests.helpers import TINY

OUT_OF_RANGE = [
    *((name, value) for name in ("per_device_train_batch_size", "gradient_accumulation_steps") for value in (0, -1)),
    *(("learning_rate", value) for value in (-1e-4, 0.0, math.nan, math.inf)),
    *(("weight_decay", value) for value in (-0.1, math.nan)),
    *((f"adam_beta{number}", value) for number in (1, 2) for value in (-0.1, 1.0, math.nan)),
    *(("adam_epsilon", value) for value in (0.0, -1e-8, math.nan)),
    *(("num_train_epochs", value) for value in (0.0, -1.0, math.nan, math.inf)),
    *(("max_steps", value) for value in (0, -2)),
    *((name, value) for name in ("seed", "data_seed") for value in (-1, 2**32)),
    *(("warmup_steps", value) for value in (-1.0, math.nan, math.inf)),
    ("dataloader_num_workers", -1),
    ("dataloader_prefetch_factor", 0),
    ("dataloader_multiprocessing_context", "thread"),
    ("save_total_limit", -1),
    ("max_grad_norm", -1.0),
    ("logging_steps", math.nan),
    ("save_steps", -5),
    ("eval_steps", -5),
    ("torch_compile_mode", "fastest"),
]
CONTRADICTIONS = {
    "fsdp: fsdp is not supported": {"fsdp": "full_shard"},
    "fsdp_config fsdp.json is for --fsdp": {"fsdp_config": "fsdp.json"},
    "optim_target_modules has no effect": {"optim_target_modules": "all-linear"},
    "deepspeed: deepspeed is not supported": {"deepspeed": "zero2.json"},
    "accelerator_config": {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 4}}},
    "eval_steps": {"eval_steps": 5},
    "save_strategy best": {"save_strategy": "best", "metric_for_best_model": "loss"},
    "average_tokens_across_devices": {"average_tokens_across_devices": False},
    "optim lomo": {"optim": "lomo"},
    "optim sgd": {"optim": "sgd", "optim_args": "momentum=-3"},
    "lr_scheduler_type cosine": {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycle": 2}},
    "lr_scheduler_type polynomial": {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": "two"}},
    "(activation|gradient)_checkpointing_kwargs {'every'": {"gradient_checkpointing_kwargs": {"every": 2}},
    "(activation|gradient)_checkpointing_kwargs {'every_n_layers': 0}": {
        "gradient_checkpointing_kwargs": {"every_n_layers": 0}
    },
    "(activation|gradient)_checkpointing_kwargs {'offload'": {"gradient_checkpointing_kwargs": {"offload": True}},
    "(activation|gradient)_checkpointing_kwargs all": {"gradient_checkpointing_kwargs": "all"},
    "lr_scheduler_kwargs": {"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"num_cycles": 2}},
}


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: float | str) -> None:
    with pytest.raises(UsageError, match=rf"^--{name} {value} is n"):
        BertTrainingArguments(output_dir="x", use_cpu=True, **{name: value})


@pytest.mark.parametrize("named", CONTRADICTIONS)
def test_arguments_that_libraries_would_refuse_later_are_refused_at_once(named: str) -> None:
    with pytest.raises(UsageError, match=f"--{named}"):
        BertTrainingArguments(output_dir="x", use_cpu=True, **CONTRADICTIONS[named])


@pytest.mark.parametrize("command", ["pretrain", "glue"])
@pytest.mark.parametrize("flag", ["learning_rate=-1", "seed=-1", "max_steps=0", "average_tokens_across_devices=false"])
def test_every_sub_command_that_trains_checks_the_arguments(
    command: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    required = ["--data_dir=nowhere", "--task_name=RTE"] if command == "glue" else []
    assert main([command, "--output_dir=x", f"--{flag}", *required]) == 2
    assert f"--{flag.replace('=', ' ')}" in capsys.readouterr().err


def test_every_range_is_of_a_flag_and_includes_its_default() -> None:
    """A flag of this version of transformers, or of another that is allowed."""
    defaults = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    assert set(RANGES) - set(defaults) <= {"warmup_ratio"}
    BertTrainingArguments(output_dir="x", use_cpu=True)


@pytest.mark.filterwarnings("error:None of the inputs")
def test_checking_reentrant_checkpointing_warns_of_nothing() -> None:
    BertTrainingArguments(output_dir="x", use_cpu=True, gradient_checkpointing_kwargs={"use_reentrant": True})


@pytest.mark.parametrize(("level", "terminal", "hidden"), [(30, True, False), (40, True, True), (30, False, True)])
def test_bars_are_hidden_in_log_files_and_at_the_log_level_of_errors(
    level: int, terminal: bool, hidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arguments, "shows_bars", lambda: terminal)
    monkeypatch.setattr("transformers.training_args.logger.getEffectiveLevel", lambda: level)
    assert BertTrainingArguments(output_dir="x", use_cpu=True).disable_tqdm is hidden


def test_one_process_needs_no_backend_to_talk_by() -> None:
    assert BertTrainingArguments(output_dir="x", ddp_backend="gloo").world_size == 1


def test_runs_of_several_precisions_may_be_prepared_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "cpu_has_bf16", lambda: True)
    prepared = [BertTrainingArguments(output_dir=str(tmp_path), use_cpu=True, bf16=bf16) for bf16 in (False, True)]
    for each in prepared:
        trainer = ResumableTrainer(CompositeBertForMaskedLM(CompositeBertConfig(vocab_size=9, **TINY)), each)
        assert trainer.accelerator.mixed_precision == ("bf16" if each.bf16 else "no")


@pytest.mark.parametrize(("precision", "flags"), [("bf16", {}), ("no", {}), ("bf16", {"fp16": True})])
def test_the_precision_of_a_launcher_is_that_of_a_flag(
    precision: str, flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So a CPU without instructions for it says so, instead of being tens of times slower."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    monkeypatch.setattr(arguments, "cpu_has_bf16", lambda: False)
    found = BertTrainingArguments(output_dir="x", use_cpu=True, **flags)
    assert not found.bf16 and found.mixed_precision == "no"
    assert (f"--{next(iter(flags), precision)}" in capsys.readouterr().err) is (precision != "no")


def test_a_launcher_that_would_divide_the_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match="accelerate launch: fsdp is not supported"):
        BertTrainingArguments(output_dir="x", use_cpu=True)
