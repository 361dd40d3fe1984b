"""Counter-based randomness: the same numbers for the same integers, on every machine and in every order of asking."""

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(counters: NDArray[np.uint64], *keys: int) -> NDArray[np.uint64]:
    """64 pseudo-random bits for each counter and the keys: chained SplitMix64 finalisers (Steele et al., 2014).

    Args:
        counters: any shape.
        keys: integers such as seed and epoch; negative ones are taken modulo 2**64.
    """
    values = _finalise(np.asarray(counters, dtype=np.uint64) + _GOLDEN)
    for key in keys:
        values = _finalise(values ^ _finalise(np.array(key % 2**64, dtype=np.uint64) + _GOLDEN))
    return values


def uniform(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in [0, 1) from 64 random bits each."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _finalise(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
