"""The environment of a run: versions, commit and machine, for records and reports; and its processes."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from bert_convolutions import __version__

_PACKAGES = ("torch", "transformers", "numpy", "scipy", "sentencepiece")


def is_first_process() -> bool:
    """Whether this is the first of the processes of a launcher, which speaks for all, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def is_one_of_several() -> bool:
    """Whether a launcher has started several processes, of which this is one."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def environment() -> dict[str, str]:
    """What a result may depend on besides its flags."""
    import torch

    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "versions": f"Python {platform.python_version()}, bert_convolutions {__version__}, {versions}",
        "commit": _commit(),
        "machine": f"{platform.machine()} {platform.system()}, {os.cpu_count()} x {processor()}, {accelerator}",
    }


def machine_facts() -> dict[str, Any]:
    """What speed depends on besides the code."""
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
    """The memory of this process in bytes, or its peak; with CUDA, the memory allocated on the GPU."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would include the parent's memory at the fork
        name = "VmHWM:" if peak else "VmRSS:"
        lines = status.read_text(encoding="ascii", errors="ignore").splitlines()
        found = [int(line.split()[1]) * 1024 for line in lines if line.startswith(name)]
        if found:  # some sandboxes lack the peak
            return found[0]
    import resource  # not on Windows

    peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_rss if sys.platform == "darwin" else peak_rss * 1024


def usable_cores() -> int:
    """The number of cores that this process may run on, which a batch system or ``taskset`` may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _commit() -> str:
    """The last commit of the running code; ``unknown`` if it is not a working tree."""
    command = ["git", "log", "-1", "--format=%H", "--", "."]
    try:
        found = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    except OSError:  # git is not installed
        return "unknown"
    return found.stdout.strip() or "unknown"


def processor() -> str:
    """The processor's model name or, if unknown, its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
