"""Fine-tuning and prediction with the lengths of GLUE's tasks: packed as by ``bertconv glue``, or padded to 128.

    python -m benchmarks.glue_layouts --output_dir bench-output [--data_dir GLUE]

Both layouts process the same examples in the same order with the code of ``bertconv glue``, in turns as in ``bertconv
bench``. Without ``--data_dir``, tokens are random and the lengths are those of GLUE's RTE and CoLA files.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from benchmarks.glue_lengths import NUM_EXAMPLES, example_lengths
from bert_convolutions.bench.corpus import Setup
from bert_convolutions.bench.jobs import StepClock, pretrain_options, training_arguments
from bert_convolutions.bench.options import BenchOptions
from bert_convolutions.bench.plan import BASE_LENGTH, COMPOSITE, Group, Job
from bert_convolutions.bench.run import Bench
from bert_convolutions.bench.worker import Turns, Work
from bert_convolutions.data.loading import load_tokenizer
from bert_convolutions.glue.examples import EncodedExamples, Layout, PackedRows, PaddedRows, encode
from bert_convolutions.glue.finetune import GlueTrainer
from bert_convolutions.glue.predict import predict_logits
from bert_convolutions.glue.reading import read_examples
from bert_convolutions.glue.tasks import Task, find_task
from bert_convolutions.model import CompositeBertForSequenceClassification
from bert_convolutions.training.arguments import BertTrainingArguments
from bert_convolutions.training.setup import make_config

GLUE_TASKS = ("RTE", "CoLA")
FINE_TUNING_STEPS = 4
"""Factor on the steps of a turn of fine-tuning, since its batches differ in length."""
PREDICTED_BATCHES = 8
"""Batches per step of prediction."""


@dataclass(frozen=True)
class GlueJob(Job):
    """Composite attention on examples of a task.

    Attributes:
        glue_task: task whose lengths the examples have.
        padded: whether every example is padded to S, instead of packed as by ``bertconv glue``.
        data_dir: GLUE's folder, or None for random tokens.
    """

    glue_task: str = "RTE"
    padded: bool = False
    data_dir: str | None = None

    @property
    def name(self) -> str:
        """The name in its group."""
        return f"{self.contestant} {self.precision}, {'padded' if self.padded else 'packed'}"

    @property
    def run(self) -> str:
        """The function that its process runs."""
        return f"{__name__}:run_{self.task}_job"

    def baseline(self, jobs: tuple[Job, ...]) -> Job | None:
        """The same job with every example padded."""
        return replace(self, padded=True)


def make_groups(precisions: list[Any], batch_size: int, rounds: int, steps: int, data_dir: str | None) -> list[Group]:
    """A group for fine-tuning and one for prediction, on each of the two tasks."""
    groups = []
    for task, examples, factor in (("fine_tuning", 1, FINE_TUNING_STEPS), ("prediction", PREDICTED_BATCHES, 1)):
        for glue_task in GLUE_TASKS:
            job = GlueJob(
                task,  # type: ignore[arg-type]
                COMPOSITE,
                "float32",
                BASE_LENGTH,
                examples * batch_size,
                glue_task=glue_task,
                data_dir=data_dir,
            )
            jobs = tuple(
                replace(job, precision=precision, padded=padded) for precision in precisions for padded in (False, True)
            )
            groups.append(Group(f"{task}, {glue_task}", jobs, rounds, factor * steps, 2))
    return groups


def run_fine_tuning_job(job: GlueJob, setup: Setup, turns: Turns) -> None:
    """Train a classifier in turns."""
    task = find_task(job.glue_task)
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
        return _work(examples.lengths[trainer.train_plan().samples_of_step(step)])

    trainer.add_callback(StepClock(turns, work))
    trainer.train()


def run_prediction_job(job: GlueJob, setup: Setup, turns: Turns) -> None:
    """Predict the same examples in each step.

    Raises:
        FinishedError: there are no more turns.
    """
    tokenizer = load_tokenizer(setup.tokenizer)
    model: Any = _classifier(job, setup, tokenizer)
    examples = _test_examples(job, setup, find_task(job.glue_task), tokenizer)
    arguments = BertTrainingArguments(**training_arguments(job, setup))
    model.to(arguments.device)
    if setup.options.torch_compile:
        model = torch.compile(model)

    def step() -> Work:
        predict_logits(model, examples, _layout(job, tokenizer), arguments)
        return _work(np.diff(examples.offsets))

    turns.take(step)


def _classifier(job: GlueJob, setup: Setup, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    options = pretrain_options(job, setup)
    config = make_config(options, tokenizer)
    config.vocab_size = setup.vocabulary
    set_seed(setup.options.seed)
    return CompositeBertForSequenceClassification._from_config(config)


def _layout(job: GlueJob, tokenizer: PreTrainedTokenizerBase) -> Layout:
    if job.padded:
        return PaddedRows(DataCollatorWithPadding(tokenizer, padding="max_length", max_length=job.length))
    return PackedRows(int(tokenizer.pad_token_id))


def _work(lengths: np.ndarray) -> Work:
    return Work(len(lengths), int(lengths.sum()), None)


def _train_examples(job: GlueJob, setup: Setup, task: Task, tokenizer: PreTrainedTokenizerBase) -> EncodedExamples:
    """The task's training file, or as many examples of random tokens with its lengths."""
    if job.data_dir is not None:
        return encode(tokenizer, read_examples(Path(job.data_dir) / task.train, task), job.length)
    lengths = example_lengths(task.name, "train", NUM_EXAMPLES[task.name, "train"], job.length)
    return random_examples(lengths, len(tokenizer), setup.options.seed)


