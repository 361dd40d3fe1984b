"""A tracker gets each task of each round as a run of its own, which ends with the score."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from bert_convolutions.glue.run import run_glue
from bert_convolutions.training import arguments as checked
from tests.glue.helpers import arguments, options


def test_each_task_and_round_is_a_run_with_its_score(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, glue_dir: Path, model_dir: Path
) -> None:
    logged: list[tuple[str, Any]] = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            logged.append((args.run_name, logs.get("eval_acc")))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Tracker)
    monkeypatch.setattr(checked, "get_available_reporting_integrations", lambda: ["wandb"])
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(finish=lambda: logged.append(("end", None))))
    flags = {"do_train": True, "do_eval": True, "report_to": ["wandb"], "run_name": "mine", "logging_strategy": "no"}
    run_glue(options(glue_dir, model_dir, rounds=2, hyperparams="flags"), arguments(tmp_path, **flags))
    runs = [[name for name, _ in logged[:3]], [name for name, _ in logged[3:]]]
    assert runs == [["mine-RTE0", "mine-RTE0", "end"], ["mine-RTE1", "mine-RTE1", "end"]]
    assert 0 <= logged[0][1] <= 1 and 0 <= logged[3][1] <= 1
