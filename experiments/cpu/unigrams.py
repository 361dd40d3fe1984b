"""How well a unigram model explains the accuracies on minimal pairs.

    python experiments/cpu/unigrams.py --data_dir data/blimp --text sample/train.txt \
        --tokenizer sample/tokenizer/spm.model --sweep positions --output unigrams.csv

prints the accuracy of a unigram model of every fourth line of the text and, for each variant, the correlation between
its accuracies by paradigm (the mean over its seeds) and those of the unigram model. All accuracies are written to the
CSV file.
"""

import argparse
import csv
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import sentencepiece


def main() -> None:
    """Count the pieces, score the pairs, and print the correlations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="BLiMP's .jsonl files")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokenizer", required=True, help="the spm.model of the text")
    parser.add_argument("--sweep", type=Path, required=True, help="output folder of bertconv sweep")
    parser.add_argument("--output", type=Path, required=True, help="CSV file of the accuracies by paradigm")
    given = parser.parse_args()

    processor = sentencepiece.SentencePieceProcessor(model_file=given.tokenizer)
    with given.text.open(encoding="utf-8") as lines:
        counts = Counter(
            piece for n, line in enumerate(lines) if n % 4 == 0 for piece in processor.encode(line.lower())
        )

    total = counts.total()

    def log_likelihood(sentence: str) -> float:
        return sum(math.log((counts[piece] + 1) / total) for piece in processor.encode(sentence.lower()))

    unigrams = {}
    for path in sorted(given.data_dir.glob("*.jsonl")):
        pairs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        gaps = np.array([log_likelihood(p["sentence_good"]) - log_likelihood(p["sentence_bad"]) for p in pairs])
        unigrams[path.stem] = np.mean(np.where(np.abs(gaps) < 1e-9, 0.5, gaps > 0))
    names = sorted(unigrams)
    by_frequency = [unigrams[name] for name in names]
    columns = {"paradigm": names, "unigrams": by_frequency}
    print(f"unigrams: {np.mean(by_frequency):.3f}")
    for variant in sorted({path.parts[-4] for path in given.sweep.glob("*/seed*/blimp/minimal_pairs.json")}):
        files = given.sweep.glob(f"{variant}/seed*/blimp/minimal_pairs.json")
        scores = [json.loads(path.read_text(encoding="utf-8"))["paradigms"] for path in files]
        mean = columns[variant] = [np.mean([score[name]["accuracy"] for score in scores]) for name in names]
        print(f"{variant}: {np.mean(mean):.3f}, correlation {np.corrcoef(mean, by_frequency)[0, 1]:.2f}")
    with given.output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(
            (name, *(f"{value:.4f}" for value in row)) for name, *row in zip(*columns.values(), strict=True)
        )


if __name__ == "__main__":
    main()