def _test_examples(job: GlueJob, setup: Setup, task: Task, tokenizer: PreTrainedTokenizerBase) -> EncodedExamples:
    """A step's examples, with lengths spread evenly over those of the task's test file."""
    if job.data_dir is None:
        examples = random_examples(
            example_lengths(task.name, "test", job.batch_size, job.length),
            len(tokenizer),
            setup.options.seed,
            labels=False,
        )
    else:
        path = Path(job.data_dir) / task.tests[0].path
        examples = encode(tokenizer, read_examples(path, task, task.tests[0]), job.length)
        by_length = np.argsort(examples.lengths, kind="stable")
        at = ((np.arange(job.batch_size) + 0.5) / job.batch_size * len(by_length)).astype(np.int64)
        examples = examples.select(by_length[at])
    if job.padded:
        return PaddedExamples(examples.columns, examples.offsets, examples.labels, job.length)
    return examples


@dataclass(frozen=True)
class PaddedExamples(EncodedExamples):
    """Examples that are batched by the length to which the collator pads them."""

    length: int = 128

    @property
    def lengths(self) -> np.ndarray:
        """(N,) the padded lengths."""
        return np.full(len(self), self.length, dtype=np.int64)


def random_examples(lengths: np.ndarray, vocabulary: int, seed: int, labels: bool = True) -> EncodedExamples:
    """Examples of random token ids.

    Args:
        lengths: (N,) tokens of each example.
        vocabulary: number of token ids to draw from.
        seed: random seed.
        labels: whether to add random labels, 0 or 1.
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


def main() -> None:
    """Measure, print tables, and write results.json and results.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="bench-output")
    parser.add_argument("--data_dir")
    parser.add_argument("--train_data_file", nargs="+", default=[], help="for a tokenizer, without --tokenizer_name")
    parser.add_argument("--tokenizer_name")
    parser.add_argument("--config_name", default="bert_small")
    parser.add_argument("--precision", nargs="+", default=["float32"])
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    flags = vars(parser.parse_args())
    data_dir = flags.pop("data_dir")
    options = BenchOptions(**flags)
    groups = make_groups(options.precision, options.batch_size, options.rounds or 1, options.steps or 1, data_dir)
    Path(options.output_dir).mkdir(parents=True, exist_ok=True)
    Bench(options, groups, Path(options.output_dir)).run()


if __name__ == "__main__":
    main()
