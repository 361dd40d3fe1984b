"""Model configurations: the shipped sizes of the paper, or the user's JSON file."""

import json
from pathlib import Path

from bert_convolutions.errors import UsageError
from bert_convolutions.model.configuration import CompositeBertConfig

PRESETS = ("bert_small", "bert_base")
"""ELECTRA-small's shape and BERT-base's, both with factorised embeddings."""


def load_config(name_or_path: str) -> CompositeBertConfig:
    """Read a configuration.

    Args:
        name_or_path: one of ``PRESETS``, a JSON file (also one written for the paper's code), or a folder with
            ``config.json``.

    Raises:
        UsageError: where there is no such preset or file, or it is not a configuration.
    """
    path = Path(name_or_path)
    if name_or_path in PRESETS:
        path = Path(__file__).with_name(f"{name_or_path}.json")
    elif path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise UsageError(f"--config_name {name_or_path} is neither a preset ({', '.join(PRESETS)}) nor a file")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UsageError(f"--config_name {path} is not readable JSON: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"--config_name {path} holds no JSON object; write field names and values in braces")
    for key in ("architectures", "model_type", "transformers_version", "gradient_checkpointing"):
        values.pop(key, None)
    try:
        return CompositeBertConfig(**values)
    except UsageError:
        raise
    except Exception as error:  # the strict fields of transformers raise an error of their own
        raise UsageError(f"--config_name {path}: {str(error).splitlines()[0]}") from error
