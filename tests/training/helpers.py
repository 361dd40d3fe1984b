"""What the tests of training share besides fixtures: sizes, a collator, and comparisons."""

from collections.abc import Callable

import torch

from bert_convolutions.data.collate import PretrainingCollator
from bert_convolutions.data.masking import Masking
from bert_convolutions.training.trainer import PretrainingTrainer

PIECES, CLS, SEP, PAD, MASK, SIZE = 60, 60, 61, 62, 63, 64
NUM_EXAMPLES = 52
MakeTrainer = Callable[..., PretrainingTrainer]


def make_collator(seed: int = 42, *, pack: bool = True, sentence_order: bool = False) -> PretrainingCollator:
    masking = Masking(seed=seed, mask_id=MASK, vocab_size=SIZE, special_ids=(CLS, SEP, PAD, MASK))
    return PretrainingCollator(
        masking, CLS, SEP, PAD, block_size=32, pack=pack, sentence_order=sentence_order, position_bucket=8
    )


def losses(trainer: PretrainingTrainer) -> list[float]:
    """The loss of each logged step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def assert_same_weights(one: PretrainingTrainer, other: PretrainingTrainer) -> None:
    """The models' weights are equal bit for bit."""
    left, right = one.model.state_dict(), other.model.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
