"""The flags of ``bertconv pretrain`` besides the Trainer's. Imports neither PyTorch nor transformers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bert_convolutions.flags import Options, flag

ARCHITECTURE_FLAGS = (
    "attention_kernel",
    "value_forward",
    "qk",
    "remove_qk",
    "remove_position_embeddings",
    "num_attention_heads",
    "attention_head_size",
    "num_hidden_layers",
)
"""Flags that override ``--config_name``; each is named like a field of ``CompositeBertConfig``."""


@dataclass
class PretrainOptions(Options):
    """What ``bertconv pretrain`` trains and on which text. Each field is the flag of its name."""

    tokenizer_name: str | None = flag(
        None, "path of an spm.model or of a tokenizer directory; default: that of --model_name_or_path"
    )
    config_name: str | None = flag(None, "architecture: bert_small, bert_base, or the path of a config.json")
    model_name_or_path: str | None = flag(
        None, "start from the weights of this folder or name on the Hugging Face Hub, with a new schedule"
    )
    model_type: Literal["bert", "composite_bert"] = flag(
        "bert", "accepted for the original's commands; both mean composite_bert"
    )

    train_data_file: list[str] = flag(
        [], "plain text (--line_by_line), an ids file (--train_iterable) or a build-dataset folder"
    )
    line_by_line: bool = flag(False, "the data are plain text, one sentence per line; consecutive sentences are paired")
    train_iterable: bool = flag(False, "the training data are an ids file, one example of token ids per line")
    eval_data_file: list[str] = flag([], "evaluation data, in any of the forms of --train_data_file")
    eval_fraction: float = flag(0.0, "fraction of the training data to hold out for evaluation, by document")
    split_sentences: bool = flag(False, "split the lines of plain text into sentences first")
    pair_within_documents: bool = flag(False, "a blank line ends a document; pair no sentences across it")
    data_cache_dir: Path | None = flag(None, "where to keep examples built from plain text; default: beside the text")
    language: str = flag("en", "language code for --split_sentences")
    num_proc: int | None = flag(None, "processes that build examples from plain text; default: one per core, up to 8")

    mlm: bool = flag(True, "train as a masked language model; the only objective there is")
    mlm_probability: float = flag(0.15, "fraction of the tokens to predict")
    use_sop_head: bool = flag(False, "also learn whether the two sentences of a pair were swapped")
    block_size: int = flag(128, "maximum length of an example in tokens; longer ones are truncated")
    pack: bool = flag(True, "pack several examples into a row; changes the speed but no result")

    attention_kernel: str | None = flag(None, "attention scores, such as 'qk_convfixed_convq_convk 8', or dot_product")
    value_forward: str | None = flag(
        None, "value projection, such as 'convolution_depth_mixed_no_act 8 1' or feedforward"
    )
    qk: str | None = flag(None, "query and key projections, in the forms of --value_forward, or linear")
    remove_qk: bool = flag(False, "no query and key projections: use the hidden states")
    remove_position_embeddings: bool = flag(False, "no absolute position embeddings")
    num_attention_heads: int | None = flag(None, "attention heads per layer")
    attention_head_size: int | None = flag(None, "dimension of a head; -1 is the hidden size divided by the heads")
    num_hidden_layers: int | None = flag(None, "layers of the encoder")
    attn_implementation: str | None = flag(
        None, "attention backend, such as sdpa or eager; changes the speed but no result"
    )

    train_minutes: float | None = flag(
        None,
        "train for about this long: a few steps of a copy are timed to choose the number of steps, in place of "
        "--max_steps; evaluating and saving take extra time",
    )
    save_at_words: list[str] = flag(
        [], "save the model as chck_1M and so on after these numbers of words, such as 1M 2M 5M 10M"
    )
    overwrite_output_dir: bool = flag(False, "start anew in a folder that holds a run; deletes its checkpoints")
    save_every_minutes: float | None = flag(
        None, "also save a checkpoint when this much time has passed since the last one"
    )
