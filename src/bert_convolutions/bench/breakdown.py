"""Where the time of a training step goes: PyTorch's profiler, with every operation booked on a part of the step.

The modules of the model are marked with their part. An operation of the forward pass belongs to the innermost marked
module that it runs in. One of the backward pass carries the sequence number of the forward operation whose gradient it
computes, and belongs to the same part. On a CPU the time in a module between its operations (Python) is counted too.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import Trainer

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
"""Data: reading, masking, packing. Projections: the linear layers of attention. Scores: everything else of attention.
Optimizer: adding up gradients, clipping, AdamW. Other: what no part has claimed, on CUDA also time without a kernel."""

_MARKED_MODULES = (
    (r"", "head and loss"),
    (r"bert", "scores"),  # of what no inner module claims, the mask of the scores
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


class StepProfiler:
    """The probe of a turn: profiles its steps and adds up the seconds of each part.

    Args:
        trainer: trains a model of ours, which is marked.
    """

    def __init__(self, trainer: Trainer) -> None:
        assert trainer.model is not None
        mark_modules(trainer.model)
        accelerator = trainer.accelerator
        accelerator.clip_grad_norm_ = _marked(accelerator.clip_grad_norm_, "optimizer")
        self._on_cuda = torch.cuda.is_available()
        self._profile: profile | None = None

    def start(self) -> None:
        """Profile from here on."""
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_cuda else [])]
        self._profile = profile(activities=activities)
        self._profile.__enter__()

    def stop(self) -> dict[str, float]:
        """Seconds of each part since ``start``, all steps together; "other" is left to whoever has a clock."""
        assert self._profile is not None
        self._profile.__exit__(None, None, None)
        return seconds_by_part(self._profile.events(), self._on_cuda)


def mark_modules(model: nn.Module) -> None:
    """Have each module of ``_MARKED_MODULES`` show in profiles as its part; a later pattern wins over an earlier."""
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
    """Add up the profiler's events.

    Args:
        events: ``torch.autograd.profiler_util.FunctionEvent`` of some steps.
        on_cuda: count the time of kernels instead of the CPU's; except for data, which the CPU makes.
    """
    on_cpu = [event for event in events if event.device_type == DeviceType.CPU]
    forward_parts: dict[int, str] = {}
    for event in sorted(on_cpu, key=lambda event: event.time_range.start):
        part = _claimed(event)
        if part and event.sequence_nr >= 0 and not event.name.startswith(_BACKWARD):
            forward_parts[event.sequence_nr] = part  # of several, the last is the one that has the gradient
    totals = dict.fromkeys(PARTS, 0.0)
    for event in on_cpu:
        part = _claimed(event) or _claimed_backward(event, forward_parts)
        if part is None:
            continue
        of_device = on_cuda and part != "data"
        totals[part] += (event.self_device_time_total if of_device else event.self_cpu_time_total) / 1e6
    return totals


def _claimed(event: Any) -> str | None:
    """The part whose mark, or PyTorch's own, is the innermost around an event."""
    while event is not None:
        if event.name.startswith(_MARK):
            return str(event.name[len(_MARK) :])
        for beginning, part in _NAMED_BY_PYTORCH:
            if event.name.startswith(beginning):
                return part
        event = event.cpu_parent
    return None


def _claimed_backward(event: Any, forward_parts: dict[int, str]) -> str | None:
    """The part of the forward operation whose gradient an event helps to compute."""
    while event is not None:
        if event.name.startswith(_BACKWARD):
            return forward_parts.get(event.sequence_nr)
        event = event.cpu_parent
    return None
