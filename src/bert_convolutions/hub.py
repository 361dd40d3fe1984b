"""Local folders for names on the Hugging Face Hub."""

from pathlib import Path
from typing import Literal

from bert_convolutions.errors import UsageError, first_line

_FILES = ("*.json", "*.txt", "*.model")
"""Patterns of configuration and tokenizer files; ``*.model`` is SentencePiece's."""
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
"""Patterns of weight files; the second applies if nothing matches the first."""


def local_folder(name_or_path: str | Path, kind: Literal["model", "tokenizer"] = "model") -> Path:
    """The local path ``name_or_path`` or, if it does not exist, the downloaded Hub repository of that name.

    ``USER/NAME@REVISION`` selects a branch, a tag or a commit. As in all of Hugging Face's libraries, only the cache is
    used if ``HF_HUB_OFFLINE=1`` is set.

    Args:
        name_or_path: a local path or a name on the Hub.
        kind: no weights are downloaded for a tokenizer.

    Returns:
        The folder or file. A path that can't be a Hub name is returned unchanged, whether or not it exists.

    Raises:
        UsageError: it could be a name on the Hub, but can't be downloaded.
    """
    path = Path(name_or_path)
    if path.exists():
        return path
    from huggingface_hub import snapshot_download  # slow to import
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name, _, revision = str(name_or_path).partition("@")
    try:
        validate_repo_id(name)
    except HFValidationError:
        return path

    def download(*patterns: str) -> Path:
        wanted = list(patterns)
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted, ignore_patterns="*/*"))

    try:
        if kind == "tokenizer":
            return download(*_FILES)
        folder = download(*_FILES, WEIGHTS[0])
        return folder if any(folder.glob(WEIGHTS[0])) else download(*_FILES, *WEIGHTS)
    except Exception as error:  # of the network, the name or the access rights
        raise UsageError(
            f"{name_or_path}: no such {kind} on this machine, nor could it be had from the Hugging Face Hub "
            f"({first_line(error)})"
        ) from error
