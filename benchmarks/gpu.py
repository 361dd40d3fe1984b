"""All that is to be checked and measured on a GPU, in under eight minutes a call.

    python -m benchmarks.gpu --output_dir gpu-output

In this order: correctness (golden files and parity tests on the GPU; nothing is measured if they fail), the attention
core alone, training steps of ``bert_small`` and ``bert_base``, and where the time of a step goes. After each figure
``results.json`` is written whole, so a call that is cut off leaves what it had. A contestant that isn't installed is
left out, one that fails is noted with its error. What ``--minutes`` leaves no time for is named at the end;
``--phases`` asks for it alone.

Legend: B rows, S sequence, H heads, d head size, n reach.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import TrainerCallback

from benchmarks.breakdown import break_down
from bert_convolutions import files
from bert_convolutions.attention.composite import ScoreParts, attend_eager
from bert_convolutions.attention.segments import Segments
from bert_convolutions.attention.terms import TERMS
from bert_convolutions.bench.corpus import Setup, prepare
from bert_convolutions.bench.jobs import PairsRun
from bert_convolutions.bench.options import BenchOptions
from bert_convolutions.bench.plan import Job, make_plan
from bert_convolutions.errors import CommandError
from bert_convolutions.model.backends import _attend_interface
from bert_convolutions.model.flops import peak_flops
from bert_convolutions.terminal import say

PHASES = ("correctness", "core", "training", "profile")
TESTS = ("tests/parity/test_golden.py", "tests/attention/test_triton.py", "tests/model/test_backends.py")
HEADS, HEAD_SIZE, REACH = 12, 64, 8
TOKENS = 2**15
"""Of a measurement of the core: B = TOKENS / S rows."""
LENGTHS = (512, 128, 2048, 1024, 256, 4096, 8192)
LONGEST = {"eager": 1024, "SDPA with a bias": 4096, "FlexAttention": 2048}
"""What needs memory for all scores, or minutes to compile for each length, stops there."""
TRAINED = (("bert_base", 128), ("bert_small", 128), ("bert_base", 512), ("bert_small", 512))
CONTESTANTS = (("composite", "triton"), ("dot_product", "sdpa"), ("composite", "sdpa"))


@dataclass
class Results:
    """Figures, written after each.

    Attributes:
        path: of the JSON file.
        deadline: when no further measurement begins, in seconds of ``time.monotonic``.
        content: what the file holds.
    """

    path: Path
    deadline: float
    content: dict[str, Any] = field(default_factory=lambda: {"entries": [], "left_out": []})

    def add(self, phase: str, setting: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Measure, unless there is no time left, and write."""
        name = " ".join([phase, *(f"{key}={value}" for key, value in setting.items())])
        figures: dict[str, Any] = {}
        if time.monotonic() > self.deadline:
            self.content["left_out"].append(name)
        else:
            try:
                figures = measure()
            except Exception as error:  # of whichever library: the others are measured all the same
                figures = {"error": f"{type(error).__name__}: {error}"[:500]}
            torch.cuda.empty_cache()
            self.content["entries"].append({"phase": phase, **setting, **figures})
            say(f"{name}: {', '.join(f'{key} {value}' for key, value in figures.items() if key != 'kernels')}")
        files.write_json(self.path, self.content)
        return figures


