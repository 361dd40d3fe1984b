"""The numbers of the presets, the YAML file, and what a batch is on several devices."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_convolutions.errors import UsageError
from bert_convolutions.glue.hyperparameters import PRESETS, Hyperparameters, device_batch_size, load_hyperparameters
from bert_convolutions.glue.tasks import TASK_NAMES, TASKS, parse_tasks

STEPS = {
    "electra": dict(
        zip(TASK_NAMES, [12121, 851, 6409, 343, 1836, 11200, 9835, 777, 100], strict=True),
    ),
    "stable": dict(
        zip(TASK_NAMES, [20 * n for n in (24243, 567, 4273, 229, 367, 22400, 6557, 155, 100)], strict=True),
    ),
}


@pytest.mark.parametrize("name", TASK_NAMES)
def test_presets_are_the_papers(name: str):
    batch = 128 if name in ("MNLI", "QQP") else 32
    rate = 1e-4 if name == "QNLI" else 3e-4
    steps = STEPS["electra"][name]
    assert PRESETS["electra"][name] == Hyperparameters(rate, batch, steps)
    assert PRESETS["electra_base"][name] == Hyperparameters(1e-4, batch, steps)
    assert PRESETS["stable"][name] == Hyperparameters(2e-5, 16, STEPS["stable"][name])


def test_warm_up_is_a_tenth():
    assert PRESETS["electra"]["MNLI"].warmup_steps == 1212
    assert PRESETS["stable"]["RTE"].warmup_steps == 2 * 155


@pytest.mark.parametrize(
    ("maximum", "devices", "accumulation", "expected"),
    [(99999, 1, 1, 32), (16, 1, 1, 16), (16, 1, 2, 16), (99999, 8, 1, 4), (99999, 4, 2, 4), (99999, 64, 1, 1)],
)
def test_the_batch_is_shared_among_devices(maximum: int, devices: int, accumulation: int, expected: int):
    assert device_batch_size(32, maximum, devices, accumulation) == expected


def write(folder: Path, content: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(content)
    return str(path)


def test_a_yaml_file_fills_tasks_from_its_default(tmp_path: Path):
    path = write(tmp_path, "default: {learning_rate: 1e-4, batch_size: 16, steps: 50}\nrte: {steps: 70}\n")
    loaded = load_hyperparameters(path)
    assert loaded["RTE"] == Hyperparameters(1e-4, 16, 70)
    assert loaded["CoLA"] == Hyperparameters(1e-4, 16, 50)
    assert set(loaded) == set(TASK_NAMES)


def test_only_the_tasks_that_run_must_be_covered(tmp_path: Path):
    path = write(tmp_path, "RTE: {learning_rate: 0.001, batch_size: 16, steps: 50}\n")
    assert load_hyperparameters(path, parse_tasks("RTE"))["RTE"].steps == 50
    with pytest.raises(UsageError, match="no learning_rate and no batch_size and no steps for CoLA"):
        load_hyperparameters(path, parse_tasks("CoLA"))


BAD_YAML = {
    "RTX: {steps: 1}": "unknown key 'RTX'; valid are MNLI",
    "RTE: {step: 1}": "unknown key 'step'; valid are learning_rate, batch_size, steps",
    "RTE: {steps: 0}": "RTE.steps must be a whole number above 0, not 0",
    "RTE: {steps: 1.5}": "not 1.5",
    "RTE: {batch_size: true}": "not True",
    "RTE: {learning_rate: fast}": "RTE.learning_rate must be a number above 0, not 'fast'",
    "RTE: {learning_rate: -1}": "not -1",
    "RTE: {learning_rate: .inf}": "not inf",
    "RTE: 5": "must be a mapping",
    "- RTE": "must map tasks",
    "": "must map tasks",
    "RTE: {steps: 1}\nrte: {steps: 2}": "RTE comes twice",
    "RTE: {": "is not YAML",
}


@pytest.mark.parametrize("content", BAD_YAML)
def test_a_bad_yaml_file_is_refused(tmp_path: Path, content: str):
    with pytest.raises(UsageError) as caught:
        load_hyperparameters(write(tmp_path, content))
    assert BAD_YAML[content] in str(caught.value)
    assert "mine.yaml" in str(caught.value)


def test_an_unknown_preset_and_a_missing_file(tmp_path: Path):
    with pytest.raises(UsageError, match="'elektra'; choose electra, electra_base, stable or"):
        load_hyperparameters("elektra")
    with pytest.raises(UsageError, match="cannot read"):
        load_hyperparameters(str(tmp_path / "none.yaml"))


@given(st.text(max_size=80))
def test_any_yaml_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: str):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(content, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(UsageError):
        load_hyperparameters(str(path), TASKS)
