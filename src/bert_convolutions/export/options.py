"""The flags of ``bertconv export``. Imports neither PyTorch nor transformers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bert_convolutions.flags import Options, flag


@dataclass
class ExportOptions(Options):
    """The model to export, the format and the output folder."""

    model_name_or_path: Path = field(
        metadata={"help": "one of our models: a folder, or a name on the Hugging Face Hub"}
    )
    output_dir: Path = field(metadata={"help": "folder to create", "metavar": "DIR"})
    format: Literal["hub", "onnx", "torch"] = flag(
        "hub",
        "hub: weights, tokenizer, code and model card, which work without this package; onnx: model.onnx; torch: "
        "model.pt2 of torch.export. The last two take any batch size and length, and are compared with the model",
    )
    quantize: Literal["int8"] | None = flag(
        None, "onnx: also write model_int8.onnx, and print its error, size and speed"
    )
    text: Path | None = flag(None, "text for measuring --quantize, one example per line; default: random tokens")
    license: str = flag("apache-2.0", "license of the weights in the Hugging Face Hub's spelling, for the model card")
    push_to_hub: str | None = flag(
        None, "publish the folder as this repository of the Hugging Face Hub", metavar="USER/NAME"
    )
    private: bool = flag(False, "make that repository private if it is new")
    revisions: bool = flag(False, "also publish the model's checkpoints, each as a branch named like its folder")

    def __post_init__(self) -> None:
        """Refuse flags that need a published folder or ONNX.

        Raises:
            ValueError: names the flags.
        """
        super().__post_init__()
        if not self.push_to_hub and (self.revisions or self.private):
            raise ValueError("--revisions and --private need --push_to_hub USER/NAME")
        if self.revisions and self.format != "hub":
            raise ValueError("--revisions needs --format hub")
        if self.push_to_hub is not None:
            from huggingface_hub.errors import HFValidationError  # slow to import
            from huggingface_hub.utils import validate_repo_id

            try:
                validate_repo_id(self.push_to_hub)
            except HFValidationError as error:
                raise ValueError(f"--push_to_hub: {error}") from error
        if self.quantize and self.format != "onnx":
            raise ValueError("--quantize int8 is for --format onnx")
        if self.text and not self.quantize:
            raise ValueError("--text needs --quantize int8, which is measured on it")
