"""The flags of ``bertconv demo`` and its sizes. Imports neither PyTorch nor transformers."""

from dataclasses import dataclass

from bert_convolutions.flags import Options, flag


@dataclass
class DemoOptions(Options):
    """The output folder and the size of the demo."""

    output_dir: str = flag("demo-output", "folder for all files of the demo; run again, it continues there")
    seed: int = flag(42, "seed of all random choices")
    quick: bool = flag(
        False, "a few steps on a few speeches, to check in about a minute that everything works; learns nothing"
    )
    overwrite_output_dir: bool = flag(False, "delete the files of an earlier demo in the folder and start anew")


BLOCK_SIZE = 64
"""Maximum length of an example in tokens, in pre-training and fine-tuning."""
GLUE_LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Scale:
    """The sizes of a demo; ``batch_size`` applies to pre-training and fine-tuning."""

    every: int
    """One in this many speeches is used."""
    vocab_size: int
    model: dict[str, int | float]
    """Fields of the models' configuration."""
    steps: int
    """Pre-training steps of each model."""
    batch_size: int
    learning_rate: float
    eval_speeches: int
    """Number of held-out speeches for the evaluation loss."""
    glue_train: int
    """Training examples per GLUE task."""
    glue_eval: int
    """Examples per development and test file."""
    glue_steps: dict[str, int]
    """Fine-tuning steps by task; ``default`` for the others."""


FULL = Scale(
    every=1,
    vocab_size=4000,
    model={
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "embedding_size": 128,
        "max_position_embeddings": BLOCK_SIZE,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    steps=600,
    batch_size=32,
    learning_rate=1.5e-3,
    eval_speeches=8,
    glue_train=4000,
    glue_eval=500,
    glue_steps={"default": 150, "MNLI": 200, "QQP": 200, "WNLI": 30},
)

QUICK = Scale(
    every=6,
    vocab_size=1000,
    model={**FULL.model, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "embedding_size": 16},
    steps=6,
    batch_size=4,
    learning_rate=1e-3,
    eval_speeches=1,
    glue_train=100,
    glue_eval=20,
    glue_steps={"default": 2},
)
