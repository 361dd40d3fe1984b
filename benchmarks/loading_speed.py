"""Real tokens/s that reading and collating give on one core, with nobody training on them.

python benchmarks/loading_speed.py --data pairs --tokenizer tok/spm.model [--batch_size 256] [--block_size 128]
"""

import argparse
from collections.abc import Iterator
from typing import Any

from bert_convolutions.data.collate import PretrainingCollator, loading_speed
from bert_convolutions.data.masking import Masking
from bert_convolutions.data.store import ArrowStore
from bert_convolutions.data.tokenizer import load_tokenizer
from bert_convolutions.training.sampling import SlicedExamples, StepPlan, StepSlices


def main() -> None:
    """Print the speed of the collator alone, and that of store and collator together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--block_size", type=int, default=128)
    arguments = parser.parse_args()
    tokenizer, store = load_tokenizer(arguments.tokenizer), ArrowStore(arguments.data)
    special_ids = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    collate = PretrainingCollator(Masking.of_tokenizer(tokenizer, 0), *special_ids, block_size=arguments.block_size)
    plan = StepPlan(len(store), 0, micro_batch_size=arguments.batch_size, micro_batches=1, processes=1)
    examples = SlicedExamples(store, plan)
    features = [examples.__getitems__(part) for part, _ in zip(StepSlices(plan, 0), range(16), strict=False)]

    def whole() -> Iterator[dict[str, Any]]:
        while True:
            yield from (collate(examples.__getitems__(part)) for part in StepSlices(plan, 0))

    def collated() -> Iterator[dict[str, Any]]:
        while True:
            yield from map(collate, features)

    for name, batches in (("collator", collated()), ("store and collator", whole())):
        print(f"{name}: {max(loading_speed(batches, 2.0) for _ in range(3)) / 1e6:.1f} M real tokens/s")


if __name__ == "__main__":
    main()
