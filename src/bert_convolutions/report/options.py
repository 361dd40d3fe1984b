"""Flags of ``bertconv report`` and ``bertconv plot-kernels``. Imports neither PyTorch nor transformers."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class ReportOptions:
    """Which sweep to report on, and where."""

    sweep: Path = field(metadata={"help": "the --output_dir of bertconv sweep; --sweep may be left out", "bare": True})
    output_dir: Path | None = field(
        default=None, metadata={"help": "folder for report.html, PNG and CSV; default: report in the sweep's folder"}
    )


@dataclass
class PlotKernelsOptions:
    """Which model's kernels to draw."""

    checkpoint: Path = field(
        metadata={"help": "model folder, ours or the original's; --checkpoint may be left out", "bare": True}
    )
    output: Path = field(default=Path("kernels.png"), metadata={"help": "the PNG to write"})
