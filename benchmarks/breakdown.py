"""Where the time of a training step goes: PyTorch's profiler, with every operation assigned to a part of the step.

    python -m benchmarks.breakdown --precision float32 bf16 --sequence_lengths 128 512

The modules of the model are marked with their part. An operation of the forward pass belongs to the innermost marked
module in which it runs. An operation of the backward pass has the sequence number of the forward operation whose
gradient it computes, and belongs to the same part. On a CPU, Python's time between a module's operations counts too.
"""

import argparse
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import TrainerCallback

from bert_convolutions.bench.corpus import Setup, prepare
from bert_convolutions.bench.jobs import PairsRun
from bert_convolutions.bench.options import BenchOptions
from bert_convolutions.bench.plan import Job, make_plan
from bert_convolutions.terminal import make_console, say

PARTS = (
    "data",
    "embedding",
    "projections",
    "scores",
    "feed-forward",
    "norm, dropout, residual",
    "head and loss",
    "optimizer",
    "other",
)
"""Data: reading, masking, packing. Projections: the linear layers of attention. Scores: the rest of attention.
Optimizer: accumulating gradients, clipping, AdamW. Other: the rest, on CUDA also time without a kernel."""

_MARKED_MODULES = (
    (r"", "head and loss"),
    (r"bert", "scores"),  # outside of the inner modules, the mask of the scores
    (r"bert\.(embeddings|embeddings_project)", "embedding"),
    (r".*\.attention\.self", "scores"),
    (r".*\.attention\.self\..*", "projections"),
    (r".*\.layer\.\d+\.(attention\.)?output", "norm, dropout, residual"),
    (r".*\.attention\.output\.dense", "projections"),
    (r".*\.layer\.\d+\.(intermediate|output\.dense)", "feed-forward"),
)
_MARK = "bertconv:"
_BACKWARD = "autograd::engine::evaluate_function: "
_NAMED_BY_PYTORCH = (
    ("enumerate(DataLoader)", "data"),
    ("Optimizer.", "optimizer"),
    (f"{_BACKWARD}torch::autograd::AccumulateGrad", "optimizer"),
)


class StepProfiler(TrainerCallback):
    """Profiles a Trainer's steps after the warm-up steps, then stops training.

    Attributes:
        seconds: after training, seconds of each part, including "other", over all profiled steps.
    """

    def __init__(self, steps: int, warmup_steps: int) -> None:
        self.steps, self.warmup_steps = steps, warmup_steps
        self.seconds: dict[str, float] = {}
        self._on_cuda = torch.cuda.is_available()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_cuda else [])]
        self._profile = profile(activities=activities)
        self._start_time = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start at once if there are no warm-up steps."""
        if self.warmup_steps == 0:
            self._start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start after the last warm-up step, stop after the last step."""
        if state.global_step == self.warmup_steps:
            self._start()
        elif state.global_step == self.warmup_steps + self.steps:
            if self._on_cuda:
                torch.cuda.synchronize()
            total = time.perf_counter() - self._start_time
            self._profile.__exit__(None, None, None)
            self.seconds = seconds_by_part(self._profile.events(), self._on_cuda)
            assigned = sum(seconds for part, seconds in self.seconds.items() if part != "other")
            self.seconds["other"] = max(0.0, total - assigned)
            control.should_training_stop = True

    def _start(self) -> None:
        self._profile.__enter__()
        self._start_time = time.perf_counter()


def break_down(job: Job, setup: Setup, steps: int, warmup_steps: int) -> dict[str, float]:
    """Seconds of each part of a training step, for a model of this package."""
    run = PairsRun(job, setup)
    mark_modules(run.trainer.model)
    accelerator = run.trainer.accelerator
    accelerator.clip_grad_norm_ = _marked(accelerator.clip_grad_norm_, "optimizer")
    profiler = StepProfiler(steps, warmup_steps)
    run.trainer.add_callback(profiler)
    run.trainer.train()
    return {part: seconds / steps for part, seconds in profiler.seconds.items()}


