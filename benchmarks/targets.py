"""Compares results of the bench with the project's targets for composite attention, ``bert_small`` on two cores.

    python -m benchmarks.targets bench-output/results.json [...]

Prints a table of the targets that were measured, and exits with 1 if one is missed.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from bert_convolutions.bench.plan import COMPOSITE
from bert_convolutions.terminal import make_console


@dataclass(frozen=True)
class Target:
    """A target for composite attention, on two cores with ``bert_small``.

    Attributes:
        figure: description of the figure.
        ratio: the ratio of a measurement that is compared.
        bound: whether the ratio should be ``at least`` or ``at most`` the value.
        value: target of the ratio.
        setting: fields that identify the measurement.
    """

    figure: str
    ratio: Literal["speed", "memory", "step_time"]
    bound: Literal["at least", "at most"]
    value: float
    setting: dict[str, Any]


GLUE_TASKS = ("RTE", "CoLA")
BOTH = "RTE and CoLA"
"""In a target's setting: equally many examples of both tasks."""


def _pretraining(precision: str, length: int = 128) -> dict[str, Any]:
    return {"task": "pretraining", "precision": precision, "length": length}


def _glue(task: str, glue_task: str) -> dict[str, Any]:
    return {"task": task, "glue_task": glue_task, "padded": False, "precision": "float32"}


TARGETS = (
    Target("pre-training, tokens/s against float32 ELECTRA", "speed", "at least", 4.5, _pretraining("float32")),
    Target("the same with bf16 against float32 ELECTRA", "speed", "at least", 8.0, _pretraining("bf16")),
    Target("step time against our dot product, S = 128", "step_time", "at most", 1.05, _pretraining("float32")),
    Target("the same with bf16", "step_time", "at most", 1.05, _pretraining("bf16")),
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
    """The targets that were measured, each with the value reached."""
    results = []
    entries = [*entries, *_both_tasks(entries)]
    for target in TARGETS:
        wanted = {"contestant": COMPOSITE, **target.setting}
        for entry in entries:
            reached = entry.get("ratios", {}).get(target.ratio, {}).get("median")
            if reached is None or any(entry.get(name) != value for name, value in wanted.items()):
                continue
            met = reached >= target.value if target.bound == "at least" else reached <= target.value
            results.append(
                {"figure": target.figure, "bound": target.bound, "value": target.value, "reached": reached, "met": met}
            )
    return results


def _both_tasks(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each entry of RTE, an entry for equally many examples of RTE and CoLA, computed from their medians."""
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


def main() -> int:
    """Print a table; the exit code says whether all targets that were measured are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="results.json of bertconv bench")
    entries = [
        entry
        for path in parser.parse_args().results
        for entry in json.loads(path.read_text(encoding="utf-8"))["measurements"]
    ]
    results = target_results(entries)
    table = Table(title="Targets, composite attention", title_justify="left", box=None, pad_edge=False)
    for heading in ("figure", "target", "reached", ""):
        table.add_column(heading, justify="right" if heading in ("target", "reached") else "left")
    for result in results:
        met = Text("yes", style="green") if result["met"] else Text("no", style="red")
        table.add_row(result["figure"], f"{result['bound']} {result['value']:g} x", f"{result['reached']:.3g} x", met)
    make_console().print(table)
    return 0 if results and all(result["met"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
