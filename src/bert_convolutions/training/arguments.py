"""The Trainer's arguments with the defaults this project trains by."""

import os
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames
from transformers.utils import logging

from bert_convolutions.errors import UsageError
from bert_convolutions.terminal import say

logger = logging.get_logger(__name__)


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices by instructions; without them it takes tens of times float32's time."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # no public name for what PyTorch itself goes by


@dataclass
class BertTrainingArguments(TrainingArguments):
    """``TrainingArguments`` whose defaults suit a long, exactly resumable run.

    The global batch is ``per_device_train_batch_size`` x ``gradient_accumulation_steps`` x processes, in examples,
    however the examples are laid out in rows. One process uses one device: several need ``torchrun``.
    """

    optim: OptimizerNames | str = field(
        default=OptimizerNames.ADAMW_TORCH_FUSED, metadata={"help": "The optimizer; fused AdamW also on a CPU."}
    )
    logging_steps: float = field(default=100, metadata={"help": "Log every so many steps, or this share of them."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Leave out losses that are NaN or infinite; here they stop the run instead."}
    )
    report_to: None | str | list[str] = field(  # noqa: RUF036 - the order HfArgumentParser can read
        default="none", metadata={"help": "Experiment trackers to log to, such as tensorboard or wandb."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Drop inputs the model does not take; batches here hold none."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Search for parameters without gradient in each step; none are expected."}
    )
    ddp_broadcast_buffers: bool | None = field(
        default=False, metadata={"help": "Send buffers from the first process in each step; they are constants."}
    )

    def __post_init__(self) -> None:
        if not torch.accelerator.is_available():
            self.use_cpu = True  # or else the Trainer refuses bf16 and does not see several processes
        super().__post_init__()
        if (self.bf16 or self.bf16_full_eval) and self.device.type == "cpu" and not cpu_has_bf16():
            self.bf16 = self.bf16_full_eval = False
            if self.process_index == 0:
                say("--bf16: this CPU has no instructions for it and would be many times slower; computing in float32")
        if int(os.environ.get("WORLD_SIZE", "1")) != self.world_size:
            raise UsageError(
                f"started as one of {os.environ['WORLD_SIZE']} processes, which do not find each other; "
                f"start them with torchrun or accelerate launch, and see --ddp_backend"
            )
        if self.auto_find_batch_size:
            raise UsageError("--auto_find_batch_size would change the global batch; set --per_device_train_batch_size")
        if self.ignore_data_skip:
            raise UsageError("--ignore_data_skip would show examples twice; a resumed run needs no time to skip here")
        if self.save_on_each_node:
            raise UsageError("--save_on_each_node is not supported: let all nodes see one --output_dir")
        if self.n_gpu > 1:
            logger.warning(f"{self.n_gpu} GPUs are visible and one is used; torchrun --nproc_per_node uses them all.")
            self._n_gpu = 1
