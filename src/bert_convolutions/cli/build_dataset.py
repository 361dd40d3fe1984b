"""``bertconv build-dataset``."""

from bert_convolutions.cli.trainer_flags import TrainerFlags
from bert_convolutions.data.options import BuildDatasetOptions

OPTIONS = BuildDatasetOptions
TRAINER = False


def run(options: BuildDatasetOptions, trainer_flags: TrainerFlags) -> None:
    """Build the sentence pairs and say where they are."""
    from bert_convolutions.data.build.pipeline import build_dataset

    print(f"sentence pairs: {build_dataset(options)}")
