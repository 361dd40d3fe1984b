"""The Trainer's flags: the short list in the help, configuration files, and names that must not clash."""

import dataclasses
import json
from pathlib import Path

import pytest

from bert_convolutions.cli.commands import COMMANDS
from bert_convolutions.cli.trainer_flags import COMMON_TRAINER_FLAGS
from bert_convolutions.errors import UsageError
from bert_convolutions.training.arguments import BertTrainingArguments


def parse(*argv: str) -> BertTrainingArguments:
    _, trainer_flags = COMMANDS["pretrain"].read(argv)
    return trainer_flags.parse(BertTrainingArguments)


def test_help_shows_the_defaults_of_the_trainer() -> None:
    fields = {field.name: field for field in dataclasses.fields(BertTrainingArguments)}
    for flag in COMMON_TRAINER_FLAGS:
        assert flag.default == fields[flag.name].default, flag.name


@pytest.mark.parametrize("name", COMMANDS)
def test_no_sub_command_has_a_flag_with_the_name_of_one_of_the_trainer(name: str) -> None:
    if COMMANDS[name].trainer:
        own = {field.name for field in dataclasses.fields(COMMANDS[name].options_class)}
        assert not own & {field.name for field in dataclasses.fields(BertTrainingArguments)}


def test_the_command_line_overrides_a_configuration_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "output_dir: out\nmax_steps: 7\nlearning-rate: 1e-4\nlr_scheduler_type: cosine\n"
        "lr_scheduler_kwargs: {num_cycles: 2}\ndo_train: true\n"
    )
    arguments = parse("--config", str(path), "--max_steps", "9")
    assert (arguments.output_dir, arguments.max_steps, arguments.learning_rate) == ("out", 9, 1e-4)
    assert arguments.lr_scheduler_kwargs == json.loads('{"num_cycles": 2}')
    assert arguments.do_train


def test_a_value_in_a_configuration_file_means_what_it_means_on_the_command_line(tmp_path: Path) -> None:
    """YAML 1.1 reads them as 8, 1000, 90 (sexagesimal), False, True and a date."""
    path = tmp_path / "run.yaml"
    path.write_text(
        "seed: 010\nsave_steps: 1_000\nrun_name: 1:30\nlanguage: no\nsplit-sentences: on\noutput_dir: 2024-1-1\n"
        "hub_revision: 1.10\nlr_scheduler_type: polynomial\nlr_scheduler_kwargs: {lr_end: 1e-5}"
    )
    options, trainer_flags = COMMANDS["pretrain"].read(["--config", str(path)])
    arguments = trainer_flags.parse(BertTrainingArguments)
    assert (arguments.seed, arguments.save_steps, arguments.run_name) == (10, 1000, "1:30")
    assert (options.language, options.split_sentences, arguments.output_dir) == ("no", True, "2024-1-1")
    assert (arguments.hub_revision, arguments.lr_scheduler_kwargs) == ("1.10", {"lr_end": 1e-5})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_step: 7\n", ["line 1", "'max_step'", "'max_steps'"]),
        ("blok_size: 7\n", ["line 1", "'block_size'"]),
        ("seed: 1\nmax_steps: many\n", ["line 2", "--max_steps", "many"]),
        ("max_steps: [1, 2]\n", ["line 1", "max_steps", "one value"]),
    ],
)
def test_a_bad_configuration_file_is_refused_with_the_line(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        parse("--output_dir", "out", "--config", str(path))
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_dashes_are_read_as_underscores() -> None:
    arguments = parse("--output-dir=a-b", "--max-steps", "3")
    assert (arguments.output_dir, arguments.max_steps) == ("a-b", 3)
