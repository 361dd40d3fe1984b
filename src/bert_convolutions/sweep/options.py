"""Flags of ``bertconv sweep``. Imports neither PyTorch nor transformers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bert_convolutions.errors import UsageError
from bert_convolutions.flags import Options, flag


@dataclass
class SweepOptions(Options):
    """The experiment to run and its output folder."""

    experiment: Path = field(metadata={"help": "experiment file (YAML); --experiment may be omitted", "bare": True})
    output_dir: Path = field(metadata={"help": "folder for the cells, <variant>/seed<k>/<command>"})
    only: list[str] = flag([], "cells to run, by patterns such as 'composite/*' or '*/seed1/pretrain'; default: all")
    set: list[str] = flag([], "flags that override the file's base, such as config_name=bert_base max_steps=1000")
    dry_run: bool = flag(False, "only print the commands, and parameters, FLOPs and estimated time of the variants")
    format: Literal["table", "commands"] = flag(
        "table", "with --dry_run; commands: only the missing ones, one per line, for your own scheduler"
    )
    executor: Literal["here", "local", "slurm"] = flag(
        "here", "here: one after the other; slurm, or local for a trial: a job per variant and seed, by submitit"
    )
    executor_options: list[str] = flag(
        [], "submitit's parameters, such as timeout_min=600 slurm_partition=gpu gpus_per_node=1"
    )

    def __post_init__(self) -> None:
        """Refuse flags that contradict."""
        super().__post_init__()
        if self.format != "table" and not self.dry_run:
            raise UsageError("--format belongs to --dry_run; give both")
        for option in self.executor_options:
            if "=" not in option:
                raise UsageError(f"--executor_options {option} is not name=value")
