"""``bertconv convert``: converts checkpoints of the paper's code or of ``transformers``, or adds terms to ours."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

import bert_convolutions
from bert_convolutions import files
from bert_convolutions.convert.hugging_face import convert_model, extend_model, load_weights
from bert_convolutions.convert.options import ConvertOptions
from bert_convolutions.data.loading import load_tokenizer
from bert_convolutions.data.pieces import MODEL_FILE
from bert_convolutions.errors import UsageError, first_line
from bert_convolutions.hub import local_folder
from bert_convolutions.model.configuration import CompositeBertConfig
from bert_convolutions.model.loading import quiet_transformers, set_max_length
from bert_convolutions.model.presets import read_config
from bert_convolutions.parsing import read_json, read_model
from bert_convolutions.schemas import OriginalsConfig
from bert_convolutions.self_contained import CODE_PATTERN

ARCHITECTURES = ("BertModel", "BertForMaskedLM", "BertForPreTraining", "BertForSequenceClassification")
"""The original's architectures, each of which is named ``Composite...`` here."""
_BUFFERS = ("relative_positions_mat", "position_ids")
_TOKENIZERS = (MODEL_FILE, "tokenizer.json", "tokenizer_config.json", "vocab.txt")
"""Files that identify a tokenizer of ``transformers``; the oldest models have only the last one."""
_OUTPUT_PATTERNS = (
    *("config.json", "generation_config.json", "model*.safetensors*", CODE_PATTERN),
    *(*_TOKENIZERS, "special_tokens_map.json", "added_tokens.json"),
)
"""Patterns of the files of a converted model; an overwrite replaces only these."""


def run_convert(options: ConvertOptions) -> Path:
    """Run ``bertconv convert``; see ``convert_checkpoint``."""
    add = {}
    for pair in options.add:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--add {pair}: give a field and its value, such as attention_kernel='qk_convq 8'")
        add[name] = value
    return convert_checkpoint(options.input, options.output_dir, options.overwrite_output_dir, add)


def convert_checkpoint(
    input_dir: str | Path,
    output_dir: str | Path,
    overwrite_output_dir: bool = False,
    add: Mapping[str, str] | None = None,
) -> Path:
    """Convert a checkpoint folder, including heads and tokenizer.

    Args:
        input_dir: a folder with the original's ``config.json`` and ``pytorch_model.bin``, with a model of
            ``transformers`` that ``convert_model`` supports, or with one of ours, for ``extend_model``.
        output_dir: the folder to write, atomically: old files are kept until the new ones are complete.
        overwrite_output_dir: replace the model in an existing folder; other files in it are kept.
        add: fields that ``convert_model`` or ``extend_model`` adds.

    Raises:
        UsageError: a file is missing, damaged or unsupported; or the output folder is not empty, overlaps the input,
            or holds a model that is not ours.
    """
    source, target = local_folder(input_dir), Path(output_dir)
    files.refuse_overlap(target, "--output_dir", {"--input": source})
    _check_target(target, overwrite_output_dir)
    kind = _origin_of(source / "config.json")
    if add and kind == "original":
        raise UsageError(f"--add: convert {source}, a checkpoint of the original, first; then add terms to the result")
    if kind == "original":
        model = _read_original(source)
    else:
        model = (extend_model if kind == "ours" else convert_model)(source, add or {})
    model.config.architectures = [type(model).__name__]

    with files.folder_inside(target, "--output_dir") as temporary:
        with quiet_transformers():
            model.save_pretrained(temporary)
        tokenizer_files = (MODEL_FILE,) if kind == "original" else _TOKENIZERS
        if any((source / name).is_file() for name in tokenizer_files):
            tokenizer = load_tokenizer(source / MODEL_FILE if kind == "original" else source)
            set_max_length(model.config, tokenizer).save_pretrained(temporary)
        files.sync_tree(temporary)
        files.install(temporary, target, {path for pattern in _OUTPUT_PATTERNS for path in target.glob(pattern)})
    return target


def _origin_of(config_path: Path) -> Literal["original", "transformers", "ours"]:
    """The program that wrote a ``config.json``; the original's has the type ``bert`` and an attention kernel."""
    config = read_json(config_path) if config_path.is_file() else None
    if not isinstance(config, dict) or "model_type" not in config:
        return "original"
    if config["model_type"] == CompositeBertConfig.model_type:
        return "ours"
    return "original" if "attention_kernel" in config else "transformers"


def _read_original(source: Path) -> PreTrainedModel:
    config_path, weights_path = source / "config.json", source / "pytorch_model.bin"
    for path in (config_path, weights_path):
        if not path.is_file():
            raise UsageError(f"{path} is missing; --input is a folder with config.json and pytorch_model.bin")
    architecture = read_model(OriginalsConfig, config_path).architectures[0]
    if architecture not in ARCHITECTURES:
        raise UsageError(f"{config_path}: architectures: {architecture} is not one of {', '.join(ARCHITECTURES)}")
    config = read_config(config_path, OriginalsConfig)
    model: PreTrainedModel = getattr(bert_convolutions, f"Composite{architecture}")(config)
    load_weights(model, _read_weights(weights_path), weights_path)
    return model


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and files.is_empty(target)):
        return
    if not target.is_dir():
        raise UsageError(f"--output_dir {target} is a file; choose a folder")
    if not overwrite:
        raise UsageError(f"--output_dir {target} is not empty; choose another or give --overwrite_output_dir")
    config = target / "config.json"
    if config.exists():
        try:
            ours = json.loads(config.read_bytes())["model_type"] == CompositeBertConfig.model_type
        except (OSError, ValueError, KeyError, TypeError):
            ours = False
        if not ours:
            raise UsageError(f"--output_dir {target} holds a model that this program did not write; choose another")


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a file, which must be finite floating-point numbers."""
    try:
        _verify_checksums(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types
        raise UsageError(f"{path} can't be read as plain weights, so it was not loaded: {first_line(error)}") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UsageError(f"{path} holds something other than a dictionary of tensors")
    weights = {str(name): value for name, value in weights.items() if str(name).rsplit(".", 1)[-1] not in _BUFFERS}
    for name, value in weights.items():
        if not value.is_floating_point():
            raise UsageError(f"{path}: {name} is of {value.dtype}; weights are floating-point numbers")
        if not value.isfinite().all():
            raise UsageError(f"{path}: {name} holds NaN or infinity, so the file is damaged or the run had diverged")
    return weights


def _verify_checksums(path: Path) -> None:
    """Verify the checksums that PyTorch writes since version 1.6 but does not check; older files have none."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"the checksum of {damaged} in it differs")
