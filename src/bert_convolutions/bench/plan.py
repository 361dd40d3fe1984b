"""The contestants of a bench, and its plan: groups of jobs that take turns."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

from bert_convolutions.bench.options import PRECISIONS, TASK_NAMES, BenchOptions, Precision, TaskName
from bert_convolutions.errors import UsageError, install_command
from bert_convolutions.model.presets import load_config

REACH = 8
"""Reach n of all kernels, the paper's width of 17."""


@dataclass(frozen=True)
class Contestant:
    """A model, with the batches of its own training command.

    Attributes:
        name: name in ``--contestants``.
        description: description in tables.
        flags: architecture flags of ``bertconv pretrain``; None for a model of ``transformers``, which is built by its
            name and uses the Trainer's own collator.
        default: whether it takes part without ``--contestants``.
        quick: whether it takes part in ``--quick``.
    """

    name: str
    description: str
    flags: dict[str, Any] | None = None
    default: bool = True
    quick: bool = False

    @property
    def is_ours(self) -> bool:
        """Whether it is a model of this project."""
        return self.flags is not None


@dataclass(frozen=True)
class Core(Contestant):
    """An implementation of attention for the task ``attention``; its code is in ``bench.attention``.

    Attributes:
        score_tensors: approximate number of B x H x S x S tensors that it holds at a time.
        only_gpu: whether it has no kernels, or no backward, for CPUs.
        package: a package that it needs and that none of our extras installs, or None.
    """

    score_tensors: int = 0
    only_gpu: bool = False
    package: str | None = None


def _kernel(terms: str, **others: str) -> dict[str, Any]:
    return {"attention_kernel": f"{terms} {REACH}", "remove_position_embeddings": True, **others}


_FULL = "qk_convfixed_convq_convk"
_DEPTHWISE = f"convolution_depth_mixed_no_act {REACH} 1"

COMPOSITE, DOT_PRODUCT, ELECTRA, PLAIN_SDPA = "composite", "dot_product", "electra", "plain_sdpa"

CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant(COMPOSITE, "composite (fixed, query, key), no positions", _kernel(_FULL), quick=True),
        Contestant(DOT_PRODUCT, "dot product, positions", {"attention_kernel": "dot_product"}, quick=True),
        Contestant("qk_convfixed", "dot product + fixed, no positions", _kernel("qk_convfixed")),
        Contestant("qk_convq", "dot product + query, no positions", _kernel("qk_convq")),
        Contestant("qk_convk", "dot product + key, no positions", _kernel("qk_convk")),
        Contestant("composite_convolution", "composite + convolution", _kernel(f"{_FULL}_convolution"), default=False),
        Contestant("value_convolution", "depthwise-separable values", _kernel(_FULL, value_forward=_DEPTHWISE), False),
        Contestant("qk_convolution", "depthwise-separable queries and keys", _kernel(_FULL, qk=_DEPTHWISE), False),
        Contestant(ELECTRA, "Hugging Face ELECTRA, SDPA", quick=True),
        Contestant("bert", "Hugging Face BERT, SDPA", default=False),
        Contestant("convbert", "Hugging Face ConvBERT"),
        Contestant("modernbert", "Hugging Face ModernBERT, SDPA"),
        Core(PLAIN_SDPA, "PyTorch's SDPA without terms or segments: the lower bound", quick=True),
        Core("ours", "composite, our kernels for this device", quick=True),
        Core("sdpa_bias", "composite, PyTorch's SDPA with the terms as a mask", score_tensors=4),
        Core("flex", "composite, PyTorch's FlexAttention", only_gpu=True),
        Core("eager", "composite, the unfused equation", score_tensors=8, quick=True),
        Core("flashdeberta", "FlashDeBERTa, DeBERTa's terms", only_gpu=True, package="flashdeberta"),
        Core("disentangled_flash", "DeBERTa's, with projections", only_gpu=True, package="disentangled_flash"),
    )
}
"""All contestants by name."""
BASE_LENGTH = 128
"""Length at which ``--batch_size`` applies; other lengths have as many slots (examples x length) per step."""
START_WORK = 2
"""Estimated time to start a process, in steps."""
MAX_PROCESSES = 10
"""Maximum number of processes, since an idle one still holds 1 to 2 GiB for ``bert_small``."""
_MINIMA = {
    **{"batch_size": 1, "rounds": 1, "steps": 1, "threads": 1, "warmup_steps": 0, "dataloader_num_workers": 0},
    **{"sequence_lengths": 16, "peak_tflops": 0.1},
}
"""Minimum of each numeric flag."""
PYTORCH, ONNX, ONNX_INT8 = "PyTorch", "onnxruntime", "onnxruntime int8"
"""Backends of the task ``onnx``."""
READ_PAIRS: tuple[TaskName, ...] = ("pretraining", "settings", "inference", "loading")
"""Tasks whose jobs need sentence pairs; all but loading need new ones in each step."""


