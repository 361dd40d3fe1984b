"""Comparison of variants: means over seeds, bootstrap intervals, paired permutation tests, Holm's correction.

Runs of the same seed are paired, as they have the same data order and the same masks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95
RESAMPLES = 9999
SEEDS_FOR_INTERVAL = 3
"""Minimum number of seeds for an interval: two values have only three distinct resamples."""
SEEDS_FOR_TEST = 6
"""Minimum number of seeds for a test: the smallest two-sided p-value, 2 / 2^n, is below 0.05 only from six on."""
_SEED = 0

Interval = tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """A variant's values of one metric and their paired differences to the baseline.

    Attributes:
        seeds: number of seeds.
        mean, deviation, best: of the values; ``deviation`` is the sample standard deviation, NaN for one seed.
        interval: 95 % bootstrap interval of the mean over seeds; None for too few seeds.
        difference: mean of variant minus baseline over common seeds; None for the baseline or without common seeds.
        difference_interval: 95 % bootstrap interval of the difference; None for too few seeds.
        student_interval: 95 % interval of the difference by Student's t, which accounts for few seeds: the other
            excludes zero whenever three differences have the same sign, by chance in one of four cases.
        p_value: two-sided p-value of the paired sign permutation test; None for too few seeds.
        p_holm: the p-value corrected for the number of compared variants (Holm, 1979).
    """

    seeds: int
    mean: float
    deviation: float
    best: float
    interval: Interval | None
    difference: float | None = None
    difference_interval: Interval | None = None
    student_interval: Interval | None = None
    p_value: float | None = None
    p_holm: float | None = None

    @property
    def differs(self) -> bool:
        """Whether the bootstrap interval of the difference excludes zero, and the test or Student's interval agrees."""
        if self.difference_interval is None or self.student_interval is None:
            return False
        agreed = _excludes_zero(self.student_interval) if self.p_holm is None else self.p_holm <= 1 - LEVEL
        return agreed and _excludes_zero(self.difference_interval)


def _excludes_zero(interval: Interval) -> bool:
    return interval[0] > 0 or interval[1] < 0  # not for NaN


def compare(
    values: Mapping[str, Mapping[int, float]], baseline: str | None, larger_is_better: bool
) -> dict[str, Comparison]:
    """Summarise one metric, given by variant and seed, for each variant with values, in the given order.

    The other variants are compared to ``baseline``, unless it is None or has no values.
    """
    compared: dict[str, Comparison] = {}
    for variant, by_seed in values.items():
        if not by_seed:
            continue
        sample = np.array(list(by_seed.values()), dtype=np.float64)
        best = float(sample.max() if larger_is_better else sample.min())
        deviation = float(sample.std(ddof=1)) if len(sample) > 1 else math.nan
        summary = Comparison(len(sample), float(sample.mean()), deviation, best, bootstrap_interval(sample))
        reference = values.get(baseline, {}) if baseline is not None and variant != baseline else {}
        common = [seed for seed in by_seed if seed in reference]
        if common:
            differences = np.array([by_seed[seed] - reference[seed] for seed in common], dtype=np.float64)
            summary = replace(
                summary,
                difference=float(differences.mean()),
                difference_interval=bootstrap_interval(differences),
                student_interval=_student_interval(differences),
                p_value=sign_permutation_p(differences),
            )
        compared[variant] = summary
    tested = {name: summary.p_value for name, summary in compared.items() if summary.p_value is not None}
    for name, corrected in zip(tested, holm(list(tested.values())), strict=True):
        compared[name] = replace(compared[name], p_holm=corrected)
    return compared


def bootstrap_interval(sample: NDArray[np.float64]) -> Interval | None:
    """95 % bootstrap percentile interval of the mean; None for too few values.

    With three to five values it is too narrow (three have only ten distinct resamples) and merely describes the spread
    of the given seeds.
    """
    if len(sample) < SEEDS_FOR_INTERVAL:
        return None
    if np.ptp(sample) == 0:
        return float(sample[0]), float(sample[0])
    found = stats.bootstrap(
        (sample,),
        np.mean,
        confidence_level=LEVEL,
        n_resamples=RESAMPLES,
        method="percentile",
        random_state=np.random.default_rng(_SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


def _student_interval(sample: NDArray[np.float64]) -> Interval | None:
    if len(sample) < SEEDS_FOR_INTERVAL:
        return None
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(sample) - 1) * sample.std(ddof=1) / math.sqrt(len(sample)))
    return float(sample.mean()) - half, float(sample.mean()) + half


def sign_permutation_p(differences: NDArray[np.float64]) -> float | None:
    """Two-sided p-value of the permutation test over all signs of the differences; None for too few."""
    if len(differences) < SEEDS_FOR_TEST:
        return None
    found = stats.permutation_test(
        (differences, np.zeros_like(differences)),
        lambda one, other: np.mean(one - other),
        permutation_type="samples",
        n_resamples=RESAMPLES,
        random_state=np.random.default_rng(_SEED),
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values with Holm's step-down correction: one is rejected only if all smaller ones are."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values).tolist()):
        largest = max(largest, min((len(p_values) - rank) * p_values[index], 1.0))
        corrected[index] = largest
    return corrected


def tokens_to_loss(tokens: Sequence[float], losses: Sequence[float], level: float) -> float | None:
    """The number of tokens at which a curve first reaches the loss ``level``, or None.

    ``tokens`` (positive, increasing) and ``losses`` are those of the evaluations; log tokens are interpolated.
    """
    for index, loss in enumerate(losses):
        if loss <= level:
            if index == 0:
                return float(tokens[0])
            before, after = losses[index - 1], loss
            share = (before - level) / (before - after)
            return math.exp(math.log(tokens[index - 1]) * (1 - share) + math.log(tokens[index]) * share)
    return None


def ratio_interval(ratios: Sequence[float]) -> tuple[float, Interval | None]:
    """The geometric mean of ratios over seeds and its 95 % interval."""
    logarithms = np.log(np.asarray(ratios, dtype=np.float64))
    interval = bootstrap_interval(logarithms)
    mean = math.exp(float(logarithms.mean()))
    return mean, None if interval is None else (math.exp(interval[0]), math.exp(interval[1]))
