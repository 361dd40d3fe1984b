"""Steps are drawn from a uniform shuffle, and packed rows and several processes change no result."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bert_convolutions.data.packing import token_budget_batches
from bert_convolutions.glue.examples import (
    CountingCollator,
    EncodedExamples,
    PackedRows,
    PaddedRows,
    ShuffledExamples,
    layout_for,
)
from bert_convolutions.glue.models import load_pretrained
from bert_convolutions.glue.tasks import MNLI, find_task
from bert_convolutions.training.sampling import StepPlan

LENGTHS = st.lists(st.integers(1, 128), min_size=1, max_size=300).map(np.array)


def random_examples(lengths: np.ndarray, labels: np.ndarray | None = None) -> EncodedExamples:
    """Examples of random words after [CLS], with both token types."""
    generator = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = generator.integers(5, 45, lengths.sum()).astype(np.int32)
    ids[offsets[:-1]] = 2
    return EncodedExamples({"input_ids": ids, "token_type_ids": ids % 2}, offsets, labels)


@given(LENGTHS, st.data())
def test_a_selection_has_the_selected_items(lengths: np.ndarray, data: st.DataObject):
    examples = random_examples(lengths, np.arange(len(lengths)))
    indices = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=20)), dtype=np.int64)
    chosen = examples.select(indices)
    assert [chosen[number] for number in range(len(chosen))] == [examples[index] for index in indices]


@given(LENGTHS)
def test_packed_rows_have_every_token_once_with_its_position(lengths: np.ndarray):
    examples = random_examples(lengths, np.arange(len(lengths)))
    batch = PackedRows(pad_id=0)(examples)
    assert int((batch["attention_mask"] > 0).sum()) == lengths.sum()
    flat = {name: batch[name].flatten() for name in (*examples.columns, "attention_mask", "position_ids")}
    for number, start in enumerate(batch["example_starts"].tolist()):
        span = slice(start, start + lengths[number])
        assert flat["input_ids"][span].tolist() == examples[number]["input_ids"]
        assert flat["token_type_ids"][span].tolist() == examples[number]["token_type_ids"]
        assert flat["position_ids"][span].tolist() == list(range(lengths[number]))
        assert len(set(flat["attention_mask"][span].tolist())) == 1
    for row in batch["attention_mask"]:
        numbers = [number for number in row.tolist() if number]
        assert numbers == sorted(numbers)
        assert set(numbers) == set(range(1, max(numbers) + 1))
    assert batch["labels"].tolist() == list(range(len(lengths)))
    assert batch["examples_per_row"] == int(batch["attention_mask"].max())


def test_packed_rows_of_uniform_batches_have_little_padding():
    """With lengths like those of QNLI; padded to the longest of 32, half of the tokens would be padding."""
    generator = np.random.default_rng(0)
    lengths = np.minimum(generator.lognormal(3.5, 0.6, size=3200).astype(int) + 4, 128)
    examples = random_examples(lengths)
    slots = sum(
        PackedRows(0)(examples.select(batch))["input_ids"].numel()
        for batch in generator.permutation(3200).reshape(100, 32)
    )
    assert 1 - lengths.sum() / slots < 0.08


def plan_of(num_examples: int, seed: int, batch: int, processes: int = 1, micro_batches: int = 1) -> StepPlan:
    size = batch // processes // micro_batches
    return StepPlan(num_examples, seed, micro_batch_size=size, micro_batches=micro_batches, processes=processes)


@pytest.mark.parametrize("batch", [16, 32])
def test_batches_vary_as_those_of_a_uniform_shuffle(batch: int):
    """Labels depend on the length, as in QQP and STS-B; batches of similar lengths would vary 1.6 times as much.

    Drawn without replacement, the mean of B of N labels has the variance s^2 / B x (N - B) / (N - 1).
    """
    generator = np.random.default_rng(0)
    lengths = np.sort(generator.integers(8, 128, size=2048))
    labels = np.linspace(0, 5, 2048, dtype=np.float32)
    plan = plan_of(2048, 3, batch)
    shuffled = ShuffledExamples(random_examples(lengths, labels), plan)
    slices = (plan.slice(*divmod(step, plan.steps_per_epoch), 0, 0) for step in range(1920))  # whole epochs
    batches = [shuffled.__getitems__(part) for part in slices]
    for values in (lambda part: part.labels, lambda part: part.lengths):
        means = [values(batch).mean() for batch in batches]
        every = values(shuffled.examples)
        expected = every.std() * ((2048 - batch) / (2048 - 1) / batch) ** 0.5
        assert np.std(means) / expected == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("processes", "micro_batches"), [(1, 1), (2, 1), (3, 2)])
def test_processes_share_a_step_and_see_each_example_once(processes: int, micro_batches: int):
    examples = random_examples(np.random.default_rng(0).integers(1, 50, size=31), np.arange(31))
    plan = plan_of(31, 3, 12, processes, micro_batches)
    shuffled = ShuffledExamples(examples, plan)
    for epoch in (0, 2):
        seen: list[int] = []
        for step in range(3):
            parts = [
                shuffled.__getitems__(plan.slice(epoch, step, process, micro_batch)).labels.tolist()
                for process in range(processes)
                for micro_batch in range(micro_batches)
            ]
            of_step = [label for part in parts for label in part]
            assert of_step == plan_of(31, 3, 12).samples_of_step(3 * epoch + step)
            seen += of_step
        assert sorted(seen) == list(range(31))


def test_epochs_and_seeds_differ():
    orders = {tuple(plan_of(640, seed, 640).samples_of_step(epoch)) for seed in (1, 2) for epoch in (0, 1)}
    assert len(orders) == 4


def test_a_process_without_examples_makes_a_batch_of_zero_examples():
    examples = random_examples(np.array([3, 5]), np.array([0, 1]))
    counted = CountingCollator(PackedRows(0), examples.select(np.array([0])))
    assert counted(examples)["num_examples"] == 2
    empty = counted(examples.select(np.array([], dtype=np.int64)))
    assert empty["num_examples"] == 0
    assert empty["labels"].tolist() == [0]


@given(LENGTHS, st.integers(1, 1000))
def test_token_budgets_are_kept(lengths: np.ndarray, budget: int):
    batches = token_budget_batches(lengths, budget)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * lengths[batch].max() <= budget for batch in batches)


@pytest.mark.parametrize("task", [MNLI, find_task("STS-B")], ids=lambda task: task.name)
def test_packed_rows_give_the_loss_and_gradients_of_padded_ones(composite_dir: Path, tokenizer, task):
    from transformers import DataCollatorWithPadding

    model = load_pretrained(composite_dir, task).eval()  # without dropout, whose masks depend on the layout
    lengths = np.random.default_rng(1).integers(3, 40, size=24)
    labels = np.arange(24) % 3 if task.labels else np.linspace(0, 5, 24, dtype=np.float32)
    examples = random_examples(lengths, labels)
    packed = layout_for(model, tokenizer)
    assert isinstance(packed, PackedRows)
    results = []
    for layout in (packed, PaddedRows(DataCollatorWithPadding(tokenizer))):
        batch = layout(examples)
        model.zero_grad()
        outputs = model(**batch)
        outputs.loss.backward()
        grads = {
            name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        results.append((batch["input_ids"].shape, outputs.loss.detach(), outputs.logits.detach(), grads))
    (rows, loss, logits, grads), (padded_rows, padded_loss, padded_logits, padded_grads) = results
    assert rows[0] < padded_rows[0] == 24
    torch.testing.assert_close(loss, padded_loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits, padded_logits, rtol=1e-5, atol=1e-5)
    for name, grad in padded_grads.items():
        assert (grads[name] - grad).norm() <= 1e-4 * grad.norm() + 1e-7, name


def test_models_of_transformers_get_padded_rows(model_dir: Path, tokenizer):
    model = load_pretrained(model_dir, MNLI)
    batch = layout_for(model, tokenizer)(random_examples(np.array([3, 7, 5]), np.array([0, 1, 2])))
    assert batch["input_ids"].shape == (3, 7)
    assert "example_starts" not in batch
