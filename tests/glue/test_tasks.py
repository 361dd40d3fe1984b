"""The table of tasks, and what is derived from it."""

import pytest

from bert_convolutions.errors import UsageError
from bert_convolutions.glue.tasks import TASK_NAMES, all_dev_sets, all_test_sets, parse_tasks, round_seed


def test_all_is_in_the_order_of_the_original():
    names = [task.name for task in parse_tasks("ALL")]
    assert names == ["MNLI", "CoLA", "SST-2", "MRPC", "STS-B", "QQP", "QNLI", "RTE", "WNLI"]


def test_names_are_read_in_any_case_and_each_task_runs_once():
    assert [task.name for task in parse_tasks("rte, mrpc,RTE")] == ["MRPC", "RTE"]
    assert parse_tasks("all") == parse_tasks("ALL")


@pytest.mark.parametrize("name", ["RTX", "", "RTE,,CoLA", "AX"])
def test_an_unknown_task_is_refused_with_the_valid_ones(name: str):
    with pytest.raises(UsageError, match=", ".join(TASK_NAMES)):
        parse_tasks(name)


def test_rounds_have_the_seeds_of_the_original():
    assert [round_seed(number, 42) for number in range(10)] == [42, 97, 834, 622, 329, 75, 213, 101, 123, 57]
    assert round_seed(0, 7) == 49
    assert round_seed(9, 0) == 57


def test_the_submission_has_eleven_files_with_the_official_rows():
    assert {test.submission: test.rows for _, test in all_test_sets()} == {
        "CoLA.tsv": 1063,
        "MNLI-m.tsv": 9796,
        "MNLI-mm.tsv": 9847,
        "MRPC.tsv": 1725,
        "QNLI.tsv": 5463,
        "QQP.tsv": 390965,
        "RTE.tsv": 3000,
        "SST-2.tsv": 1821,
        "STS-B.tsv": 1379,
        "WNLI.tsv": 146,
        "AX.tsv": 1104,
    }


def test_the_round_of_every_test_set_is_chosen_by_a_development_set_of_its_task():
    for task, test in all_test_sets():
        assert test.chosen_by in {dev.name for dev in task.dev}
    assert len({dev.name for _, dev in all_dev_sets()}) == 10
