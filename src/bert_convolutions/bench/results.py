"""From reports to figures: medians, ratios of each round, what is fastest, and ``results.json``."""

import dataclasses
import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

import torch

from bert_convolutions.bench.contestants import CONTESTANTS
from bert_convolutions.bench.options import BenchOptions
from bert_convolutions.bench.plan import Group, Job
from bert_convolutions.bench.worker import Report
from bert_convolutions.environment import processor

SCHEMA = "bert_convolutions.bench/2"
"""Changes with the meaning of a field; fields may be added without."""
_VERSIONS = ("bert_convolutions", "torch", "transformers", "accelerate", "numpy")


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """The ratios of the rounds, and their median: what disturbs a round disturbs both sides of it."""
    rounds = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(rounds), "rounds": rounds}


def group_results(
    group: Group, reports: Mapping[Job, list[Report]], failures: Mapping[Job, str], peak: float | None
) -> list[dict[str, Any]]:
    """The entries of a group's jobs in ``results.json``.

    Args:
        group: the group.
        reports: of the jobs that were measured in all rounds, in their order.
        failures: why the others were not.
        peak: FLOP/s of the device in bf16, or None.
    """
    entries = []
    for job in (*group.jobs, *group.left_out):
        entry = {"name": job.name, **dataclasses.asdict(job), "description": CONTESTANTS[job.contestant].description}
        entries.append(entry | {"failure": failures.get(job)})
        if job in reports:
            entries[-1] |= _figures(job, reports[job], peak) | {"ratios": _ratios(group, job, reports)}
    return entries


def _figures(job: Job, reports: list[Report], peak: float | None) -> dict[str, Any]:
    median = statistics.median
    figures: dict[str, Any] = {
        "rounds": [
            {"seconds": report.seconds, "steps": report.steps, **dataclasses.asdict(report.work)} for report in reports
        ],
        "medians": {
            "ms_per_step": 1000 * median(_step_seconds(reports)),
            "examples_per_second": median(report.work.examples / report.seconds for report in reports),
            "real_tokens_per_second": median(_speeds(reports)),
        },
        "peak_memory_bytes": max(report.peak_memory for report in reports),
        "memory_before_bytes": reports[0].memory_before,
    }
    if reports[0].forward_seconds is not None:
        forward = [(report.forward_seconds or 0.0) / report.steps for report in reports]
        figures["medians"]["forward_ms_per_step"] = 1000 * median(forward)
    if peak is not None and job.precision == "bf16" and reports[0].work.flops:
        rates = [(report.work.flops or 0.0) / report.seconds for report in reports]
        figures["model_flops_utilisation"] = median(rates) / peak
    return figures


def _speeds(reports: list[Report]) -> list[float]:
    return [report.work.tokens / report.seconds for report in reports]


def _step_seconds(reports: list[Report]) -> list[float]:
    return [report.seconds / report.steps for report in reports]


def _ratios(group: Group, job: Job, reports: Mapping[Job, list[Report]]) -> dict[str, Any]:
    ratios: dict[str, Any] = {}
    baseline, dot_product = job.baseline(group.jobs), job.own_dot_product(group.jobs)
    if baseline is not None and baseline in reports:
        own, theirs = reports[job], reports[baseline]
        memory = max(report.peak_memory for report in own) / max(report.peak_memory for report in theirs)
        ratios["speed"] = {"to": baseline.name, **ratio(_speeds(own), _speeds(theirs))}
        ratios["memory"] = {"to": baseline.name, "median": memory}
    if dot_product is not None and dot_product in reports and CONTESTANTS[job.contestant].is_ours:
        times = ratio(_step_seconds(reports[job]), _step_seconds(reports[dot_product]))
        ratios["step_time"] = {"to": dot_product.name, **times}
    return ratios


def fastest_setting(entries: Sequence[dict[str, Any]]) -> str | None:
    """The flags of the fastest job of the task ``settings``, and its speed; None where none was measured."""
    measured = [entry for entry in entries if entry["task"] == "settings" and "medians" in entry]
    if not measured:
        return None
    best = max(measured, key=lambda entry: entry["medians"]["real_tokens_per_second"])
    flags = f"--per_device_train_batch_size {best['batch_size']} --attn_implementation {best['backend']}"
    flags += " --bf16" if best["precision"] == "bf16" else ""
    return f"{flags}: {best['medians']['real_tokens_per_second']:,.0f} real tokens/s at S = {best['length']}"


def document(options: BenchOptions, entries: list[dict[str, Any]], peak: float | None, complete: bool) -> Any:
    """The content of ``results.json``: the entries of the jobs, whether they are all, and what they depend on."""
    machine = {
        "platform": platform.platform(),
        "cpu": processor(),
        "threads": options.threads or torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: version(name) for name in _VERSIONS},
    }
    return {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "complete": complete,
        "machine": machine,
        "options": dataclasses.asdict(options),
        "peak_tflops": None if peak is None else peak / 1e12,
        "measurements": entries,
    }
