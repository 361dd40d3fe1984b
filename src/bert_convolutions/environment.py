"""Where something is run: versions, commit and machine, as records and reports tell them."""

import os
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from bert_convolutions import __version__

_PACKAGES = ("torch", "transformers", "numpy", "scipy", "sentencepiece")


def environment() -> dict[str, str]:
    """What a result may depend on beside its flags."""
    import torch

    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "versions": f"Python {platform.python_version()}, bert_convolutions {__version__}, {versions}",
        "commit": _commit(),
        "machine": f"{platform.machine()} {platform.system()}, {os.cpu_count()} x {processor()}, {accelerator}",
    }


def machine_facts() -> dict[str, Any]:
    """What speed depends on beside the code, each under its own name."""
    import torch

    return {
        "platform": platform.platform(),
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "bert_convolutions": __version__,
        **{name: metadata.version(name) for name in (*_PACKAGES[:3], "accelerate")},
    }


def memory_held(peak: bool) -> int:
    """Bytes that this process holds, or the most it has held at once; on CUDA those allocated there."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent held when it started this process
        name = "VmHWM:" if peak else "VmRSS:"
        lines = status.read_text(encoding="ascii", errors="ignore").splitlines()
        found = [int(line.split()[1]) * 1024 for line in lines if line.startswith(name)]
        if found:  # not all sandboxes tell the peak
            return found[0]
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def usable_cores() -> int:
    """The cores that this process may run on, which a batch system or ``taskset`` may have cut down."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _commit() -> str:
    """The last commit of the code that runs; unknown where it is installed and no working tree."""
    command = ["git", "log", "-1", "--format=%H", "--", "."]
    try:
        found = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    except OSError:  # there is no git
        return "unknown"
    return found.stdout.strip() or "unknown"


def processor() -> str:
    """The processor's name, or else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
