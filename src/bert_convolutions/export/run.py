"""``bertconv export``: the format's function does the work, in a folder that appears whole or not at all."""

import pkgutil
import shutil
import tempfile
from pathlib import Path

from bert_convolutions.errors import UsageError
from bert_convolutions.export.options import ExportOptions
from bert_convolutions.files import refuse_overlap, sync_tree

FORMATS = {
    "hub": "bert_convolutions.export.hub:write_folder",
    "onnx": "bert_convolutions.export.graphs:write_onnx",
    "torch": "bert_convolutions.export.graphs:write_torch",
}
"""``--format`` -> ``module:function``, which writes into the folder it is given, beside the options."""


def run_export(options: ExportOptions) -> Path:
    """``bertconv export``; returns the folder.

    Raises:
        UsageError: the model can't be read, the output folder is not empty, or the Hub refuses.
    """
    target = options.output_dir
    refuse_overlap(target, "--output_dir", {"--model_name_or_path": options.model_name_or_path})
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UsageError(f"--output_dir {target} is not empty; choose another")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        folder = temporary / target.name
        folder.mkdir()
        pkgutil.resolve_name(FORMATS[options.format])(options, folder)
        sync_tree(folder)
        folder.rename(target)  # which may be an empty folder
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if options.push_to_hub:
        from bert_convolutions.export.hub import publish

        publish(options)
    return target
