"""The flags of ``bertconv convert``. Imports neither PyTorch nor transformers."""

from dataclasses import dataclass, field
from pathlib import Path

from bert_convolutions.flags import Options, flag


@dataclass
class ConvertOptions(Options):
    """The checkpoint to convert and the output folder."""

    input: Path = field(
        metadata={
            "help": "checkpoint folder of the original code; a BERT, ELECTRA, MPNet, ConvBERT or DeBERTa of "
            "transformers; or a model of this program, to --add terms to",
            "metavar": "DIR",
        }
    )
    output_dir: Path = field(metadata={"help": "folder for the converted checkpoint", "metavar": "DIR"})
    overwrite_output_dir: bool = flag(False, "replace a converted checkpoint there")
    add: list[str] = flag(
        [],
        "terms to add to a model with absolute positions or of this program, which have no effect until trained: "
        "'attention_kernel=qk_convfixed_convq_convk 8'",
        metavar="FIELD=VALUE",
    )
