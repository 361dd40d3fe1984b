"""The Trainer's arguments: this project's defaults, their valid ranges, and how they apply to a resumed run."""

import contextlib
import dataclasses
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.checkpoint import checkpoint
from transformers import TrainerControl, TrainerState, TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_callback import DefaultFlowCallback
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames
from transformers.utils import logging

from bert_convolutions.cpu import cpu_has_bf16, fast_float32_products
from bert_convolutions.environment import is_one_of_several
from bert_convolutions.errors import EXTRAS, UsageError, first_line, install_command
from bert_convolutions.flags import flag
from bert_convolutions.terminal import say, shows_bars

logger = logging.get_logger(__name__)

DEFAULT_BATCH_SIZE = 8
"""The Trainer's own default."""
APPLIED_ON_RESUME = ("initial_lr", "weight_decay", "betas", "eps")
"""Keys of an optimizer's parameter group that flags set; the others, such as counters, belong to its state."""
_LARGEST_SEED = 2**32 - 1


def _between(low: float, high: float) -> Callable[[float], bool]:
    return lambda value: low <= value <= high


_COUNT = _between(1, 2**31), "is not a whole number of at least 1"
_COUNT_OR_NONE = _between(0, 2**31), "is not a whole number of at least 0"
_POSITIVE = _between(math.ulp(0.0), sys.float_info.max), "is not a positive number"
_NOT_NEGATIVE = _between(0, sys.float_info.max), "is not a number of at least 0"
_FRACTION = _between(0, math.nextafter(1, 0)), "is not a number of at least 0 and below 1"
_SEED = _between(0, _LARGEST_SEED), f"is not a whole number from 0 to {_LARGEST_SEED}"

_COMPILE_MODES = tuple(torch._inductor.list_mode_options())  # the list torch.compile checks against has no public name
_START_METHODS = multiprocessing.get_all_start_methods()

RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "eval_accumulation_steps": _COUNT,
    "max_steps": (lambda value: value == -1 or 1 <= value <= 2**53, "is neither a number of steps nor -1 (no limit)"),
    "num_train_epochs": (_between(math.ulp(0.0), 1e9), "is not a positive number of passes over the data"),
    "learning_rate": _POSITIVE,
    "weight_decay": _NOT_NEGATIVE,
    "adam_beta1": _FRACTION,
    "adam_beta2": _FRACTION,
    "adam_epsilon": _POSITIVE,
    "max_grad_norm": _NOT_NEGATIVE,
    "label_smoothing_factor": _FRACTION,
    "neftune_noise_alpha": _NOT_NEGATIVE,
    "warmup_steps": _NOT_NEGATIVE,
    "warmup_ratio": _FRACTION,
    "seed": _SEED,
    "data_seed": _SEED,
    "logging_steps": _NOT_NEGATIVE,
    "save_steps": _NOT_NEGATIVE,
    "eval_steps": _NOT_NEGATIVE,
    "eval_delay": _NOT_NEGATIVE,
    "save_total_limit": _COUNT_OR_NONE,
    "dataloader_num_workers": (_between(0, 4096), "is not a number of processes from 0 to 4096"),
    "dataloader_prefetch_factor": _COUNT,
    "dataloader_multiprocessing_context": (_START_METHODS.__contains__, f"is none of {', '.join(_START_METHODS)}"),
    "ddp_timeout": _COUNT,
    "ddp_bucket_cap_mb": _COUNT,
    "accelerator_config": (
        lambda value: not isinstance(value, str | dict),
        "is not supported: batches are made by the flags of batch size and accumulation alone; leave it out",
    ),
    "fsdp_config": (lambda value: not isinstance(value, str), "is for --fsdp, which is not supported; leave it out"),
    "torch_compile_mode": (_COMPILE_MODES.__contains__, f"is none of {', '.join(_COMPILE_MODES)}"),
}
"""Flags that the Trainer checks late or not at all: a predicate, and the end of the message if it does not hold."""


