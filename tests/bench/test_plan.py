import pytest

from bert_convolutions.bench.contestants import CONTESTANTS
from bert_convolutions.bench.options import TASK_NAMES, BenchOptions
from bert_convolutions.bench.plan import Job, make_plan
from bert_convolutions.bench.results import Measurement, ratio, target_results
from bert_convolutions.bench.turns import Report, Work
from bert_convolutions.errors import UsageError


def test_full_plan_covers_all() -> None:
    groups = make_plan(BenchOptions())
    jobs = [job for group in groups for job in group.jobs]
    assert {job.task for job in jobs} == set(TASK_NAMES)
    assert {job.length for job in jobs if job.task == "pretraining"} == {128, 512, 2048}
    assert {job.contestant for job in jobs} == {name for name, entry in CONTESTANTS.items() if entry.default}
    slots = {job.length * job.batch_size for job in jobs if job.task == "pretraining"}
    assert slots == {32 * 128}, "the same number of slots at every length"


def test_quick_is_a_small_part_of_it() -> None:
    quick, full = (make_plan(BenchOptions(quick=quick)) for quick in (True, False))
    assert sum(group.work for group in quick) < sum(group.work for group in full) / 8
    assert {job.task for group in quick for job in group.jobs} == set(TASK_NAMES)


def test_too_many_processes_are_split_by_precision() -> None:
    groups = make_plan(BenchOptions(tasks=["pretraining"], sequence_lengths=[128]))
    assert [group.title for group in groups] == ["pretraining, S = 128, float32", "pretraining, S = 128, bf16"]
    for group in groups:
        assert len(set(group.jobs)) == len(group.jobs) <= 10
        assert all(job.baseline(group.jobs) for job in group.jobs), "the baseline takes turns with each of them"


def test_flags_win_over_quick() -> None:
    (group,) = make_plan(
        BenchOptions(quick=True, tasks=["pretraining"], contestants=["convbert"], rounds=7, sequence_lengths=[512])
    )
    assert group.rounds == 7 and [job.contestant for job in group.jobs] == ["convbert", "convbert"]


def test_unknown_contestant_names_the_valid_ones() -> None:
    with pytest.raises(UsageError, match=r"'electrra'; valid are composite, dot_product, .*electra, convbert"):
        make_plan(BenchOptions(contestants=["electrra"]))


@pytest.mark.parametrize(
    "flags",
    [
        {"rounds": 0},
        {"steps": 0},
        {"warmup_steps": -1},
        {"batch_size": 0},
        {"threads": 0},
        {"sequence_lengths": [8]},
        {"peak_tflops": 0.0},
    ],
)
def test_senseless_numbers_name_their_flag(flags: dict) -> None:
    with pytest.raises(UsageError, match=f"--{next(iter(flags))}"):
        make_plan(BenchOptions(**flags))


def test_tasks_of_our_models_need_one() -> None:
    with pytest.raises(UsageError, match="add composite"):
        make_plan(BenchOptions(tasks=["breakdown"], contestants=["electra"]))


def test_baselines() -> None:
    (group,) = make_plan(BenchOptions(quick=True, tasks=["pretraining"]))
    bf16 = next(job for job in group.jobs if job.contestant == "composite" and job.precision == "bf16")
    baseline, dot_product = bf16.baseline(group.jobs), bf16.own_dot_product(group.jobs)
    assert baseline is not None and (baseline.contestant, baseline.precision) == ("electra", "float32")
    assert dot_product is not None and (dot_product.contestant, dot_product.precision) == ("dot_product", "bf16")
    assert bf16.baseline((bf16,)) is None


def test_ratios_are_taken_round_by_round() -> None:
    """A round in which everything was half as fast changes nothing."""
    job = Job("pretraining", "composite", "float32", 128, 4)
    reports = [Report(1, seconds, Work(4, 100, None), 1, 1) for seconds in (1.0, 2.0, 1.0)]
    others = [Report(1, seconds, Work(4, 100, None), 1, 1) for seconds in (3.0, 6.0, 3.3)]
    result = ratio(Measurement(job, reports).speeds, Measurement(job, others).speeds)
    assert result["median"] == pytest.approx(3.0) and result["rounds"] == pytest.approx([3.0, 3.0, 3.3])


def test_both_tasks_take_as_many_examples_of_each() -> None:
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


def test_targets_are_those_of_the_default_setting() -> None:
    entry = {
        "task": "pretraining",
        "contestant": "composite",
        "precision": "float32",
        "length": 128,
        "ratios": {"speed": {"median": 3.5}, "memory": {"median": 0.7}},
    }
    results = target_results([entry, {**entry, "contestant": "dot_product"}, {**entry, "length": 512}])
    assert [(result["reached"], result["met"]) for result in results] == [(3.5, True), (0.7, False)]
