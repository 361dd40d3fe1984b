"""Jobs in the lengths of GLUE's tasks: fine-tuning and prediction, in packed rows or padded to one length.

Both layouts take the same examples in the same order through the code behind ``bertconv glue``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from bert_convolutions.bench.contestants import CONTESTANTS
from bert_convolutions.bench.corpus import Setup
from bert_convolutions.bench.lengths import NUM_EXAMPLES, example_lengths
from bert_convolutions.bench.plan import Job
from bert_convolutions.bench.pretraining import StepClock, pretrain_options, training_arguments
from bert_convolutions.bench.turns import Turns, Work
from bert_convolutions.data.tokenizer import load_tokenizer
from bert_convolutions.glue.examples import EncodedExamples, Layout, PackedRows, PaddedRows, encode
from bert_convolutions.glue.finetune import GlueTrainer
from bert_convolutions.glue.predict import predict_logits
from bert_convolutions.glue.reading import read_test, read_train
from bert_convolutions.glue.tasks import Task, find_task
from bert_convolutions.model import CompositeBertForSequenceClassification
from bert_convolutions.training.arguments import BertTrainingArguments
from bert_convolutions.training.setup import compose_config


def run_finetuning_job(job: Job, setup: Setup, turns: Turns) -> None:
    """Train a classifier in turns."""
    task = find_task(str(job.glue_task))
    tokenizer = load_tokenizer(setup.tokenizer)
    examples = _train_examples(job, setup, task, tokenizer)
    trainer = GlueTrainer(
        task,
        examples,
        {},
        _layout(job, tokenizer),
        model=_classifier(job, setup, tokenizer),
        args=BertTrainingArguments(**training_arguments(job, setup)),
        processing_class=tokenizer,
    )

    def work(step: int) -> Work:
        return _work(examples.lengths[trainer.samples_of_step(step)])

    trainer.add_callback(StepClock(turns, work))
    trainer.train()


def run_prediction_job(job: Job, setup: Setup, turns: Turns) -> None:
    """Predict the same examples in each step.

    Raises:
        FinishedError: there are no more turns.
    """
    tokenizer = load_tokenizer(setup.tokenizer)
    model: Any = _classifier(job, setup, tokenizer)
    examples = _test_examples(job, setup, find_task(str(job.glue_task)), tokenizer)
    arguments = BertTrainingArguments(**training_arguments(job, setup))
    model.to(arguments.device)
    if setup.torch_compile:
        model = torch.compile(model)
    while True:
        steps = turns.next()
        for _ in range(steps):
            predict_logits(model, examples, _layout(job, tokenizer), arguments)
        turns.report(steps, sum((_work(np.diff(examples.offsets)) for _ in range(steps)), Work()))


def _classifier(job: Job, setup: Setup, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    options = pretrain_options(job, setup)
    assert CONTESTANTS[job.contestant].is_ours
    config = compose_config(options, tokenizer)
    config.vocab_size = setup.vocabulary
    set_seed(setup.seed)
    return CompositeBertForSequenceClassification._from_config(config)


def _layout(job: Job, tokenizer: PreTrainedTokenizerBase) -> Layout:
    if job.padded:
        return PaddedRows(DataCollatorWithPadding(tokenizer, padding="max_length", max_length=job.length))
    return PackedRows(int(tokenizer.pad_token_id))


def _work(lengths: np.ndarray) -> Work:
    return Work(len(lengths), int(lengths.sum()), None)


def _train_examples(job: Job, setup: Setup, task: Task, tokenizer: PreTrainedTokenizerBase) -> EncodedExamples:
    """The task's training file, or as many examples of random tokens in its lengths."""
    if setup.data_dir is not None:
        return encode(tokenizer, read_train(Path(setup.data_dir), task), job.length)
    lengths = example_lengths(task.name, "train", NUM_EXAMPLES[task.name, "train"], job.length)
    return random_examples(lengths, len(tokenizer), setup.seed)


def _test_examples(job: Job, setup: Setup, task: Task, tokenizer: PreTrainedTokenizerBase) -> EncodedExamples:
    """A step's examples, their lengths spread evenly over those of the task's test file."""
    if setup.data_dir is None:
        examples = random_examples(
            example_lengths(task.name, "test", job.batch_size, job.length), len(tokenizer), setup.seed, labels=False
        )
    else:
        examples = encode(tokenizer, read_test(Path(setup.data_dir), task.tests[0]), job.length)
        by_length = np.argsort(examples.lengths, kind="stable")
        at = ((np.arange(job.batch_size) + 0.5) / job.batch_size * len(by_length)).astype(np.int64)
        examples = examples.select(by_length[at])
    if job.padded:
        return PaddedExamples(examples.columns, examples.offsets, examples.labels, job.length)
    return examples


@dataclass(frozen=True)
class PaddedExamples(EncodedExamples):
    """Examples that are all batched as if they had one length, to which the collator pads them."""

    length: int = 128

    @property
    def lengths(self) -> np.ndarray:
        """(N,) the padded lengths."""
        return np.full(len(self), self.length, dtype=np.int64)


def random_examples(lengths: np.ndarray, vocabulary: int, seed: int, labels: bool = True) -> EncodedExamples:
    """Examples of random token ids.

    Args:
        lengths: (N,) tokens of each.
        vocabulary: ids are drawn below it.
        seed: of the draw.
        labels: whether there are labels, 0 or 1.
    """
    generator = np.random.default_rng(seed)
    total = int(lengths.sum())
    return EncodedExamples(
        columns={
            "input_ids": generator.integers(0, vocabulary, total).astype(np.int32),
            "token_type_ids": np.zeros(total, dtype=np.int32),
        },
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        labels=generator.integers(0, 2, len(lengths)) if labels else None,
    )
