"""Flags of ``bertconv report`` and ``bertconv plot-kernels``. Imports neither PyTorch nor transformers."""

from dataclasses import dataclass, field
from pathlib import Path

from bert_convolutions.flags import flag


@dataclass
class ReportOptions:
    """Which sweep to report on, and where."""

    sweep: Path = field(metadata={"help": "the --output_dir of bertconv sweep; --sweep may be left out", "bare": True})
    output_dir: Path | None = flag(
        None, "folder for the page and what is behind it; default: report in the sweep's folder"
    )
    sentence: str | None = flag(None, "a sentence whose attention is drawn, the sum split into its terms")
    head: int | None = flag(None, "which head's attention of --sentence, from 1; left out, the mean of all")
    text: Path | None = flag(None, "held-out text, a sentence a line, to measure attention on; default: the runs' own")


@dataclass
class PlotKernelsOptions:
    """Which model's kernels to draw."""

    checkpoint: Path = field(
        metadata={"help": "model folder, ours or the original's; --checkpoint may be left out", "bare": True}
    )
    output: Path = flag(Path("kernels.png"), "the PNG, SVG or PDF to write")
