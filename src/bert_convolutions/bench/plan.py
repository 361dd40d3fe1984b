"""What a bench consists of: groups of jobs that take turns. Imports neither PyTorch nor transformers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bert_convolutions.bench.contestants import COMPOSITE, DOT_PRODUCT, ELECTRA, choose_contestants
from bert_convolutions.bench.options import PRECISIONS, TASK_NAMES, BenchOptions, Precision, TaskName
from bert_convolutions.errors import UsageError

BASE_LENGTH = 128
"""Where ``--batch_size`` counts examples; other lengths have as many slots (examples x length) in a step."""
START_WORK = 2
"""What starting a process takes, in steps; a guess."""
MOST_PROCESSES = 10
"""That are alive at a time, since an idle one still holds 1 to 2 GiB of ``bert_small``."""
RUN: dict[TaskName, str] = {
    "pretraining": "bert_convolutions.bench.jobs:run_training_job",
    "settings": "bert_convolutions.bench.jobs:run_training_job",
    "loading": "bert_convolutions.bench.jobs:run_loading_job",
    "inference": "bert_convolutions.bench.jobs:run_inference_job",
}
"""Task to ``module:function`` of (job, setup, turns), which builds what it needs and takes all turns."""


@dataclass(frozen=True)
class Job:
    """One contestant in one setting: what a process of its own measures.

    Attributes:
        task: what a step is.
        contestant: the name of the contestant.
        precision: float32, or bf16 by autocast.
        length: S, the longest example.
        batch_size: examples of a step.
        backend: ``attn_implementation`` of a model of ours; None for the default.
    """

    task: TaskName
    contestant: str
    precision: Precision
    length: int
    batch_size: int
    backend: str | None = None

    @property
    def name(self) -> str:
        """What it is called in its group."""
        if self.task == "settings":
            return f"{self.precision}, {self.backend}, {self.batch_size} examples"
        return f"{self.contestant} {self.precision}"

    @property
    def run(self) -> str:
        """What its process does, as in ``RUN``."""
        return RUN[self.task]

    def baseline(self, jobs: "tuple[Job, ...]") -> "Job | None":
        """The job of the same group that this one's speed and memory are compared with; None where it is not there."""
        other = jobs[0] if self.task == "settings" else replace(self, contestant=ELECTRA, precision="float32")
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
    """

    title: str
    jobs: tuple[Job, ...]
    rounds: int
    steps: int
    warmup_steps: int

    @property
    def total_steps(self) -> int:
        """Steps that each job takes."""
        return self.warmup_steps + self.rounds * self.steps

    @property
    def work(self) -> float:
        """A guess of how long it takes, in steps of all jobs."""
        return len(self.jobs) * (self.total_steps + START_WORK)


def make_plan(options: BenchOptions, backends: Sequence[str] = ("sdpa", "eager")) -> list[Group]:
    """The groups of a bench, in order.

    Args:
        options: its flags.
        backends: of our attention on this machine, the default first.

    Raises:
        UsageError: a flag has a value that makes no sense.
    """
    _check(options)
    contestants = choose_contestants(options.contestants, options.quick)
    tasks = options.tasks or list(TASK_NAMES)
    precisions = list(dict.fromkeys(options.precision or PRECISIONS))
    few = precisions[:1] if options.quick and not options.precision else precisions
    lengths = options.sequence_lengths or ([BASE_LENGTH] if options.quick else [BASE_LENGTH, 512, 2048])
    repeat = {
        "rounds": options.rounds or (2 if options.quick else 5),
        "steps": options.steps or (1 if options.quick else 2),
        "warmup_steps": (1 if options.quick else 2) if options.warmup_steps is None else options.warmup_steps,
    }
    ours = next((contestant.name for contestant in contestants if contestant.is_ours), None)
    groups = []
    for task in tasks:
        if task in ("pretraining", "inference"):
            chosen = few if task == "inference" else precisions
            for length in lengths:
                examples = _examples(options.batch_size, length)
                pairs = [(precision, contestant.name) for precision in chosen for contestant in contestants]
                jobs = tuple(Job(task, name, precision, length, examples) for precision, name in pairs)
                groups += [Group(title, part, **repeat) for title, part in _split(f"{task}, S = {length}", jobs)]
        elif ours is not None and task == "settings":
            jobs = _settings_jobs(ours, precisions, lengths[0], options, backends)
            groups.append(Group(f"settings, {ours}, S = {lengths[0]}", jobs, **repeat))
        elif ours is not None:
            jobs = tuple(Job(task, ours, few[0], length, _examples(options.batch_size, length)) for length in lengths)
            groups.append(Group("loading", jobs, **{**repeat, "steps": 10 * repeat["steps"]}))
    if not groups:
        raise UsageError(f"--tasks {' '.join(tasks)} measure this project's models; add {COMPOSITE} to --contestants")
    return groups


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


def _settings_jobs(
    contestant: str, precisions: list[Precision], length: int, options: BenchOptions, backends: Sequence[str]
) -> tuple[Job, ...]:
    """Every precision, and with the last one the other backends, half the batch and twice (not in ``--quick``)."""
    batch_size = _examples(options.batch_size, length)
    first = Job("settings", contestant, precisions[0], length, batch_size, backends[0])
    last = replace(first, precision=precisions[-1])
    batches = [max(1, batch_size // 2), *([] if options.quick else [2 * batch_size])]
    jobs = [replace(first, precision=precision) for precision in precisions]
    jobs += [replace(last, backend=backend) for backend in backends]
    jobs += [replace(last, batch_size=batch) for batch in batches]
    return tuple(dict.fromkeys(jobs))


def _examples(batch_size: int, length: int) -> int:
    """Examples of a step that has as many slots as ``batch_size`` examples of ``BASE_LENGTH``."""
    return max(1, round(batch_size * BASE_LENGTH / length))
