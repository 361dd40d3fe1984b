"""Orders and batches are permutations, short on padding, and functions of their arguments."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bert_convolutions.glue.batching import LengthGroupedSampler, length_grouped_order, token_budget_batches

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


def test_the_sampler_gives_the_order_of_its_epoch():
    lengths = np.arange(1, 50)
    sampler = LengthGroupedSampler(lengths, 4, seed=3)
    sampler.set_epoch(2)
    assert list(sampler) == length_grouped_order(lengths, 4, 3, 2).tolist()
    assert len(sampler) == 49


@given(LENGTHS, st.integers(1, 1000))
def test_token_budgets_are_kept(lengths: np.ndarray, budget: int):
    batches = token_budget_batches(lengths, budget)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * lengths[batch].max() <= budget for batch in batches)