@dataclass
class BertTrainingArguments(TrainingArguments):
    """``TrainingArguments`` with defaults for long, exactly resumable runs.

    The global batch, in examples, is ``per_device_train_batch_size`` x ``gradient_accumulation_steps`` x processes,
    whether or not examples are packed into rows. A process uses one device; several devices need ``torchrun``.
    """

    per_device_train_batch_size: int = flag(None, f"Examples per micro-batch; default {DEFAULT_BATCH_SIZE}.")
    batch_size_is_given: bool = dataclasses.field(init=False)
    """Only a batch size that was given bounds the batches of ``glue --hyperparams``."""
    optim: OptimizerNames | str = flag(OptimizerNames.ADAMW_TORCH_FUSED, "The optimizer; fused AdamW on CPUs too.")
    logging_steps: float = flag(100, "Log every so many steps, or after this fraction of all steps.")
    logging_nan_inf_filter: bool = flag(
        False, "Leave NaN and infinite losses out of the log; a run stops at one in any case."
    )
    report_to: None | str | list[str] = flag(  # noqa: RUF036 - the order HfArgumentParser can read
        "none", "Trackers to log to: tensorboard, wandb, trackio, any other that the Trainer supports, or none."
    )
    remove_unused_columns: bool = flag(False, "Drop inputs that the model does not accept; the batches here have none.")
    ddp_find_unused_parameters: bool | None = flag(
        False, "Search each step for parameters without a gradient; there are none here."
    )
    ddp_broadcast_buffers: bool | None = flag(
        False, "Broadcast buffers from the first process in each step; they are constants here."
    )

    def __post_init__(self) -> None:
        self._set_defaults()
        for name, (is_right, fault) in RANGES.items():
            value = getattr(self, name, None)
            if value is not None and not is_right(value):
                raise UsageError(f"--{name} {value} {fault}")
        _refuse_missing_trackers(self.report_to)
        _refuse_sharding(self)
        super().__post_init__()
        if self.device.type == "cpu":
            self._use_float32_if_faster_on_cpu()
        if os.environ.get("WORLD_SIZE", "1") != str(self.world_size):
            raise UsageError(
                f"this is one of {os.environ['WORLD_SIZE']} processes, but they did not connect to each other; "
                f"start them with torchrun or accelerate launch, and see --ddp_backend"
            )
        for name, (only, fault) in _REQUIRED_VALUES.items():
            value = getattr(self, name)
            if value != only:
                raise UsageError(f"--{name} {str(value).lower()} {fault}")
        if self.eval_steps is not None and self.eval_strategy != "steps":
            raise UsageError("--eval_steps has no effect without --eval_strategy steps; give both or none")
        if self.save_strategy == "best" and self.eval_strategy == "no":
            raise UsageError("--save_strategy best saves nothing without --eval_strategy steps or epoch; give one")
        if self.optim_target_modules and not OptimizerNames(self.optim).value.startswith(("galore", "apollo")):
            raise UsageError("--optim_target_modules has no effect without --optim galore_... or apollo_...; give one")
        if self.n_gpu > 1:
            logger.warning(f"{self.n_gpu} GPUs are visible but one is used; torchrun --nproc_per_node uses them all.")
            self._n_gpu = 1
        _check_checkpointing(self)
        _check_optimizer(self)

    def _set_defaults(self) -> None:
        """Set what depends on other flags or on the machine."""
        self.batch_size_is_given = self.per_device_train_batch_size is not None
        if not self.batch_size_is_given:
            self.per_device_train_batch_size = DEFAULT_BATCH_SIZE
        if self.disable_tqdm is None and not shows_bars():
            self.disable_tqdm = True
        if self.greater_is_better is None and str(self.metric_for_best_model).endswith("perplexity"):
            self.greater_is_better = False
        launcher = os.environ.pop("ACCELERATE_MIXED_PRECISION", None)  # a flag like any other
        if launcher in ("bf16", "fp16") and not (self.bf16 or self.fp16):
            setattr(self, launcher, True)
        if not torch.accelerator.is_available():
            self.use_cpu = True  # otherwise the Trainer refuses bf16 and sees one process only
        if not is_one_of_several():
            self.ddp_backend = None  # needed by several processes only, and the Trainer would check for it

    def _use_float32_if_faster_on_cpu(self) -> None:
        """Replace a precision that this CPU has no fast instructions for by float32, and report it."""
        faults = []
        if (self.bf16 or self.bf16_full_eval) and not cpu_has_bf16():
            self.bf16 = self.bf16_full_eval = False
            faults.append("--bf16: this CPU has no instructions for it and would be many times slower")
        if self.fp16 or self.fp16_full_eval:  # accelerate ignores it on CPUs without a message
            self.fp16 = self.fp16_full_eval = False
            faults.append("--fp16 is for GPUs (of CPUs, some have --bf16)")
        if faults:
            self.mixed_precision = "bf16" if self.bf16 else "no"  # already set, and read by autocast
            say(f"{'; '.join(faults)}; computing in float32")


