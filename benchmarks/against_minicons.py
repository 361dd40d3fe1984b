"""Compares pseudo-log-likelihoods with those of minicons on the same model and pairs: CPU seconds and differences.

    python benchmarks/against_minicons.py --model_name_or_path MODEL --data_dir blimp --pairs 1

This package computes the sum and the within-word variant in one pass; minicons needs a pass for each, and supports the
second only with a fast tokenizer. Needs ``pip install minicons``, which is not a dependency of the project.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from minicons.scorer import MaskedLMScorer

from bert_convolutions.probes.pairs import read_paradigms
from bert_convolutions.probes.run import load_model
from bert_convolutions.probes.scoring import PseudoLikelihood


def main() -> None:
    """Measure both in turns and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--data_dir", type=Path, required=True, help="as for bertconv minimal-pairs")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of each paradigm")
    parser.add_argument("--batch", type=int, default=16, help="batch size of minicons, in sentences")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_model(options.model_name_or_path, None)
    if not hasattr(tokenizer, "batch_encode_plus"):  # minicons calls a method that transformers 5 has dropped
        tokenizer.batch_encode_plus = tokenizer.__call__  # type: ignore[attr-defined]
    paradigms = [paradigm.first(options.pairs) for paradigm in read_paradigms(options.data_dir)]
    texts = [sentence for paradigm in paradigms for pair in paradigm.pairs for sentence in pair]
    ours, theirs = PseudoLikelihood(model, tokenizer), MaskedLMScorer(model, str(model.device), tokenizer=tokenizer)
    metrics = ["original", "within_word_l2r"] if tokenizer.is_fast else ["original"]
    seconds: dict[str, list[float]] = {"ours, both variants": [], **{f"minicons, {name}": [] for name in metrics}}
    largest = dict.fromkeys(metrics, 0.0)
    for _ in range(options.rounds):
        start = time.process_time()
        scores = ours(texts)
        seconds["ours, both variants"].append(time.process_time() - start)
        for metric in metrics:
            start = time.process_time()
            found = []
            for first in range(0, len(texts), options.batch):
                found += theirs.sequence_score(
                    texts[first : first + options.batch], reduction=lambda x: x.sum(0).item(), PLL_metric=metric
                )
            seconds[f"minicons, {metric}"].append(time.process_time() - start)
            mine = [score.whole if metric == "original" else score.within_word for score in scores]
            largest[metric] = max(abs(one - other) for one, other in zip(mine, found, strict=True))
    print(json.dumps({"pairs": len(texts) // 2, "cpu_seconds": seconds, "largest_difference": largest}, indent=2))


if __name__ == "__main__":
    main()
