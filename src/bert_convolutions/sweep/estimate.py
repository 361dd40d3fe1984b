"""Estimates the cost of a cell before it is run: parameters, FLOPs, and time from a short measurement."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.benchmark import Timer
from transformers import PreTrainedModel

from bert_convolutions.cpu import cpu_has_bf16, fast_float32_products
from bert_convolutions.data.loading import load_tokenizer
from bert_convolutions.data.store import MANIFEST_FILE, read_manifest
from bert_convolutions.errors import UsageError
from bert_convolutions.model import CompositeBertConfig, CompositeBertForMaskedLM
from bert_convolutions.model.flops import count_flops
from bert_convolutions.model.presets import load_config
from bert_convolutions.schemas import CorpusCounts, Flags
from bert_convolutions.sweep.cells import Cell, batch_size, flag_paths
from bert_convolutions.training.arguments import BertTrainingArguments
from bert_convolutions.training.options import ARCHITECTURE_FLAGS

_MATMUL_FRACTION = 0.5
"""Rough fraction of a CPU training step spent in matrix products (``bertconv bench`` measures it)."""


@dataclass(frozen=True)
class Cost:
    """The cost of one pre-training run.

    Attributes:
        parameters: number of parameters of the model.
        flops: FLOPs of all steps, by ``model.flops``.
        tokens: non-padding tokens of all steps.
        seconds: estimated duration.
    """

    parameters: int
    flops: float
    tokens: float
    seconds: float


def estimate(cell: Cell, flops_per_second: float) -> Cost:
    """The cost of a ``pretrain`` cell at a training speed of ``flops_per_second`` (``measure_flops``).

    Raises:
        UsageError: the configuration or the tokenizer can't be read.
    """
    model = meta_model(cell.flags)
    minutes = cell.flags.get("train_minutes")
    flops_per_token = training_flops_per_token(model, cell.flags)
    tokens = float(minutes) * 60 * flops_per_second / flops_per_token if minutes else planned_tokens(cell.flags)  # type: ignore[arg-type]
    flops = tokens * flops_per_token
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, flops, tokens, flops / flops_per_second)


def meta_model(flags: Flags) -> PreTrainedModel:
    """The model of a cell on the meta device.

    Raises:
        UsageError: the configuration or the tokenizer can't be read.
    """
    config = load_config(str(flags.get("config_name") or ""))
    changes = {name: flags[name] for name in ARCHITECTURE_FLAGS if flags.get(name) not in (None, False)}
    values: dict[str, Any] = {**config.to_dict(), **changes}
    values["vocab_size"] = len(load_tokenizer(str(flags.get("tokenizer_name") or "")))
    values["pad_token_id"] = None
    return on_meta_device(CompositeBertConfig(**values))


def on_meta_device(config: CompositeBertConfig) -> PreTrainedModel:
    """A masked language model on the meta device."""
    with torch.device("meta"):
        return CompositeBertForMaskedLM(config)


def example_length(flags: Flags) -> float:
    """Non-padding tokens per example: the mean in a ``build-dataset`` folder, or half of ``--block_size``."""
    block = float(flags.get("block_size") or 128)  # type: ignore[arg-type]
    counts = _built_counts(flags)
    return min(counts.tokens / counts.examples, block) if counts else block / 2


def _built_counts(flags: Flags) -> CorpusCounts | None:
    """The counts of the text's ``build-dataset`` folder; None for plain text, which is yet to be built."""
    manifests = (path / MANIFEST_FILE for path in flag_paths(flags, "train_data_file"))
    return next((read_manifest(manifest).counts for manifest in manifests if manifest.is_file()), None)


def planned_tokens(flags: Flags) -> float:
    """Non-padding tokens of all steps.

    Raises:
        UsageError: they depend on the number of examples, and the text is not built yet.
    """
    steps, epochs, counts = flags.get("max_steps"), flags.get("num_train_epochs"), _built_counts(flags)
    if isinstance(steps, int) and steps > 0:
        return steps * batch_size(flags) * example_length(flags)
    if counts is None:
        raise UsageError(
            "the cost of passes over the data can't be estimated from plain text: give --train_data_file a folder of "
            "build-dataset, or the experiment's base max_steps or train_minutes"
        )
    epochs = BertTrainingArguments.num_train_epochs if epochs is None else epochs
    return float(epochs) * counts.examples * example_length(flags)  # type: ignore[arg-type]


def training_flops_per_token(model: PreTrainedModel, flags: Flags) -> float:
    """FLOPs of training a ``pretrain`` cell's model on a token."""
    length, masked_share = example_length(flags), float(flags.get("mlm_probability") or 0.15)  # type: ignore[arg-type]
    return count_flops(model).training(np.array([length]), length * masked_share) / length


@fast_float32_products()
def measure_flops(bf16: bool) -> float:
    """Estimated training speed of this machine in FLOP/s, from matrix products of a small model's size."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    in_bf16 = bf16 and (device == "cuda" or cpu_has_bf16())  # other CPUs train in float32
    dtype = torch.bfloat16 if in_bf16 else torch.float32
    one, other = (torch.randn(*size, device=device, dtype=dtype) for size in ((2048, 256), (256, 1024)))
    timer = Timer("one @ other", globals={"one": one, "other": other}, num_threads=torch.get_num_threads())
    return _MATMUL_FRACTION * 2 * one.numel() * other.shape[1] / timer.blocked_autorange().median
