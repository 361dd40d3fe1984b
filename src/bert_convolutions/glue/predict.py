"""Logits of many examples, batched by length, in the order of the examples; dev scores and test files from them."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from transformers import PreTrainedModel, TrainingArguments

from bert_convolutions.glue.batching import Collator, token_budget_batches
from bert_convolutions.glue.encoding import EncodedExamples
from bert_convolutions.glue.metrics import decide, dev_scores
from bert_convolutions.glue.models import label_words
from bert_convolutions.glue.tasks import DevSet, Task

MIN_BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}
"""Tokens of a batch at least, by device: fewer keep it waiting, and on a CPU more leave its cache."""


def predict_logits(
    model: PreTrainedModel,
    examples: EncodedExamples,
    collator: Collator,
    arguments: TrainingArguments,
    before_batch: Callable[[], None] | None = None,
) -> np.ndarray:
    """Return the logits (N, num_outputs), float32, of all examples on every process.

    Examples of like length share a batch, padded to its longest, and the processes share the batches. A batch holds
    at most ``per_device_eval_batch_size`` times the longest example's tokens, or ``MIN_BATCH_TOKENS`` if that is more.

    Args:
        model: on any device; it is moved to the arguments' and left in evaluation mode.
        examples: N examples.
        collator: pads a list of examples.
        arguments: device, precision, batch size, process.
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
    with torch.no_grad(), _precision(arguments):  # not inference_mode: what a model caches now is used in training
        for turn in range(-(-len(all_batches) // arguments.world_size)):
            if before_batch is not None:
                before_batch()
            if turn == len(batches):  # this process has one batch less than others
                break
            batch = batches[turn]
            inputs = collator([examples[index] for index in batch])
            inputs = {name: value.to(arguments.device) for name, value in inputs.items() if name != "labels"}
            outputs.append(model(**inputs).logits.float())
    own = [(np.concatenate(batches), torch.cat(outputs).cpu().numpy())] if batches else []
    parts = gather_object(own) if arguments.world_size > 1 else own
    indices = np.concatenate([indices for indices, _ in parts])
    logits = np.concatenate([values for _, values in parts])
    return logits[np.argsort(indices)]


def evaluate(
    model: PreTrainedModel,
    task: Task,
    dev: Mapping[DevSet, EncodedExamples],
    collator: Collator,
    arguments: TrainingArguments,
    before_batch: Callable[[], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Return the scores of each development set by its name; the arguments are those of :func:`predict_logits`."""
    order = [label_words(model).index(word) for word in task.labels] if task.labels else [0]
    results = {}
    for dev_set, examples in dev.items():
        if examples.labels is None:
            raise ValueError(f"{dev_set.name} has no labels")
        logits = predict_logits(model, examples, collator, arguments, before_batch)[:, order]
        results[dev_set.name] = dev_scores(logits, examples.labels, task, dev_set)
    return results


def format_predictions(logits: np.ndarray, indices: list[int], model: PreTrainedModel, task: Task) -> str:
    r"""Return the content of ``test_results_<task>.txt``: ``index\tprediction``, label words or three decimals.

    Args:
        logits: (N, num_outputs) in the model's own order of outputs.
        indices: the test file's index of each row.
        model: whose configuration names the outputs.
        task: the task.
    """
    decided = decide(logits, task)
    if task.labels:
        words = label_words(model)
        cells = [words[number] for number in decided]
    else:
        cells = [f"{score:.3f}" for score in decided]
    rows = [f"{index}\t{cell}\n" for index, cell in zip(indices, cells, strict=True)]
    return "".join(["index\tprediction\n", *rows])


def _precision(arguments: TrainingArguments) -> AbstractContextManager[Any]:
    """Mixed precision where the Trainer's flags ask for it."""
    dtype = torch.bfloat16 if arguments.bf16 or arguments.bf16_full_eval else torch.float16
    enabled = arguments.bf16 or arguments.bf16_full_eval or arguments.fp16 or arguments.fp16_full_eval
    return torch.autocast(arguments.device.type, dtype=dtype, enabled=enabled)
