"""From reports to figures: medians, ratios of each round, what is fastest, and ``results.json``."""

import dataclasses
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

import torch

import bert_convolutions
from bert_convolutions.bench.contestants import CONTESTANTS
from bert_convolutions.bench.options import BenchOptions
from bert_convolutions.bench.plan import Group, Job
from bert_convolutions.bench.turns import Report
from bert_convolutions.environment import processor

SCHEMA = "bert_convolutions.bench/2"
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
        """Of each round, real tokens/s."""
        return [report.work.tokens / report.seconds for report in self.reports]

    @property
    def step_seconds(self) -> list[float]:
        """Of each round, seconds of a step."""
        return [report.seconds / report.steps for report in self.reports]

    @property
    def peak_memory(self) -> int:
        """Bytes."""
        return max(report.peak_memory for report in self.reports)


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
        "name": own.job.name,
        **dataclasses.asdict(own.job),
        "description": CONTESTANTS[own.job.contestant].description,
        "failure": own.failure,
    }
    if not own.reports:
        return entry
    entry["rounds"] = [
        {"seconds": report.seconds, "steps": report.steps, **dataclasses.asdict(report.work)} for report in own.reports
    ]
    entry["medians"] = {
        "ms_per_step": 1000 * statistics.median(own.step_seconds),
        "examples_per_second": statistics.median(report.work.examples / report.seconds for report in own.reports),
        "real_tokens_per_second": statistics.median(own.speeds),
    }
    entry["peak_memory_bytes"] = own.peak_memory
    entry["memory_before_bytes"] = own.reports[0].memory_before
    entry["ratios"] = _ratios(group, own, measured)
    if peak is not None and own.job.precision == "bf16" and own.reports[0].work.flops:
        rates = [(report.work.flops or 0.0) / report.seconds for report in own.reports]
        entry["model_flops_utilisation"] = statistics.median(rates) / peak
    return entry


def _ratios(group: Group, own: Measurement, measured: dict[Job, Measurement]) -> dict[str, Any]:
    ratios: dict[str, Any] = {}
    baseline = own.job.baseline(group.jobs)
    if baseline in measured:
        other = measured[baseline]
        ratios["speed"] = {"to": other.job.name, **ratio(own.speeds, other.speeds)}
        ratios["memory"] = {"to": other.job.name, "median": own.peak_memory / other.peak_memory}
    dot_product = own.job.own_dot_product(group.jobs)
    if dot_product in measured and CONTESTANTS[own.job.contestant].is_ours:
        other = measured[dot_product]
        ratios["step_time"] = {"to": other.job.name, **ratio(own.step_seconds, other.step_seconds)}
    return ratios


def fastest_setting(entries: Sequence[dict[str, Any]]) -> str | None:
    """The flags of the fastest job of the task ``settings``, and its speed; None where none was measured."""
    measured = [entry for entry in entries if entry["task"] == "settings" and "medians" in entry]
    if not measured:
        return None
    best = max(measured, key=lambda entry: entry["medians"]["real_tokens_per_second"])
    flags = f"--per_device_train_batch_size {best['batch_size']} --attn_implementation {best['backend']}"
    flags += " --bf16" if best["precision"] == "bf16" else ""
    speed = f"{best['medians']['real_tokens_per_second']:,.0f} real tokens/s"
    return f"{flags}: {speed} at S = {best['length']}"


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    has_gpu = torch.cuda.is_available()
    return {
        "platform": platform.platform(),
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if has_gpu else None,
        "python": platform.python_version(),
        "bert_convolutions": bert_convolutions.__version__,
        **{name: version(name) for name in ("torch", "transformers", "accelerate", "numpy")},
    }


def document(options: BenchOptions, entries: list[dict[str, Any]], peak: float | None, complete: bool) -> Any:
    """The content of ``results.json``: the entries of the jobs, whether they are all, and what they depend on."""
    facts = machine()
    if options.threads is not None:
        facts["threads"] = options.threads
    return {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "complete": complete,
        "machine": facts,
        "options": dataclasses.asdict(options),
        "peak_tflops": None if peak is None else peak / 1e12,
        "measurements": entries,
    }