def _refuse_missing_trackers(report_to: str | list[str] | None) -> None:
    """Refuse a tracker that is unknown or not installed before anything is loaded."""
    here = get_available_reporting_integrations()
    for name in report_to if isinstance(report_to, list) else [report_to]:
        if name in (None, "none", "all", *here):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            raise UsageError(
                f"--report_to {name}: unknown tracker; give none, all, or some of {', '.join(INTEGRATION_TO_CALLBACK)}"
            )
        install = install_command(name) if name in EXTRAS else f"pip install {name}"
        raise UsageError(
            f"--report_to {name}: not installed or not set up (installed: {', '.join(here) or 'none'}); "
            f"{install}, or leave the flag out"
        )


def _refuse_sharding(arguments: TrainingArguments) -> None:
    """Refuse to divide the model among processes: checkpoints are written by the first, from a whole model."""
    for name in ("fsdp", "deepspeed"):
        by_launcher = os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false").lower() in ("1", "true", "yes")
        if getattr(arguments, name) or by_launcher:
            source = "the configuration of accelerate launch" if by_launcher else f"--{name}"
            raise UsageError(
                f"{source}: {name} is not supported: each process holds the whole model, and gradients are averaged; "
                f"start torchrun or accelerate launch without it"
            )


_REQUIRED_VALUES: dict[str, tuple[bool | str, str]] = {
    "auto_find_batch_size": (False, "would change the global batch; set --per_device_train_batch_size"),
    "average_tokens_across_devices": (True, "would weight the examples of the processes unequally; leave it out"),
    "dataloader_drop_last": (False, "would skip examples, but each is seen once an epoch; leave it out"),
    "dataloader_in_order": (True, "would make the order of the batches random; leave it out"),
    "dataloader_persistent_workers": (False, "is not supported: workers end with each epoch; leave it out"),
    "enable_jit_checkpoint": (False, "is not needed: SIGTERM saves a checkpoint in any case; leave it out"),
    "ignore_data_skip": (False, "would repeat examples; skipping takes a resumed run no time here"),
    "push_to_hub": (False, "is not supported: publish a finished model with bertconv export --format hub"),
    "restore_callback_states_from_checkpoint": (False, "is not needed: what resuming needs is always restored"),
    "save_on_each_node": (False, "is not supported: all nodes must share one --output_dir"),
    "train_sampling_strategy": ("random", "is not supported: the order is a function of the seed alone; leave it out"),
    "use_liger_kernel": (False, "is not supported: the loss is computed without full logits in any case; leave it out"),
}
"""Flags of the Trainer that must have one value here, and the end of the message that refuses any other."""


def _check_checkpointing(arguments: TrainingArguments) -> None:
    """Recompute a layer that does nothing, so that bad arguments of gradient checkpointing fail at once."""
    given = arguments.gradient_checkpointing_kwargs or {}
    try:
        own = dict(given)  # type: ignore[arg-type] # text that isn't JSON fails here
        if own.pop("every_n_layers", 1) < 1:
            raise ValueError("every_n_layers is below 1")
        if own.pop("offload", False) and arguments.device.type == "cpu":
            raise ValueError("offload is for GPUs")
        checkpoint(torch.nn.Identity(), torch.zeros(1, requires_grad=True), **{"use_reentrant": False, **own})
    except (TypeError, ValueError) as error:
        name = "activation" if hasattr(arguments, "activation_checkpointing_kwargs") else "gradient"
        raise UsageError(f"--{name}_checkpointing_kwargs {given}: {first_line(error)}") from error


