"""``bertconv convert``."""

from dataclasses import dataclass, field
from pathlib import Path

from bert_convolutions.cli.trainer_flags import TrainerFlags
from bert_convolutions.errors import UsageError


@dataclass
class ConvertOptions:
    """Flags of ``bertconv convert``."""

    input: Path = field(metadata={"help": "checkpoint folder of the original code", "metavar": "DIR"})
    output_dir: Path = field(metadata={"help": "folder for the converted checkpoint", "metavar": "DIR"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "write into a folder that is not empty"})


OPTIONS = ConvertOptions
TRAINER = False


def run(options: ConvertOptions, trainer_flags: TrainerFlags) -> None:
    """Convert the checkpoint and say where the result is.

    Raises:
        UsageError: the output folder is not empty, or the input is no checkpoint of the original.
    """
    output_dir = options.output_dir
    if not options.overwrite_output_dir and output_dir.exists() and (output_dir.is_file() or any(output_dir.iterdir())):
        raise UsageError(
            f"--output_dir {output_dir} is not an empty folder; --overwrite_output_dir writes into it anyway"
        )
    from bert_convolutions.convert.original import convert_checkpoint

    convert_checkpoint(options.input, output_dir)
    print(f"converted checkpoint: {output_dir}")
