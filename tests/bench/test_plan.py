import pytest

from bert_convolutions.bench import plan
from bert_convolutions.bench.options import TASK_NAMES, BenchOptions
from bert_convolutions.bench.plan import CONTESTANTS, Group, Job, make_plan
from bert_convolutions.bench.results import fastest_setting, group_results
from bert_convolutions.bench.worker import Report, Work
from bert_convolutions.errors import UsageError


def test_the_full_plan_has_every_task_length_and_default_contestant() -> None:
    groups = make_plan(BenchOptions())
    jobs = [job for group in groups for job in (*group.jobs, *group.left_out)]
    assert {job.task for job in jobs} == set(TASK_NAMES)
    assert {job.length for job in jobs if job.task == "pretraining"} == {128, 512, 2048}
    assert {job.contestant for job in jobs} == {name for name, entry in CONTESTANTS.items() if entry.default}
    slots = {job.length * job.batch_size for job in jobs if job.task == "pretraining"}
    assert slots == {32 * 128}, "the same number of slots at every length"


def test_quick_is_a_small_part_of_the_full_plan() -> None:
    quick, full = (make_plan(BenchOptions(quick=quick)) for quick in (True, False))
    assert sum(group.work for group in quick) < sum(group.work for group in full) / 8
    assert {job.task for group in quick for job in group.jobs} == set(TASK_NAMES) - {"onnx"}


def test_too_many_processes_are_split_by_precision() -> None:
    groups = make_plan(BenchOptions(tasks=["pretraining"], sequence_lengths=[128]))
    assert [group.title for group in groups] == ["pretraining, S = 128, float32", "pretraining, S = 128, bf16"]
    for group in groups:
        assert len(set(group.jobs)) == len(group.jobs) <= 10
        assert all(job.baseline(group.jobs) for job in group.jobs), "the baseline takes turns with each of them"


def test_flags_override_quick() -> None:
    (group,) = make_plan(
        BenchOptions(quick=True, tasks=["pretraining"], contestants=["convbert"], rounds=7, sequence_lengths=[512])
    )
    assert group.rounds == 7 and [job.contestant for job in group.jobs] == ["convbert", "convbert"]


def test_unknown_contestant_names_the_valid_ones() -> None:
    with pytest.raises(UsageError, match=r"'electrra'; valid are composite, dot_product, .*electra, bert, convbert"):
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
def test_numbers_out_of_range_are_refused_by_flag(flags: dict) -> None:
    with pytest.raises(UsageError, match=f"--{next(iter(flags))}"):
        make_plan(BenchOptions(**flags))


@pytest.mark.parametrize(
    ("task", "contestant", "known"),
    [("settings", "electra", "composite"), ("onnx", "ours", "composite"), ("attention", "composite", "plain_sdpa")],
)
def test_a_task_without_contestants_names_one_to_add(task: str, contestant: str, known: str) -> None:
    with pytest.raises(UsageError, match=f"--tasks {task}; add {known}"):
        make_plan(BenchOptions(tasks=[task], contestants=[contestant]))  # type: ignore[list-item]


def test_attention_is_measured_on_a_gpu_at_every_length_in_full_and_packed_rows() -> None:
    groups = make_plan(BenchOptions(tasks=["attention"], config_name="bert_base", batch_size=256), on_gpu=True)
    settings = [(group.jobs[0].length, group.jobs[0].packed) for group in groups]
    assert settings == [(2**power, packed) for power in range(7, 14) for packed in (False, True)]
    for group in groups:
        assert {"plain_sdpa", "ours", "flex"} <= {job.contestant for job in group.jobs}
        assert {job.precision for job in group.jobs} == {"bf16"} and group.steps == 40
        assert all(job.baseline(group.jobs) == group.jobs[0] for job in group.jobs)


