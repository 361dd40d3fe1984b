"""Where a cell is run: versions, commit and machine, as the record of a cell keeps them and the report tells them."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

_PACKAGES = ("bert_convolutions", "torch", "transformers", "numpy", "scipy", "sentencepiece")


def environment() -> dict[str, str]:
    """What a result may depend on beside its flags."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
    return {
        "versions": f"Python {platform.python_version()}, {versions}",
        "commit": _commit(),
        "machine": f"{platform.machine()} {platform.system()}, {_processor()}, {_accelerator()}",
    }


def _commit() -> str:
    """The last commit of the code that runs; unknown where it is installed and no working tree."""
    command = ["git", "log", "-1", "--format=%H", "--", "."]
    try:
        found = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    except OSError:  # there is no git
        return "unknown"
    return found.stdout.strip() or "unknown"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor() or "unknown processor"


def _accelerator() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
