"""``bertconv doctor``: shows versions, devices, disks and missing optional packages."""

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from bert_convolutions.environment import processor, usable_cores
from bert_convolutions.errors import EXTRAS, CommandError, install_command
from bert_convolutions.flags import flag
from bert_convolutions.terminal import make_console

PACKAGE = "bert_convolutions"
_MIN_FREE_BYTES = 2 << 30
"""Bytes that a checkpoint of a base-sized model with its optimizer state needs on disk."""


@dataclass
class DoctorOptions:  # no Options: the command runs where pydantic is missing, too
    """The folder that a run would write to."""

    output_dir: Path = flag(Path(), "folder that runs would be written to; its disk is checked")


def run_doctor(options: DoctorOptions) -> None:
    """Print the state of the installation and the machine as tables.

    Raises:
        CommandError: there is a problem that affects every sub-command; says what to try.
    """
    import torch

    faults = list(_unmet_requirements())
    console = make_console()
    for title, rows in (
        ("Versions", _versions()),
        ("Devices", _devices(torch)),
        ("Disk", list(_disks(options.output_dir, faults))),
        ("Optional packages", list(_extras())),
    ):
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
        for name, value in rows:
            table.add_row(Text(name), Text(value))
        console.print(table)
        console.print()
    if faults:
        raise CommandError("error: " + ". ".join(faults))
    console.print("Nothing is wrong. A first run: bertconv demo --quick")


def _versions() -> list[tuple[str, str]]:
    names = [PACKAGE, "torch", "transformers", "tokenizers", "accelerate", "numpy", "pyarrow", "sentencepiece"]
    python = ("python", f"{platform.python_version()}, {platform.platform()}")
    return [python, *((name, _version(name) or "missing") for name in names)]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _unmet_requirements() -> Iterator[str]:
    """One sentence per missing or unsuitable requirement, with what to try."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:  # run from its sources without being installed
        lines = []
    for requirement in map(Requirement, lines):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = _version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            wanted = f"{requirement.name}{requirement.specifier}"
            yield f"{requirement.name} is {found or 'missing'} where {wanted} is needed; try: pip install '{wanted}'"


def _devices(torch: Any) -> list[tuple[str, str]]:
    from bert_convolutions.cpu import cpu_has_bf16

    threads = f"{torch.get_num_threads()} of {usable_cores()} usable cores"
    if "OMP_NUM_THREADS" in os.environ:
        threads += f" (OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']})"
    rows = [
        ("CPU", processor()),
        ("threads", threads),
        ("bf16 on the CPU", "yes: --bf16" if cpu_has_bf16() else "no instructions for it: train in float32"),
    ]
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        bf16 = "bf16" if properties.major >= 8 else "no bf16"
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        rows.append((f"GPU {number}", f"{properties.name}, {memory}, {bf16}, sm_{properties.major}{properties.minor}"))
    if not torch.cuda.is_available():
        other = torch.accelerator.current_accelerator(check_available=True)
        built = "none found" if torch.version.cuda else "none: this torch is built for the CPU"
        rows.append(("GPU", f"{other.type}, used by pretrain and glue; not tested" if other else built))
    return rows


def _disks(output_dir: Path, faults: list[str]) -> Iterator[tuple[str, str]]:
    """Free space for runs and temporary files; adds to ``faults`` if it is too little or not writable."""
    for name, folder in (("output", output_dir), ("temporary files", Path(tempfile.gettempdir()))):
        existing = folder.absolute()
        while not existing.exists():
            existing = existing.parent
        free = shutil.disk_usage(existing).free
        yield name, f"{free / 2**30:.1f} GiB free in {existing}"
        if free < _MIN_FREE_BYTES:
            faults.append(f"{existing} has {free / 2**30:.1f} GiB left; try: df -h, and another --output_dir")
        if not os.access(existing, os.W_OK):
            faults.append(f"{existing} can't be written; try: bertconv doctor --output_dir ANOTHER")


def _extras() -> Iterator[tuple[str, str]]:
    for module, extra in EXTRAS.items():
        found = _version(module)
        yield module, found or f"missing, needed for {extra.needed_for}: {install_command(module)}"
