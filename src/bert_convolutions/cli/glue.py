"""``bertconv glue``."""

from bert_convolutions.cli.trainer_flags import TrainerFlags
from bert_convolutions.glue.options import GlueOptions

OPTIONS = GlueOptions
TRAINER = True


def run(options: GlueOptions, trainer_flags: TrainerFlags) -> None:
    """Fine-tune, evaluate and predict."""
    from bert_convolutions.training.arguments import BertTrainingArguments

    arguments = trainer_flags.parse(BertTrainingArguments)
    from bert_convolutions.glue.run import run_glue

    run_glue(options, arguments)
