"""A checkpoint of the paper's code into ours: ``config.json`` + ``pytorch_model.bin`` -> ``model.safetensors``."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bert_convolutions.convert.options import ConvertOptions
from bert_convolutions.errors import UsageError
from bert_convolutions.model.configuration import CompositeBertConfig
from bert_convolutions.model.modeling import (
    CompositeBertForMaskedLM,
    CompositeBertForPreTraining,
    CompositeBertForSequenceClassification,
    CompositeBertModel,
)

ARCHITECTURES: dict[str, type[PreTrainedModel]] = {
    "BertModel": CompositeBertModel,
    "BertForMaskedLM": CompositeBertForMaskedLM,
    "BertForPreTraining": CompositeBertForPreTraining,
    "BertForSequenceClassification": CompositeBertForSequenceClassification,
}
_BUFFERS = ("relative_positions_mat", "position_ids")
_DROPPED_KEYS = ("architectures", "model_type", "gradient_checkpointing", "transformers_version", "torch_dtype")


def run_convert(options: ConvertOptions) -> Path:
    """``bertconv convert``; see ``convert_checkpoint``."""
    return convert_checkpoint(options.input, options.output_dir, options.overwrite_output_dir)


def convert_checkpoint(input_dir: str | Path, output_dir: str | Path, overwrite_output_dir: bool = False) -> Path:
    """Convert a checkpoint folder, heads and tokenizer included.

    Args:
        input_dir: a folder with the original's ``config.json`` and ``pytorch_model.bin``.
        output_dir: the folder to make; written beside its place and renamed.
        overwrite_output_dir: replace a folder that is there.

    Raises:
        UsageError: where a file is missing, damaged or not of this kind, or the output folder is not empty.
    """
    source, target = Path(input_dir), Path(output_dir)
    if target.exists() and (not target.is_dir() or any(target.iterdir())) and not overwrite_output_dir:
        raise UsageError(f"--output_dir {target} is not empty; choose another or give --overwrite_output_dir")
    config = _read_config(source / "config.json")
    architecture = (config.architectures or [""])[0]
    weights = _read_weights(source / "pytorch_model.bin")
    model = ARCHITECTURES[architecture](config)
    _load(model, weights, source / "pytorch_model.bin")

    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(temporary)
    if (source / "spm.model").is_file():
        from bert_convolutions.data.tokenizer import load_tokenizer

        load_tokenizer(source / "spm.model").save_pretrained(temporary)
    if target.exists():
        shutil.rmtree(target)
    temporary.rename(target)
    return target


def _read_config(path: Path) -> CompositeBertConfig:
    if not path.is_file():
        raise UsageError(f"{path} is missing; --input is a folder with config.json and pytorch_model.bin")
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not valid JSON ({error})") from error
    architectures = values.get("architectures") or []
    if len(architectures) != 1 or architectures[0] not in ARCHITECTURES:
        raise UsageError(f"{path}: architectures is {architectures}; one of {', '.join(ARCHITECTURES)} is expected")
    config = CompositeBertConfig(**{key: value for key, value in values.items() if key not in _DROPPED_KEYS})
    config.architectures = architectures
    return config


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UsageError(f"{path} is missing; --input is a folder with config.json and pytorch_model.bin")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds; none of them may execute the file
        raise UsageError(
            f"{path} can't be read as plain weights, so it was not loaded: {error}".splitlines()[0]
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UsageError(f"{path} holds something else than a dictionary of tensors")
    return {name: value for name, value in weights.items() if name.rsplit(".", 1)[-1] not in _BUFFERS}


def _load(model: PreTrainedModel, weights: dict[str, Tensor], path: Path) -> None:
    """Copy the weights; all must be there and of the right shape."""
    expected = model.state_dict()
    for name, value in weights.items():
        if name not in expected:
            raise UsageError(f"{path} holds {name}, which a model with this config.json doesn't have")
        if value.shape != expected[name].shape:
            raise UsageError(f"{path}: {name} is {tuple(value.shape)}, config.json says {tuple(expected[name].shape)}")
    missing = sorted(set(expected) - set(weights))
    if missing:
        raise UsageError(f"{path} lacks {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""))
    model.load_state_dict(weights)
    model.tie_weights()
