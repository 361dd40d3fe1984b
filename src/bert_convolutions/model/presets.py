"""Model configurations: the paper's sizes as presets, or the user's JSON file."""

from pathlib import Path

from bert_convolutions.errors import UsageError
from bert_convolutions.model.configuration import CompositeBertConfig
from bert_convolutions.parsing import parse, read_json
from bert_convolutions.schemas import EncoderConfig

PRESETS = ("bert_small", "bert_base")
"""ELECTRA-small's shape and BERT-base's, both with factorised embeddings."""

_OTHER_FIELDS = ("architectures", "model_type", "gradient_checkpointing", "transformers_version", "torch_dtype")


def load_config(name_or_path: str) -> CompositeBertConfig:
    """Read a configuration.

    Args:
        name_or_path: one of ``PRESETS``, a JSON file (also one written for the paper's code), or a folder with
            ``config.json``.

    Raises:
        UsageError: there is no such preset or file, or it is not a configuration.
    """
    path = Path(name_or_path)
    if name_or_path in PRESETS:
        path = Path(__file__).with_name(f"{name_or_path}.json")
    elif path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise UsageError(f"--config_name {name_or_path} is neither a preset ({', '.join(PRESETS)}) nor a file")
    return read_config(path)


def read_config(path: Path, schema: type[EncoderConfig] = EncoderConfig) -> CompositeBertConfig:
    """Read a configuration file, without the fields that are not the model's, such as versions.

    Args:
        path: the file, of this package or of the paper's code.
        schema: the schema that it must match.

    Raises:
        UsageError: the file is unreadable or no JSON object, or a field has the wrong type or is out of range.
    """
    values = read_json(path)
    parse(schema, values, path)
    try:
        return CompositeBertConfig(**{name: value for name, value in values.items() if name not in _OTHER_FIELDS})
    except Exception as error:  # the strict fields of transformers raise an error of their own
        raise UsageError(f"{path}: {str(error).splitlines()[0]}") from error
