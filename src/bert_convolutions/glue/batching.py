"""Batches of examples of like length, so that little is padded. All of it is a pure function of its arguments."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

BATCHES_SORTED_TOGETHER = 50
"""Batches' worth of examples, drawn at random, that are sorted by length together; as in ``transformers``."""
STRETCHES = 4
"""Least number of such stretches in an epoch of a small task, so that the same examples don't always meet."""


def length_grouped_order(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Return an order of all examples whose consecutive batches hold examples of like length, in random order.

    The examples are permuted, sorted by length within stretches of batches and cut into batches, whose order is drawn
    too (``transformers``' sampler goes from long to short within a stretch and draws from the global generator, so a
    resumed epoch would differ). The odd rest of an epoch comes last.

    Args:
        lengths: (N,) tokens of each example.
        batch_size: examples of one optimizer step over all devices.
        seed: seed of the run.
        epoch: epoch, from 0.

    Returns:
        (N,) a permutation of ``range(N)``.
    """
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(lengths))
    whole = len(order) - len(order) % batch_size
    stretch = batch_size * max(1, min(BATCHES_SORTED_TOGETHER, len(order) // (STRETCHES * batch_size)))
    for start in range(0, whole, stretch):
        part = order[start : min(start + stretch, whole)]
        part[:] = part[np.argsort(lengths[part], kind="stable")]
    batches = order[:whole].reshape(-1, batch_size)
    return np.concatenate([generator.permutation(batches).reshape(-1), order[whole:]])


class LengthGroupedSampler(Sampler[int]):
    """:func:`length_grouped_order` of the epoch that the Trainer sets before it iterates."""

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(length_grouped_order(self.lengths, self.batch_size, self.seed, self.epoch).tolist())


def token_budget_batches(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Cut all examples, longest first, into batches that padded to their longest hold at most ``budget`` tokens.

    The largest batch comes first, so that too little memory shows at once. An example longer than the budget is alone.

    Args:
        lengths: (N,) tokens of each example.
        budget: most tokens of a padded batch.

    Returns:
        Indices of each batch; together they hold every example once.
    """
    order = np.argsort(-lengths, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        rows = max(1, budget // int(lengths[order[start]]))
        batches.append(order[start : start + rows])
        start += rows
    return batches
