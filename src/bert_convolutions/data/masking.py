"""Masking for the masked language model, a pure function of (seed, epoch, sample, position in the sample)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bert_convolutions.data.packing import positions_within
from bert_convolutions.data.randomness import Stream, mix, uniform

IGNORED = -100
"""Label of tokens that are not to be predicted: PyTorch's default ``ignore_index``."""
Integers = int | NDArray[np.int64]


@dataclass(frozen=True)
class Masking:
    """BERT's masking: each token except ``special_ids`` is chosen with ``probability``.

    Of the chosen tokens, 80 % become [MASK], 10 % a uniformly random id below ``vocab_size``, and 10 % stay the same.
    """

    seed: int
    mask_id: int
    vocab_size: int
    special_ids: tuple[int, ...]
    probability: float = 0.15

    @classmethod
    def of_tokenizer(cls, tokenizer: Any, seed: int, probability: float = 0.15) -> "Masking":
        """The masking for texts encoded by a Hugging Face tokenizer.

        Of its special tokens only the unknown token can be chosen, as in the original: it stands for text.
        """
        layout = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id}
        special_ids = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id} | layout
        return cls(seed, tokenizer.mask_token_id, len(tokenizer), tuple(sorted(special_ids)), probability)

    def __call__(
        self, ids: NDArray[np.int64], epoch: Integers, sample: Integers, *, lengths: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Mask one sample or several concatenated ones.

        Args:
            ids: (T,) token ids.
            epoch, sample: keys of the random numbers; arrays (X,) for several samples.
            lengths: (X,) tokens of each sample; None for one sample.

        Returns:
            Masked ids (T,) and labels (T,): the original id of tokens to predict, otherwise ``IGNORED``.
        """
        lengths = np.array([len(ids)]) if lengths is None else lengths
        length = np.repeat(lengths, lengths)
        position = positions_within(lengths)
        keys = [np.repeat(np.broadcast_to(key, lengths.shape), lengths) for key in (epoch, sample)]
        chosen = uniform(mix(position, self.seed, *keys, Stream.MASKING)) < self.probability
        chosen &= ~np.isin(ids, self.special_ids)
        at = np.flatnonzero(chosen)  # only these need the two other draws
        action, random = (
            uniform(mix((position + draw * length)[at], self.seed, *(key[at] for key in keys), Stream.MASKING))
            for draw in (1, 2)
        )
        masked, labels = ids.copy(), np.full(len(ids), IGNORED, dtype=np.int64)
        labels[at] = ids[at]
        masked[at[action < 0.8]] = self.mask_id
        is_random = (action >= 0.8) & (action < 0.9)
        masked[at[is_random]] = (random[is_random] * self.vocab_size).astype(np.int64)
        return masked, labels

    def swaps(self, epoch: Integers, sample: Integers) -> NDArray[np.bool_]:
        """Whether the two sentences of each sample are swapped, (X,), with probability 0.5 (sentence-order task)."""
        counters = np.zeros(np.size(sample), dtype=np.uint64)
        return mix(counters, self.seed, epoch, sample, Stream.SENTENCE_ORDER) >> np.uint64(63) == 1
