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

    tokenizer_name: str = field(metadata={"help": "an spm.model, or the folder of any Hugging Face tokenizer"})
    train_data_file: list[str] = field(
        default_factory=list,
        metadata={"help": "text files (UTF-8, one sentence a line; also .gz, .xz, .zst) or folders of them"},
    )
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "instead of text files: a data set of the Hugging Face hub, read as it comes, or a local parquet, "
            "JSONL or CSV file or a folder of them; a row is a document, its lines are sentences"
        },
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "configuration of --dataset, such as 20231101.en"}
    )
    dataset_split: str = field(default="train", metadata={"help": "split of --dataset"})
    text_column: str = field(default="text", metadata={"help": "column of --dataset with the text"})
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
