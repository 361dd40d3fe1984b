"""``bertconv export``: writes a model in one of the formats to a new folder, atomically."""

import dataclasses
from pathlib import Path

from bert_convolutions.errors import UsageError
from bert_convolutions.export.graphs import write_onnx, write_torch
from bert_convolutions.export.hub import publish, write_folder
from bert_convolutions.export.options import ExportOptions
from bert_convolutions.files import folder_inside, install, is_empty, refuse_overlap, sync_tree
from bert_convolutions.hub import local_folder

FORMATS = {"hub": write_folder, "onnx": write_onnx, "torch": write_torch}
"""Functions by ``--format``; they take the options and a folder to write to."""


def run_export(options: ExportOptions) -> Path:
    """Run ``bertconv export``; return the folder.

    Raises:
        UsageError: the model can't be read, the output folder is not empty, or the Hub refuses.
    """
    options = dataclasses.replace(options, model_name_or_path=local_folder(options.model_name_or_path))
    target = options.output_dir
    refuse_overlap(target, "--output_dir", {"--model_name_or_path": options.model_name_or_path})
    if target.is_dir() and not is_empty(target):
        raise UsageError(f"--output_dir {target} is not empty; choose another")
    with folder_inside(target, "--output_dir") as folder:
        FORMATS[options.format](options, folder)
        sync_tree(folder)
        install(folder, target)
    if options.push_to_hub:
        publish(options)
    return target