@dataclass(frozen=True)
class Job:
    """One contestant in one setting, which a separate process measures.

    Attributes:
        task: the kind of step.
        contestant: the name of the contestant.
        precision: float32, or bf16 by autocast (for attention cores, bf16 inputs).
        length: S, the maximum length of an example.
        batch_size: examples per step, or rows for attention cores.
        backend: ``attn_implementation`` of a model of ours, None for the default; for ``onnx``, the runtime.
        packed: for attention cores, whether rows hold several examples.
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
        """Its name in its group."""
        if self.task == "settings":
            return f"{self.precision}, {self.backend}, {self.batch_size} examples"
        return f"{self.contestant} {self.precision}" + (f", {self.backend}" if self.backend else "")

    @property
    def run(self) -> str:
        """``module:function`` of (job, setup, turns), which builds what it needs and takes all turns."""
        module = "attention" if self.task == "attention" else "jobs"
        name = "training" if self.task in ("pretraining", "settings") else self.task
        return f"bert_convolutions.bench.{module}:run_{name}_job"

    def baseline(self, jobs: "tuple[Job, ...]") -> "Job | None":
        """The job of the same group with which speed and memory are compared, or None."""
        other = replace(self, contestant=ELECTRA, precision="float32")
        if self.task == "attention":
            other = replace(self, contestant=PLAIN_SDPA)
        elif self.task in ("settings", "onnx"):
            other = jobs[0]
        return other if other in jobs else None

    def own_dot_product(self, jobs: "tuple[Job, ...]") -> "Job | None":
        """Our dot product in the same setting, or None."""
        other = replace(self, contestant=DOT_PRODUCT)
        return other if other in jobs and self.task in ("pretraining", "inference") else None


@dataclass(frozen=True)
class Group:
    """Jobs that take turns.

    Attributes:
        title: title in progress messages and tables.
        jobs: the jobs, each with its own process.
        rounds: measured turns per job.
        steps: steps per turn.
        warmup_steps: steps of each job before the first turn.
        left_out: jobs that can't be measured here, with the reasons.
    """

    title: str
    jobs: tuple[Job, ...]
    rounds: int
    steps: int
    warmup_steps: int
    left_out: Mapping[Job, str] = field(default_factory=dict)

    @property
    def total_steps(self) -> int:
        """The number of steps of each job."""
        return self.warmup_steps + self.rounds * self.steps

    @property
    def work(self) -> float:
        """The estimated duration, in steps of all jobs."""
        return len(self.jobs) * (self.total_steps + START_WORK)


def make_plan(options: BenchOptions, on_gpu: bool = False, memory: float = float("inf")) -> list[Group]:
    """The groups of a bench in order, for a GPU or a CPU with ``memory`` bytes.

    Raises:
        UsageError: a flag's value is invalid or names no contestant.
    """
    _check(options)
    tasks = options.tasks or [task for task in TASK_NAMES if not (options.quick and task == "onnx")]
    groups = [group for task in tasks for group in _groups(task, options, on_gpu, memory)]
    if not groups:
        known = COMPOSITE if {*tasks} - {"attention"} else PLAIN_SDPA
        raise UsageError(f"none of --contestants takes part in --tasks {' '.join(tasks)}; add {known}")
    return groups


def _groups(task: TaskName, options: BenchOptions, on_gpu: bool, memory: float) -> Iterator[Group]:
    """The groups of a task; none if no contestant takes part in it."""
    quick = options.quick
    default = [name for name, each in CONTESTANTS.items() if (each.quick if quick else each.default)]
    chosen = [each for name, each in CONTESTANTS.items() if name in (options.contestants or default)]
    models = [each for each in chosen if not isinstance(each, Core)]
    ours = next((each.name for each in models if each.is_ours), None)
    precisions = list(dict.fromkeys(options.precision or PRECISIONS))
    few_precisions = precisions[:1] if quick and not options.precision else precisions
    lengths = options.sequence_lengths or ([BASE_LENGTH] if quick else [BASE_LENGTH, 512, 2048])

    def group(title: str, jobs: Iterable[Job], more_steps: int = 1) -> Group:
        obstacles = {job: _obstacle(job, options, on_gpu, memory) for job in dict.fromkeys(jobs)}
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

    if task == "attention":
        if on_gpu and not quick and not options.sequence_lengths:
            lengths = [BASE_LENGTH * 2**power for power in range(7)]
        cores = [each.name for each in chosen if isinstance(each, Core)]
        for length, rows in itertools.product(lengths if cores else (), ("full", "packed")):
            jobs = [job(name, few_precisions[-1], length, packed=rows == "packed") for name in cores]
            yield group(f"attention, S = {length}, {rows} rows", jobs, 20 if on_gpu else 1)
    elif task in ("pretraining", "inference"):
        for length in lengths if models else ():
            measured = precisions if task == "pretraining" else few_precisions
            all_jobs = [job(each.name, precision, length) for precision in measured for each in models]
            for title, part in _split(f"{task}, S = {length}", all_jobs):
                yield group(title, part)
    elif ours and task == "settings":
        first = job(ours, precisions[0], lengths[0], backend="sdpa")
        yield group(f"settings, {ours}, S = {lengths[0]}", _settings(first, precisions, quick))
    elif ours and task == "onnx":
        jobs = [job(ours, "float32", lengths[0], backend=engine) for engine in (PYTORCH, ONNX, ONNX_INT8)]
        yield group(f"onnx, {ours}, S = {lengths[0]}", jobs[:2] if quick else jobs)
    elif ours and task == "loading":
        yield group("loading", [job(ours, few_precisions[0], length) for length in lengths], 10)


def _check(options: BenchOptions) -> None:
    for name in options.contestants:
        if name not in CONTESTANTS:
            raise UsageError(f"--contestants: there is no {name!r}; valid are {', '.join(CONTESTANTS)}")
    for name, minimum in _MINIMA.items():
        given = getattr(options, name)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and not minimum <= value < float("inf"):
                raise UsageError(f"--{name} {value}: give a number of at least {minimum}")


def _split(title: str, jobs: list[Job]) -> Iterator[tuple[str, list[Job]]]:
    """Titles and jobs: all together or, if that is too many processes, by precision, each with the baseline."""
    if len(jobs) <= MAX_PROCESSES:
        yield title, jobs
        return
    for precision in dict.fromkeys(job.precision for job in jobs):
        part = [job for job in jobs if job.precision == precision]
        baseline = part[0].baseline(tuple(jobs))
        yield f"{title}, {precision}", [*part, *([baseline] if baseline else [])]


def _settings(first: Job, precisions: list[Precision], quick: bool) -> list[Job]:
    """Every precision, and with the last one the other backend, half the batch size and (not in ``--quick``) twice.

    ``triton`` is not a separate setting: on a GPU, ``sdpa`` uses the same kernels.
    """
    last = replace(first, precision=precisions[-1])
    batches = [max(1, first.batch_size // 2), *([] if quick else [2 * first.batch_size])]
    jobs = [replace(first, precision=precision) for precision in precisions]
    return [*jobs, replace(last, backend="eager"), *(replace(last, batch_size=batch) for batch in batches)]


def _obstacle(job: Job, options: BenchOptions, on_gpu: bool, memory: float) -> str | None:
    """Why a job can't be measured here, or None."""
    if job.backend in (ONNX, ONNX_INT8):
        missing = next((name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None), None)
        return missing and f"needs the package {missing}: {install_command(missing)}"
    core = CONTESTANTS[job.contestant]
    if not isinstance(core, Core):
        return None
    if core.only_gpu and not on_gpu:
        return "needs a GPU"
    if core.package and find_spec(core.package) is None:
        return f"needs the package {core.package}: pip install {core.package}"
    if core.package and job.packed:
        return "does not support packed rows"
    heads, size = load_config(options.config_name).num_attention_heads, 2 if job.precision == "bf16" else 4
    needed = core.score_tensors * size * heads * job.batch_size * job.length**2
    if needed > memory / 4:
        return f"would hold {needed / 2**30:.0f} GiB of scores, over a quarter of the memory"
    return None
