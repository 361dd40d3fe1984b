"""Statistics over seeds against values by hand and full enumerations."""

import itertools
import math

import numpy as np
import pytest

from bert_convolutions.sweep import statistics
from bert_convolutions.sweep.statistics import compare, holm, tokens_to_loss


def seeds(*values: float) -> dict[int, float]:
    return dict(enumerate(values, 1))


def test_means_intervals_and_paired_differences() -> None:
    compared = compare({"base": seeds(5.0, 6.0, 7.0), "other": seeds(4.0, 5.1, 5.9)}, "base", larger_is_better=False)
    base, other = compared["base"], compared["other"]
    assert (base.seeds, base.mean, base.deviation, base.best) == (3, 6.0, 1.0, 5.0)
    assert base.difference is base.p_value is base.difference_interval is None
    assert other.difference == pytest.approx(-1.0)
    assert other.best == 4.0
    # Paired, the difference is -1.1 to -0.9 whatever the seeds' own spread.
    assert other.difference_interval and -1.1 <= other.difference_interval[0] < other.difference_interval[1] <= -0.9
    assert other.differs
    assert base.interval and base.interval[1] - base.interval[0] > 1


def test_the_interval_is_that_of_all_resamples() -> None:
    sample = [1.0, 2.0, 4.0, 8.0]
    means = [float(np.mean(resample)) for resample in itertools.product(sample, repeat=4)]
    low, high = np.percentile(means, [2.5, 97.5])
    found = statistics.bootstrap_interval(np.array(sample))
    assert found == pytest.approx((low, high), abs=0.26)  # one step between the means of resamples


def test_two_seeds_give_no_interval_and_five_no_p_value() -> None:
    two = compare({"base": seeds(1.0, 1.0), "other": seeds(9.0, 9.0)}, "base", larger_is_better=True)["other"]
    assert two.interval is two.difference_interval is two.p_value is None
    assert not two.differs
    five = compare({"base": seeds(*[1.0] * 5), "other": seeds(2, 3, 4, 5, 6)}, "base", larger_is_better=True)["other"]
    assert five.p_value is None and five.difference_interval is not None
    one = compare({"base": seeds(1.0)}, "base", larger_is_better=True)["base"]
    assert one.seeds == 1 and math.isnan(one.deviation)


def test_the_permutation_test_is_exact() -> None:
    differences = np.array([1.0, 2.0, 3.0, 4.0, 5.0, -0.5])
    means = [abs(np.mean(differences * signs)) for signs in itertools.product([1, -1], repeat=6)]
    expected = np.mean([mean >= abs(differences.mean()) - 1e-12 for mean in means])
    assert statistics.sign_permutation_p(differences) == pytest.approx(expected)
    assert statistics.sign_permutation_p(np.arange(1.0, 7.0)) == pytest.approx(2 / 64)


def test_holms_correction_equals_values_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.5]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_more_comparisons_need_more_evidence() -> None:
    base = seeds(*[0.0] * 6)
    winner = seeds(1, 2, 3, 4, 5, 6)
    alone = compare({"base": base, "one": winner}, "base", larger_is_better=True)["one"]
    assert alone.p_holm == pytest.approx(2 / 64) and alone.differs
    among = compare({"base": base, **{f"v{i}": winner for i in range(2)}}, "base", larger_is_better=True)["v0"]
    assert among.p_holm == pytest.approx(4 / 64) and not among.differs


def test_an_interval_across_zero_is_no_difference() -> None:
    for values in ((2, 1, 3), (2, math.nan, 3)):
        compared = compare({"base": seeds(1, 2, 3), "other": seeds(*values)}, "base", larger_is_better=True)
        assert not compared["other"].differs


def test_three_differences_of_one_sign_do_not_suffice() -> None:
    base, few = seeds(0, 0, 0), seeds(0.1, 0.2, 1.0)
    found = compare({"base": base, "other": few}, "base", larger_is_better=True)["other"]
    assert found.difference_interval and found.difference_interval[0] > 0
    assert found.student_interval == pytest.approx((-0.79, 1.66), abs=0.01)
    assert not found.differs
    assert compare({"base": base, "other": seeds(0.9, 1.0, 1.1)}, "base", larger_is_better=True)["other"].differs


def test_differences_are_over_the_seeds_that_both_have() -> None:
    compared = compare({"base": {1: 1.0, 2: 2.0}, "other": {2: 5.0, 3: 100.0}}, "base", larger_is_better=True)
    assert compared["other"].difference == 3.0
    assert compare({"base": {}, "other": {1: 1.0}}, "base", larger_is_better=True)["other"].difference is None


def test_tokens_to_a_loss_are_interpolated() -> None:
    tokens, losses = [100.0, 200.0, 400.0], [7.0, 6.0, 5.0]
    assert tokens_to_loss(tokens, losses, 6.0) == pytest.approx(200)
    assert tokens_to_loss(tokens, losses, 5.5) == pytest.approx(math.sqrt(200 * 400))
    assert tokens_to_loss(tokens, losses, 8.0) == 100
    assert tokens_to_loss(tokens, losses, 4.9) is None


def test_ratios_are_averaged_as_ratios() -> None:
    mean, interval = statistics.ratio_interval([2.0, 8.0, 4.0])
    assert mean == pytest.approx(4.0)
    assert interval and 2.0 <= interval[0] < 4.0 < interval[1] <= 8.0