def mark_modules(model: nn.Module) -> None:
    """Mark each module of ``_MARKED_MODULES`` with its part in profiles; of several patterns, the last one applies."""
    for name, module in model.named_modules():
        parts = [part for pattern, part in _MARKED_MODULES if re.fullmatch(pattern, name)]
        if parts:
            _mark_module(module, parts[-1])


def _mark_module(module: nn.Module, part: str) -> None:
    open_ranges: list[record_function] = []

    def enter(*_: Any) -> None:
        open_ranges.append(record_function(_MARK + part))
        open_ranges[-1].__enter__()

    def leave(*_: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave)


def _marked(function: Callable[..., Any], part: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(_MARK + part):
            return function(*args, **kwargs)

    return call


def seconds_by_part(events: Iterable[Any], on_cuda: bool) -> dict[str, float]:
    """Sum the times of the profiler's events by part.

    Args:
        events: ``torch.autograd.profiler_util.FunctionEvent`` of some steps.
        on_cuda: count the time of kernels instead of CPU time, except for data, which the CPU prepares.
    """
    on_cpu = [event for event in events if event.device_type == DeviceType.CPU]
    forward_parts: dict[int, str] = {}
    for event in sorted(on_cpu, key=lambda event: event.time_range.start):
        part = _marked_part(event)
        if part and event.sequence_nr >= 0 and not event.name.startswith(_BACKWARD):
            forward_parts[event.sequence_nr] = part  # of several events, the last has the gradient
    totals = dict.fromkeys(PARTS, 0.0)
    for event in on_cpu:
        part = _marked_part(event) or _part_of_forward(event, forward_parts)
        if part is None:
            continue
        of_device = on_cuda and part != "data"
        totals[part] += (event.self_device_time_total if of_device else event.self_cpu_time_total) / 1e6
    return totals


def _marked_part(event: Any) -> str | None:
    """The part of the innermost mark around an event, ours or PyTorch's."""
    while event is not None:
        if event.name.startswith(_MARK):
            return str(event.name[len(_MARK) :])
        for beginning, part in _NAMED_BY_PYTORCH:
            if event.name.startswith(beginning):
                return part
        event = event.cpu_parent
    return None


def _part_of_forward(event: Any, forward_parts: dict[int, str]) -> str | None:
    """The part of the forward operation whose gradient an event computes."""
    while event is not None:
        if event.name.startswith(_BACKWARD):
            return forward_parts.get(event.sequence_nr)
        event = event.cpu_parent
    return None


def main() -> None:
    """Profile every length in every precision and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="bench-output", help="as for bertconv bench, whose text it shares")
    parser.add_argument("--train_data_file", nargs="+", default=[])
    parser.add_argument("--tokenizer_name")
    parser.add_argument("--config_name", default="bert_small")
    parser.add_argument("--contestant", default="composite", help="one of this package, by its name in bertconv bench")
    parser.add_argument("--precision", nargs="+", default=["float32"])
    parser.add_argument("--sequence_lengths", nargs="+", type=int, default=[128])
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup_steps", type=int, default=2)
    flags = vars(parser.parse_args())
    contestants = [flags.pop("contestant")]
    options = BenchOptions(**flags, rounds=1, tasks=["pretraining"], contestants=contestants)
    Path(options.output_dir).mkdir(parents=True, exist_ok=True)
    groups = make_plan(options)
    setup = prepare(options, groups, say)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    console = make_console()
    for job in (job for group in groups for job in group.jobs):
        seconds = break_down(job, setup, options.steps or 1, options.warmup_steps or 0)
        total = sum(seconds.values())
        title = f"{job.name}, S = {job.length}, {job.batch_size} examples: {1000 * total:,.1f} ms, profiler included"
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for heading in ("part", "ms/step", "share"):
            table.add_column(heading, justify="left" if heading == "part" else "right")
        for part in PARTS:
            table.add_row(part, f"{1000 * seconds[part]:,.1f}", f"{seconds[part] / total:.1%}")
        console.print(table)


if __name__ == "__main__":
    main()
