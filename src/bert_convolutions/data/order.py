"""The order of an epoch: a pseudo-random permutation of all samples that is never held in memory.

A Feistel network over the bits of the position is a permutation of the next power of four; positions that land past the
end walk on until they land inside (cycle walking; Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
So the sample at any position is a pure function of (number of samples, seed, epoch, position), and resuming a run needs
only integers.
"""

import numpy as np
from numpy.typing import NDArray

from bert_convolutions.data.hashing import mix

_ROUNDS = 8


class EpochOrder:
    """The permutation of one epoch.

    Args:
        num_samples: N >= 1.
        seed: of the run.
        epoch: counted from 0.

    Raises:
        ValueError: for no samples.
    """

    def __init__(self, num_samples: int, seed: int, epoch: int) -> None:
        if num_samples < 1:
            raise ValueError(f"an order needs at least one sample, not {num_samples}")
        self.num_samples = num_samples
        self._half_bits = np.uint64(max(1, ((num_samples - 1).bit_length() + 1) // 2))
        self._half_mask = np.uint64((1 << int(self._half_bits)) - 1)
        self._keys = mix(np.arange(_ROUNDS, dtype=np.uint64), seed, epoch, 0x0DE5)

    def __len__(self) -> int:
        """N."""
        return self.num_samples

    def __getitem__(self, positions: NDArray[np.integer]) -> NDArray[np.int64]:
        """The samples at ``positions`` (any shape, each in 0 .. N-1), int64.

        Raises:
            IndexError: for a position out of range.
        """
        positions = np.asarray(positions)
        if positions.size and (positions.min() < 0 or positions.max() >= self.num_samples):
            raise IndexError(f"positions must be in 0 .. {self.num_samples - 1}")
        samples = self._encrypt(positions.astype(np.uint64))
        outside = samples >= self.num_samples
        while outside.any():
            samples[outside] = self._encrypt(samples[outside])
            outside = samples >= self.num_samples
        return samples.astype(np.int64)

    def _encrypt(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> self._half_bits, values & self._half_mask
        for key in self._keys:
            left, right = right, left ^ (mix(right, int(key)) & self._half_mask)
        return (left << self._half_bits) | right
