"""Scores against scikit-learn, SciPy and values computed by hand."""

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, log_loss, matthews_corrcoef

from bert_convolutions.glue.predict import METRICS, correlation, dev_scores
from bert_convolutions.glue.tasks import MNLI, TASKS, find_task


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_scores_of_every_task_equal_those_of_scikit_learn_and_scipy(task):
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(50, task.num_outputs)).astype(np.float32)
    dev = task.dev[-1]
    if not task.labels:
        labels = generator.uniform(0, 5, size=50)
        scores = dev_scores(logits, labels, task, dev)
        expected = (pearsonr(logits[:, 0], labels)[0] + spearmanr(logits[:, 0], labels)[0]) / 2
        assert scores["eval_loss"] == pytest.approx(np.mean((logits[:, 0] - labels) ** 2))
    else:
        labels = generator.integers(task.num_outputs, size=50)
        scores = dev_scores(logits, labels, task, dev)
        decided = logits.argmax(axis=1)
        accuracy = np.mean(decided == labels)
        expected = {
            "accuracy": accuracy,
            "accuracy_and_f1": (accuracy + f1_score(labels, decided)) / 2 if task.num_outputs == 2 else None,
            "matthews": matthews_corrcoef(labels, decided),
        }[task.metric]
        assert scores["eval_loss"] == pytest.approx(log_loss(labels, softmax(logits), labels=range(task.num_outputs)))
    assert scores[dev.score] == pytest.approx(expected)


def test_scores_have_the_names_of_the_original():
    logits, labels = np.eye(3), np.arange(3)
    assert set(dev_scores(logits, labels, MNLI, MNLI.dev[1])) == {"eval_loss", "eval_mnli-mm/acc"}
    mrpc = find_task("MRPC")
    assert set(dev_scores(logits[:, :2], np.array([0, 1, 1]), mrpc, mrpc.dev[0])) == {
        *("eval_loss", "eval_acc", "eval_f1", "eval_acc_and_f1")
    }


def test_accuracy_and_f1_equal_values_by_hand():
    predictions, labels = np.array([1, 1, 1, 0]), np.array([1, 1, 0, 0])
    assert METRICS["accuracy_and_f1"](predictions, labels) == {"acc": 0.75, "f1": 0.8, "acc_and_f1": 0.775}


def test_constant_predictions_have_a_correlation_of_zero():
    constant = np.zeros(4)
    assert METRICS["matthews"](constant, np.array([0, 1, 1, 0])) == {"mcc": 0.0}
    assert correlation(constant, np.arange(4.0)) == {"pearson": 0.0, "spearmanr": 0.0, "corr": 0.0}
