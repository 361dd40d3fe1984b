"""Fine-tuning and prediction in packed and padded rows, and the lengths of the examples."""

import numpy as np
import pytest

from benchmarks.glue_layouts import GlueJob, make_groups
from benchmarks.glue_lengths import NUM_EXAMPLES, QUANTILES, example_lengths
from bert_convolutions.bench.corpus import Setup
from tests.bench.test_jobs import reports


@pytest.mark.parametrize("key", QUANTILES)
def test_each_table_has_41_rising_quantiles(key: tuple[str, str]) -> None:
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


@pytest.mark.parametrize("glue_task", ["RTE", "CoLA"])
@pytest.mark.parametrize("task", ["fine_tuning", "prediction"])
def test_both_layouts_process_the_same_examples(task: str, glue_task: str, bench_setup: Setup) -> None:
    work = [
        reports(GlueJob(task, "composite", "float32", 128, 8, glue_task=glue_task, padded=padded), bench_setup)[0].work  # type: ignore[arg-type]
        for padded in (False, True)
    ]
    assert work[0] == work[1]
    assert work[0].examples == 8 and 8 < work[0].tokens <= 8 * 128


def test_each_group_compares_packed_with_padded_rows() -> None:
    groups = make_groups(["float32"], 32, 5, 2, None)
    titles = ["fine_tuning, RTE", "fine_tuning, CoLA", "prediction, RTE", "prediction, CoLA"]
    assert [group.title for group in groups] == titles
    for group in groups:
        ours, padded = group.jobs
        assert ours.baseline(group.jobs) == padded and padded.baseline(group.jobs) == padded