def check_correctness() -> dict[str, Any]:
    """Run the tests that take a GPU where there is one."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    said = (result.stdout + result.stderr).strip().splitlines()
    return {"passed": result.returncode == 0, "said": said[-1] if result.returncode == 0 else said[-40:]}


@dataclass
class Core:
    """The inputs of the attention core: bf16, all terms.

    Attributes:
        parts: queries, keys and terms.
        value: (B, H, S, d).
        leaves: all that gets a gradient.
        dropout: of the probabilities.
    """

    parts: ScoreParts
    value: Tensor
    leaves: list[Tensor]
    dropout: float

    @classmethod
    def make(cls, length: int, packed: bool, dropout: float) -> "Core":
        """Of ``TOKENS`` positions; packed, rows are filled with examples of 16 to 128 tokens."""
        new = partial(torch.randn, device="cuda", dtype=torch.bfloat16)
        heads = [new(TOKENS // length, length, HEADS, HEAD_SIZE, requires_grad=True) for _ in range(3)]
        query, key, value = (part.transpose(1, 2) for part in heads)
        terms: dict[str, list[Any]] = {}
        leaves = [*heads]
        for term in TERMS.values():
            leaves.append(new(term.shape(HEADS, HEAD_SIZE, 2 * REACH + 1), requires_grad=True))
            terms.setdefault(term.side, []).append((term, leaves[-1]))
        segments = Segments()
        if packed:
            starts = torch.rand(TOKENS // length, length, device="cuda") < 1 / 72
            segments = Segments((starts.cumsum(1) + 1).long()).with_spans().with_mask(torch.bfloat16)
        return cls(ScoreParts(query, key, True, terms, segments, value.dtype, HEAD_SIZE**-0.5), value, leaves, dropout)


def flex(core: Core) -> Callable[[], Tensor]:
    """PyTorch's FlexAttention, with the terms read by offset; it has no dropout of probabilities."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)
    rows, _, length, _ = core.value.shape
    examples, block_mask = core.parts.segments.examples, None
    if examples is not None:
        same = lambda b, h, i, j: examples[b, i] == examples[b, j]  # noqa: E731
        block_mask = create_block_mask(same, rows, None, length, length, device="cuda")

    def attend() -> Tensor:
        by_query, by_key = core.parts.offset_weights("query"), core.parts.offset_weights("key")
        assert by_query is not None and by_key is not None

        def score(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            offset = torch.clamp(j - i, -REACH, REACH)
            return score + by_query[b, h, i, REACH + offset] + by_key[b, h, j, REACH - offset]

        scaling = core.parts.scaling
        return compiled(core.parts.query, core.parts.key, core.value, score, block_mask=block_mask, scale=scaling)

    return attend


def flash_deberta(core: Core) -> Callable[[], Tensor]:
    """FlashDeBERTa with its own terms, of 256 buckets, at our shapes."""
    from flashdeberta.ops.flash_attention import flash_attention_with_disentangled

    positions = [torch.randn(1, HEADS, 512, HEAD_SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    inputs = [part.contiguous() for part in (core.parts.query, core.parts.key, core.value) if part is not None]
    options = {"sm_scale": (3 * HEAD_SIZE) ** -0.5, "position_buckets": 256, "max_relative_distance": 512}
    core.leaves = [part.requires_grad_() for part in positions] + core.leaves[:3]
    return lambda: flash_attention_with_disentangled(*inputs, None, *positions, **options)


def disentangled_flash(core: Core) -> Callable[[], Tensor]:
    """disentangled-flash's attention layer with its own terms, projections included, which the others don't have."""
    from disentangled_flash import TritonTrainingDisentangledSelfAttention
    from transformers import DebertaV2Config

    rows, heads, length, size = core.value.shape
    config = DebertaV2Config(hidden_size=heads * size, num_attention_heads=heads, attention_probs_dropout_prob=0.0)
    for name, value in {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 256}.items():
        setattr(config, name, value)
    module = TritonTrainingDisentangledSelfAttention(config).to("cuda", torch.bfloat16)
    new = partial(torch.randn, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    hidden, positions, mask = new(rows, length, heads * size), new(512, heads * size), torch.ones(rows, length)
    core.leaves = [hidden, positions, *module.parameters()]
    return lambda: module(hidden, mask.to("cuda"), rel_embeddings=positions)[0]


def ours(core: Core) -> Callable[[], Tensor]:
    """The kernels of this project."""
    from bert_convolutions.attention.triton.engine import attend_triton

    return lambda: attend_triton(core.parts, core.value, core.dropout)[0]


CORES: dict[str, Callable[[Core], Callable[[], Tensor]]] = {
    # The floor: no term, and the whole row where it is packed
    "plain SDPA": lambda core: partial(
        functional.scaled_dot_product_attention, core.parts.query, core.parts.key, core.value, dropout_p=core.dropout
    ),
    "ours": ours,
    "SDPA with a bias": lambda core: lambda: _attend_interface("sdpa", core.parts, core.value, core.dropout)[0],
    "FlexAttention": flex,
    "eager": lambda core: lambda: attend_eager(core.parts, core.value, core.dropout)[0],
    "flashdeberta": flash_deberta,
    "disentangled_flash": disentangled_flash,
}
"""Name to what makes it, in the order of measuring; those with the name of a package need it."""
FOREIGN = ("flashdeberta", "disentangled_flash")


def time_core(name: str, length: int, packed: bool, dropout: float) -> dict[str, Any]:
    """Milliseconds of forward, and of forward and backward; bytes of the second at their peak."""
    from triton.testing import do_bench

    core = Core.make(length, packed, dropout)
    attend = CORES[name](core)
    incoming = torch.randn_like(attend())

    def both() -> None:
        torch.autograd.grad(attend(), core.leaves, incoming, allow_unused=True)

    figures = {"forward_ms": do_bench(attend, return_mode="median"), "both_ms": do_bench(both, return_mode="median")}
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    both()
    return {**figures, "peak_bytes": torch.cuda.max_memory_allocated() - before}


def kernels_of_core(length: int, packed: bool) -> dict[str, Any]:
    """Microseconds of each GPU kernel in a forward and backward pass of ours."""
    core = Core.make(length, packed, dropout=0.1)
    attend = ours(core)
    steps = 10
    for _ in range(3):
        torch.autograd.grad(attend().sum(), core.leaves)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            torch.autograd.grad(attend().sum(), core.leaves)
        torch.cuda.synchronize()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)
    return {"kernels": {event.key[:80]: event.self_device_time_total / steps for event in events[:20]}}


class StepTimer(TrainerCallback):
    """Times the steps after ``warmup_steps``, then stops training.

    Attributes:
        seconds: of each step.
    """

    def __init__(self, warmup_steps: int, steps: int) -> None:
        self.warmup_steps, self.steps = warmup_steps, steps
        self.seconds: list[float] = []
        self._begun = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait for the device at the first and last step only: as in training, it works ahead between them."""
        if state.global_step in (self.warmup_steps, self.warmup_steps + self.steps):
            torch.cuda.synchronize()
            self.seconds.append(time.perf_counter())
        control.should_training_stop = state.global_step == self.warmup_steps + self.steps


def time_training(job: Job, setup: Setup, steps: int, warmup_steps: int) -> dict[str, Any]:
    """Real tokens/s of training, the part of the GPU's bf16 FLOP/s that the model needs, peak memory."""
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
    """The table: every contestant at every length, then packed, then with dropout; then the kernels of ours."""
    settings = [(length, False, 0.0) for length in LENGTHS]
    settings += [(length, True, 0.0) for length in LENGTHS[:3]] + [(length, False, 0.1) for length in LENGTHS[:3]]
    for length, packed, dropout in settings:
        for name in CORES:
            foreign = name in FOREIGN and (packed or dropout > 0 or find_spec(name) is None)
            if foreign or length > LONGEST.get(name, length) or (name == "FlexAttention" and dropout > 0):
                continue
            setting = {"contestant": name, "length": length, "packed": packed, "dropout": dropout}
            results.add("core", setting, partial(time_core, name, length, packed, dropout))
    for packed in (False, True):
        results.add("core kernels", {"length": 512, "packed": packed}, partial(kernels_of_core, 512, packed))


def measure_steps(results: Results, flags: argparse.Namespace, phases: list[str]) -> None:
    """Training steps of each model, length and contestant; then the parts of a step of ours."""
    steps, warmup_steps = 20, 5
    for config, length in TRAINED:
        text = {"train_data_file": flags.train_data_file, "tokenizer_name": flags.tokenizer_name, "config_name": config}
        what: dict[str, Any] = {"tasks": ["pretraining"], "contestants": ["composite"], "precision": ["bf16"]}
        amount = {"rounds": 1, "steps": steps, "warmup_steps": warmup_steps, "batch_size": 256}
        folder = str(Path(flags.output_dir) / config)
        options = BenchOptions(folder, sequence_lengths=[length], dataloader_num_workers=4, **text, **what, **amount)
        Path(options.output_dir).mkdir(parents=True, exist_ok=True)
        groups = make_plan(options)
        setup, job = prepare(options, groups, say), groups[0].jobs[0]
        for contestant, backend in CONTESTANTS:
            each, setting = replace(job, contestant=contestant, backend=backend), {"config": config, "length": length}
            setting |= {"contestant": contestant, "backend": backend}
            if "training" in phases:
                results.add("training", setting, partial(time_training, each, setup, steps, warmup_steps))
            if "profile" in phases and backend == "triton":
                results.add("profile", setting, partial(break_down, each, setup, 5, warmup_steps))


def main() -> None:
    """Do what was asked for, in order.

    Raises:
        SystemExit: without a GPU, or with a test that fails.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="gpu-output", help="folder of results.json and of what is built once")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--minutes", type=float, default=7.5, help="after which no further measurement begins")
    parser.add_argument(
        "--train_data_file", nargs="+", default=[], help="text; left out, speeches, as in bertconv bench"
    )
    parser.add_argument("--tokenizer_name", help="left out, one is trained on the text")
    flags = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu needs a CUDA GPU, and PyTorch sees none here")
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
