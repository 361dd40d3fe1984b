"""Writes a model folder for the Hugging Face Hub and publishes it."""

import shlex
import tempfile
from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi
from transformers import PreTrainedModel

import bert_convolutions
from bert_convolutions.data.loading import load_tokenizer
from bert_convolutions.errors import UsageError, first_line
from bert_convolutions.export.card import write_card
from bert_convolutions.export.options import ExportOptions
from bert_convolutions.model.configuration import AUTO_CLASSES, CompositeBertConfig
from bert_convolutions.model.loading import load_config, load_strictly, quiet_transformers, set_max_length

_TOKENIZER_FILES = ("tokenizer_config.json", "spm.model")
_REVISIONS = ("chck_*", "checkpoint-*")
"""Folders of checkpoints, named by words seen or by steps."""


def write_folder(options: ExportOptions, folder: Path) -> None:
    """Write weights, tokenizer, if there is one, code and model card to a folder.

    Raises:
        UsageError: the model is not one of ours or can't be read.
    """
    model = load_model(options.model_name_or_path)
    with quiet_transformers():
        model.save_pretrained(folder)
    copy_tokenizer(options.model_name_or_path, folder)
    name = options.push_to_hub or options.output_dir.resolve().name
    write_card(options.model_name_or_path, folder, options.license, name)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Write a model's tokenizer, if it has one, to a folder."""
    if any((source / name).is_file() for name in _TOKENIZER_FILES):
        set_max_length(load_config(source), load_tokenizer(source)).save_pretrained(folder)


def load_model(source: Path) -> PreTrainedModel:
    """Load a model of ours with the head that it was saved with.

    Raises:
        UsageError: the folder holds no such model.
    """
    if not (source / "config.json").is_file():
        raise UsageError(f"--model_name_or_path {source} has no config.json; give the folder of a model")
    config = load_config(source)
    name = (config.architectures or ["CompositeBertModel"])[0]
    if not isinstance(config, CompositeBertConfig) or name not in AUTO_CLASSES.values():
        raise UsageError(
            f"--model_name_or_path {source} holds a {config.model_type} model, not one of ours; convert it with "
            f"bertconv convert --input {source} --output_dir ..."
        )
    return load_strictly(getattr(bert_convolutions, name), source, config)


def publish(options: ExportOptions) -> None:
    """Upload the exported folder to the Hub and, with ``--revisions``, the model's checkpoints as branches.

    Raises:
        UsageError: the upload failed; the message says how to try again.
    """
    repo, api = str(options.push_to_hub), HfApi()
    try:
        api.create_repo(repo, private=options.private or None, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=options.output_dir, commit_message="Upload model")
        for checkpoint in _checkpoints(options.model_name_or_path) if options.revisions else ():
            with tempfile.TemporaryDirectory() as folder:
                write_folder(replace(options, model_name_or_path=checkpoint), Path(folder))
                api.create_branch(repo, branch=checkpoint.name, exist_ok=True)
                api.upload_folder(
                    repo_id=repo,
                    folder_path=folder,
                    revision=checkpoint.name,
                    commit_message=f"Upload {checkpoint.name}",
                )
    except UsageError:
        raise
    except Exception as error:  # huggingface_hub has no common class
        raise UsageError(
            f"--push_to_hub {repo}: {first_line(error)}; the folder is written; log in with hf auth login or "
            f"go online, then run: {shlex.join(['hf', 'upload', repo, str(options.output_dir)])}"
        ) from error


def _checkpoints(folder: Path) -> list[Path]:
    found = [path for pattern in _REVISIONS for path in folder.glob(pattern) if (path / "config.json").is_file()]
    return sorted(found, key=lambda path: (path.stat().st_mtime, path.name))