def _check_optimizer(arguments: TrainingArguments) -> None:
    """Build optimizer and schedule for a dummy parameter, so that bad flags fail before anything is loaded."""
    from transformers import Trainer

    steps = arguments.max_steps if arguments.max_steps > 0 else 1000
    flags = f"--optim {OptimizerNames(arguments.optim).value} --optim_args {arguments.optim_args}"
    try:
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
        optimizer = kind([torch.nn.Parameter(torch.zeros(1, device=arguments.device))], **settings)
        schedule_type, more = SchedulerType(arguments.lr_scheduler_type), arguments.lr_scheduler_kwargs
        flags = f"--lr_scheduler_type {schedule_type.value} --lr_scheduler_kwargs {more}"
        warmup = arguments.get_warmup_steps(steps)
        schedule = get_scheduler(schedule_type, optimizer, warmup, steps, more)  # type: ignore[arg-type]
        if isinstance(schedule, LambdaLR):
            for factor in schedule.lr_lambdas:
                [float(factor(step)) for step in (0, warmup, (warmup + steps) // 2, steps)]
    except Exception as error:  # each library raises its own errors
        if isinstance(error, ValueError) and "need to pass a" in str(error):
            return  # it can only be built for a model, but it is installed
        reason = " ".join(str(error).split())
        raise UsageError(f"{flags}: {reason}; give other arguments or leave them out") from error


def optimizer_settings(optimizer: Any) -> list[dict[str, Any]]:
    """The settings of each parameter group that flags give; ``apply_settings`` restores them after loading a state."""
    return [{name: group[name] for name in APPLIED_ON_RESUME if name in group} for group in optimizer.param_groups]


def apply_settings(settings: list[dict[str, Any]], optimizer: Any, schedule: Any) -> None:
    """Apply the flags of a resumed run to a loaded state: its schedule gets their peak rate, warm-up and length.

    ``settings`` are those of ``optimizer_settings`` before the state was loaded. If they equal the earlier run's,
    nothing changes, to the last bit.
    """
    for group, given in zip(optimizer.param_groups, settings, strict=True):
        if group.setdefault("initial_lr", given["initial_lr"]) != given["initial_lr"]:  # older runs' may lack it
            group["lr"] *= given["initial_lr"] / group["initial_lr"]
        group.update(given)
    if isinstance(schedule, LambdaLR):  # all schedules but those that depend on the loss
        schedule.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        for group, factor in zip(optimizer.param_groups, schedule.lr_lambdas, strict=True):
            group["lr"] = group["initial_lr"] * factor(schedule.last_epoch)
    schedule._last_lr = [group["lr"] for group in optimizer.param_groups]


def owes_evaluation(arguments: TrainingArguments, state: TrainerState, steps_per_epoch: int) -> bool:
    """Whether a restored state was saved, for a signal, before an evaluation after the same step."""
    flow, due, step = DefaultFlowCallback(), TrainerControl(), state.global_step
    flow.on_step_end(arguments, state, due)
    if step % steps_per_epoch == 0 or step >= state.max_steps:
        flow.on_epoch_end(arguments, state, due)
    logged = {name for entry in state.log_history if entry["step"] == step for name in entry}
    return due.should_evaluate and not any(name.startswith("eval_") for name in logged)


@contextlib.contextmanager
def evaluation_precision(arguments: TrainingArguments) -> Iterator[None]:
    """Autocast in the precision that the training or evaluation flags ask for; the weights keep their dtype."""
    dtype = torch.bfloat16 if arguments.bf16 or arguments.bf16_full_eval else torch.float16
    enabled = arguments.bf16 or arguments.bf16_full_eval or arguments.fp16 or arguments.fp16_full_eval
    with fast_float32_products(), torch.autocast(arguments.device.type, dtype=dtype, enabled=enabled):
        yield
