"""Runs all checks and measurements for a GPU, in under eight minutes per call.

    python -m benchmarks.gpu --output_dir gpu-output

In this order: correctness (golden files and parity tests on the GPU; nothing is measured if they fail), the attention
core, training steps of ``bert_small`` and ``bert_base``, and a breakdown of a step. ``results.json`` is rewritten after
each figure, so an interrupted call keeps all earlier figures. Contestants that are not installed or fail are recorded
with the reason. Measurements for which ``--minutes`` left no time are listed at the end; run them with ``--phases``.
"""

import argparse
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import TrainerCallback

from benchmarks.breakdown import break_down
from bert_convolutions import files
from bert_convolutions.bench.attention import AttentionRun
from bert_convolutions.bench.corpus import Setup, prepare
from bert_convolutions.bench.jobs import PairsRun
from bert_convolutions.bench.options import BenchOptions
from bert_convolutions.bench.plan import PLAIN_SDPA, Job, make_plan
from bert_convolutions.bench.run import find_device
from bert_convolutions.errors import CommandError
from bert_convolutions.model.flops import peak_flops
from bert_convolutions.model.presets import load_config
from bert_convolutions.terminal import say

PHASES = ("correctness", "core", "training", "profile")
TESTS = ("tests/parity/test_golden.py", "tests/attention/test_triton.py", "tests/model/test_backends.py")
CORE = BenchOptions(
    tasks=["attention"],
    config_name="bert_base",
    precision=["bf16"],
    batch_size=256,
    sequence_lengths=[512, 128, 2048, 1024, 256, 4096, 8192],
)
"""The settings of the attention core: 2^15 positions at each length, in the order of measurement."""
SLOW, LONGEST_SLOW = ("flex", "flashdeberta", "disentangled_flash", "eager", "sdpa_bias"), 512
"""FlexAttention is compiled for a minute for each length; the others are many times slower than ours."""
CONTESTANTS = (("composite", "triton", True), ("dot_product", "triton", True), ("composite", "triton", False))
"""Contestant, ``attn_implementation``, and whether the model is compiled."""


@dataclass
class Results:
    """The figures, written to a file after each measurement.

    Attributes:
        path: the JSON file.
        deadline: time after which no measurement begins, in seconds of ``time.monotonic``.
        content: content of the file.
    """

    path: Path
    deadline: float
    content: dict[str, Any] = field(default_factory=lambda: {"entries": [], "left_out": []})

    def add(self, phase: str, setting: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Measure, unless the deadline has passed, and write the file."""
        name = " ".join([phase, *(f"{key}={value}" for key, value in setting.items())])
        figures: dict[str, Any] = {}
        if time.monotonic() > self.deadline:
            self.content["left_out"].append(name)
        else:
            try:
                figures = measure()
            except Exception as error:  # of any library: the others are still measured
                figures = {"error": f"{type(error).__name__}: {error}"[:500]}
            torch.cuda.empty_cache()
            self.content["entries"].append({"phase": phase, **setting, **figures})
            say(f"{name}: {', '.join(f'{key} {value}' for key, value in figures.items() if key != 'kernels')}")
        files.write_json(self.path, self.content)
        return figures


def check_correctness() -> dict[str, Any]:
    """Run the tests that use a GPU if there is one."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    processes = str(min(os.cpu_count() or 1, 12))  # most of the time is spent compiling
    options = ["-q", "--tb=line", "-n", processes, "-p", "no:cacheprovider", "-p", "no:benchmark"]
    command = [sys.executable, "-m", "pytest", *options, *TESTS]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    said = [line for line in (result.stdout + result.stderr).strip().splitlines() if "Warning" not in line]
    return {"passed": result.returncode == 0, "said": said[-1] if result.returncode == 0 else said[-40:]}


def time_core(job: Job, dropout: float) -> dict[str, Any]:
    """Milliseconds of forward and of forward plus backward, and the peak memory of the latter in bytes."""
    from triton.testing import do_bench

    core = AttentionRun(job, load_config(CORE.config_name), dropout)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if job.backend == "flash" else nullcontext():
        forward, both = (do_bench(run, warmup=10, rep=40, return_mode="median") for run in (core.attend, core.step))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        core.step()
    return {"forward_ms": forward, "both_ms": both, "peak_bytes": torch.cuda.max_memory_allocated() - before}


def kernels_of_core(job: Job) -> dict[str, Any]:
    """Microseconds of each GPU kernel in a forward and backward pass of this package."""
    core = AttentionRun(job, load_config(CORE.config_name), dropout=0.1)
    steps = 10
    for _ in range(3):
        core.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            core.step()
        torch.cuda.synchronize()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)
    return {"kernels": {event.key[:80]: event.self_device_time_total / steps for event in events[:20]}}


