"""The project's own targets, computed from the results of a bench."""

import json
from pathlib import Path

import pytest

from benchmarks import targets
from benchmarks.targets import target_results


def test_the_joint_target_has_equally_many_examples_of_both_tasks() -> None:
    speeds = {("RTE", False): 50.0, ("RTE", True): 25.0, ("CoLA", False): 200.0, ("CoLA", True): 25.0}
    entries = [
        {
            "task": "prediction",
            "contestant": "composite",
            "precision": "float32",
            "glue_task": task,
            "padded": padded,
            "medians": {"examples_per_second": speed},
            "ratios": {"speed": {"median": speed / 25}},
        }
        for (task, padded), speed in speeds.items()
    ]
    reached = {result["figure"]: result["reached"] for result in target_results(entries)}
    assert reached["prediction, as many examples of each"] == pytest.approx((1 / 25 + 1 / 25) / (1 / 50 + 1 / 200))
    assert len(reached) == 3


def test_targets_are_computed_for_the_default_setting_only() -> None:
    entry = {
        "task": "pretraining",
        "contestant": "composite",
        "precision": "float32",
        "length": 128,
        "ratios": {"speed": {"median": 4.6}, "memory": {"median": 0.7}},
    }
    results = target_results([entry, {**entry, "contestant": "dot_product"}, {**entry, "length": 512}])
    assert [(result["reached"], result["met"]) for result in results] == [(4.6, True), (0.7, False)]


def test_the_stored_results_can_be_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(targets.__file__).parent / "results"
    for path in sorted(folder.glob("*.json")):
        measured = target_results(json.loads(path.read_text())["measurements"])
        monkeypatch.setattr("sys.argv", ["targets", str(path)])
        assert targets.main() == (0 if measured and all(result["met"] for result in measured) else 1)
    assert "step time against our dot product, S = 128" in capsys.readouterr().out
