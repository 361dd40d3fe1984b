"""The results as tables for the terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from bert_convolutions.bench.breakdown import PARTS

MEMORY_UNIT = 2**20


def group_table(title: str, entries: Sequence[dict[str, Any]]) -> Group:
    """A row for each job of a group: medians, and medians of the rounds' ratios."""
    if entries[0]["task"] == "breakdown":
        return breakdown_table(entries)
    glue = entries[0]["glue_task"] is not None
    unit = "examples/s" if glue else "real tokens/s"
    to = next((entry["ratios"]["speed"]["to"] for entry in entries if "speed" in entry.get("ratios", {})), None)
    with_dot_product = any("step_time" in entry.get("ratios", {}) for entry in entries)
    with_utilisation = any("model_flops_utilisation" in entry for entry in entries)
    table = _table(title if to is None or glue else f"{title} (baseline: {to})")
    table.add_column("contestant")
    headings = [unit, "ms/step", *(["x padded" if glue else "x baseline"] if to else []), "peak MiB"]
    headings += ["x memory"] if to else []
    headings += ["time x dot product"] if with_dot_product else []
    headings += ["model FLOPs used"] if with_utilisation else []
    for heading in headings:
        table.add_column(heading, justify="right")
    failures = []
    for entry in entries:
        layout = (", padded" if entry["padded"] else ", batched by length") if glue else ""
        name = f"{entry['contestant']} {entry['precision']}{layout}"
        if "medians" not in entry:
            failures.append(Text(f"{name} failed: {entry['failure']}", style="red"))
            continue
        ratios, medians = entry["ratios"], entry["medians"]
        speed = medians["examples_per_second" if glue else "real_tokens_per_second"]
        cells = [f"{speed:,.0f}", f"{medians['ms_per_step']:,.1f}"]
        cells += [_times(ratios.get("speed"))] if to else []
        cells += [f"{entry['peak_memory_bytes'] / MEMORY_UNIT:,.0f}"]
        cells += [_times(ratios.get("memory"))] if to else []
        cells += [_times(ratios.get("step_time"), digits=3)] if with_dot_product else []
        used = entry.get("model_flops_utilisation")
        cells += ["-" if used is None else f"{used:.1%}"] if with_utilisation else []
        table.add_row(name, *cells)
    return Group(table, *failures)


def breakdown_table(entries: Sequence[dict[str, Any]]) -> Group:
    """A row for each part of a training step, a column for each job."""
    measured = [entry for entry in entries if "parts_ms_per_step" in entry]
    contestant = entries[0]["contestant"]
    table = _table(f"breakdown of a training step, {contestant}: ms/step, with the profiler's own cost")
    table.add_column("part")
    for entry in measured:
        table.add_column(f"{entry['precision']}, S = {entry['length']}", justify="right")
    for part in PARTS:
        shares = [(entry["parts_ms_per_step"][part], sum(entry["parts_ms_per_step"].values())) for entry in measured]
        table.add_row(part, *(f"{part_ms:,.1f} {part_ms / whole:6.1%}" for part_ms, whole in shares))
    failures = [
        Text(f"{entry['precision']}, S = {entry['length']} failed: {entry['failure']}", style="red")
        for entry in entries
        if entry["failure"]
    ]
    return Group(table, *failures)


def target_table(targets: Sequence[dict[str, Any]], quick: bool) -> Table:
    """What the project means to reach, and what was."""
    table = _table("targets, composite attention" + (" (--quick: few steps, so rough)" if quick else ""))
    for heading, justify in (("figure", "left"), ("target", "right"), ("reached", "right"), ("", "left")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for target in targets:
        met = Text("yes", style="green") if target["met"] else Text("no", style="red")
        table.add_row(target["figure"], f"{target['bound']} {target['value']:g} x", f"{target['reached']:.3g} x", met)
    return table


def _table(title: str) -> Table:
    return Table(title=f"\n{title}", title_justify="left", title_style="bold", box=None, pad_edge=False)


def _times(ratio: dict[str, Any] | None, digits: int = 2) -> str:
    return "-" if ratio is None else f"{ratio['median']:.{digits}f}"
