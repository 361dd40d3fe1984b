"""What a bench consists of: groups of jobs that take turns."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

from bert_convolutions.bench.contestants import (
    COMPOSITE,
    CONTESTANTS,
    DOT_PRODUCT,
    ELECTRA,
    PLAIN_SDPA,
    Core,
    choose_contestants,
)
from bert_convolutions.bench.options import PRECISIONS, TASK_NAMES, BenchOptions, Precision, TaskName
from bert_convolutions.errors import UsageError, install_command
from bert_convolutions.model.presets import load_config

BASE_LENGTH = 128
"""Where ``--batch_size`` counts examples; other lengths have as many slots (examples x length) in a step."""
START_WORK = 2
"""What starting a process takes, in steps; a guess."""
MOST_PROCESSES = 10
"""That are alive at a time, since an idle one still holds 1 to 2 GiB of ``bert_small``."""
PYTORCH, ONNX, ONNX_INT8 = "PyTorch", "onnxruntime", "onnxruntime int8"
"""What runs the model of the task ``onnx``."""
RUN: dict[TaskName, str] = {
    "pretraining": "bert_convolutions.bench.jobs:run_training_job",
    "settings": "bert_convolutions.bench.jobs:run_training_job",
    "loading": "bert_convolutions.bench.jobs:run_loading_job",
    "inference": "bert_convolutions.bench.jobs:run_inference_job",
    "onnx": "bert_convolutions.bench.jobs:run_graph_job",
    "attention": "bert_convolutions.bench.attention:run_attention_job",
}
"""Task to ``module:function`` of (job, setup, turns), which builds what it needs and takes all turns."""


@dataclass(frozen=True)
class Device:
    """What a plan depends on of the machine.

    Attributes:
        on_gpu: whether models run on one.
        backends: of our attention, the default first.
        memory: bytes, the GPU's where there is one.
    """

    on_gpu: bool = False
    backends: Sequence[str] = ("sdpa", "eager")
    memory: int = 16 * 2**30


@dataclass(frozen=True)
class Job:
    """One contestant in one setting: what a process of its own measures.

    Attributes:
        task: what a step is.
        contestant: the name of the contestant.
        precision: float32, or bf16: by autocast, or of the attention core's inputs.
        length: S, the longest example.
        batch_size: examples of a step, or rows of the attention core.
        backend: ``attn_implementation`` of a model of ours, None for the default; of ``onnx``, what runs it.
        packed: of the attention core, whether its rows hold several examples.
    """

    task: TaskName
    contestant: str
    precision: Precision
    length: int
    batch_size: int
    backend: str | None = None
    packed: bool | None = None

    @property
    def name(self) -> str:
        """What it is called in its group."""
        if self.task == "settings":
            return f"{self.precision}, {self.backend}, {self.batch_size} examples"
        return f"{self.contestant} {self.precision}" + (f", {self.backend}" if self.backend else "")

    @property
    def run(self) -> str:
        """What its process does, as in ``RUN``."""
        return RUN[self.task]

    @property
    def reads_pairs(self) -> bool:
        """Whether it needs sentence pairs."""
        return self.task not in ("onnx", "attention")

    @property
    def has_model(self) -> bool:
        """Whether it needs a tokenizer and an embedding of its pieces."""
        return self.task != "attention"

    def baseline(self, jobs: "tuple[Job, ...]") -> "Job | None":
        """The job of the same group that this one's speed and memory are compared with; None where it is not there."""
        if self.task in ("settings", "onnx"):
            return jobs[0]
        of_attention = replace(self, contestant=PLAIN_SDPA)
        other = of_attention if self.task == "attention" else replace(self, contestant=ELECTRA, precision="float32")
        return other if other in jobs else None

    def own_dot_product(self, jobs: "tuple[Job, ...]") -> "Job | None":
        """Our dot product in the same setting, or None where it is not there."""
        other = replace(self, contestant=DOT_PRODUCT)
        return other if other in jobs and self.task in ("pretraining", "inference") else None


@dataclass(frozen=True)
class Group:
    """Jobs that take turns, and how often.

    Attributes:
        title: for progress and tables.
        jobs: each runs in a process of its own.
        rounds: turns of each job that count.
        steps: steps of a turn.
        warmup_steps: steps of each job before.
        left_out: what can't be measured here, and why.
    """

    title: str
    jobs: tuple[Job, ...]
    rounds: int
    steps: int
    warmup_steps: int
    left_out: Mapping[Job, str] = field(default_factory=dict)

    @property
    def total_steps(self) -> int:
        """Steps that each job takes."""
        return self.warmup_steps + self.rounds * self.steps

    @property
    def work(self) -> float:
        """A guess of how long it takes, in steps of all jobs."""
        return len(self.jobs) * (self.total_steps + START_WORK)


def make_plan(options: BenchOptions, device: Device | None = None) -> list[Group]:
    """The groups of a bench, in order.

    Args:
        options: its flags.
        device: what it is measured on.

    Raises:
        UsageError: a flag has a value that makes no sense.
    """
    _check(options)
    device = device or Device()
    tasks = options.tasks or TASK_NAMES
    groups = [group for task in tasks for group in _groups(task, options, device)]
    if not groups:
        known = COMPOSITE if {*tasks} - {"attention"} else PLAIN_SDPA
        raise UsageError(f"none of --contestants takes part in --tasks {' '.join(tasks)}; add {known}")
    return groups


