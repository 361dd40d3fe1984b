import multiprocessing
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from bert_convolutions.signals import SIGNALS
from bert_convolutions.training.arguments import BertTrainingArguments
from bert_convolutions.training.sampling import (
    Slice,
    SlicedExamples,
    StepPlan,
    StepSlices,
    WithPlaceholder,
    _end_workers,
    slices_loader,
    start_worker,
)
from tests.training.helpers import MakeTrainer, make_collator

layouts = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 5))


def plan(num_examples: int, layout: tuple[int, int, int], seed: int | None = 1) -> StepPlan:
    size, micro_batches, processes = layout
    return StepPlan(num_examples, seed, micro_batch_size=size, micro_batches=micro_batches, processes=processes)


def epoch_by_step(steps: StepPlan, epoch: int) -> list[list[int]]:
    """The examples of each step, gathered from the slices of all processes."""
    found: list[list[int]] = [[] for _ in range(steps.steps_per_epoch)]
    for process in range(steps.processes):
        slices = StepSlices(steps, process, lambda: epoch)
        parts = list(slices)
        assert len(parts) == len(slices) == steps.steps_per_epoch * steps.micro_batches
        for number, part in enumerate(parts):
            found[number // steps.micro_batches].extend(steps.samples(part).tolist())
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 120), layouts, st.integers(0, 3))
def test_each_example_is_seen_once_per_epoch(num_examples: int, layout: tuple[int, int, int], epoch: int) -> None:
    steps = epoch_by_step(plan(num_examples, layout), epoch)
    assert sorted(sample for step in steps for sample in step) == list(range(num_examples))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 120), st.sampled_from([((4, 2, 2), (16, 1, 1), (1, 4, 4)), ((3, 2, 1), (2, 1, 3), (1, 6, 1))]))
def test_a_step_has_the_same_examples_in_every_layout(
    num_examples: int, same: tuple[tuple[int, int, int], ...]
) -> None:
    steps = [[sorted(step) for step in epoch_by_step(plan(num_examples, layout), 2)] for layout in same]
    assert steps[0] == steps[1] == steps[2]


def test_samples_of_a_step_are_counted_over_epochs() -> None:
    steps = plan(10, (2, 1, 2))
    assert steps.steps_per_epoch == 3
    assert [len(steps.samples_of_step(step)) for step in range(6)] == [4, 4, 2, 4, 4, 2]
    assert steps.samples_of_step(4) == epoch_by_step(steps, 1)[1]
    assert epoch_by_step(steps, 0) != epoch_by_step(steps, 1)


def test_a_full_step_gives_each_process_its_micro_batches() -> None:
    steps = plan(100, (3, 2, 2), seed=None)
    assert [steps.slice(0, 1, process, batch) for process in (0, 1) for batch in (0, 1)] == [
        Slice(0, 12, 15), Slice(0, 15, 18), Slice(0, 18, 21), Slice(0, 21, 24)
    ]  # fmt: skip


def test_examples_are_keyed_by_epoch_and_sample(store: list[np.ndarray]) -> None:
    steps = plan(len(store), (2, 1, 1))
    features = SlicedExamples(store, steps).__getitems__(Slice(3, 4, 6))
    assert [feature["epoch"] for feature in features] == [3, 3]
    for feature, sample in zip(features, steps.samples(Slice(3, 4, 6)), strict=True):
        assert feature["sample"] == sample
        np.testing.assert_array_equal(feature["input_ids"], store[sample])


@pytest.mark.parametrize("sentence_order", [False, True])
def test_an_empty_slice_adds_nothing(store: list[np.ndarray], sentence_order: bool) -> None:
    collate = WithPlaceholder(
        make_collator(sentence_order=sentence_order), {"epoch": 0, "sample": 0, "input_ids": store[0]}
    )
    batch = collate([])
    assert (batch["labels"] == -100).all() and batch["num_real_tokens"] == 0 and len(batch["sample_ids"]) == 0
    assert not sentence_order or (batch["next_sentence_label"] == -100).all()
    assert batch["input_ids"].numel() > 0


def test_workers_are_started_as_the_flag_says() -> None:
    flags = {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "forkserver"}
    arguments = BertTrainingArguments(output_dir="x", use_cpu=True, **flags)
    loader = slices_loader(arguments, [1, 2], plan(2, (1, 1, 1)), lambda: 0, list)  # type: ignore[arg-type]
    assert loader.multiprocessing_context.get_start_method() == "forkserver"


def test_workers_are_started_beyond_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those to the whole group would end workers that import PyTorch, and the server that "forkserver" forks from."""

    def start_tracker() -> None:  # as until Python 3.12
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})

    monkeypatch.setattr("multiprocessing.resource_tracker.ensure_running", start_tracker)
    flags = {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "fork"}
    arguments = BertTrainingArguments(output_dir="x", use_cpu=True, **flags)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def blocked(batch: object) -> list[int]:
        return sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()) - before)

    loader = slices_loader(arguments, [1, 2], plan(2, (1, 1, 1)), lambda: 0, blocked)  # type: ignore[arg-type]
    batches = iter(loader)
    assert next(batches) == sorted(SIGNALS)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    assert multiprocessing.active_children()
    _end_workers()  # at the exit of a script that ends with an exception, which keeps the loop alive
    assert not multiprocessing.active_children()


def test_workers_of_a_resumed_epoch_end_with_a_script_that_fails(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """The Trainer skips the finished steps by a loader that isn't ours."""
    trainer = make_trainer(tmp_path, dataloader_num_workers=1, dataloader_multiprocessing_context="fork")
    batches = iter(skip_first_batches(trainer.get_train_dataloader(), 1))
    trainer.get_batch_samples(batches, 1, torch.device("cpu"))
    assert multiprocessing.active_children()
    _end_workers()
    assert not multiprocessing.active_children()


def test_a_worker_that_cannot_hand_over_its_batch_ends_the_run() -> None:
    """For example because /dev/shm is full; otherwise the main process would wait for ever."""
    batches: DataLoader[int] = DataLoader(
        range(4),  # type: ignore[arg-type]
        num_workers=1,
        collate_fn=lambda numbers: (number for number in numbers),  # a generator can't be handed over
        worker_init_fn=start_worker,
        multiprocessing_context="fork",
        timeout=30,
    )
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        next(iter(batches))
