"""The flags of the commands in the original's README are read, with its script names replaced by ours."""

import shlex
from typing import Any

import pytest

from bert_convolutions.cli.commands import COMMANDS
from bert_convolutions.training.arguments import BertTrainingArguments

PRETRAIN = """
    --model_type=bert --tokenizer_name="./data/sentencepiece/spm.model" --config_name="./data/bert_base_config.json"
    --do_train --mlm {data} --per_device_train_batch_size=32 --save_steps=25000 --block_size=128 --max_steps=1000000
    --warmup_steps=10000 --learning_rate=0.0001 --adam_epsilon=1e-6 --weight_decay=0.01
    --output_dir="./bert-experiments/bert"
    """
TEXT = '--line_by_line --train_data_file="./data/training_text.txt"'
IDS = '--train_iterable --line_by_line --train_data_file="./data/iterable_pairs_train.txt"'
GLUE = """
    --data_dir="./glue-data/data-tsv" --task_name=ALL --save_steps=9999999 --max_seq_length 128
    --per_device_train_batch_size 99999 --tokenizer_name="./data/sentencepiece/spm.model"
    --model_name_or_path="./bert-experiments/bert" --output_dir="./bert-experiments/bert-glue"
    --hyperparams="electra_base" {what}
    """


def read(name: str, text: str) -> tuple[Any, BertTrainingArguments | None]:
    options, trainer_flags = COMMANDS[name].read(shlex.split(text))
    return options, trainer_flags.parse(BertTrainingArguments) if COMMANDS[name].trainer else None


@pytest.mark.parametrize(("data", "iterable"), [(TEXT, False), (IDS, True)])
def test_flags_of_pre_training(data: str, iterable: bool) -> None:
    options, arguments = read("pretrain", PRETRAIN.format(data=data))
    assert options.tokenizer_name == "./data/sentencepiece/spm.model"
    assert options.config_name == "./data/bert_base_config.json"
    assert options.model_type == "bert"
    assert options.mlm
    assert options.line_by_line
    assert options.train_iterable is iterable
    assert options.block_size == 128
    assert options.train_data_file == [f"./data/{'iterable_pairs_train' if iterable else 'training_text'}.txt"]
    assert arguments is not None
    assert arguments.do_train
    assert arguments.output_dir == "./bert-experiments/bert"
    assert (arguments.per_device_train_batch_size, arguments.max_steps, arguments.save_steps) == (32, 1_000_000, 25_000)
    assert (arguments.warmup_steps, arguments.learning_rate) == (10_000, 1e-4)
    assert (arguments.adam_epsilon, arguments.weight_decay) == (1e-6, 0.01)


@pytest.mark.parametrize(
    ("flag", "name", "value"),
    [
        ('--attention_kernel="qk_convfixed_convq_convk 8"', "attention_kernel", "qk_convfixed_convq_convk 8"),
        ("--remove_position_embeddings", "remove_position_embeddings", True),
        (
            '--value_forward="convolution_depth_mixed_no_act 8 1"',
            "value_forward",
            "convolution_depth_mixed_no_act 8 1",
        ),
        ('--qk="convolution_depth_mixed_no_act 8 1"', "qk", "convolution_depth_mixed_no_act 8 1"),
        ("--remove_qk", "remove_qk", True),
        ("--num_attention_heads 8", "num_attention_heads", 8),
        ("--attention_head_size=-1", "attention_head_size", -1),
        ("--num_hidden_layers 4", "num_hidden_layers", 4),
        ("--use_sop_head", "use_sop_head", True),
        ("--mlm_probability=0.2", "mlm_probability", 0.2),
        ("--eval_data_file=eval.txt", "eval_data_file", ["eval.txt"]),
        ("--model_name_or_path=./before", "model_name_or_path", "./before"),
        ("--overwrite_output_dir", "overwrite_output_dir", True),
    ],
)
def test_flags_of_architecture_and_others(flag: str, name: str, value: object) -> None:
    options, _ = read("pretrain", PRETRAIN.format(data=f"{TEXT} --do_eval {flag}"))
    assert getattr(options, name) == value


@pytest.mark.parametrize(
    ("what", "steps"), [("--do_eval --do_train", (True, True, False)), ("--do_predict", (False, False, True))]
)
def test_flags_of_glue(what: str, steps: tuple[bool, bool, bool]) -> None:
    options, arguments = read("glue", GLUE.format(what=what))
    assert options.data_dir == "./glue-data/data-tsv"
    assert options.task_name == "ALL"
    assert options.max_seq_length == 128
    assert options.tokenizer_name == "./data/sentencepiece/spm.model"
    assert options.model_name_or_path == "./bert-experiments/bert"
    assert options.hyperparams == "electra_base"
    assert arguments is not None
    assert (arguments.do_train, arguments.do_eval, arguments.do_predict) == steps
    assert (arguments.per_device_train_batch_size, arguments.save_steps) == (99_999, 9_999_999)
    assert arguments.output_dir == "./bert-experiments/bert-glue"


def test_flags_of_compile_glue() -> None:
    text = '--input="./bert-experiments/bert-glue" --test_dir="./bert-experiments/bert-glue/test_results"'
    options, _ = read("compile-glue", text)
    assert str(options.input).endswith("bert-experiments/bert-glue")
    assert str(options.test_dir).endswith("bert-experiments/bert-glue/test_results")
