"""Lengths of RTE's and CoLA's examples, to measure without GLUE's files.

Measured on GLUE's official files, tokenized as ``[CLS] a [SEP]`` or ``[CLS] a [SEP] b [SEP]`` with a SentencePiece
unigram model of 8,000 pieces and not truncated: every fortieth quantile from the shortest to the longest. With a
vocabulary of 30,000, examples are some tenths shorter.
"""

import numpy as np

QUANTILES: dict[tuple[str, str], tuple[int, ...]] = {
    ("RTE", "train"): (
        *(18, 33, 39, 42, 46, 49, 51, 54, 56, 58, 60, 61, 63, 65, 67, 69, 71, 73, 75, 77, 80),
        *(82, 85, 87, 90, 93, 96, 101, 106, 112, 120, 131, 146, 157, 169, 179, 190, 202, 218, 245, 372),
    ),
    ("RTE", "test"): (
        *(11, 33, 39, 42, 44, 47, 49, 51, 53, 55, 57, 59, 60, 62, 64, 66, 67, 69, 71, 72, 74),
        *(76, 78, 81, 83, 86, 89, 92, 97, 102, 108, 120, 130, 149, 160, 171, 187, 203, 219, 249, 373),
    ),
    ("CoLA", "train"): (
        *(4, 7, 8, 9, 9, 10, 10, 10, 11, 11, 11, 12, 12, 12, 12, 13, 13, 13, 14, 14, 14),
        *(14, 15, 15, 15, 16, 16, 16, 17, 17, 18, 18, 19, 20, 20, 21, 22, 24, 26, 29, 64),
    ),
    ("CoLA", "test"): (
        *(5, 7, 7, 8, 9, 9, 10, 10, 10, 11, 11, 11, 12, 12, 12, 12, 13, 13, 13, 14, 14),
        *(14, 15, 15, 15, 16, 16, 16, 17, 17, 18, 19, 19, 20, 21, 21, 23, 25, 27, 31, 56),
    ),
}
"""Tokens of an example at the quantiles 0, 1/40, 2/40, ... 1, by (task, file)."""
NUM_EXAMPLES = {("RTE", "train"): 2490, ("RTE", "test"): 3000, ("CoLA", "train"): 8551, ("CoLA", "test"): 1063}
"""Number of examples by (task, file)."""


def example_lengths(task: str, file: str, count: int, longest: int) -> np.ndarray:
    """Lengths of ``count`` examples spread evenly over the quantiles, shortest first.

    Args:
        task: RTE or CoLA.
        file: train or test.
        count: N.
        longest: length to which longer examples are truncated.

    Returns:
        (N,) int64.
    """
    table = QUANTILES[task, file]
    at = (np.arange(count) + 0.5) / count
    lengths = np.interp(at, np.linspace(0, 1, len(table)), table)
    return np.minimum(np.rint(lengths).astype(np.int64), longest)
