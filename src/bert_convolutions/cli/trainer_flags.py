"""The flags that a sub-command passes to ``transformers.Trainer``, which is imported when they are parsed."""

import dataclasses
import json
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from bert_convolutions.cli.config_file import ConfigFile
from bert_convolutions.cli.flags import FlagParser, refuse_left_over
from bert_convolutions.errors import UsageError

if TYPE_CHECKING:
    from transformers import TrainingArguments

ArgumentsT = TypeVar("ArgumentsT", bound="TrainingArguments")


@dataclasses.dataclass(frozen=True)
class TrainerFlags:
    """The arguments of a sub-command beyond its own flags, not yet parsed."""

    command: str
    """Name of the sub-command, for messages."""
    own_names: tuple[str, ...]
    """Names of the sub-command's own flags, as suggestions for a misspelt flag."""
    argv: tuple[str, ...] = ()
    """The remaining command-line arguments."""
    config: ConfigFile = dataclasses.field(default_factory=ConfigFile)
    """The remaining keys of the configuration file."""

    def parse(self, arguments_class: type[ArgumentsT]) -> ArgumentsT:
        """Parse the Trainer's arguments as ``arguments_class``, which also gives the defaults.

        Raises:
            UsageError: an unknown flag or key, a value of the wrong type, no ``--output_dir``, or a combination that
                the class refuses.
        """
        parser = trainer_parser(self.command, arguments_class)
        names = [field.name for field in dataclasses.fields(arguments_class) if field.init]
        valid_names = [*self.own_names, *names]
        self.config.part(names, inside=False).refuse(valid_names)
        argv = [*self.config.argv(parser, mappings=True), *self.argv]
        parsed, left_over = parser.parse_known_args(argv)
        refuse_left_over(self.command, left_over, valid_names, all_flags="--help-all")
        if parsed.output_dir is None:
            raise UsageError(f"--output_dir is required (see bertconv {self.command} --help)")
        try:
            return arguments_class(**{name: getattr(parsed, name) for name in names})
        except json.JSONDecodeError as error:
            raise UsageError(f"{error.doc} is not JSON ({error.msg}); in a shell, put it in single quotes") from error
        except (ValueError, TypeError, ImportError, OSError) as error:  # the Trainer's own checks
            raise UsageError(" ".join(str(error).split())) from error


def trainer_parser(command: str, arguments_class: "type[TrainingArguments]") -> FlagParser:
    """A parser of the flags of ``arguments_class``, built by the Trainer's own ``HfArgumentParser``."""
    from transformers import HfArgumentParser

    class TrainerParser(FlagParser, HfArgumentParser):
        """The Trainer's parser with our errors and help format."""

    return TrainerParser(command, dataclass_types=arguments_class)


class CommonFlag(NamedTuple):
    """A flag of the Trainer as ``--help`` shows it."""

    name: str
    kind: str
    default: Any
    help: str


COMMON_TRAINER_FLAGS = (
    CommonFlag("output_dir", "DIR", None, "folder for checkpoints and results (required)"),
    CommonFlag("do_train", "true|false", False, "train"),
    CommonFlag("do_eval", "true|false", False, "evaluate"),
    CommonFlag("do_predict", "true|false", False, "predict the test sets (glue)"),
    CommonFlag("per_device_train_batch_size", "INT", None, "examples per device and micro-batch; default: 8"),
    CommonFlag("gradient_accumulation_steps", "INT", 1, "micro-batches per update"),
    CommonFlag("max_steps", "INT", -1, "total number of updates; -1: by --num_train_epochs"),
    CommonFlag("num_train_epochs", "FLOAT", 3.0, "passes over the data, if --max_steps is not given"),
    CommonFlag("learning_rate", "FLOAT", 5e-5, "peak learning rate of AdamW, which then decays linearly to 0"),
    CommonFlag("warmup_steps", "FLOAT", 0, "updates of linear warm-up; below 1, a fraction of all"),
    CommonFlag("adam_epsilon", "FLOAT", 1e-8, "AdamW's epsilon"),
    CommonFlag("weight_decay", "FLOAT", 0.0, "AdamW's weight decay; none for biases and LayerNorm"),
    CommonFlag("max_grad_norm", "FLOAT", 1.0, "maximum gradient norm for clipping"),
    CommonFlag("save_steps", "FLOAT", 500, "updates between checkpoints"),
    CommonFlag("save_total_limit", "INT", None, "checkpoints to keep; default: all"),
    CommonFlag("logging_steps", "FLOAT", 100, "updates between logged losses"),
    CommonFlag("eval_strategy", "{no,steps,epoch}", "no", "when to evaluate during training"),
    CommonFlag("eval_steps", "FLOAT", None, "updates between evaluations"),
    CommonFlag("seed", "INT", 42, "seed of weights, dropout, order and masking"),
    CommonFlag("bf16", "true|false", False, "compute in bfloat16; the weights stay float32"),
    CommonFlag("torch_compile", "true|false", False, "compile the model"),
    CommonFlag("resume_from_checkpoint", "true|DIR", None, "resume from the newest valid checkpoint, or from this one"),
    CommonFlag("dataloader_num_workers", "INT", 0, "processes that prepare batches"),
    CommonFlag("report_to", "TEXT", "none", "tensorboard (with images of the kernels), wandb or trackio"),
)
"""The most common flags, for ``--help``, which would be slow if it imported the Trainer to list all of them."""
