"""What can be said against a pre-training run from its flags alone, before anything is loaded or written."""

from collections.abc import Iterator
from pathlib import Path

from transformers import TrainingArguments

from bert_convolutions.errors import UsageError
from bert_convolutions.training.options import PretrainOptions


def check_flags(options: PretrainOptions, arguments: TrainingArguments) -> None:
    """Raise about the first thing that is missing, out of range or contradictory.

    Raises:
        UsageError: names the flag and the way out.
    """
    for fault in (*_task_faults(options, arguments), *_data_faults(options, arguments), *_range_faults(options)):
        raise UsageError(fault)
    for path in (*options.train_data_file, *options.eval_data_file):
        if not Path(path).exists():
            raise UsageError(f"{path} does not exist; --train_data_file and --eval_data_file take files or folders")


def _task_faults(options: PretrainOptions, arguments: TrainingArguments) -> Iterator[str]:
    if not arguments.do_train and not arguments.do_eval:
        yield "nothing to do: give --do_train, --do_eval or both"
    if not options.mlm:
        yield "--mlm false: training predicts masked tokens and knows no other way; leave the flag out"
    if options.config_name and options.model_name_or_path:
        yield "--config_name and --model_name_or_path contradict: the second brings its own config; leave one out"
    if not options.config_name and not options.model_name_or_path:
        yield "give --config_name (bert_small, bert_base or a config.json), or --model_name_or_path to go on from one"
    if not options.tokenizer_name and not options.model_name_or_path:
        yield "--tokenizer_name is required: the path of an spm.model or of a tokenizer directory"
    if arguments.max_steps == 0:
        yield "--max_steps 0 trains nothing; leave it out to train for --num_train_epochs"


def _data_faults(options: PretrainOptions, arguments: TrainingArguments) -> Iterator[str]:
    held_out = bool(options.eval_data_file) or options.eval_fraction > 0
    if arguments.do_train and not options.train_data_file:
        yield "--do_train needs --train_data_file"
    if arguments.do_eval and not held_out:
        yield "--do_eval needs --eval_data_file, or --eval_fraction to hold some of the training data out"
    if options.eval_data_file and options.eval_fraction > 0:
        yield "--eval_data_file and --eval_fraction contradict: leave one out"
    if options.eval_fraction > 0 and not options.train_data_file:
        yield "--eval_fraction needs --train_data_file, of which it holds a part out"


def _range_faults(options: PretrainOptions) -> Iterator[str]:
    if not 0 < options.mlm_probability <= 1:
        yield f"--mlm_probability {options.mlm_probability} is not between 0 and 1"
    if not 0 <= options.eval_fraction < 1:
        yield f"--eval_fraction {options.eval_fraction} is not between 0 and 1"
    if options.block_size < 5:
        yield f"--block_size {options.block_size} leaves no room for a pair: [CLS] a [SEP] b [SEP] needs 5"
    if options.save_every_minutes is not None and options.save_every_minutes <= 0:
        yield f"--save_every_minutes {options.save_every_minutes} is not positive"
    if options.num_proc is not None and options.num_proc < 1:
        yield f"--num_proc {options.num_proc} is less than one process"
