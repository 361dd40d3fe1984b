"""Where the files of a demonstration stand, and whose folder it is. Imports neither PyTorch nor transformers."""

import shutil
from pathlib import Path

from bert_convolutions import files
from bert_convolutions.demo.options import DemoOptions
from bert_convolutions.errors import UsageError
from bert_convolutions.parsing import read_model
from bert_convolutions.schemas import DemoSettings


class Places:
    """Everything below the output folder ``root``.

    ``pretrained`` and ``finetuned`` hold a folder for each model, ``finetuned``'s with one for each task.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.train_text, self.held_out_text = root / "text" / "train.txt", root / "text" / "held-out.txt"
        self.tokenizer = root / "tokenizer"
        self.train_pairs, self.held_out_pairs = root / "pairs" / "train", root / "pairs" / "held-out"
        self.model_config, self.hyperparameters = root / "model.json", root / "glue.yaml"
        self.pretrained, self.finetuned = root / "pretrained", root / "glue"
        self.glue_data, self.submission = root / "glue-data", root / "submission"
        self.curves, self.kernels = root / "loss_curves.png", root / "kernels.png"

    def named(self) -> dict[str, Path]:
        """All that a demonstration makes, by name."""
        return {name: path for name, path in vars(self).items() if name != "root"}

    def claim(self, options: DemoOptions) -> None:
        """Make the folder, or go on in one where the same demonstration has begun.

        Raises:
            UsageError: The folder holds something else, or a demonstration with other settings.
        """
        settings, record = DemoSettings(seed=options.seed, quick=options.quick), self.root / "demo.json"
        if self.root.exists() and not self.root.is_dir():
            raise UsageError(f"--output_dir {self.root} is a file; give a folder")
        if record.exists():
            try:
                before = read_model(DemoSettings, record)
            except UsageError as error:
                raise UsageError(f"{error}: damaged; delete {self.root} or use another folder") from error
            if options.overwrite_output_dir:
                for path in self.named().values():
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            elif before != settings:
                raise UsageError(
                    f"--output_dir {self.root} holds a demo with {_flags(before)}, not {_flags(settings)}; use another "
                    "folder, or start anew with --overwrite_output_dir"
                )
        elif self.root.exists() and any(self.root.iterdir()):
            raise UsageError(f"--output_dir {self.root} is not empty and holds no demo; use another folder")
        self.root.mkdir(parents=True, exist_ok=True)
        files.write_json(record, settings.model_dump())


def _flags(settings: DemoSettings) -> str:
    """Settings as the flags that ask for them."""
    return f"--seed {settings.seed} --quick {str(settings.quick).lower()}"
