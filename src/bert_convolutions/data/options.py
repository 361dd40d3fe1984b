"""Flags of ``bertconv train-tokenizer`` and ``bertconv build-dataset``. Imports neither torch nor transformers."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class TrainTokenizerOptions:
    """Which text to learn a SentencePiece vocabulary from, and how large."""

    input: list[str] = field(
        metadata={"help": "text files (UTF-8, one sentence a line; also .gz, .xz, .zst) or folders of them"}
    )
    output_dir: str = field(metadata={"help": "folder for spm.model and tokenizer_config.json"})
    vocab_size: int = field(default=30_000, metadata={"help": "pieces to learn; four special tokens are added to them"})
    input_sentence_size: int = field(
        default=10_000_000,
        metadata={"help": "lines to learn from at most, drawn uniformly from all; memory grows with it"},
    )
    seed: int = field(default=42, metadata={"help": "seed of the draw of lines"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "replace a tokenizer that is already there"})


@dataclass
class BuildDatasetOptions:
    """Which text to turn into shuffled sentence pairs ``[CLS] a [SEP] b [SEP]``, and where to write them."""

    train_data_file: list[str] = field(
        metadata={"help": "text files (UTF-8, one sentence a line; also .gz, .xz, .zst) or folders of them"}
    )
    tokenizer_name: str = field(metadata={"help": "an spm.model, or the folder of any Hugging Face tokenizer"})
    output_dir: str | None = field(default=None, metadata={"help": "folder for the Arrow shards and manifest.json"})
    output_format: Literal["arrow", "ids"] = field(
        default="arrow",
        metadata={"help": "arrow: shards in --output_dir; ids: the original's text file, --output_file"},
    )
    output_file: str | None = field(
        default=None, metadata={"help": "with --output_format ids: one example a line, ids separated by single spaces"}
    )
    seed: int = field(default=42, metadata={"help": "seed of the shuffle, which is uniform over the whole corpus"})
    num_proc: int | None = field(
        default=None, metadata={"help": "processes; changes the speed only. Default: one a core, at most 8"}
    )
    pair_within_documents: bool = field(
        default=False, metadata={"help": "pair no sentences across a blank line, the border between two documents"}
    )
    split_sentences: bool = field(
        default=False, metadata={"help": "the lines are paragraphs or documents: cut each into sentences (sentencex)"}
    )
    language: str = field(default="en", metadata={"help": "language code for --split_sentences"})
    shard_size_mb: int = field(default=32, metadata={"help": "size of an Arrow shard in MiB, nearly"})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "replace a dataset built from other text or with other settings"}
    )
