"""``bertconv pretrain``."""

from bert_convolutions.cli.trainer_flags import TrainerFlags
from bert_convolutions.training.options import PretrainOptions

OPTIONS = PretrainOptions
TRAINER = True


def run(options: PretrainOptions, trainer_flags: TrainerFlags) -> None:
    """Pre-train."""
    from bert_convolutions.training.arguments import BertTrainingArguments

    arguments = trainer_flags.parse(BertTrainingArguments)
    from bert_convolutions.training.pretrain import run_pretraining

    run_pretraining(options, arguments)
