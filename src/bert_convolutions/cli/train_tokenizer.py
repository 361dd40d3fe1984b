"""``bertconv train-tokenizer``."""

from bert_convolutions.cli.trainer_flags import TrainerFlags
from bert_convolutions.data.options import TrainTokenizerOptions

OPTIONS = TrainTokenizerOptions
TRAINER = False


def run(options: TrainTokenizerOptions, trainer_flags: TrainerFlags) -> None:
    """Train the tokenizer and say where it is."""
    from bert_convolutions.data.build.train_tokenizer import train_tokenizer

    print(f"tokenizer: {train_tokenizer(options)}")
