"""Learning rate, batch and steps of each task: the paper's presets, or a YAML file.

Imports neither torch nor transformers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bert_convolutions.errors import UsageError
from bert_convolutions.glue.tasks import TASK_NAMES, TASKS, Task

WARMUP_PART = 10
"""One step in this many is warm-up, in every preset (``stable``: 2 epochs of 20)."""


@dataclass(frozen=True)
class Hyperparameters:
    """How one task is fine-tuned.

    Attributes:
        learning_rate: peak of the schedule.
        batch_size: examples of one optimizer step over all devices.
        steps: optimizer steps.
    """

    learning_rate: float
    batch_size: int
    steps: int

    @property
    def warmup_steps(self) -> int:
        """Steps of linear warm-up: a tenth, rounded down."""
        return self.steps // WARMUP_PART


_ELECTRA_STEPS = {
    "MNLI": 12121,
    "CoLA": 851,
    "SST-2": 6409,
    "MRPC": 343,
    "STS-B": 1836,
    "QQP": 11200,
    "QNLI": 9835,
    "RTE": 777,
    "WNLI": 100,
}
_STABLE_EPOCH_STEPS = {
    "MNLI": 24243,
    "CoLA": 567,
    "SST-2": 4273,
    "MRPC": 229,
    "STS-B": 367,
    "QQP": 22400,
    "QNLI": 6557,
    "RTE": 155,
    "WNLI": 100,
}
_STABLE_EPOCHS = 20
_LARGE_TASKS = ("MNLI", "QQP")


def _electra(learning_rate: float, qnli_learning_rate: float) -> dict[str, Hyperparameters]:
    return {
        name: Hyperparameters(
            qnli_learning_rate if name == "QNLI" else learning_rate, 128 if name in _LARGE_TASKS else 32, steps
        )
        for name, steps in _ELECTRA_STEPS.items()
    }


PRESETS: Mapping[str, Mapping[str, Hyperparameters]] = {
    "electra": _electra(3e-4, qnli_learning_rate=1e-4),
    "electra_base": _electra(1e-4, qnli_learning_rate=1e-4),
    "stable": {name: Hyperparameters(2e-5, 16, _STABLE_EPOCHS * steps) for name, steps in _STABLE_EPOCH_STEPS.items()},
}
"""Preset to task to hyper-parameters; the numbers are the original's."""


def load_hyperparameters(name_or_path: str, tasks: tuple[Task, ...] = TASKS) -> Mapping[str, Hyperparameters]:
    """Return the hyper-parameters of each task by the task's name.

    Args:
        name_or_path: a preset, or a YAML file that maps tasks to ``learning_rate``, ``batch_size`` and ``steps``; its
            ``default`` entry fills what a task's own entry leaves out.
        tasks: the tasks that must be covered.

    Raises:
        UsageError: an unknown preset, or a file that does not say all of it and nothing else.
    """
    if name_or_path in PRESETS:
        return PRESETS[name_or_path]
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError(
            f"--hyperparams: unknown preset {name_or_path!r}; choose {', '.join(PRESETS)} or the path of a .yaml file"
        )
    entries = _read_yaml(path)
    default = entries.get("default", {})
    return {task.name: _complete(path, task, {**default, **entries.get(task.name, {})}) for task in tasks}


def _read_yaml(path: Path) -> dict[str, dict[str, float]]:
    """Read and check the file: task (or ``default``) to the values given for it."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--hyperparams: cannot read {path} ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--hyperparams: {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not content:
        raise UsageError(f"--hyperparams: {path} must map tasks (or default) to learning_rate, batch_size and steps")
    keys = {name.lower(): name for name in (*TASK_NAMES, "default")}
    entries: dict[str, dict[str, float]] = {}
    for key, values in content.items():
        name = keys.get(str(key).lower())
        if name is None:
            raise UsageError(f"--hyperparams: {path}: unknown key {key!r}; valid are {', '.join(keys.values())}")
        if name in entries:
            raise UsageError(f"--hyperparams: {path}: {name} comes twice")
        entries[name] = _check_entry(f"--hyperparams: {path}: {key}", values)
    return entries


def _check_entry(where: str, values: Any) -> dict[str, float]:
    """Check one task's values; numbers such as ``3e-4``, which YAML reads as text, are understood."""
    if not isinstance(values, dict):
        raise UsageError(f"{where} must be a mapping of learning_rate, batch_size and steps")
    checked: dict[str, float] = {}
    for key, value in values.items():
        if key == "learning_rate":
            checked[key] = _positive_number(f"{where}.{key}", value)
        elif key in ("batch_size", "steps"):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"{where}.{key} must be a whole number above 0, not {value!r}")
            checked[key] = value
        else:
            raise UsageError(f"{where}: unknown key {key!r}; valid are learning_rate, batch_size, steps")
    return checked


def _positive_number(where: str, value: Any) -> float:
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not 0 < number < math.inf:
        raise UsageError(f"{where} must be a number above 0, not {value!r}")
    return number


def _complete(path: Path, task: Task, values: Mapping[str, float]) -> Hyperparameters:
    missing = [key for key in ("learning_rate", "batch_size", "steps") if key not in values]
    if missing:
        raise UsageError(
            f"--hyperparams: {path} gives no {' and no '.join(missing)} for {task.name}: add it there or under default"
        )
    return Hyperparameters(values["learning_rate"], int(values["batch_size"]), int(values["steps"]))


def device_batch_size(batch_size: int, maximum: int, num_devices: int, accumulation: int) -> int:
    """Return the examples a device takes at once so that an optimizer step sees ``batch_size`` over all of them.

    The preset's batch is the global one: it is shared among the devices and accumulation steps. ``maximum``
    (``--per_device_train_batch_size``) wins where the share is larger, as in the original; the step is then smaller
    than the preset's.

    Args:
        batch_size: the global batch wanted.
        maximum: most examples a device takes at once.
        num_devices: processes times GPUs of each.
        accumulation: ``--gradient_accumulation_steps``.
    """
    return min(maximum, max(1, batch_size // (num_devices * accumulation)))
