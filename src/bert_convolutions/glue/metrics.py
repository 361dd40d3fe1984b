"""Dev scores of the GLUE tasks, computed by scikit-learn and SciPy. Imports neither torch nor transformers."""

from collections.abc import Callable, Mapping

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from bert_convolutions.glue.tasks import DevSet, Task


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the share of equal entries of two (N,) arrays."""
    return {"acc": float(accuracy_score(labels, predictions))}


def accuracy_and_f1(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return accuracy, F1 of label 1 (0 where it is undefined), and the mean of both."""
    acc = float(accuracy_score(labels, predictions))
    f1 = float(f1_score(labels, predictions, zero_division=0))
    return {"acc": acc, "f1": f1, "acc_and_f1": (acc + f1) / 2}


def matthews(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the Matthews correlation coefficient (0 where it is undefined)."""
    return {"mcc": float(matthews_corrcoef(labels, predictions))}


def correlation(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return Pearson's and Spearman's correlation and their mean.

    Constant predictions correlate with nothing: both count as 0, as Matthews' does, so that means stay numbers.
    """
    if len(labels) < 2 or np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        pearson = spearman = 0.0
    else:
        pearson = float(pearsonr(predictions, labels)[0])
        spearman = float(spearmanr(predictions, labels)[0])
    return {"pearson": pearson, "spearmanr": spearman, "corr": (pearson + spearman) / 2}


METRICS: Mapping[str, Callable[[np.ndarray, np.ndarray], dict[str, float]]] = {
    "accuracy": accuracy,
    "accuracy_and_f1": accuracy_and_f1,
    "matthews": matthews,
    "correlation": correlation,
}


def decide(logits: np.ndarray, task: Task) -> np.ndarray:
    """Turn logits (N, num_outputs) into label ids (N,), or into scores (N,) for real-valued tasks."""
    return logits.argmax(axis=-1) if task.labels else logits[:, 0]


def dev_scores(logits: np.ndarray, labels: np.ndarray, task: Task, dev_set: DevSet) -> dict[str, float]:
    """Return what ``eval_results_<task>.txt`` holds: ``eval_loss`` and the task's scores.

    MNLI's are named ``eval_mnli/acc`` and ``eval_mnli-mm/acc``, as the original names them.

    Args:
        logits: (N, num_outputs).
        labels: (N,) label ids or scores.
        task: the task.
        dev_set: which of its development files.
    """
    prefix = f"eval_{dev_set.name}/" if len(task.dev) > 1 else "eval_"
    scores = METRICS[task.metric](decide(logits, task), labels)
    return {"eval_loss": mean_loss(logits, labels, task), **{prefix + name: value for name, value in scores.items()}}


def mean_loss(logits: np.ndarray, labels: np.ndarray, task: Task) -> float:
    """Return the mean cross-entropy in nats, or the mean squared error of real-valued tasks."""
    logits = logits.astype(np.float64)
    if not task.labels:
        return float(np.mean((logits[:, 0] - labels) ** 2))
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return float(-log_probabilities[np.arange(len(labels)), labels.astype(int)].mean())
