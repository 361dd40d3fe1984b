"""Computes logits of examples, and from them dev scores and test files.

The metrics are those of scikit-learn, SciPy and seqeval.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object, send_to_device
from scipy.special import log_softmax
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import PreTrainedModel, TrainingArguments

from bert_convolutions.data.masking import IGNORED
from bert_convolutions.data.packing import token_budget_batches
from bert_convolutions.glue.examples import EncodedExamples, Layout, flat_indices
from bert_convolutions.glue.models import label_words
from bert_convolutions.glue.tasks import DevSet, Task
from bert_convolutions.training.arguments import evaluation_precision

MIN_BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}
"""Minimum tokens per batch, by device: fewer leave a GPU idle, and on a CPU more exceed its cache."""


def predict_logits(
    model: PreTrainedModel,
    examples: EncodedExamples,
    layout: Layout,
    arguments: TrainingArguments,
    before_batch: Callable[[], None] | None = None,
) -> np.ndarray:
    """The logits (O, num_outputs), float32, of all examples or words, on every process.

    Examples of similar length form a batch, and the batches are divided among the processes. A batch holds at most
    ``per_device_eval_batch_size`` times the longest example's tokens, or ``MIN_BATCH_TOKENS`` if that is more.

    Args:
        model: on any device; it is moved to that of ``arguments`` and left in evaluation mode.
        examples: N examples.
        layout: makes batches of examples.
        arguments: give the device, precision, batch size and process.
        before_batch: called equally often on every process; may raise to stop.
    """
    lengths = examples.lengths
    budget = max(
        arguments.per_device_eval_batch_size * int(lengths.max()), MIN_BATCH_TOKENS.get(arguments.device.type, 0)
    )
    all_batches = token_budget_batches(lengths, budget)
    batches = all_batches[arguments.process_index :: arguments.world_size]
    torch.nn.Module.to(model, arguments.device).eval()
    outputs = []
    # Not inference_mode: tensors that the model caches here are used in training.
    with torch.no_grad(), evaluation_precision(arguments):
        for turn in range(-(-len(all_batches) // arguments.world_size)):
            if before_batch is not None:
                before_batch()
            if turn == len(batches):  # this process has one batch fewer than others
                break
            batch = batches[turn]
            inputs = dict(send_to_device(layout(examples.select(batch)), arguments.device))
            labels = inputs.pop("labels", None)
            logits = model(**inputs).logits.float()
            outputs.append(logits[labels != IGNORED] if logits.dim() == 3 else logits)  # (B, S, outputs): word-level
    indices = flat_indices(examples.output_offsets, np.concatenate(batches)) if batches else np.empty(0)
    own = [(indices, torch.cat(outputs).cpu().numpy())] if batches else []
    parts = gather_object(own) if arguments.world_size > 1 else own
    indices = np.concatenate([indices for indices, _ in parts])
    logits = np.concatenate([values for _, values in parts])
    return logits[np.argsort(indices)]


def evaluate(
    model: PreTrainedModel,
    task: Task,
    dev: Mapping[DevSet, EncodedExamples],
    layout: Layout,
    arguments: TrainingArguments,
    before_batch: Callable[[], None] | None = None,
) -> dict[str, dict[str, float]]:
    """The scores of each development set by its name; the arguments are those of :func:`predict_logits`."""
    order = [label_words(model.config).index(word) for word in task.labels] if task.labels else [0]
    results = {}
    for dev_set, examples in dev.items():
        if examples.targets is None:
            raise ValueError(f"{dev_set.name} has no labels")
        logits = predict_logits(model, examples, layout, arguments, before_batch)[:, order]
        results[dev_set.name] = dev_scores(logits, examples.targets, task, dev_set, examples.sentence_lengths)
    return results


def accuracy_and_f1(predictions: np.ndarray, labels: np.ndarray, average: str = "binary") -> dict[str, float]:
    """Accuracy, F1 and the mean of both.

    F1 is that of label 1 or, if ``average`` is ``"macro"``, the mean over all labels; it is 0 where it is undefined.
    """
    acc = float(accuracy_score(labels, predictions))
    f1 = float(f1_score(labels, predictions, average=average, zero_division=0))
    return {"acc": acc, "f1": f1, "acc_and_f1": (acc + f1) / 2}


def entity_f1(predictions: list[list[str]], labels: list[list[str]]) -> dict[str, float]:
    """seqeval's precision, recall and F1 over entities (as in conlleval), and the accuracy over words.

    Both arguments hold the label of each word of each sentence, such as ``B-PER``, ``I-PER`` or ``O``.
    """
    from seqeval import metrics

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about undefined scores, which are 0, and unusual labels
        precision, recall, f1 = (
            float(score(labels, predictions, zero_division=0))
            for score in (metrics.precision_score, metrics.recall_score, metrics.f1_score)
        )
        acc = float(metrics.accuracy_score(labels, predictions))
    return {"precision": precision, "recall": recall, "f1": f1, "acc": acc}


def correlation(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Pearson's and Spearman's correlation and their mean.

    For constant predictions both are set to 0, as is Matthews' correlation, so that means over rounds are defined.
    """
    if len(labels) < 2 or np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        pearson = spearman = 0.0
    else:
        pearson = float(pearsonr(predictions, labels)[0])
        spearman = float(spearmanr(predictions, labels)[0])
    return {"pearson": pearson, "spearmanr": spearman, "corr": (pearson + spearman) / 2}


