"""The flags of ``bertconv export``. Imports neither PyTorch nor transformers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bert_convolutions.flags import flag


@dataclass
class ExportOptions:
    """Which model is exported, as what, and where to."""

    model_name_or_path: Path = field(
        metadata={"help": "one of our models: a folder, or a name on the Hugging Face Hub"}
    )
    output_dir: Path = field(metadata={"help": "folder to make", "metavar": "DIR"})
    format: Literal["hub", "onnx", "torch"] = flag(
        "hub",
        "hub: weights, tokenizer, code and model card, which need no package of ours; onnx: model.onnx; "
        "torch: model.pt2 of torch.export. These two are for any batch and length, and are compared with the model",
    )
    quantize: Literal["int8"] | None = flag(
        None, "onnx: write model_int8.onnx too, and print what it loses, and gains in size and speed"
    )
    text: Path | None = flag(None, "text that --quantize measures on, a line an example; random tokens if not given")
    license: str = flag("apache-2.0", "of the weights, as the Hugging Face Hub spells it, for the model card")
    push_to_hub: str | None = flag(
        None, "publish the folder as this repository of the Hugging Face Hub", metavar="USER/NAME"
    )
    private: bool = flag(False, "make that repository a private one, if it isn't there yet")
    revisions: bool = flag(False, "publish the model's checkpoints too, each as a branch of its folder's name")

    def __post_init__(self) -> None:
        """Refuse what only a published folder, or only ONNX, can have.

        Raises:
            ValueError: names the flags.
        """
        if not self.push_to_hub and (self.revisions or self.private):
            raise ValueError("--revisions and --private need --push_to_hub USER/NAME")
        if self.revisions and self.format != "hub":
            raise ValueError("--revisions are weights; give --format hub")
        if self.quantize and self.format != "onnx":
            raise ValueError("--quantize int8 is for --format onnx")
        if self.text and not self.quantize:
            raise ValueError("--text is what --quantize int8 is measured on")
