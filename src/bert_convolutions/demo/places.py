"""Where the files of a demonstration stand, and whose folder it is. Imports neither PyTorch nor transformers."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from bert_convolutions import files
from bert_convolutions.demo.options import DemoOptions
from bert_convolutions.errors import UsageError

_SETTINGS = "demo.json"


@dataclass(frozen=True)
class Places:
    """Everything below the output folder ``root``."""

    root: Path

    @property
    def train_text(self) -> Path:
        """Text to train on."""
        return self.root / "text" / "train.txt"

    @property
    def held_out_text(self) -> Path:
        """Text of held-out speeches."""
        return self.root / "text" / "held-out.txt"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's folder."""
        return self.root / "tokenizer"

    @property
    def train_pairs(self) -> Path:
        """Sentence pairs to train on."""
        return self.root / "pairs" / "train"

    @property
    def held_out_pairs(self) -> Path:
        """Sentence pairs to evaluate on."""
        return self.root / "pairs" / "held-out"

    @property
    def model_config(self) -> Path:
        """Configuration that the models share."""
        return self.root / "model.json"

    def pretrained(self, name: str) -> Path:
        """A pre-trained model."""
        return self.root / "pretrained" / name

    @property
    def glue_data(self) -> Path:
        """The data in GLUE's layout."""
        return self.root / "glue-data"

    @property
    def hyperparameters(self) -> Path:
        """Fine-tuning's steps and learning rates."""
        return self.root / "glue.yaml"

    def finetuned(self, name: str) -> Path:
        """The fine-tuned tasks of a model."""
        return self.root / "glue" / name

    @property
    def submission(self) -> Path:
        """The compiled submission."""
        return self.root / "submission"

    @property
    def curves(self) -> Path:
        """The picture of the losses."""
        return self.root / "loss_curves.png"

    @property
    def kernels(self) -> Path:
        """The picture of the learned kernels."""
        return self.root / "kernels.png"

    def claim(self, options: DemoOptions) -> None:
        """Make the folder, or go on in one where the same demonstration has begun.

        Raises:
            UsageError: The folder holds something else, or a demonstration with other settings.
        """
        settings: dict[str, object] = {"seed": options.seed, "quick": options.quick}
        if self.root.exists() and not self.root.is_dir():
            raise UsageError(f"--output_dir {self.root} is a file; give a folder")
        before = self._settings()
        if before is not None and before != settings and not options.overwrite_output_dir:
            raise UsageError(
                f"--output_dir {self.root} holds a demo with {_flags(before)}, not {_flags(settings)}; use another "
                "folder, or start anew with --overwrite_output_dir"
            )
        if before is None and self.root.exists() and any(self.root.iterdir()):
            raise UsageError(f"--output_dir {self.root} is not empty and holds no demo; use another folder")
        if before is not None and options.overwrite_output_dir:
            self._clear()
        self.root.mkdir(parents=True, exist_ok=True)
        files.write_json(self.root / _SETTINGS, settings)

    def _settings(self) -> dict[str, object] | None:
        """The settings of the demonstration in the folder; None where there is none."""
        try:
            settings: dict[str, object] = json.loads((self.root / _SETTINGS).read_text(encoding="utf-8"))
        except OSError:
            return None
        except ValueError as error:
            raise UsageError(f"{self.root / _SETTINGS} is damaged; delete {self.root} or use another folder") from error
        return settings

    def _clear(self) -> None:
        """Delete what a demonstration makes, and nothing else."""
        for name in ("text", "tokenizer", "pairs", "pretrained", "glue-data", "glue", "submission"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        for path in (self.model_config, self.hyperparameters, self.curves, self.kernels):
            path.unlink(missing_ok=True)


def _flags(settings: dict[str, object]) -> str:
    """Settings as the flags that ask for them."""
    return f"--seed {settings.get('seed')} --quick {str(settings.get('quick')).lower()}"
