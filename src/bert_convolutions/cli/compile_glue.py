"""``bertconv compile-glue``."""

from bert_convolutions.cli.trainer_flags import TrainerFlags
from bert_convolutions.glue.options import CompileGlueOptions

OPTIONS = CompileGlueOptions
TRAINER = False


def run(options: CompileGlueOptions, trainer_flags: TrainerFlags) -> None:
    """Print the dev table and write the submission."""
    from bert_convolutions.glue.submit import compile_glue

    compile_glue(options)
