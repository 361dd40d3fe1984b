"""The flags of ``bertconv demo``. Imports neither PyTorch nor transformers."""

from dataclasses import dataclass, field


@dataclass
class DemoOptions:
    """Where the demonstration leaves its files, and how much it does."""

    output_dir: str = field(
        default="demo-output", metadata={"help": "folder for everything the demo makes; run again, it goes on there"}
    )
    seed: int = field(default=42, metadata={"help": "seed of everything random"})
    quick: bool = field(
        default=False,
        metadata={
            "help": "a few steps on a few speeches, to see in about a minute that all parts work; learns nothing"
        },
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "delete what an earlier demo left in the folder and start anew"}
    )
