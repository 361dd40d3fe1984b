"""Any command line and any configuration file are read or refused with a UsageError."""

import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert_convolutions.cli.commands import COMMANDS
from bert_convolutions.errors import UsageError
from bert_convolutions.training.arguments import BertTrainingArguments

KEYS = ("train_data_file", "block_size", "pack", "model_type", "mlm_probability", "max_steps", "learning_rate", "seed")
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3))
FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def read(*argv: str) -> None:
    """Read a command line; a UsageError is the only exception that is allowed."""
    with contextlib.suppress(UsageError):
        _, trainer_flags = COMMANDS["pretrain"].read(argv)
        trainer_flags.parse(BertTrainingArguments)


@FUZZ
@given(content=st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_in_a_configuration_file_are_read_or_refused(config: Path, content: bytes) -> None:
    config.write_bytes(content)
    read("--output_dir", "out", "--config", str(config))


@FUZZ
@given(values=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=12), VALUES, max_size=4))
def test_any_values_in_a_configuration_file_are_read_or_refused(config: Path, values: dict[str, object]) -> None:
    with contextlib.suppress(UnicodeEncodeError):
        config.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
        read("--output_dir", "out", "--config", str(config))


FLAGS = st.sampled_from([f"--{key}" for key in KEYS]) | st.text(max_size=8).map("--".__add__)


@FUZZ
@given(argv=st.lists(FLAGS | st.text(max_size=8), max_size=6))
def test_any_command_line_is_read_or_refused(argv: list[str]) -> None:
    read("--output_dir", "out", *argv)
