"""Counter-based random numbers: the same integers give the same numbers on every machine and in any order of calls.

Each number is a pure function of its keys (a seed, an epoch, a sample, a position), so resuming a run needs only
integers, and no number depends on how many were drawn before it.
"""

import enum

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 8


class Stream(enum.IntEnum):
    """The last key of each kind of draw, so that draws with the same seed are independent. Values affect results."""

    MASKING = 0x3A5C
    SENTENCE_ORDER = 0x50B
    EPOCH_ORDER = 0x0DE5
    PAIR_SHUFFLE = 0x5348
    HELD_OUT = 0x484F
    TOKENIZER_SAMPLE = 0x544B


def mix(counters: NDArray[np.integer], *keys: int | NDArray[np.integer]) -> NDArray[np.uint64]:
    """64 pseudo-random bits per counter, given the keys: chained SplitMix64 finalisers (Steele et al., 2014).

    Args:
        counters: non-negative integers, any shape.
        keys: integers such as seed and epoch, taken modulo 2**64, or arrays of non-negative integers that broadcast
            with the counters.
    """
    values = _finalise(np.asarray(counters, dtype=np.uint64) + _GOLDEN)
    for key in keys:
        bits = key.astype(np.uint64) if isinstance(key, np.ndarray) else np.array(key % 2**64, dtype=np.uint64)
        values = _finalise(values ^ _finalise(bits + _GOLDEN))
    return values


def uniform(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in [0, 1) from 64 random bits each."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _finalise(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class EpochOrder:
    """The order of an epoch (counted from 0): a pseudo-random permutation of all N samples that is never stored.

    A Feistel network over the bits of the position permutes the integers below the next power of four; results of N or
    more are encrypted again until they are below N (cycle walking; Black and Rogaway, "Ciphers with arbitrary finite
    domains", 2002).

    Raises:
        ValueError: ``num_samples`` is less than 1.
    """

    def __init__(self, num_samples: int, seed: int, epoch: int) -> None:
        if num_samples < 1:
            raise ValueError(f"an order needs at least one sample, not {num_samples}")
        self.num_samples = num_samples
        self._half_bits = np.uint64(max(1, ((num_samples - 1).bit_length() + 1) // 2))
        self._half_mask = np.uint64((1 << int(self._half_bits)) - 1)
        self._keys = mix(np.arange(_ROUNDS, dtype=np.uint64), seed, epoch, Stream.EPOCH_ORDER)

    def __len__(self) -> int:
        """The number of samples, N."""
        return self.num_samples

    def __getitem__(self, positions: NDArray[np.integer]) -> NDArray[np.int64]:
        """The samples at ``positions`` (any shape, each in 0 .. N-1), int64.

        Raises:
            IndexError: a position is out of range.
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
