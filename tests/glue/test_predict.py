"""Batches and layouts change no prediction; examples are truncated and encoded as by the tokenizer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

from bert_convolutions.glue.examples import EncodedExamples, encode, layout_for
from bert_convolutions.glue.models import load_pretrained
from bert_convolutions.glue.predict import evaluate, format_predictions, predict_logits
from bert_convolutions.glue.reading import Examples, read_examples
from bert_convolutions.glue.tasks import MNLI, Task, find_task

RTE, STSB = find_task("RTE"), find_task("STS-B")


def arguments(folder: Path, **changes) -> TrainingArguments:
    return TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", **changes)


def many(glue_dir: Path, task: Task) -> Examples:
    found = [read_examples(glue_dir / dev.path, task) for dev in task.dev] * 20
    columns = zip(*(examples.texts for examples in found), strict=True)
    labels = [label for examples in found for label in examples.labels]
    return Examples(Path(), tuple([text for texts in column for text in texts] for column in columns), labels, None)


@pytest.mark.parametrize("architecture", ["model_dir", "composite_dir"])
@pytest.mark.parametrize("task", [MNLI, STSB], ids=lambda task: task.name)
@pytest.mark.parametrize("batch_size", [1, 8, 1000])
def test_logits_equal_those_of_padded_rows(
    tmp_path: Path, glue_dir: Path, request, tokenizer, architecture: str, task: Task, batch_size: int, monkeypatch
):
    model_dir = request.getfixturevalue(architecture)
    monkeypatch.setattr("bert_convolutions.glue.predict.MIN_BATCH_TOKENS", {})
    model = load_pretrained(str(model_dir), task).eval()
    examples = many(glue_dir, task)
    encoded = encode(tokenizer, examples, max_seq_length=40)
    layout = layout_for(model, tokenizer)
    logits = predict_logits(model, encoded, layout, arguments(tmp_path, per_device_eval_batch_size=batch_size))
    padded = tokenizer(
        *examples.texts, truncation="longest_first", padding="max_length", max_length=40, return_tensors="pt"
    )
    with torch.no_grad():
        expected = model(**padded).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-6)


def test_encoded_examples_equal_those_of_the_tokenizer(glue_dir: Path, tokenizer):
    examples = many(glue_dir, RTE)
    encoded = encode(tokenizer, examples, max_seq_length=16)
    expected = tokenizer(*examples.texts, truncation="longest_first", max_length=16)
    assert len(encoded) == len(examples)
    for number in (0, 7, len(examples) - 1):
        assert encoded[number] == {
            "input_ids": expected["input_ids"][number],
            "token_type_ids": expected["token_type_ids"][number],
            "labels": examples.labels[number],
        }
    assert encoded.lengths.max() == 16
    assert encoded.lengths.tolist() == [len(ids) for ids in expected["input_ids"]]


def test_whole_scores_of_stsb_are_encoded_as_floats(tokenizer):
    encoded = encode(tokenizer, Examples(Path(), (["w1"], ["w2"]), [5.0], None), 16)
    assert encoded.labels.dtype == np.float32


def test_a_model_with_its_labels_in_another_order_is_scored_alike(tmp_path: Path, glue_dir: Path, model_dir, tokenizer):
    """As in others' checkpoints for MNLI; labels are compared by name."""
    model = load_pretrained(str(model_dir), MNLI)
    dev = {MNLI.dev[0]: encode(tokenizer, many(glue_dir, MNLI), 32)}
    layout = layout_for(model, tokenizer)
    before = evaluate(model, MNLI, dev, layout, arguments(tmp_path))
    order = [2, 0, 1]
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight[order].clone())
        model.classifier.bias.copy_(model.classifier.bias[order].clone())
    model.config.id2label = {new: MNLI.labels[old] for new, old in enumerate(order)}
    after = evaluate(model, MNLI, dev, layout, arguments(tmp_path))
    assert after["mnli"] == pytest.approx(before["mnli"])
    logits, predicted = np.eye(3)[[1]], EncodedExamples({}, np.arange(2), None, indices=[4])
    assert format_predictions(logits, predicted, model, MNLI) == "index\tprediction\n4\tcontradiction\n"


def test_scores_are_written_with_three_decimals(model_dir: Path):
    model = load_pretrained(str(model_dir), STSB)
    examples = EncodedExamples({}, np.arange(3), None, indices=[0, 1])
    content = format_predictions(np.array([[1.23456], [5.2]]), examples, model, STSB)
    assert content == "index\tprediction\n0\t1.235\n1\t5.200\n"


def test_examples_without_labels_are_encoded_without_labels(tokenizer):
    encoded = encode(tokenizer, Examples(Path(), (["w1 w2"],), None, [0]), 16)
    assert isinstance(encoded, EncodedExamples)
    assert "labels" not in encoded[0]
