"""What a cell will cost before it is run: parameters, FLOPs, and time by a short measurement."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.benchmark import Timer
from transformers import PreTrainedModel

from bert_convolutions.data.loading import load_tokenizer
from bert_convolutions.data.store import MANIFEST_FILE, read_manifest
from bert_convolutions.errors import UsageError
from bert_convolutions.model import CompositeBertConfig, CompositeBertForMaskedLM
from bert_convolutions.model.flops import FlopCounter, count_flops
from bert_convolutions.model.presets import load_config
from bert_convolutions.schemas import Flags
from bert_convolutions.sweep.cells import Cell, given_paths
from bert_convolutions.training.options import ARCHITECTURE_FLAGS

_SHARE_OF_PRODUCTS = 0.5
"""Of the time of a training step on a CPU that goes into matrix products, roughly (``bertconv bench`` says exactly)."""


@dataclass(frozen=True)
class Cost:
    """Of one pre-training run.

    Attributes:
        parameters: of the model.
        flops: of all steps, by ``model.flops``.
        tokens: real tokens of all steps.
        seconds: estimated.
    """

    parameters: int
    flops: float
    tokens: float
    seconds: float


def estimate(cell: Cell, flops_per_second: float) -> Cost:
    """The cost of a ``pretrain`` cell, where training reaches so many FLOP/s (``measure_flops``).

    Raises:
        UsageError: model or tokenizer can't be read.
    """
    model = skeleton(cell.flags)
    length, share = example_length(cell.flags), float(cell.flags.get("mlm_probability") or 0.15)  # type: ignore[arg-type]
    minutes = cell.flags.get("train_minutes")
    a_token = training_flops(count_flops(model), 1.0, length, share)
    tokens = float(minutes) * 60 * flops_per_second / a_token if minutes else planned_tokens(cell.flags)  # type: ignore[arg-type]
    flops = tokens * a_token
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, flops, tokens, flops / flops_per_second)


def skeleton(flags: Flags) -> PreTrainedModel:
    """The model of a cell without its weights.

    Raises:
        UsageError: configuration or tokenizer can't be read.
    """
    config = load_config(str(flags.get("config_name") or ""))
    changes = {name: flags[name] for name in ARCHITECTURE_FLAGS if flags.get(name) not in (None, False)}
    values: dict[str, Any] = {**config.to_dict(), **changes}
    values["vocab_size"] = len(load_tokenizer(str(flags.get("tokenizer_name") or "")))
    values["pad_token_id"] = None
    return bare_model(CompositeBertConfig(**values))


def bare_model(config: CompositeBertConfig) -> PreTrainedModel:
    """A model that holds shapes and no numbers."""
    with torch.device("meta"):
        return CompositeBertForMaskedLM(config)


def example_length(flags: Flags) -> float:
    """Real tokens of an example: the mean of a ``build-dataset`` folder; of other data, half of ``--block_size``."""
    block = float(flags.get("block_size") or 128)  # type: ignore[arg-type]
    for manifest in (path / MANIFEST_FILE for path in given_paths(flags, "train_data_file")):
        if manifest.is_file():
            counts = read_manifest(manifest).counts
            return min(counts.tokens / counts.examples, block)
    return block / 2


def planned_tokens(flags: Flags) -> float:
    """Real tokens of all steps.

    Raises:
        UsageError: the steps are not given as ``max_steps``.
    """
    if not isinstance(flags.get("max_steps"), int):
        raise UsageError(
            "an experiment's base must give max_steps, so that all variants see the same number of tokens, or "
            "train_minutes, so that all take the same time"
        )
    batch = float(flags.get("per_device_train_batch_size") or 8) * float(flags.get("gradient_accumulation_steps") or 1)  # type: ignore[arg-type]
    return float(flags["max_steps"]) * batch * example_length(flags)  # type: ignore[arg-type]


def training_flops(counter: FlopCounter, tokens: float, length: float, masked_share: float = 0.15) -> float:
    """FLOPs of training on so many tokens in examples of so many."""
    return counter.training(np.array([length]), length * masked_share) * tokens / length


def measure_flops() -> float:
    """FLOP/s that training will reach on this machine, judged by matrix products of a small model's size."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    one, other = torch.randn(2048, 256, device=device), torch.randn(256, 1024, device=device)
    timer = Timer("one @ other", globals={"one": one, "other": other}, num_threads=torch.get_num_threads())
    return _SHARE_OF_PRODUCTS * 2 * one.numel() * other.shape[1] / timer.blocked_autorange().median