class StepTimer(TrainerCallback):
    """Times the steps after ``warmup_steps``, then stops training.

    Attributes:
        seconds: times before the first and after the last timed step.
    """

    def __init__(self, warmup_steps: int, steps: int) -> None:
        self.warmup_steps, self.steps = warmup_steps, steps
        self.seconds: list[float] = []
        self._begun = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Synchronize at the first and last step only, so that the steps between run asynchronously as in training."""
        if state.global_step in (self.warmup_steps, self.warmup_steps + self.steps):
            torch.cuda.synchronize()
            self.seconds.append(time.perf_counter())
        control.should_training_stop = state.global_step == self.warmup_steps + self.steps


def time_training(job: Job, setup: Setup, steps: int, warmup_steps: int) -> dict[str, Any]:
    """Real tokens/s of training, model FLOPs as a share of the GPU's bf16 FLOP/s, and peak memory in bytes."""
    run, timer = PairsRun(job, setup), StepTimer(warmup_steps, steps)
    run.trainer.add_callback(timer)
    torch.cuda.reset_peak_memory_stats()
    run.trainer.train()
    seconds = timer.seconds[1] - timer.seconds[0]
    work = [run.work(step) for step in range(warmup_steps, warmup_steps + steps)]
    peak = peak_flops(torch.cuda.get_device_name(), setup.options.peak_tflops)
    flops = [each.flops for each in work if each.flops is not None]
    return {
        "tokens_per_second": round(sum(each.tokens for each in work) / seconds),
        "step_ms": 1000 * seconds / steps,
        "model_flops_used": sum(flops) / seconds / peak if peak and len(flops) == steps else None,
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }


def measure_core(results: Results) -> None:
    """Measure the core: contestants by length, with dropout, packed, then the slow ones, then our kernels."""
    groups = make_plan(CORE, *find_device())
    jobs = [job for group in groups for job in group.jobs if job.contestant not in SLOW or job.length <= LONGEST_SLOW]
    jobs += [replace(job, backend="flash") for job in jobs if job.contestant == PLAIN_SDPA and not job.packed]
    results.content["not_measured"] = [
        {"phase": "core", "contestant": job.contestant, "length": job.length, "packed": job.packed, "reason": reason}
        for group in groups
        for job, reason in group.left_out.items()
    ]
    first = set(CORE.sequence_lengths[:3])
    fast = [job for job in jobs if job.contestant not in SLOW]
    settings = [(job, 0.0) for job in fast if not job.packed]
    settings += [(job, 0.1) for job in fast if not job.packed and job.length in first]
    settings += [(job, dropout) for job in fast if job.packed and job.length in first for dropout in (0.0, 0.1)]
    settings += [(job, 0.0) for job in jobs if job.contestant in SLOW and not job.packed]
    for job, dropout in settings:
        name = job.contestant if job.backend is None else f"{job.contestant}, {job.backend}"
        setting = {"contestant": name, "length": job.length, "packed": job.packed, "dropout": dropout}
        results.add("core", setting, partial(time_core, job, dropout))
    for job in jobs:
        if job.contestant == "ours" and job.length == 512:
            results.add("core kernels", {"length": 512, "packed": job.packed}, partial(kernels_of_core, job))


def measure_steps(results: Results, flags: argparse.Namespace, phases: list[str]) -> None:
    """Measure training steps of each length, model and contestant, and the breakdown of a step."""
    steps, warmup_steps = 10, 6
    for length, config in itertools.product(flags.sequence_lengths, flags.config_name):
        text = {"train_data_file": flags.train_data_file, "tokenizer_name": flags.tokenizer_name, "config_name": config}
        what: dict[str, Any] = {"tasks": ["pretraining"], "contestants": ["composite"], "precision": ["bf16"]}
        amount = {"rounds": 1, "steps": steps, "warmup_steps": warmup_steps, "batch_size": flags.batch_size}
        folder = flags.output_dir
        options = BenchOptions(folder, sequence_lengths=[length], dataloader_num_workers=4, **text, **what, **amount)
        groups = make_plan(options)
        setup, job = prepare(options, groups, say), groups[0].jobs[0]
        for contestant, backend, compiled in CONTESTANTS:
            each, setting = replace(job, contestant=contestant, backend=backend), {"config": config, "length": length}
            setting |= {"contestant": contestant, "backend": backend, "compiled": compiled}
            chosen = replace(setup, options=replace(options, torch_compile=compiled))
            if "training" in phases:
                results.add("training", setting, partial(time_training, each, chosen, steps, warmup_steps))
            if "profile" in phases and not compiled:
                results.add("profile", setting, partial(break_down, each, setup, 5, warmup_steps))


def main() -> None:
    """Run the phases in order.

    Raises:
        SystemExit: there is no GPU, or a test fails.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="gpu-output", help="folder of results.json and of the text, built once")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--minutes", type=float, default=7.5, help="minutes after which no measurement begins")
    parser.add_argument(
        "--train_data_file", nargs="+", default=[], help="text; default: speeches, as in bertconv bench"
    )
    parser.add_argument("--config_name", nargs="+", default=["bert_base", "bert_small"], help="models to train")
    parser.add_argument("--sequence_lengths", nargs="+", type=int, default=[128, 512], help="of the longest examples")
    parser.add_argument("--batch_size", type=int, default=1024, help="examples of a training step at S = 128")
    parser.add_argument("--tokenizer_name", help="default: one is trained on the text")
    flags = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu needs a CUDA GPU, and PyTorch finds none")
    Path(flags.output_dir).mkdir(parents=True, exist_ok=True)
    results = Results(Path(flags.output_dir) / "results.json", time.monotonic() + 60 * flags.minutes)
    results.content["machine"] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    try:
        if "correctness" in flags.phases and not results.add("correctness", {}, check_correctness).get("passed"):
            raise SystemExit(f"the tests fail on this GPU, so nothing is measured; {results.path} says which")
        if "core" in flags.phases:
            measure_core(results)
        if {"training", "profile"} & set(flags.phases):
            measure_steps(results, flags, flags.phases)
    except CommandError as error:
        raise SystemExit(str(error)) from None
    if results.content["left_out"]:
        say(f"No time was left for {len(results.content['left_out'])} figures; {results.path} names them")


if __name__ == "__main__":
    main()
