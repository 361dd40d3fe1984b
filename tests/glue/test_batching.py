"""Orders and batches are permutations, short on padding, and functions of their arguments."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bert_convolutions.glue.batching import (
    CountingCollator,
    LengthGroupedExamples,
    length_grouped_order,
    token_budget_batches,
)
from bert_convolutions.glue.encoding import EncodedExamples
from bert_convolutions.training.sampling import StepPlan

LENGTHS = st.lists(st.integers(1, 128), min_size=1, max_size=300).map(np.array)


@given(LENGTHS, st.integers(1, 40), st.integers(0, 5), st.integers(0, 5))
def test_an_order_holds_every_example_once(lengths: np.ndarray, batch_size: int, seed: int, epoch: int):
    order = length_grouped_order(lengths, batch_size, seed, epoch)
    assert sorted(order) == list(range(len(lengths)))
    assert (order == length_grouped_order(lengths, batch_size, seed, epoch)).all()


def padding(lengths: np.ndarray, order: np.ndarray, batch_size: int) -> float:
    """Share of a padded epoch that is padding."""
    batches = [lengths[order[start : start + batch_size]] for start in range(0, len(order), batch_size)]
    return 1 - lengths.sum() / sum(batch.max() * len(batch) for batch in batches)


def test_batches_hold_examples_of_like_length():
    generator = np.random.default_rng(0)
    lengths = np.minimum(generator.lognormal(3.5, 0.6, size=2490).astype(int) + 4, 128)
    assert padding(lengths, generator.permutation(2490), 32) > 0.45
    assert padding(lengths, length_grouped_order(lengths, 32, seed=1, epoch=0), 32) < 0.12


def test_batches_come_in_random_order_and_differ_by_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(1, 128, size=640)
    order = length_grouped_order(lengths, 32, seed=1, epoch=0)
    maxima = lengths[order].reshape(-1, 32).max(axis=1)
    assert (np.diff(maxima) > 0).any() and (np.diff(maxima) < 0).any()
    for seed, epoch in ((1, 1), (2, 0)):
        assert (order != length_grouped_order(lengths, 32, seed, epoch)).any()
    batches = {tuple(sorted(batch)) for batch in order.reshape(-1, 32)}
    again = {tuple(sorted(batch)) for batch in length_grouped_order(lengths, 32, 1, 1).reshape(-1, 32)}
    assert not batches & again  # other companions in each epoch


@pytest.mark.parametrize(("processes", "micro_batches"), [(1, 1), (2, 1), (3, 2)])
def test_processes_share_a_step_and_see_each_example_once(processes: int, micro_batches: int):
    lengths = np.random.default_rng(0).integers(1, 50, size=31)
    examples = EncodedExamples(
        {"input_ids": np.zeros(lengths.sum(), dtype=np.int32)}, np.concatenate([[0], np.cumsum(lengths)]), None
    )
    plan = StepPlan(
        31, None, micro_batch_size=12 // processes // micro_batches, micro_batches=micro_batches, processes=processes
    )
    grouped = LengthGroupedExamples(examples, plan, seed=3)
    for epoch in (0, 2):
        order = length_grouped_order(lengths, 12, 3, epoch).tolist()
        for step in range(3):
            parts = [
                grouped.rows(plan.slice(epoch, step, process, micro_batch))
                for process in range(processes)
                for micro_batch in range(micro_batches)
            ]
            assert [row for part in parts for row in part] == order[12 * step : 12 * step + 12]


def test_a_process_without_examples_makes_a_batch_that_counts_as_none():
    collator = CountingCollator(lambda items: {"input_ids": torch.tensor([item["x"] for item in items])}, {"x": 7})
    assert collator([{"x": 1}, {"x": 2}])["num_examples"] == 2
    assert collator([]) == {"input_ids": torch.tensor([7]), "num_examples": 0}


@given(LENGTHS, st.integers(1, 1000))
def test_token_budgets_are_kept(lengths: np.ndarray, budget: int):
    batches = token_budget_batches(lengths, budget)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * lengths[batch].max() <= budget for batch in batches)
