"""Names on the Hugging Face Hub, as folders on this machine."""

from pathlib import Path
from typing import Literal

from bert_convolutions.errors import UsageError, first_line

_FILES = ("*.json", "*.txt", "*.model")
"""Configurations and tokenizers; ``*.model`` are SentencePiece's."""
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
"""Files of weights; those of the second kind count where there are none of the first."""


def local_folder(name_or_path: str | Path, kind: Literal["model", "tokenizer"] = "model") -> Path:
    """The file or folder of that path or, where there is none, a repository of the Hub, fetched if it isn't here yet.

    ``USER/NAME@REVISION`` is a branch, a tag or a commit of it. As everywhere in Hugging Face's libraries, with
    ``HF_HUB_OFFLINE=1`` in the environment the cache alone is looked at.

    Args:
        name_or_path: what the user gave.
        kind: of a tokenizer, no weights are fetched.

    Returns:
        The path as it is where it can't be such a name; whether anything is there, the caller has to see.

    Raises:
        UsageError: it might be a name, and there is none such.
    """
    path = Path(name_or_path)
    if path.exists():
        return path
    from huggingface_hub import snapshot_download  # which takes a while to import
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name, _, revision = str(name_or_path).partition("@")
    try:
        validate_repo_id(name)
    except HFValidationError:
        return path

    def fetched(*patterns: str) -> Path:
        wanted = list(patterns)
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted, ignore_patterns="*/*"))

    try:
        if kind == "tokenizer":
            return fetched(*_FILES)
        folder = fetched(*_FILES, WEIGHTS[0])
        return folder if any(folder.glob(WEIGHTS[0])) else fetched(*_FILES, *WEIGHTS)
    except Exception as error:  # of the network, of the name, or of what is said there
        raise UsageError(
            f"{name_or_path}: no such {kind} on this machine, and none that the Hugging Face Hub gives "
            f"({first_line(error)})"
        ) from error
