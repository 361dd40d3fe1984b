"""From reports to figures: medians, ratios of each round, the targets, and ``results.json``."""

import dataclasses
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

import bert_convolutions
from bert_convolutions.bench.contestants import COMPOSITE, CONTESTANTS
from bert_convolutions.bench.flops import peak_flops
from bert_convolutions.bench.options import BenchOptions
from bert_convolutions.bench.plan import GLUE_TASKS, Group, Job
from bert_convolutions.bench.turns import Report

SCHEMA = "bert_convolutions.bench/1"
"""Changes with the meaning of a field; fields may be added without."""


@dataclass
class Measurement:
    """A job and its turns.

    Attributes:
        job: what was measured.
        reports: of the rounds, in order.
        failure: why it was not, or None.
    """

    job: Job
    reports: list[Report] = field(default_factory=list)
    failure: str | None = None

    @property
    def speeds(self) -> list[float]:
        """Of each round: examples/s for GLUE's tasks, real tokens/s for the others."""
        if self.job.glue_task:
            return [report.work.examples / report.seconds for report in self.reports]
        return [report.work.tokens / report.seconds for report in self.reports]

    @property
    def step_seconds(self) -> list[float]:
        """Of each round, seconds of a step."""
        return [report.seconds / report.steps for report in self.reports]

    @property
    def peak_memory(self) -> int:
        """Bytes."""
        return max(report.peak_memory for report in self.reports)


def name_of(job: Job) -> str:
    """A job's name within its group."""
    layout = f", padded to {job.length}" if job.padded else ", batched by length" if job.glue_task else ""
    return f"{job.contestant} {job.precision}{layout}"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """The ratios of the rounds, and their median: what disturbs a round disturbs both sides of it."""
    rounds = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(rounds), "rounds": rounds}


def group_results(group: Group, measurements: list[Measurement], peak: float | None) -> list[dict[str, Any]]:
    """The entries of a group's jobs in ``results.json``.

    Args:
        group: the group.
        measurements: of its jobs.
        peak: FLOP/s of the device in bf16, or None.
    """
    measured = {measurement.job: measurement for measurement in measurements if measurement.reports}
    return [_entry(group, measurement, measured, peak) for measurement in measurements]


def _entry(group: Group, own: Measurement, measured: dict[Job, Measurement], peak: float | None) -> dict[str, Any]:
    entry: dict[str, Any] = {
        **dataclasses.asdict(own.job),
        "description": CONTESTANTS[own.job.contestant].description,
        "failure": own.failure,
    }
    if not own.reports:
        return entry
    entry["rounds"] = [
        {"seconds": report.seconds, "steps": report.steps, **dataclasses.asdict(report.work)} for report in own.reports
    ]
    speed_name = "examples_per_second" if own.job.glue_task else "real_tokens_per_second"
    entry["medians"] = {
        "ms_per_step": 1000 * statistics.median(own.step_seconds),
        speed_name: statistics.median(own.speeds),
    }
    entry["peak_memory_bytes"] = own.peak_memory
    entry["memory_before_bytes"] = own.reports[0].memory_before
    entry["ratios"] = _ratios(group, own, measured)
    if peak is not None and own.job.precision == "bf16" and own.reports[0].work.flops:
        rates = [(report.work.flops or 0.0) / report.seconds for report in own.reports]
        entry["model_flops_utilisation"] = statistics.median(rates) / peak
    if own.reports[0].parts:
        entry["parts_ms_per_step"] = _parts(own.reports)
    return entry


def _ratios(group: Group, own: Measurement, measured: dict[Job, Measurement]) -> dict[str, Any]:
    ratios: dict[str, Any] = {}
    baseline = own.job.baseline(group.jobs)
    if baseline in measured:
        other = measured[baseline]
        ratios["speed"] = {"to": name_of(other.job), **ratio(own.speeds, other.speeds)}
        ratios["memory"] = {"to": name_of(other.job), "median": own.peak_memory / other.peak_memory}
    dot_product = own.job.own_dot_product(group.jobs)
    if dot_product in measured and CONTESTANTS[own.job.contestant].is_ours:
        other = measured[dot_product]
        ratios["step_time"] = {"to": name_of(other.job), **ratio(own.step_seconds, other.step_seconds)}
    return ratios


def _parts(reports: list[Report]) -> dict[str, float]:
    """Milliseconds of each part of a step; what no part has claimed goes to the last, "other"."""
    steps = sum(report.steps for report in reports)
    parts = {
        name: 1000 * sum(report.parts[name] for report in reports) / steps
        for name in reports[0].parts
        if name != "other"
    }
    whole = 1000 * sum(report.seconds for report in reports) / steps
    return {**parts, "other": max(0.0, whole - sum(parts.values()))}


