"""Masking for the masked language model: a pure function of (seed, epoch, sample, position in the sample)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bert_convolutions.data.hashing import mix, uniform

IGNORED = -100
"""The label of a token that is not to be predicted."""


@dataclass(frozen=True)
class Masking:
    """BERT's masking: of the chosen tokens 80 % become [MASK], 10 % a uniform random id, 10 % stay.

    Attributes:
        seed: of the run.
        mask_id: the id of [MASK].
        vocab_size: random ids are drawn from 0 .. vocab_size - 1.
        special_ids: ids that are never chosen, such as [CLS] and [SEP].
        probability: of a token to be chosen.
    """

    seed: int
    mask_id: int
    vocab_size: int
    special_ids: tuple[int, ...]
    probability: float = 0.15

    def __call__(self, ids: NDArray[np.int64], epoch: int, sample: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Mask one sample.

        Args:
            ids: (S,) token ids.
            epoch, sample: which draw of which sample this is.

        Returns:
            Masked ids (S,) and labels (S,), the original id where it is to be predicted and ``IGNORED`` elsewhere.
        """
        bits = mix(np.arange(3 * len(ids), dtype=np.uint64), self.seed, epoch, sample, 0x3A5C).reshape(3, -1)
        chosen = (uniform(bits[0]) < self.probability) & ~np.isin(ids, self.special_ids)
        action = uniform(bits[1])
        random_ids = (uniform(bits[2]) * self.vocab_size).astype(np.int64)
        masked = np.where(chosen & (action < 0.8), self.mask_id, ids)
        masked = np.where(chosen & (action >= 0.8) & (action < 0.9), random_ids, masked)
        return masked, np.where(chosen, ids, IGNORED)

    def swaps(self, epoch: int, sample: int) -> bool:
        """Whether the two sentences of this sample change places (sentence-order prediction), with probability 0.5."""
        return bool(mix(np.zeros(1, dtype=np.uint64), self.seed, epoch, sample, 0x50B)[0] >> np.uint64(63))