def test_attention_contestants_that_cannot_run_are_listed_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def reasons(on_gpu: bool, memory: float = 2**40, packed: bool = False) -> dict[str, str]:
        options = BenchOptions(tasks=["attention"], precision=["float32"], sequence_lengths=[8192])
        return {job.contestant: reason for job, reason in make_plan(options, on_gpu, memory)[packed].left_out.items()}

    found = reasons(False, 2**30)
    assert found["flex"] == found["flashdeberta"] == "needs a GPU"
    assert found["eager"] == "would hold 8 GiB of scores, over a quarter of the memory"
    assert set(reasons(False)) == {"flex", "flashdeberta", "disentangled_flash"}
    monkeypatch.setattr(plan, "find_spec", lambda name: None)
    assert reasons(True)["flashdeberta"].endswith("pip install flashdeberta")
    monkeypatch.setattr(plan, "find_spec", lambda name: name)
    assert reasons(True) == {}
    assert reasons(True, packed=True)["flashdeberta"] == "does not support packed rows"


def test_onnx_without_its_packages_says_which_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "find_spec", lambda name: None if name == "onnxruntime" else name)
    (group,) = make_plan(BenchOptions(tasks=["onnx"]))
    assert [job.backend for job in group.jobs] == ["PyTorch"]
    assert {job.backend for job in group.left_out} == {"onnxruntime", "onnxruntime int8"}
    assert "pip install 'bert-convolutions[onnx]'" in next(iter(group.left_out.values()))


def test_baselines_are_electra_in_float32_and_our_dot_product_in_the_same_precision() -> None:
    (group,) = make_plan(BenchOptions(quick=True, tasks=["pretraining"]))
    bf16 = next(job for job in group.jobs if job.contestant == "composite" and job.precision == "bf16")
    baseline, dot_product = bf16.baseline(group.jobs), bf16.own_dot_product(group.jobs)
    assert baseline is not None and (baseline.contestant, baseline.precision) == ("electra", "float32")
    assert dot_product is not None and (dot_product.contestant, dot_product.precision) == ("dot_product", "bf16")
    assert bf16.baseline((bf16,)) is None


def test_ratios_are_taken_round_by_round() -> None:
    """So a round in which everything was half as fast changes no ratio."""
    ours, electra = (Job("pretraining", name, "float32", 128, 4) for name in ("composite", "electra"))
    seconds = {ours: (1.0, 2.0, 1.0), electra: (3.0, 6.0, 3.3)}
    reports = {job: [Report(1, each, Work(4, 100, None), 1, 1) for each in taken] for job, taken in seconds.items()}
    entry, _ = group_results(Group("", (ours, electra), 3, 1, 0), reports, {}, None)
    assert entry["ratios"]["speed"]["rounds"] == pytest.approx([3.0, 3.0, 3.3])
    assert entry["ratios"]["speed"]["median"] == pytest.approx(3.0) and "forward_ms_per_step" not in entry["medians"]


@pytest.mark.parametrize("on_gpu", [False, True])
def test_settings_are_every_precision_and_backend_and_three_batch_sizes(
    on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is measured twice: ``triton`` is what ``sdpa`` is on a GPU."""
    monkeypatch.setattr(plan, "find_spec", lambda name: name)
    (group,) = make_plan(BenchOptions(tasks=["settings"]), on_gpu=on_gpu)
    settings = {(job.precision, job.backend, job.batch_size) for job in group.jobs}
    expected = {("float32", "sdpa", 32), ("bf16", "sdpa", 32), ("bf16", "eager", 32)}
    assert settings == expected | {("bf16", "sdpa", 16), ("bf16", "sdpa", 64)} and len(group.jobs) == len(settings)
    assert all(
        job.baseline(group.jobs) == Job("settings", "composite", "float32", 128, 32, "sdpa") for job in group.jobs
    )


def test_the_fastest_setting_is_printed_as_flags() -> None:
    def entry(precision: str, backend: str, batch_size: int, speed: float) -> dict:
        job = {"task": "settings", "precision": precision, "backend": backend, "batch_size": batch_size, "length": 128}
        return {**job, "medians": {"real_tokens_per_second": speed}}

    entries = [entry("float32", "sdpa", 32, 1000.0), entry("bf16", "sdpa", 64, 2345.6), {"task": "settings"}]
    expected = "--per_device_train_batch_size 64 --attn_implementation sdpa --bf16: 2,346 real tokens/s at S = 128"
    assert fastest_setting(entries) == expected
    assert fastest_setting([]) is None
