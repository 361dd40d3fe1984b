"""Batches of examples of like length, so that little is padded. All of it is a pure function of its arguments."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from bert_convolutions.glue.encoding import EncodedExamples
from bert_convolutions.training.sampling import Slice, StepPlan

Collator = Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]

BATCHES_SORTED_TOGETHER = 50
"""Batches' worth of examples, drawn at random, that are sorted by length together; as in ``transformers``."""
STRETCHES = 2
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


class LengthGroupedExamples(Dataset[Any]):
    """Training examples that are asked for a whole ``Slice`` of an epoch's :func:`length_grouped_order` at a time.

    Args:
        examples: N examples.
        plan: which positions of the order a process takes in which step.
        seed: seed of the order.
    """

    def __init__(self, examples: EncodedExamples, plan: StepPlan, seed: int) -> None:
        self.examples, self.plan, self.seed = examples, plan, seed
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.examples[index]

    def __getitems__(self, part: Slice) -> list[dict[str, Any]]:  # what the DataLoader calls, if it is there
        return [self.examples[index] for index in self.rows(part)]

    def rows(self, part: Slice) -> list[int]:
        """Return the numbers of a slice's examples."""
        if self._epoch != part.epoch:
            size = self.plan.global_batch_size
            self._epoch = part.epoch
            self._order = length_grouped_order(self.examples.lengths, size, self.seed, part.epoch)
        return [int(index) for index in self._order[part.start : part.stop]]


class CountingCollator:
    """Pads examples and counts them as ``num_examples``; of none it makes a batch that counts as none.

    Processes must all run a model step, even one that has no example left at the end of an epoch.

    Args:
        collate: pads a list of examples.
        stand_in: an example to fill such a batch with.
    """

    def __init__(self, collate: Collator, stand_in: dict[str, Any]) -> None:
        self.collate, self.stand_in = collate, stand_in

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch."""
        return {**self.collate(examples or [self.stand_in]), "num_examples": len(examples)}


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
