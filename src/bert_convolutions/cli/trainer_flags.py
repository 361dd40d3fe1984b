"""The flags that a sub-command passes on to ``transformers.Trainer``, which is imported when they are read."""

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
    """What a sub-command was given beyond its own flags, not yet understood."""

    command: str
    """Name of the sub-command, for messages."""
    own_names: tuple[str, ...]
    """Names of the sub-command's own flags, which a misspelt flag may have meant."""
    argv: tuple[str, ...] = ()
    """The strings that the sub-command's own flags left over."""
    config: ConfigFile = dataclasses.field(default_factory=ConfigFile)
    """The keys of the configuration file that are none of the sub-command's own."""

    def parse(self, arguments_class: type[ArgumentsT]) -> ArgumentsT:
        """The Trainer's arguments, of a class whose defaults are the flags' defaults.

        Raises:
            UsageError: an unknown flag or key, a value of the wrong type, no ``--output_dir``, or a combination that
                the Trainer's arguments refuse.
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
            raise UsageError(f"{error.doc} is no JSON ({error.msg}); in a shell, put it into single quotes") from error
        except (ValueError, TypeError, ImportError, OSError) as error:  # a flag's JSON has a wrong key, or is no file
            raise UsageError(" ".join(str(error).split())) from error


def trainer_parser(command: str, arguments_class: "type[TrainingArguments]") -> FlagParser:
    """A parser of the flags of ``arguments_class``, made by the Trainer's own ``HfArgumentParser``."""
    from transformers import HfArgumentParser

    class TrainerParser(FlagParser, HfArgumentParser):
        """The Trainer's parser, strict and with our help format."""

    return TrainerParser(command, dataclass_types=arguments_class)


class CommonFlag(NamedTuple):
    """A Trainer's flag as ``--help`` shows it."""

    name: str
    kind: str
    default: Any
    help: str


COMMON_TRAINER_FLAGS = (
    CommonFlag("output_dir", "DIR", None, "folder for checkpoints and results (required)"),
    CommonFlag("do_train", "true|false", False, "train"),
    CommonFlag("do_eval", "true|false", False, "evaluate"),
    CommonFlag("do_predict", "true|false", False, "predict the test sets (glue)"),
    CommonFlag("per_device_train_batch_size", "INT", None, "examples a step on each device; left out, 8"),
    CommonFlag("gradient_accumulation_steps", "INT", 1, "batches summed before each update"),
    CommonFlag("max_steps", "INT", -1, "updates in all; -1 leaves it to --num_train_epochs"),
    CommonFlag("num_train_epochs", "FLOAT", 3.0, "passes over the data, without --max_steps"),
    CommonFlag("learning_rate", "FLOAT", 5e-5, "peak learning rate of AdamW, which then decays linearly to 0"),
    CommonFlag("warmup_steps", "FLOAT", 0, "updates of linear warm-up; below 1, a share of all"),
    CommonFlag("adam_epsilon", "FLOAT", 1e-8, "AdamW's epsilon"),
    CommonFlag("weight_decay", "FLOAT", 0.0, "AdamW's weight decay; none for biases and LayerNorm"),
    CommonFlag("max_grad_norm", "FLOAT", 1.0, "gradients are clipped to this norm"),
    CommonFlag("save_steps", "FLOAT", 500, "updates between checkpoints"),
    CommonFlag("save_total_limit", "INT", None, "checkpoints kept; all if not given"),
    CommonFlag("logging_steps", "FLOAT", 100, "updates between logged losses"),
    CommonFlag("eval_strategy", "{no,steps,epoch}", "no", "when to evaluate during training"),
    CommonFlag("eval_steps", "FLOAT", None, "updates between evaluations"),
    CommonFlag("seed", "INT", 42, "seed of weights, dropout, order and masking"),
    CommonFlag("bf16", "true|false", False, "compute in bfloat16; the weights stay float32"),
    CommonFlag("torch_compile", "true|false", False, "compile the model"),
    CommonFlag("resume_from_checkpoint", "true|DIR", None, "go on from the newest valid checkpoint, or from this one"),
    CommonFlag("dataloader_num_workers", "INT", 0, "processes that prepare batches"),
    CommonFlag("report_to", "TEXT", "none", "tensorboard (with pictures of the kernels), wandb or trackio"),
)
"""Those in daily use, for ``--help``, which doesn't wait for the import that reading all of them takes."""
