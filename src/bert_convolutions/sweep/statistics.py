"""Is a difference between variants real? Means over seeds, bootstrap intervals, paired permutation tests, Holm.

A run's seed is what differs between repetitions, so runs of the same seed are paired: same data order, same masks.
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
"""Below this many seeds no interval is given: two values have three resamples."""
SEEDS_FOR_TEST = 6
"""With n pairs the smallest two-sided p of a permutation test is 2 / 2^n: below six it never reaches 0.05."""
_SEED = 0

Interval = tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """A variant's values of one metric, and their paired differences to the baseline.

    Attributes:
        seeds: how many.
        mean, deviation, best: of the values; ``deviation`` is the sample's, NaN for one seed.
        interval: 95 % bootstrap interval of the mean over seeds; None: too few seeds.
        difference: mean of variant minus baseline over the seeds both have; None for the baseline, or where none is.
        difference_interval: 95 % bootstrap interval of it; None: too few seeds.
        student_interval: 95 % interval of it by Student's t, which knows how little few seeds say: the other
            never holds zero where three differences have one sign, as they have by chance one time in four.
        p_value: two-sided, of the paired permutation test of signs; None: too few seeds.
        p_holm: the same, corrected for the number of variants compared (Holm, 1979).
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
        """Whether the interval of the difference leaves zero out, and the test agrees; without one, Student's."""
        if self.difference_interval is None or self.student_interval is None:
            return False
        agreed = _without_zero(self.student_interval) if self.p_holm is None else self.p_holm <= 1 - LEVEL
        return agreed and _without_zero(self.difference_interval)


def _without_zero(interval: Interval) -> bool:
    return not interval[0] <= 0 <= interval[1]


def compare(
    values: Mapping[str, Mapping[int, float]], baseline: str | None, larger_is_better: bool
) -> dict[str, Comparison]:
    """Summarise one metric, given by variant and seed, for each variant that has values, in the order given.

    The others are compared to ``baseline``, unless it is None or has no values.
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
    """95 % percentile interval of the mean; None for too few values.

    With three to five values it is narrower than it should be (three have ten different resamples), which no method
    can mend: it says how far the seeds at hand are apart.
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
    """Two-sided p-value of differences whose signs are exchanged in all ways; None for too few."""
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
    """Holm's step-down correction: each rejected at 0.05 only if all smaller ones are."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values).tolist()):
        largest = max(largest, min((len(p_values) - rank) * p_values[index], 1.0))
        corrected[index] = largest
    return corrected


def tokens_to_loss(tokens: Sequence[float], losses: Sequence[float], level: float) -> float | None:
    """Tokens after which a curve first reaches a loss, interpolated in log tokens; None if it doesn't.

    ``tokens``, rising and above 0, are those seen at each evaluation, and ``losses`` what it gave.
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
    """The geometric mean of ratios over seeds, and its 95 % interval."""
    logarithms = np.log(np.asarray(ratios, dtype=np.float64))
    interval = bootstrap_interval(logarithms)
    mean = math.exp(float(logarithms.mean()))
    return mean, None if interval is None else (math.exp(interval[0]), math.exp(interval[1]))