@dataclass(frozen=True)
class Target:
    """A figure of composite attention that the project means to reach, on two cores with ``bert_small``.

    Attributes:
        figure: what it is.
        ratio: which of an entry's ratios.
        bound: whether the ratio is to be ``at least`` or ``at most`` the value.
        value: of the ratio.
        setting: fields of the entry.
    """

    figure: str
    ratio: Literal["speed", "memory", "step_time"]
    bound: Literal["at least", "at most"]
    value: float
    setting: dict[str, Any]


BOTH = "RTE and CoLA"
"""Stands in a target's setting for as many examples of the one task as of the other."""


def _pretraining(precision: str, length: int = 128) -> dict[str, Any]:
    return {"task": "pretraining", "precision": precision, "length": length}


def _glue(task: str, glue_task: str) -> dict[str, Any]:
    return {"task": task, "glue_task": glue_task, "padded": False, "precision": "float32"}


TARGETS = (
    Target("pre-training, tokens/s against float32 ELECTRA", "speed", "at least", 3.3, _pretraining("float32")),
    Target("the same with bf16 against float32 ELECTRA", "speed", "at least", 5.5, _pretraining("bf16")),
    Target("step time against our dot product, S = 128", "step_time", "at most", 1.07, _pretraining("float32")),
    Target("step time against our dot product, S = 512", "step_time", "at most", 1.07, _pretraining("float32", 512)),
    Target("peak memory against ELECTRA", "memory", "at most", 0.6, _pretraining("float32")),
    Target("fine-tuning, against padding to 128, RTE", "speed", "at least", 2.0, _glue("fine_tuning", "RTE")),
    Target("fine-tuning, against padding to 128, CoLA", "speed", "at least", 2.0, _glue("fine_tuning", "CoLA")),
    Target("fine-tuning, as many examples of each", "speed", "at least", 2.0, _glue("fine_tuning", BOTH)),
    Target("prediction, against padding to 128, RTE", "speed", "at least", 3.0, _glue("prediction", "RTE")),
    Target("prediction, against padding to 128, CoLA", "speed", "at least", 3.0, _glue("prediction", "CoLA")),
    Target("prediction, as many examples of each", "speed", "at least", 3.0, _glue("prediction", BOTH)),
)


def target_results(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The targets that were measured, each with what was reached."""
    results = []
    entries = [*entries, *_both_tasks(entries)]
    for target in TARGETS:
        wanted = {"contestant": COMPOSITE, **target.setting}
        for entry in entries:
            reached = entry.get("ratios", {}).get(target.ratio, {}).get("median")
            if reached is None or any(entry[name] != value for name, value in wanted.items()):
                continue
            met = reached >= target.value if target.bound == "at least" else reached <= target.value
            results.append(
                {"figure": target.figure, "bound": target.bound, "value": target.value, "reached": reached, "met": met}
            )
    return results


def _both_tasks(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An entry for as many examples of RTE as of CoLA, by the medians of the two, for each entry of RTE."""
    by_setting = {
        tuple(entry[name] for name in ("task", "glue_task", "contestant", "precision", "padded")): entry
        for entry in entries
        if entry["task"] in ("fine_tuning", "prediction") and "medians" in entry
    }

    def seconds(task: str, contestant: str, precision: str, padded: bool) -> float | None:
        found = [by_setting.get((task, name, contestant, precision, padded)) for name in GLUE_TASKS]
        return sum(1 / entry["medians"]["examples_per_second"] for entry in found if entry) if all(found) else None

    joint = []
    for (task, glue_task, contestant, precision, padded), entry in by_setting.items():
        own, baseline = (seconds(task, contestant, precision, layout) for layout in (padded, True))
        if glue_task == GLUE_TASKS[0] and own and baseline:
            joint.append({**entry, "glue_task": BOTH, "ratios": {"speed": {"median": baseline / own}}})
    return joint


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    has_gpu = torch.cuda.is_available()
    return {
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if has_gpu else None,
        "python": platform.python_version(),
        "bert_convolutions": bert_convolutions.__version__,
        **{name: version(name) for name in ("torch", "transformers", "accelerate", "numpy")},
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def device_peak(options: BenchOptions) -> float | None:
    """Dense bf16 FLOP/s of the GPU in use; None on a CPU, or where it is not known."""
    return peak_flops(torch.cuda.get_device_name(), options.peak_tflops) if torch.cuda.is_available() else None


def document(
    options: BenchOptions, entries: list[dict[str, Any]], peak: float | None, complete: bool
) -> dict[str, Any]:
    """The content of ``results.json``.

    Args:
        options: of the bench.
        entries: of its jobs.
        peak: FLOP/s that utilisations are of, or None.
        complete: whether all groups have been measured.
    """
    facts = machine()
    if options.threads is not None:
        facts["threads"] = options.threads
    is_aimed_at = options.config_name == "bert_small" and facts["gpu"] is None
    return {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "complete": complete,
        "machine": facts,
        "options": dataclasses.asdict(options),
        "peak_tflops": None if peak is None else peak / 1e12,
        "targets": target_results(entries) if is_aimed_at else [],
        "measurements": entries,
    }
