"""Hyper-parameters of the paper and of YAML files, and batch sizes on several devices."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_convolutions.errors import UsageError
from bert_convolutions.glue.hyperparameters import HYPERPARAMETERS, device_batch_size, load_hyperparameters
from bert_convolutions.glue.tasks import TASK_NAMES, TASKS, parse_tasks
from bert_convolutions.schemas import Hyperparameters

STEPS = {
    "electra": dict(
        zip(TASK_NAMES, [12121, 851, 6409, 343, 1836, 11200, 9835, 777, 100], strict=True),
    ),
    "stable": dict(
        zip(TASK_NAMES, [20 * n for n in (24243, 567, 4273, 229, 367, 22400, 6557, 155, 100)], strict=True),
    ),
}


def make(learning_rate: float, batch_size: int, steps: int) -> Hyperparameters:
    return Hyperparameters(learning_rate=learning_rate, batch_size=batch_size, steps=steps)


@pytest.mark.parametrize("name", TASK_NAMES)
def test_presets_have_the_hyperparameters_of_the_papers(name: str):
    batch = 128 if name in ("MNLI", "QQP") else 32
    rate = 1e-4 if name == "QNLI" else 3e-4
    steps = STEPS["electra"][name]
    assert HYPERPARAMETERS["electra"][name] == make(rate, batch, steps)
    assert HYPERPARAMETERS["electra_base"][name] == make(1e-4, batch, steps)
    assert HYPERPARAMETERS["stable"][name] == make(2e-5, 16, STEPS["stable"][name])


@pytest.mark.parametrize(
    ("maximum", "devices", "accumulation", "expected"),
    [(99999, 1, 1, 32), (16, 1, 1, 16), (16, 1, 2, 16), (99999, 8, 1, 4), (99999, 4, 2, 4), (99999, 64, 1, 1)],
)
def test_the_batch_is_divided_among_devices_and_accumulated_steps(
    maximum: int, devices: int, accumulation: int, expected: int
):
    assert device_batch_size(32, maximum, devices, accumulation) == expected


def write(folder: Path, content: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(content)
    return str(path)


def test_a_yaml_file_fills_tasks_from_its_default(tmp_path: Path):
    path = write(tmp_path, "default: {learning_rate: 1e-4, batch_size: 16, steps: 50}\nrte: {steps: 70}\n")
    loaded = load_hyperparameters(path)
    assert loaded["RTE"] == make(1e-4, 16, 70)
    assert loaded["CoLA"] == make(1e-4, 16, 50)
    assert set(loaded) == set(TASK_NAMES)


def test_a_yaml_file_needs_only_the_tasks_that_are_run(tmp_path: Path):
    path = write(tmp_path, "RTE: {learning_rate: 0.001, batch_size: 16, steps: 50}\n")
    assert load_hyperparameters(path, parse_tasks("RTE"))["RTE"].steps == 50
    with pytest.raises(UsageError, match=r"mine.yaml: CoLA: learning_rate: Field required"):
        load_hyperparameters(path, parse_tasks("CoLA"))


BAD_YAML = {
    "RTX: {steps: 1}": "unknown key 'RTX'; valid are MNLI",
    "RTE: {step: 1}": "RTE: step: Extra inputs are not permitted",
    "RTE: {steps: 0}": "RTE: steps: Input should be greater than 0, not 0",
    "RTE: {steps: 1.5}": "not 1.5",
    "RTE: {batch_size: true}": "not True",
    "RTE: {learning_rate: fast}": "RTE: learning_rate: Input should be a valid number, not 'fast'",
    "RTE: {learning_rate: -1}": "not -1",
    "RTE: {learning_rate: .inf}": "not inf",
    "RTE: 5": "must be a mapping",
    "- RTE": "must map tasks",
    "": "must map tasks",
    "RTE: {steps: 1}\nrte: {steps: 2}": "RTE comes twice",
    "RTE: {": "is not YAML",
    "RTE: {steps: !!int many}": "is not YAML",
    "RTE: {steps: 2020-99-99}": "a valid integer, not '2020-99-99'",
    "RTE: {steps: 99999999999}": "less than 2147483648",
    "a: &a [1, 1]\n"
    + "".join(f"{chr(97 + n)}: &{chr(97 + n)} [*{chr(96 + n)}, *{chr(96 + n)}]\n" for n in range(1, 26))
    + "RTE: {steps: *z}": "unknown key 'a'",
    "RTE: {steps: &a [1, 1], batch_size: [*a, *a]}": "a valid integer, not [[1, 1], [1, 1]]",
}


@pytest.mark.parametrize("content", BAD_YAML)
def test_a_bad_yaml_file_is_refused(tmp_path: Path, content: str):
    with pytest.raises(UsageError) as caught:
        load_hyperparameters(write(tmp_path, content))
    assert BAD_YAML[content] in str(caught.value)
    assert "mine.yaml" in str(caught.value)


def test_an_unknown_name_and_a_missing_file_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="'elektra'; choose electra, electra_base, stable, flags"):
        load_hyperparameters("elektra")
    with pytest.raises(UsageError, match=r"none.yaml can't be read: No such file"):
        load_hyperparameters(str(tmp_path / "none.yaml"))


@given(st.text(max_size=80))
def test_any_yaml_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: str):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(content, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(UsageError):
        load_hyperparameters(str(path), TASKS)
