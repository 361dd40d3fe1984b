"""Order, masking, packing and collation are pure functions, and layouts change no result of the model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bert_convolutions import CompositeBertConfig, CompositeBertForMaskedLM, CompositeBertForPreTraining
from bert_convolutions.data.collate import PretrainingCollator
from bert_convolutions.data.masking import IGNORED, Masking
from bert_convolutions.data.packing import one_per_row, pack
from bert_convolutions.data.randomness import EpochOrder, mix
from tests.helpers import NO_DROPOUT, TINY

CLS, SEP, PAD, MASK, VOCABULARY = 57, 58, 59, 60, 61
MASKING = Masking(seed=3, mask_id=MASK, vocab_size=VOCABULARY, special_ids=(CLS, SEP, PAD, MASK))


def examples(count, longest=30):
    random = np.random.default_rng(0)

    def sentence():
        return random.integers(1, 57, random.integers(1, longest))

    return [np.concatenate([[CLS], sentence(), [SEP], sentence(), [SEP]]) for _ in range(count)]


def features(count, epoch=0):
    return [{"epoch": epoch, "sample": sample, "input_ids": ids} for sample, ids in enumerate(examples(count))]


def collator(**options):
    return PretrainingCollator(MASKING, CLS, SEP, PAD, **{"block_size": 64, **options})


def test_orders_and_masks_are_those_of_every_version_and_machine():
    """Other numbers would change what a run sees that is resumed after an upgrade; the first is SplitMix64's of 0."""
    assert int(mix(np.array([0]))[0]) == 0xE220A8397B1DCDAF
    assert EpochOrder(10, seed=42, epoch=1)[np.arange(10)].tolist() == [2, 6, 4, 9, 3, 7, 0, 1, 5, 8]
    masked, labels = MASKING(np.arange(1, 50), epoch=3, sample=7)
    chosen = {int(position): int(masked[position]) for position in np.flatnonzero(labels != IGNORED)}
    assert chosen == {5: MASK, 6: MASK, 12: MASK, 24: 28, 34: MASK, 45: MASK}
    assert MASKING.swaps(1, np.arange(8)).tolist() == [True, False, True, True, False, False, True, False]


@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 1000))
def test_an_epoch_visits_each_sample_once(count, seed, epoch):
    order = EpochOrder(count, seed, epoch)[np.arange(count)]
    assert np.array_equal(np.sort(order), np.arange(count))
    assert np.array_equal(EpochOrder(count, seed, epoch)[np.arange(count)[::-1]], order[::-1])


def test_orders_differ_and_mix_well():
    first, second = (EpochOrder(5000, 1, epoch)[np.arange(5000)] for epoch in (0, 1))
    assert (first == second).mean() < 0.01
    for order in (first, second):
        assert abs(np.corrcoef(order, np.arange(5000))[0, 1]) < 0.05
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.05
    firsts = np.array([EpochOrder(10, seed, 0)[np.arange(10)] for seed in range(4000)])
    counts = np.stack([np.bincount(column, minlength=10) for column in firsts.T])
    assert ((counts - 400) ** 2 / 400).sum() < 160  # chi-squared, 81 degrees of freedom: 99.99 % below 143
    with pytest.raises(IndexError):
        EpochOrder(10, 0, 0)[np.array([10])]


def test_masking_has_the_right_rates_and_spares_special_tokens():
    ids = np.concatenate([[CLS], np.full(200_000, 5), [SEP]])
    masked, labels = MASKING(ids, epoch=0, sample=0)
    chosen = labels != IGNORED
    assert not chosen[[0, -1]].any() and (labels[chosen] == 5).all() and (masked[~chosen] == ids[~chosen]).all()
    assert chosen.mean() == pytest.approx(0.15, abs=0.003)
    assert (masked[chosen] == MASK).mean() == pytest.approx(0.8 + 0.1 / VOCABULARY, abs=0.01)
    assert (masked[chosen] == 5).mean() == pytest.approx(0.1 + 0.1 / VOCABULARY, abs=0.01)


def test_masking_depends_on_seed_epoch_and_sample_only():
    ids = np.arange(1, 50)
    first = MASKING(ids, 2, 7)[0]
    assert np.array_equal(first, MASKING(ids, 2, 7)[0])
    prefix = MASKING(ids[:20], 2, 7)[1] != IGNORED
    assert prefix.any()
    for other in (MASKING(ids, 3, 7), MASKING(ids, 2, 8), Masking(4, MASK, VOCABULARY, ())(ids, 2, 7)):
        assert not np.array_equal(first, other[0])
    swaps = [MASKING.swaps(0, sample) for sample in range(2000)]
    assert np.mean(swaps) == pytest.approx(0.5, abs=0.05)


