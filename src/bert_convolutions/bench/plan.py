"""What a bench consists of: groups of jobs that take turns. Imports neither PyTorch nor transformers."""

from dataclasses import dataclass, replace

from bert_convolutions.bench.contestants import COMPOSITE, DOT_PRODUCT, ELECTRA, Contestant, choose_contestants
from bert_convolutions.bench.options import PRECISIONS, TASK_NAMES, BenchOptions, Precision, TaskName
from bert_convolutions.errors import UsageError

BASE_LENGTH = 128
"""Where ``--batch_size`` counts examples; other lengths have as many slots (examples x length) in a step."""
GLUE_TASKS = ("RTE", "CoLA")
START_WORK = 2
"""What starting a process takes, in steps; a guess."""
MOST_PROCESSES = 10
"""That are alive at a time, since an idle one still holds 1 to 2 GiB of ``bert_small``."""
FINE_TUNING_STEPS = 4
"""Fine-tuning, whose batches differ in length, takes so many times as many steps in a turn; not in ``--quick``."""
PREDICTED_BATCHES = 8
"""Examples of one step of prediction, in batches of ``--batch_size``; in ``--quick`` half."""


@dataclass(frozen=True)
class Job:
    """One contestant in one setting: what a process of its own measures.

    Attributes:
        task: what a step is.
        contestant: the name of the contestant.
        precision: float32, or bf16 by autocast.
        length: S, the longest example.
        batch_size: examples of a step.
        glue_task: whose lengths the examples have, in fine-tuning and prediction.
        padded: every example padded to S, in fine-tuning and prediction; else batches of like length.
    """

    task: TaskName
    contestant: str
    precision: Precision
    length: int
    batch_size: int
    glue_task: str | None = None
    padded: bool = False

    def baseline(self, jobs: "tuple[Job, ...]") -> "Job | None":
        """The job of the same group that this one's speed and memory are compared with; None where it is not there."""
        if self.task == "breakdown":
            return None
        electra = replace(self, contestant=ELECTRA, precision="float32")
        other = replace(self, padded=True) if self.glue_task else electra
        return other if other in jobs else None

    def own_dot_product(self, jobs: "tuple[Job, ...]") -> "Job | None":
        """Our dot product in the same setting, or None where it is not there."""
        other = replace(self, contestant=DOT_PRODUCT)
        return other if other in jobs and self.glue_task is None and self.task != "breakdown" else None


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


def make_plan(options: BenchOptions) -> list[Group]:
    """The groups of a bench, in order.

    Raises:
        UsageError: a flag has a value that makes no sense.
    """
    _check(options)
    contestants = choose_contestants(options.contestants, options.quick)
    tasks = options.tasks or list(TASK_NAMES)
    precisions = list(dict.fromkeys(options.precision)) or list(PRECISIONS)
    few = precisions[:1] if options.quick and not options.precision else precisions
    lengths = options.sequence_lengths or ([BASE_LENGTH] if options.quick else [BASE_LENGTH, 512, 2048])
    repeat = {
        "rounds": options.rounds or (2 if options.quick else 5),
        "steps": options.steps or (1 if options.quick else 2),
        "warmup_steps": (1 if options.quick else 2) if options.warmup_steps is None else options.warmup_steps,
    }
    ours = next((contestant for contestant in contestants if contestant.is_ours), None)
    groups = []
    for task in tasks:
        if task in ("pretraining", "inference"):
            chosen = few if task == "inference" else precisions
            for length in lengths:
                jobs = _all_jobs(task, contestants, chosen, length, options)
                groups += [Group(title, part, **repeat) for title, part in _split(f"{task}, S = {length}", jobs)]
        elif ours is not None and task == "breakdown":
            jobs = tuple(
                Job(task, ours.name, precision, length, _examples(options.batch_size, length))
                for length in lengths
                for precision in few
            )
            groups.append(Group("breakdown", jobs, 1, max(repeat["steps"], 2), repeat["warmup_steps"]))
        elif ours is not None:
            times = FINE_TUNING_STEPS if task == "fine_tuning" and not options.quick else 1
            again = {**repeat, "steps": times * repeat["steps"]}
            groups += [
                Group(f"{task}, {name}", _glue_jobs(task, ours, few, name, options), **again) for name in GLUE_TASKS
            ]
    if not groups:
        raise UsageError(f"--tasks {' '.join(tasks)} measure this project's models; add {COMPOSITE} to --contestants")
    return groups


def _check(options: BenchOptions) -> None:
    for name in ("batch_size", "rounds", "steps", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} {value}: give a number of at least 1")
    for name in ("warmup_steps", "dataloader_num_workers"):
        value = getattr(options, name)
        if value is not None and value < 0:
            raise UsageError(f"--{name} {value}: give a number of at least 0")
    for length in options.sequence_lengths:
        if length < 16:
            raise UsageError(f"--sequence_lengths {length}: give lengths of at least 16 tokens")
    if options.peak_tflops is not None and options.peak_tflops <= 0:
        raise UsageError(f"--peak_tflops {options.peak_tflops}: give a number above 0")


def _all_jobs(
    task: TaskName, contestants: list[Contestant], precisions: list[Precision], length: int, options: BenchOptions
) -> tuple[Job, ...]:
    return tuple(
        Job(task, contestant.name, precision, length, _examples(options.batch_size, length))
        for precision in precisions
        for contestant in contestants
    )


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


def _glue_jobs(
    task: TaskName, contestant: Contestant, precisions: list[Precision], glue_task: str, options: BenchOptions
) -> tuple[Job, ...]:
    batches = PREDICTED_BATCHES // (2 if options.quick else 1) if task == "prediction" else 1
    examples = options.batch_size * batches
    return tuple(
        Job(task, contestant.name, precision, BASE_LENGTH, examples, glue_task, padded)
        for precision in precisions
        for padded in (False, True)
    )


def _examples(batch_size: int, length: int) -> int:
    """Examples of a step that has as many slots as ``batch_size`` examples of ``BASE_LENGTH``."""
    return max(1, round(batch_size * BASE_LENGTH / length))
