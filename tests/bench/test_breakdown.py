"""The profiler finds every part of a training step, and all of its time is assigned to a part."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import profile

from benchmarks.breakdown import PARTS, _mark_module, break_down, seconds_by_part
from bert_convolutions.bench.corpus import Setup
from bert_convolutions.bench.plan import Job


@pytest.mark.parametrize("warmup_steps", [0, 1])
def test_every_part_of_a_step_has_its_time(warmup_steps: int, bench_setup: Setup) -> None:
    seconds = break_down(Job("pretraining", "composite", "float32", 128, 4), bench_setup, 1, warmup_steps)
    assert set(seconds) == set(PARTS)
    assert all(seconds[part] > 0 for part in PARTS if part != "other")
    assert seconds["other"] < 0.7 * sum(seconds.values())


def test_backward_operations_belong_to_the_module_of_their_forward_operation() -> None:
    small, large = nn.Linear(256, 256), nn.Linear(256, 4096)
    _mark_module(small, "scores")
    _mark_module(large, "feed-forward")
    inputs = torch.randn(512, 256)
    with profile() as profiled:
        large(small(inputs)).sum().backward()
    seconds = seconds_by_part(profiled.events(), on_cuda=False)
    assert seconds["feed-forward"] > 3 * seconds["scores"] > 0
    with profile() as profiled:
        output = large(small(inputs)).sum()
    forward = seconds_by_part(profiled.events(), on_cuda=False)
    assert seconds["feed-forward"] > 1.5 * forward["feed-forward"], "the backward pass is in it"
    assert np.isfinite(output.item())
