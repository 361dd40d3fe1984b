"""``bertconv bench``."""

from bert_convolutions.bench.options import BenchOptions
from bert_convolutions.cli.trainer_flags import TrainerFlags

OPTIONS = BenchOptions
TRAINER = False


def run(options: BenchOptions, trainer_flags: TrainerFlags) -> None:
    """Run the bench."""
    from bert_convolutions.bench.run import run_bench

    run_bench(options)
