"""Flags of ``bertconv train-tokenizer`` and ``bertconv build-dataset``. Imports neither PyTorch nor transformers."""

from dataclasses import dataclass, field
from typing import Literal

from bert_convolutions.flags import Options, flag


@dataclass
class TrainTokenizerOptions(Options):
    """The text to learn a SentencePiece vocabulary from, and its size."""

    input: list[str] = field(
        metadata={"help": "text files (UTF-8, one sentence per line; also .gz, .bz2, .xz, .zst) or folders of them"}
    )
    output_dir: str = field(metadata={"help": "folder for spm.model and tokenizer_config.json"})
    vocab_size: int = flag(30_000, "pieces to learn; four special tokens are added")
    input_sentence_size: int = flag(
        10_000_000, "maximum number of lines to learn from, drawn uniformly from all; memory grows with it"
    )
    seed: int = flag(42, "seed for drawing the lines")
    overwrite_output_dir: bool = flag(False, "replace a tokenizer that is already there")


@dataclass
class BuildDatasetOptions(Options):
    """The text to turn into shuffled sentence pairs ``[CLS] a [SEP] b [SEP]``, and where to write them."""

    tokenizer_name: str = field(metadata={"help": "an spm.model, or the folder of any Hugging Face tokenizer"})
    train_data_file: list[str] = flag(
        [], "text files (UTF-8, one sentence per line; also .gz, .bz2, .xz, .zst) or folders of them"
    )
    dataset: str | None = flag(
        None,
        "instead of text files: a dataset of the Hugging Face Hub, which is streamed, or a local parquet, "
        "JSONL or CSV file or a folder of them; a row is a document, its lines are sentences",
    )
    dataset_config: str | None = flag(None, "configuration of --dataset, such as 20231101.en")
    dataset_split: str = flag("train", "split of --dataset")
    text_column: str = flag("text", "column of --dataset with the text")
    output_dir: str | None = flag(None, "folder for the Arrow shards and manifest.json")
    output_format: Literal["arrow", "ids"] = flag(
        "arrow", "arrow: shards in --output_dir; ids: the original's text file, --output_file"
    )
    output_file: str | None = flag(
        None, "with --output_format ids: one example per line, ids separated by single spaces"
    )
    seed: int = flag(42, "seed of the shuffle, which is uniform over the whole corpus")
    num_proc: int | None = flag(None, "processes; changes only the speed. Default: one per core, at most 8")
    pair_within_documents: bool = flag(False, "a blank line ends a document; pair no sentences across it")
    split_sentences: bool = flag(False, "split each line, a paragraph or document, into sentences (sentencex)")
    language: str = flag("en", "language code for --split_sentences")
    shard_size_mb: int = flag(32, "approximate size of an Arrow shard in MiB")
    overwrite_output_dir: bool = flag(False, "replace a dataset built from other text or with other settings")
