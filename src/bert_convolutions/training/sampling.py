"""The examples of each step: a pure function of (seed, epoch, step), independent of how the batch is divided.

Step ``s`` of an epoch takes positions ``[s*G, (s+1)*G)`` of the epoch's permutation, where G is the global batch size.
They are split into one contiguous slice per micro-batch (processes x accumulation steps), so any number of processes
with the same G sees the same examples in each step. The last step of an epoch takes the remaining examples, split the
same way: every example is seen once per epoch, and an empty slice becomes a placeholder batch that adds nothing to the
loss. Resuming needs only the number of the step.
"""

import atexit
import math
import multiprocessing.queues
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import TrainingArguments

from bert_convolutions.data.collate import Feature
from bert_convolutions.data.masking import IGNORED
from bert_convolutions.data.randomness import EpochOrder
from bert_convolutions.data.store import ExampleStore
from bert_convolutions.signals import ignore_signals, signals_blocked
from bert_convolutions.terminal import say


class Slice(NamedTuple):
    """One micro-batch: the positions ``start`` to ``stop`` (exclusive) of an epoch's order."""

    epoch: int
    start: int
    stop: int


def data_seed(arguments: TrainingArguments) -> int:
    """The seed for the order of the examples and for masking."""
    return arguments.seed if arguments.data_seed is None else arguments.data_seed