METRICS: Mapping[str, Callable[[Any, Any], dict[str, float]]] = {
    "accuracy": lambda predictions, labels: {"acc": float(accuracy_score(labels, predictions))},
    "accuracy_and_f1": accuracy_and_f1,
    "accuracy_and_macro_f1": partial(accuracy_and_f1, average="macro"),  # as for CB
    "entity_f1": entity_f1,
    "matthews": lambda predictions, labels: {"mcc": float(matthews_corrcoef(labels, predictions))},  # 0 if undefined
    "correlation": correlation,
}


def logits_to_predictions(logits: np.ndarray, task: Task) -> np.ndarray:
    """Convert logits (N, num_outputs) to label ids (N,), or to scores (N,) for real-valued tasks."""
    return logits.argmax(axis=-1) if task.labels else logits[:, 0]


def dev_scores(
    logits: np.ndarray, labels: np.ndarray, task: Task, dev_set: DevSet, sentence_lengths: np.ndarray | None = None
) -> dict[str, float]:
    """The content of ``eval_results_<task>.txt``: ``eval_loss`` and the task's scores.

    MNLI's are named ``eval_mnli/acc`` and ``eval_mnli-mm/acc``, as in the original.

    Args:
        logits: (N, num_outputs), in the order of the task's labels.
        labels: (N,) label ids or scores.
        task, dev_set: the task and one of its development sets.
        sentence_lengths: for word-level tasks, the number of words of each sentence.
    """
    prefix = f"eval_{dev_set.name}/" if len(task.dev) > 1 else "eval_"
    arguments: tuple[Any, ...] = (logits_to_predictions(logits, task), labels)
    if task.metric == "entity_f1" and sentence_lengths is not None:
        arguments = tuple(by_sentence([task.labels[number] for number in ids], sentence_lengths) for ids in arguments)
    scores = METRICS[task.metric](*arguments)
    return {"eval_loss": _mean_loss(logits, labels, task), **{prefix + name: value for name, value in scores.items()}}


def by_sentence(words: list[str], sentence_lengths: np.ndarray) -> list[list[str]]:
    """Split a list with one item per word into one list per sentence."""
    ends = np.cumsum(sentence_lengths).tolist()
    return [words[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _mean_loss(logits: np.ndarray, labels: np.ndarray, task: Task) -> float:
    """The mean cross-entropy in nats, or the mean squared error of real-valued tasks."""
    logits = logits.astype(np.float64)
    if not task.labels:
        return float(np.mean((logits[:, 0] - labels) ** 2))
    return float(-log_softmax(logits, axis=-1)[np.arange(len(labels)), labels.astype(int)].mean())


def format_predictions(logits: np.ndarray, examples: EncodedExamples, model: PreTrainedModel, task: Task) -> str:
    r"""The content of ``test_results_<task>.txt``: ``index\tprediction``, a label or a number with three decimals.

    For word-level tasks the prediction is the labels of a sentence's words, separated by spaces.

    Args:
        logits: (O, num_outputs), in the order of the labels in the configuration of ``model``.
        examples: the test set of ``task``, with its indices.
    """
    if task.labels:
        words = label_words(model.config)
        cells = [words[number] for number in logits_to_predictions(logits, task)]
    else:
        cells = [f"{score:.3f}" for score in logits_to_predictions(logits, task)]
    if examples.sentence_lengths is not None:
        cells = [" ".join(sentence) for sentence in by_sentence(cells, examples.sentence_lengths)]
    rows = [f"{index}\t{cell}\n" for index, cell in zip(examples.indices or (), cells, strict=True)]
    return "".join(["index\tprediction\n", *rows])
