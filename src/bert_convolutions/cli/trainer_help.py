"""The Trainer's flags that ``--help`` shows: the few in daily use, without the import that reading all of them takes.

A test compares the defaults with those of ``training.arguments``.
"""

from typing import Any, NamedTuple


class CommonFlag(NamedTuple):
    """A Trainer's flag as ``--help`` shows it."""

    name: str
    kind: str
    default: Any
    help: str


COMMON_TRAINER_FLAGS = (
    CommonFlag("output_dir", "DIR", None, "folder for checkpoints and results (required)"),
    CommonFlag("do_train", "true|false", False, "train"),
    CommonFlag("do_eval", "true|false", False, "evaluate"),
    CommonFlag("do_predict", "true|false", False, "predict the test sets (glue)"),
    CommonFlag("per_device_train_batch_size", "INT", 8, "examples a step on each device"),
    CommonFlag("gradient_accumulation_steps", "INT", 1, "batches summed before each update"),
    CommonFlag("max_steps", "INT", -1, "updates in all; -1 leaves it to --num_train_epochs"),
    CommonFlag("num_train_epochs", "FLOAT", 3.0, "passes over the data, without --max_steps"),
    CommonFlag("learning_rate", "FLOAT", 5e-5, "peak learning rate of AdamW, which then decays linearly to 0"),
    CommonFlag("warmup_steps", "FLOAT", 0, "updates of linear warm-up; below 1, a share of all"),
    CommonFlag("adam_epsilon", "FLOAT", 1e-8, "AdamW's epsilon"),
    CommonFlag("weight_decay", "FLOAT", 0.0, "AdamW's weight decay; none for biases and LayerNorm"),
    CommonFlag("max_grad_norm", "FLOAT", 1.0, "gradients are clipped to this norm"),
    CommonFlag("save_steps", "FLOAT", 500, "updates between checkpoints"),
    CommonFlag("save_total_limit", "INT", None, "checkpoints kept; all if not given"),
    CommonFlag("logging_steps", "FLOAT", 100, "updates between logged losses"),
    CommonFlag("eval_strategy", "{no,steps,epoch}", "no", "when to evaluate during training"),
    CommonFlag("eval_steps", "FLOAT", None, "updates between evaluations"),
    CommonFlag("seed", "INT", 42, "seed of weights, dropout, order and masking"),
    CommonFlag("bf16", "true|false", False, "compute in bfloat16; the weights stay float32"),
    CommonFlag("torch_compile", "true|false", False, "compile the model"),
    CommonFlag("resume_from_checkpoint", "true|DIR", None, "go on from the newest valid checkpoint, or from this one"),
    CommonFlag("dataloader_num_workers", "INT", 0, "processes that prepare batches"),
    CommonFlag("report_to", "TEXT", "none", "tensorboard (with pictures of the kernels), wandb or trackio"),
)
