"""``bertconv demo``."""

from bert_convolutions.cli.trainer_flags import TrainerFlags
from bert_convolutions.demo.options import DemoOptions

OPTIONS = DemoOptions
TRAINER = False


def run(options: DemoOptions, trainer_flags: TrainerFlags) -> None:
    """Run the demonstration."""
    from bert_convolutions.demo.run import run_demo

    run_demo(options)