@given(st.lists(st.integers(1, 64), max_size=60))
def test_packed_examples_do_not_overlap_and_little_space_is_left(lengths):
    places, rows = pack(lengths, 64)
    used = np.zeros((rows, 64), dtype=int)
    for place, length in zip(places, lengths, strict=True):
        used[place.row, place.column : place.column + length] += 1
        assert place.column + length <= 64
    assert used.max(initial=1) == 1 and used.sum() == sum(lengths)
    assert rows <= 11 / 9 * -(-sum(lengths) // 64) * 2 and (not lengths or used[:, 0].all())


def reference_batch(features, block_size, packed, sentence_order):
    """A batch made from the definition of the draws, one example and one token at a time."""

    def draw(counter, *keys):
        return int(mix(np.array([counter], dtype=np.uint64), MASKING.seed, *keys)[0])

    prepared = []
    for feature in features:
        ids, keys = feature["input_ids"].tolist(), (feature["epoch"], feature["sample"])
        swapped = sentence_order and draw(0, *keys, 0x50B) >= 2**63
        if swapped:
            end = ids.index(SEP)
            ids = [ids[0], *ids[end + 1 :], *ids[1 : end + 1]]
        ids = ids[:block_size]
        masked, labels = list(ids), [IGNORED] * len(ids)
        for position, token in enumerate(ids):
            chance, action, random = (
                (draw(position + part * len(ids), *keys, 0x3A5C) >> 11) * 2.0**-53 for part in range(3)
            )
            if chance < MASKING.probability and token not in MASKING.special_ids:
                labels[position] = token
                masked[position] = MASK if action < 0.8 else int(random * VOCABULARY) if action < 0.9 else token
        prepared.append((masked, labels, swapped))
    lengths = [len(ids) for ids, _, _ in prepared]
    places, rows = pack(lengths, block_size) if packed else one_per_row(lengths)
    grids = {
        name: [[filling] * block_size for _ in range(rows)]
        for name, filling in (("input_ids", PAD), ("attention_mask", 0), ("position_ids", 0), ("labels", IGNORED))
    }
    for place, (ids, labels, _) in sorted(zip(places, prepared, strict=True), key=lambda item: item[0].column):
        number = max(grids["attention_mask"][place.row]) + 1
        for position in range(len(ids)):
            values = (ids[position], number, position, labels[position])
            for grid, value in zip(grids.values(), values, strict=True):
                grid[place.row][place.column + position] = value
    flat = [label for row in grids.pop("labels") for label in row]
    positions = [position for position, label in enumerate(flat) if label != IGNORED]
    fill = -len(positions) % 64 if positions else 64
    grids["masked_positions"] = positions + [0] * fill
    grids["labels"] = [flat[position] for position in positions] + [IGNORED] * fill
    grids["sample_ids"] = [feature["sample"] for feature in features]
    grids["num_real_tokens"] = sum(lengths)
    if sentence_order:
        grids["example_starts"] = [place.row * block_size + place.column for place in places]
        grids["next_sentence_label"] = [int(swapped) for _, _, swapped in prepared]
    return grids


@pytest.mark.parametrize("sentence_order", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_equals_one_made_token_by_token(packed, sentence_order):
    given = features(40)
    for number, feature in enumerate(given):  # different epochs and samples, some beyond 32 bits
        feature["epoch"], feature["sample"] = number % 3, 7 * number + (2**33 if number % 2 else 0)
    batch = collator(block_size=48, pack=packed, sentence_order=sentence_order)(given)
    expected = reference_batch(given, 48, packed, sentence_order)
    assert batch.pop("examples_per_row") == np.max(expected["attention_mask"])
    assert list(batch) == list(expected)
    for name, value in batch.items():
        assert value.dtype == torch.int64 and value.tolist() == expected[name], name


def test_the_unknown_token_can_be_masked():
    """It stands for text; the original excludes only [CLS] and [SEP]."""
    roles = {"cls_token": CLS, "sep_token": SEP, "pad_token": PAD, "mask_token": MASK, "unk_token": 0}

    class Tokenizer:
        all_special_ids = tuple(roles.values())

        def __len__(self):
            return VOCABULARY

    for role, token in roles.items():
        setattr(Tokenizer, f"{role}_id", token)
    masking = Masking.of_tokenizer(Tokenizer(), seed=3)
    assert masking == replace(MASKING, special_ids=tuple(sorted((CLS, SEP, PAD, MASK))))
    _, labels = masking(np.zeros(1000, dtype=np.int64), 0, 0)
    assert (labels == 0).sum() > 100
    Tokenizer.unk_token_id = SEP  # some vocabularies have one token for both
    assert SEP in Masking.of_tokenizer(Tokenizer(), seed=3).special_ids


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="65"):
        pack([65], 64)


def test_a_batch_holds_each_example_once():
    batch = collator()(features(20))
    ids, numbers = batch["input_ids"], batch["attention_mask"]
    assert ids.shape[0] < 20 and (ids[numbers == 0] == PAD).all()
    assert batch["num_real_tokens"].item() == (numbers > 0).sum()
    assert (batch["position_ids"][ids == CLS] == 0).all()
    real = batch["labels"] != IGNORED
    originals = ids.flatten()[batch["masked_positions"]][real]
    assert ((originals == MASK) | (originals == batch["labels"][real])).float().mean() > 0.8
    assert len(batch["labels"]) % 64 == 0
    again = collator()(features(20))
    assert again.pop("examples_per_row") == batch.pop("examples_per_row")
    for name, value in again.items():
        assert torch.equal(value, batch[name])


def test_numbers_of_rows_and_of_masked_tokens_are_rounded_up_to_buckets():
    batch = collator(row_bucket=8, position_bucket=256)(features(20))
    assert batch["input_ids"].shape[0] % 8 == 0 and len(batch["labels"]) % 256 == 0


def test_long_examples_are_truncated_to_their_first_tokens():
    ids = np.concatenate([[CLS], np.arange(1, 50), [SEP]])
    batch = collator(block_size=16)([{"epoch": 0, "sample": 0, "input_ids": ids}])
    restored = batch["input_ids"].flatten().clone()
    restored[batch["masked_positions"]] = torch.where(
        batch["labels"] == IGNORED, restored[batch["masked_positions"]], batch["labels"]
    )
    assert restored.tolist() == ids[:16].tolist()


def test_sentence_order_swaps_the_sentences():
    ids = np.array([CLS, 1, 2, SEP, 3, SEP])
    none = PretrainingCollator(
        Masking(3, MASK, VOCABULARY, (), probability=0.0), CLS, SEP, PAD, block_size=8, sentence_order=True
    )
    batch = none([{"epoch": 0, "sample": sample, "input_ids": ids} for sample in range(40)])
    for start, swapped in zip(batch["example_starts"], batch["next_sentence_label"], strict=True):
        expected = [CLS, 3, SEP, 1, 2, SEP] if swapped else ids.tolist()
        assert batch["input_ids"].flatten()[start : start + 6].tolist() == expected
    assert 5 < batch["next_sentence_label"].sum() < 35


@pytest.mark.parametrize("sentence_order", [False, True])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "options",
    [
        {"attention_kernel": "qk_convfixed_convq_convk 8", "remove_position_embeddings": True},
        {"attention_kernel": "dot_product"},
        {"attention_kernel": "convfixed_convolution_scaled 3"},
        {"attention_kernel": "qk_convspan 3"},
        {
            "attention_kernel": "qk_convk_convolution 2",
            "value_forward": "convolution_depth_mixed 3 1",
            "qk": "convolution 2 1",
        },
    ],
)
def test_packed_rows_give_the_loss_and_gradients_of_padded_ones(options, implementation, sentence_order):
    config = CompositeBertConfig(
        vocab_size=VOCABULARY,
        embedding_size=8,
        max_position_embeddings=64,
        **TINY,
        **NO_DROPOUT,
        pad_token_id=PAD,
        initializer_range=0.2,
        attn_implementation=implementation,
        **options,
    )
    model = (CompositeBertForPreTraining if sentence_order else CompositeBertForMaskedLM)(config).train()
    results = []
    for pack_rows in (True, False):
        batch = collator(pack=pack_rows, sentence_order=sentence_order)(features(12))
        for name in ("sample_ids", "num_real_tokens"):
            batch.pop(name)
        assert (batch["input_ids"].shape[0] < 12) == pack_rows
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        results.append(
            (loss.item(), {name: value.grad.clone() for name, value in model.named_parameters() if value.requires_grad})
        )
    (packed, packed_gradients), (padded, padded_gradients) = results
    assert packed == pytest.approx(padded, abs=1e-5)
    for name, gradient in packed_gradients.items():
        assert torch.allclose(gradient, padded_gradients[name], atol=1e-5), name
