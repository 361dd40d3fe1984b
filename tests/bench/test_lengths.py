import numpy as np
import pytest

from bert_convolutions.bench.lengths import NUM_EXAMPLES, QUANTILES, example_lengths


@pytest.mark.parametrize("key", QUANTILES)
def test_tables_rise_over_forty_steps(key: tuple[str, str]) -> None:
    table = QUANTILES[key]
    assert len(table) == 41 and key in NUM_EXAMPLES
    assert list(table) == sorted(table) and table[0] >= 3


def test_lengths_follow_the_table() -> None:
    lengths = example_lengths("RTE", "train", 2490, 128)
    assert len(lengths) == 2490 and lengths.max() == 128 and lengths.min() >= 18
    assert lengths.mean() == pytest.approx(84.75, abs=0.3), "that of the real file"
    assert example_lengths("CoLA", "train", 8551, 128).mean() == pytest.approx(15.1, abs=0.4)


def test_few_examples_spread_over_all_lengths() -> None:
    lengths = example_lengths("CoLA", "test", 4, 16)
    assert (np.diff(lengths) >= 0).all() and lengths[0] < 12 and lengths[-1] == 16
