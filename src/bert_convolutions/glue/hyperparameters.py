"""Learning rate, batch size and steps of each task: the paper's, or those of a YAML file.

Imports neither PyTorch nor transformers.
"""

from collections.abc import Mapping
from pathlib import Path

from bert_convolutions.errors import UsageError, brief
from bert_convolutions.glue.tasks import TASK_NAMES, TASKS, Task
from bert_convolutions.parsing import parse, read_yaml
from bert_convolutions.schemas import Hyperparameters

FLAG = "--hyperparams"
TRAINER_FLAGS = "flags"
"""The value of ``--hyperparams`` that selects the Trainer's flags."""
DEFAULT = "electra"
"""The value of ``--hyperparams`` for several tasks or rounds, as in the original."""
WARMUP_DIVISOR = 10
"""The warm-up takes one step in this many (``stable``: 2 epochs of 20)."""

_STEPS = {  # in total (electra), and per epoch (stable has 20)
    "MNLI": (12121, 24243),
    "CoLA": (851, 567),
    "SST-2": (6409, 4273),
    "MRPC": (343, 229),
    "STS-B": (1836, 367),
    "QQP": (11200, 22400),
    "QNLI": (9835, 6557),
    "RTE": (777, 155),
    "WNLI": (100, 100),
}


def _electra(learning_rate: float) -> dict[str, Hyperparameters]:
    return {
        name: Hyperparameters(
            learning_rate=1e-4 if name == "QNLI" else learning_rate,
            batch_size=128 if name in ("MNLI", "QQP") else 32,
            steps=steps,
        )
        for name, (steps, _) in _STEPS.items()
    }


HYPERPARAMETERS: Mapping[str, Mapping[str, Hyperparameters]] = {
    "electra": _electra(3e-4),
    "electra_base": _electra(1e-4),
    "stable": {
        name: Hyperparameters(learning_rate=2e-5, batch_size=16, steps=20 * steps)
        for name, (_, steps) in _STEPS.items()
    },
}
"""The original's hyper-parameters by name and task."""


def load_hyperparameters(name_or_path: str, tasks: tuple[Task, ...] = TASKS) -> Mapping[str, Hyperparameters]:
    """The hyper-parameters of each task by its name; empty if the Trainer's flags apply.

    Args:
        name_or_path: ``flags``, one of ``HYPERPARAMETERS``, or a YAML file that maps tasks to ``learning_rate``,
            ``batch_size`` and ``steps``; its ``default`` entry supplies values missing from a task's own entry.
        tasks: the tasks that must be covered.

    Raises:
        UsageError: an unknown name, or a file with missing, unknown or invalid entries.
    """
    if name_or_path == TRAINER_FLAGS:
        return {}
    if name_or_path in HYPERPARAMETERS:
        return HYPERPARAMETERS[name_or_path]
    if not is_file_name(name_or_path):
        raise UsageError(
            f"{FLAG}: unknown hyper-parameters {name_or_path!r}; choose {', '.join(HYPERPARAMETERS)}, {TRAINER_FLAGS} "
            "(the Trainer's) or the path of a .yaml file"
        )
    where = f"{FLAG} {name_or_path}"
    entries = _read(Path(name_or_path), where, tasks)
    default = entries.get("default", {})
    return {
        task.name: parse(Hyperparameters, {**default, **entries.get(task.name, {})}, f"{where}: {task.name}")
        for task in tasks
    }


def is_file_name(name_or_path: str) -> bool:
    """Whether a value of ``--hyperparams`` names a YAML file."""
    return Path(name_or_path).suffix in (".yaml", ".yml")


def _read(path: Path, where: str, tasks: tuple[Task, ...]) -> dict[str, dict[str, object]]:
    """The checked values that a file gives for each task or ``default``."""
    content = read_yaml(path, where)
    if not isinstance(content, dict) or not content:
        raise UsageError(f"{where} must map tasks (or default) to learning_rate, batch_size and steps")
    known = {name.lower(): name for name in (*TASK_NAMES, *(task.name for task in tasks), "default")}
    complete = {"learning_rate": 1.0, "batch_size": 1, "steps": 1}
    entries: dict[str, dict[str, object]] = {}
    for key, values in content.items():
        name = known.get(str(key).lower())
        if name is None:
            raise UsageError(f"{where}: unknown key {brief(key)}; valid are {', '.join(known.values())}")
        if name in entries:
            raise UsageError(f"{where}: {name} comes twice")
        if not isinstance(values, dict) or not all(isinstance(value, str) for value in values):
            raise UsageError(f"{where}: {key} must be a mapping of {', '.join(complete)}")
        parse(Hyperparameters, {**complete, **values}, f"{where}: {key}")
        entries[name] = values
    return entries


def device_batch_size(batch_size: int, maximum: int | None, num_devices: int, accumulation: int) -> int:
    """The examples per device and micro-batch, at most ``maximum`` (``--per_device_train_batch_size``, if given).

    The original has the same limit, with a default of 8. ``num_devices`` is processes times GPUs per process.
    """
    share = max(1, batch_size // (num_devices * accumulation))
    return share if maximum is None else min(maximum, share)