def _groups(task: TaskName, options: BenchOptions, device: Device) -> Iterator[Group]:
    """The groups of a task; none where none of the contestants takes part in it."""
    quick = options.quick
    chosen = choose_contestants(options.contestants, quick)
    models = [contestant for contestant in chosen if not isinstance(contestant, Core)]
    ours = next((contestant.name for contestant in models if contestant.is_ours), None)
    precisions = list(dict.fromkeys(options.precision or PRECISIONS))
    few = precisions[:1] if quick and not options.precision else precisions
    lengths = options.sequence_lengths or ([BASE_LENGTH] if quick else [BASE_LENGTH, 512, 2048])

    def group(title: str, jobs: Iterable[Job], more_steps: int = 1) -> Group:
        obstacles = {job: _obstacle(job, options, device) for job in dict.fromkeys(jobs)}
        return Group(
            title,
            tuple(job for job, obstacle in obstacles.items() if obstacle is None),
            rounds=options.rounds or (2 if quick else 5),
            steps=more_steps * (options.steps or (1 if quick else 2)),
            warmup_steps=(1 if quick else 2) if options.warmup_steps is None else options.warmup_steps,
            left_out={job: obstacle for job, obstacle in obstacles.items() if obstacle is not None},
        )

    def job(contestant: str, precision: Precision, length: int, **others: Any) -> Job:
        examples = max(1, round(options.batch_size * BASE_LENGTH / length))
        return Job(task, contestant, precision, length, examples, **others)

    if task in ("pretraining", "inference"):
        for length in lengths if models else ():
            measured = precisions if task == "pretraining" else few
            jobs = tuple(job(each.name, precision, length) for precision in measured for each in models)
            for title, part in _split(f"{task}, S = {length}", jobs):
                yield group(title, part)
    elif task == "attention":
        if device.on_gpu and not quick and not options.sequence_lengths:
            lengths = [BASE_LENGTH * 2**power for power in range(7)]
        cores = [contestant.name for contestant in chosen if isinstance(contestant, Core)]
        for length, packed in itertools.product(lengths if cores else (), (False, True)):
            title = f"attention, S = {length}, {'packed' if packed else 'full'} rows"
            yield group(
                title, [job(name, few[-1], length, packed=packed) for name in cores], 20 if device.on_gpu else 1
            )
    elif ours and task == "settings":
        first = job(ours, precisions[0], lengths[0], backend=device.backends[0])
        yield group(f"settings, {first.contestant}, S = {first.length}", _settings(first, precisions, quick, device))
    elif ours and task == "onnx":
        first = job(ours, "float32", lengths[0])
        engines = [replace(first, backend=backend) for backend in (PYTORCH, ONNX, *([] if quick else [ONNX_INT8]))]
        yield group(f"onnx, {first.contestant}, S = {first.length}", engines)
    elif ours and task == "loading":
        yield group("loading", [job(ours, few[0], length) for length in lengths], 10)


def _check(options: BenchOptions) -> None:
    least = {"batch_size": 1, "rounds": 1, "steps": 1, "threads": 1, "warmup_steps": 0, "dataloader_num_workers": 0}
    for name, bound in least.items():
        value = getattr(options, name)
        if value is not None and value < bound:
            raise UsageError(f"--{name} {value}: give a number of at least {bound}")
    for length in options.sequence_lengths:
        if length < 16:
            raise UsageError(f"--sequence_lengths {length}: give lengths of at least 16 tokens")
    if options.peak_tflops is not None and not 0 < options.peak_tflops < float("inf"):
        raise UsageError(f"--peak_tflops {options.peak_tflops}: give a number above 0")


def _split(title: str, jobs: tuple[Job, ...]) -> list[tuple[str, tuple[Job, ...]]]:
    """Jobs with a title: all together or, where they would be too many processes, each precision with the baseline."""
    if len(jobs) <= MOST_PROCESSES:
        return [(title, jobs)]
    parts = []
    for precision in dict.fromkeys(job.precision for job in jobs):
        part = [job for job in jobs if job.precision == precision]
        baseline = part[0].baseline(jobs)
        parts.append((f"{title}, {precision}", tuple(dict.fromkeys([*part, *([baseline] if baseline else [])]))))
    return parts


def _settings(first: Job, precisions: list[Precision], quick: bool, device: Device) -> list[Job]:
    """Every precision, and with the last one the other backends, half the batch and twice (not in ``--quick``)."""
    last = replace(first, precision=precisions[-1])
    batches = [max(1, first.batch_size // 2), *([] if quick else [2 * first.batch_size])]
    jobs = [replace(first, precision=precision) for precision in precisions]
    jobs += [replace(last, backend=backend) for backend in device.backends]
    return jobs + [replace(last, batch_size=batch) for batch in batches]


def _obstacle(job: Job, options: BenchOptions, device: Device) -> str | None:
    """Why a job can't be measured here, or None."""
    for package in ("onnx", "onnxruntime", "onnxscript") if job.backend in (ONNX, ONNX_INT8) else ():
        if find_spec(package) is None:
            return f"needs the package {package}: {install_command(package)}"
    core = CONTESTANTS[job.contestant]
    if not isinstance(core, Core):
        return None
    if core.only_gpu and not device.on_gpu:
        return f"needs a GPU: {core.only_gpu}"
    if core.package and find_spec(core.package) is None:
        return f"needs the package {core.package}: pip install {core.package}"
    if core.package and job.packed:
        return "takes no packed rows"
    heads, item = load_config(options.config_name).num_attention_heads, 2 if job.precision == "bf16" else 4
    needed = core.score_tensors * item * heads * job.batch_size * job.length**2
    if needed > device.memory / 4:
        return f"would hold {needed / 2**30:.0f} GiB of scores, more than a quarter of the memory here"
    return None
