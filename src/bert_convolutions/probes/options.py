"""Flags of ``bertconv minimal-pairs`` and ``bertconv local-order``. Imports neither PyTorch nor transformers."""

from dataclasses import dataclass, field
from pathlib import Path

from bert_convolutions.errors import UsageError
from bert_convolutions.flags import Options, flag


@dataclass(kw_only=True)
class ProbeOptions(Options):
    """The flags of both probes."""

    model_name_or_path: str = field(
        metadata={"help": "a masked language model, ours or another of transformers: a folder, or a name on the Hub"}
    )
    output_dir: Path = field(metadata={"help": "folder for the table (CSV) and the results (JSON)"})
    tokenizer_name: str | None = flag(None, "an spm.model or a tokenizer folder; default: the model's")
    pairs: int | None = flag(None, "pairs per paradigm or distance; default: all, or 500 if they are made from text")
    batch_tokens: int = flag(2048, "tokens per batch; changes only the speed")
    overwrite_output_dir: bool = flag(False, "replace results of another model or data")

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        super().__post_init__()
        for name in ("pairs", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} {value} is less than 1")


@dataclass(kw_only=True)
class MinimalPairsOptions(ProbeOptions):
    """The model and the pairs of an acceptable and an unacceptable sentence."""

    data_dir: Path = field(
        metadata={
            "help": "folder (or one file) of pairs: BLiMP's .jsonl, Zorro's .txt (odd lines bad, even lines good), or "
            ".tsv with columns sentence_good, sentence_bad and optionally linguistics_term and field"
        }
    )


@dataclass(kw_only=True)
class LocalOrderOptions(ProbeOptions):
    """The model and the text whose sentences are compared with copies in which a word was moved."""

    text: Path = field(
        metadata={
            "help": "text the model has not seen: UTF-8, one sentence per line (also .gz, .bz2, .xz, .zst), or a "
            "folder of such files; sentences of up to 24 words are used"
        }
    )
    distances: list[int] = flag([1, 2, 3, 4, 6, 8], "by how many words a word is moved; 1 swaps it with its neighbour")
    seed: int = flag(0, "seed for choosing sentences and words")

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        super().__post_init__()
        if not self.distances or min(self.distances) < 1:
            raise UsageError("--distances takes whole numbers of at least 1")
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed} is less than 0")
