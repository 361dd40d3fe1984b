"""Flags of ``bertconv report`` and ``bertconv plot-kernels``. Imports neither PyTorch nor transformers."""

from dataclasses import dataclass, field
from pathlib import Path

from bert_convolutions.flags import Options, flag


@dataclass
class ReportOptions(Options):
    """The sweep to report on and the output folder."""

    sweep: Path = field(metadata={"help": "the --output_dir of bertconv sweep; --sweep may be omitted", "bare": True})
    output_dir: Path | None = flag(
        None, "folder for the page, figures and tables; default: report in the sweep's folder"
    )
    sentence: str | None = flag(None, "a sentence whose attention scores are drawn, term by term")
    head: int | None = flag(None, "head to draw for --sentence, from 1; default: the mean of all")
    text: Path | None = flag(None, "held-out text to measure attention on, a sentence per line; default: the runs' own")


@dataclass
class PlotKernelsOptions(Options):
    """The model whose kernels are drawn and the output file."""

    checkpoint: Path = field(
        metadata={"help": "model folder, ours or the original's; --checkpoint may be omitted", "bare": True}
    )
    output: Path = flag(Path("kernels.png"), "PNG, SVG or PDF file to write")