class StepPlan:
    """Divides each epoch's examples into steps and micro-batches.

    Args:
        num_examples: examples in an epoch, at least one.
        seed: seed of the epochs' orders; None keeps the order of the dataset.
        micro_batch_size: examples in one micro-batch of one process.
        micro_batches: micro-batches per step and process (gradient accumulation steps).
        processes: number of processes.
    """

    def __init__(
        self, num_examples: int, seed: int | None, *, micro_batch_size: int, micro_batches: int, processes: int
    ) -> None:
        self.num_examples, self.seed = num_examples, seed
        self.micro_batches, self.processes = micro_batches, processes
        self.global_batch_size = micro_batch_size * micro_batches * processes
        self.steps_per_epoch = -(-num_examples // self.global_batch_size)

    @classmethod
    def of_training(cls, arguments: TrainingArguments, num_examples: int) -> "StepPlan":
        """The plan for the batch size, accumulation steps and processes of the Trainer's arguments."""
        return cls(
            num_examples,
            data_seed(arguments),
            micro_batch_size=arguments.per_device_train_batch_size,
            micro_batches=arguments.gradient_accumulation_steps,
            processes=arguments.world_size,
        )

    def slice(self, epoch: int, step: int, process: int, micro_batch: int) -> Slice:
        """The slice of one micro-batch; ``step`` counts from the start of the epoch."""
        begin = step * self.global_batch_size
        size = min(self.global_batch_size, self.num_examples - begin)
        slices = self.micro_batches * self.processes
        index = process * self.micro_batches + micro_batch
        return Slice(epoch, begin + size * index // slices, begin + size * (index + 1) // slices)

    def samples(self, part: Slice) -> np.ndarray:
        """The numbers of the examples at the positions of ``part``, int64 ``(stop - start,)``."""
        positions = np.arange(part.start, part.stop)
        if self.seed is None:
            return positions
        return np.asarray(EpochOrder(self.num_examples, self.seed, part.epoch)[positions])

    def samples_of_step(self, global_step: int) -> list[int]:
        """The numbers of all examples of a step (0-based, counted over all epochs), in order."""
        epoch, step = divmod(global_step, self.steps_per_epoch)
        begin = step * self.global_batch_size
        stop = min(begin + self.global_batch_size, self.num_examples)
        return [int(sample) for sample in self.samples(Slice(epoch, begin, stop))]


def last_step(arguments: TrainingArguments, num_examples: int) -> int:
    """The number of steps after which training on ``num_examples`` is finished."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    return math.ceil(arguments.num_train_epochs * StepPlan.of_training(arguments, num_examples).steps_per_epoch)


class StepSlices(Sampler[Slice]):
    """The slices of one process over an epoch, in order; ``epoch`` returns its number when it starts.

    They don't load examples, so a resumed run skips finished steps at almost no cost.
    """

    def __init__(self, plan: StepPlan, process: int, epoch: Callable[[], int]) -> None:
        self.plan, self.process, self.epoch = plan, process, epoch

    def __len__(self) -> int:
        return self.plan.steps_per_epoch * self.plan.micro_batches

    def __iter__(self) -> Iterator[Slice]:
        epoch = self.epoch()
        for step in range(self.plan.steps_per_epoch):
            for micro_batch in range(self.plan.micro_batches):
                yield self.plan.slice(epoch, step, self.process, micro_batch)


def start_worker(worker: int = 0) -> None:
    """Initialise a data worker: ignore signals, and exit if a batch can't be sent, or the parent would wait forever.

    This happens if ``/dev/shm`` is full; containers have 64 MiB by default.
    """

    def leave(error: Exception, batch: object) -> None:
        say(f"a data worker can't send its batch: {error}")
        os._exit(1)

    ignore_signals()
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(leave)  # type: ignore[attr-defined]


class _Loader(DataLoader[Any]):
    """Starts workers with blocked signals, and so the server from which "forkserver" forks them."""

    def __iter__(self) -> Any:
        if not self.num_workers:
            return super().__iter__()
        with signals_blocked():
            batches: Any = super().__iter__()
        _with_workers.add(batches)
        return batches


_with_workers: weakref.WeakSet[Any] = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    """End those whose loop an exception has left: multiprocessing would send them SIGTERM and wait for ever."""
    for batches in _with_workers:
        batches._shutdown_workers()


def next_batches(batches: Iterator[Any], count: int) -> list[Any]:
    """The next ``count`` of an epoch; notes its workers, as the Trainer makes another loader where it resumes."""
    if hasattr(batches, "_shutdown_workers"):
        _with_workers.add(batches)
    return [next(batches) for _ in range(count)]


def slices_loader(
    arguments: TrainingArguments,
    dataset: Dataset[Any],
    plan: StepPlan,
    epoch: Callable[[], int],
    collate: Callable[[Any], Any],
) -> DataLoader[Any]:
    """This process's micro-batches: ``collate`` is applied to ``dataset.__getitems__(slice)`` of each slice.

    Draws no random numbers.
    """
    workers = arguments.dataloader_num_workers
    return _Loader(
        dataset,
        batch_sampler=StepSlices(plan, arguments.process_index, epoch),  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=workers,
        multiprocessing_context=arguments.dataloader_multiprocessing_context if workers else None,
        pin_memory=arguments.dataloader_pin_memory and arguments.device.type == "cuda",
        prefetch_factor=arguments.dataloader_prefetch_factor,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # the default would draw from the global generator
    )


class SlicedExamples(Dataset[Any]):
    """A dataset that maps a whole ``Slice`` of ``plan`` to the features of its examples."""

    def __init__(self, examples: ExampleStore, plan: StepPlan) -> None:
        self.examples, self.plan = examples, plan

    def __len__(self) -> int:
        return self.plan.num_examples

    def __getitem__(self, sample: int) -> Feature:
        return {"epoch": 0, "sample": sample, "input_ids": self.examples[sample]}

    def __getitems__(self, part: Slice) -> list[Feature]:  # the DataLoader prefers it to __getitem__
        return [{**self[int(sample)], "epoch": part.epoch} for sample in self.plan.samples(part)]


class WithPlaceholder:
    """A collator that turns an empty list into a batch that adds nothing to the loss: ``stand_in`` without labels.

    Every process must run the model, even one without examples at the end of an epoch.
    """

    def __init__(self, collate: Callable[[list[Any]], dict[str, torch.Tensor]], stand_in: Feature) -> None:
        self.collate, self.stand_in = collate, stand_in

    def __call__(self, features: list[Any]) -> dict[str, torch.Tensor]:
        """The batch of ``features``; of an empty list, one whose labels are all -100 and whose token count is 0."""
        if features:
            return self.collate(features)
        batch = self.collate([self.stand_in])
        for name in ("labels", "next_sentence_label"):
            if name in batch:
                batch[name] = torch.full_like(batch[name], IGNORED)
        batch["num_real_tokens"] = torch.zeros_like(batch["num_real_tokens"])
        batch["sample_ids"] = batch["sample_ids"][:0]
        return batch
