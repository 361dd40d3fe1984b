"""Which examples a step takes: a pure function of (seed, epoch, step), the same for every layout of the batch.

Step ``s`` of an epoch takes positions ``[s*G, (s+1)*G)`` of the epoch's permutation, G being the global batch. They
are cut into as many contiguous slices as there are micro-batches (processes x accumulation), so another number of
processes with the same G sees the same examples in each step. The last step of an epoch takes what is left, cut the
same way: every example is seen once an epoch, and a slice left empty becomes a placeholder that adds nothing.
Resuming needs the number of the step and nothing else.
"""

import math
import multiprocessing.queues
import os
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
from bert_convolutions.signals import ignore_signals
from bert_convolutions.terminal import say


class Slice(NamedTuple):
    """Positions ``start`` to ``stop`` of an epoch's order: one micro-batch, before any example is looked at."""

    epoch: int
    start: int
    stop: int


def data_seed(arguments: TrainingArguments) -> int:
    """The seed of order and masking."""
    return arguments.seed if arguments.data_seed is None else arguments.data_seed


class StepPlan:
    """How many examples, steps and micro-batches there are in an epoch, and which belong to which.

    Args:
        num_examples: examples in an epoch, at least one.
        seed: of the epochs' orders; None keeps the examples in their own order.
        micro_batch_size: examples in one micro-batch of one process.
        micro_batches: micro-batches a process adds up in one step.
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
        """The plan that the Trainer's arguments ask for."""
        return cls(
            num_examples,
            data_seed(arguments),
            micro_batch_size=arguments.per_device_train_batch_size,
            micro_batches=arguments.gradient_accumulation_steps,
            processes=arguments.world_size,
        )

    def slice(self, epoch: int, step: int, process: int, micro_batch: int) -> Slice:
        """The positions of one micro-batch; ``step`` counts from the epoch's start."""
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
        """All examples of a step of the run (0-based, over all epochs), in order."""
        epoch, step = divmod(global_step, self.steps_per_epoch)
        begin = step * self.global_batch_size
        stop = min(begin + self.global_batch_size, self.num_examples)
        return [int(sample) for sample in self.samples(Slice(epoch, begin, stop))]


def last_step(arguments: TrainingArguments, num_examples: int) -> int:
    """The number of steps after which training on so many examples is finished."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    return math.ceil(arguments.num_train_epochs * StepPlan.of_training(arguments, num_examples).steps_per_epoch)


class StepSlices(Sampler[Slice]):
    """The micro-batches of one process through an epoch, in order; ``epoch`` gives its number when it begins.

    It yields slices, not lists of examples: running past the steps that a resumed run has done costs next to nothing.
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
    """For workers: ignore signals, and end if a batch can't be handed over, or the parent would wait for ever.

    That is so where they have little room in ``/dev/shm``, of which a container has 64 MiB.
    """

    def leave(error: Exception, batch: object) -> None:
        say(f"a data worker can't hand its batch over: {error}")
        os._exit(1)

    ignore_signals()
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(leave)  # type: ignore[attr-defined]


def slices_loader(
    arguments: TrainingArguments,
    dataset: Dataset[Any],
    plan: StepPlan,
    epoch: Callable[[], int],
    collate: Callable[[Any], Any],
) -> DataLoader[Any]:
    """This process's micro-batches: what ``collate`` makes of the answer of ``dataset`` (``__getitems__``) to a slice.

    Nothing in it draws a random number.
    """
    workers = arguments.dataloader_num_workers
    return DataLoader(
        dataset,
        batch_sampler=StepSlices(plan, arguments.process_index, epoch),  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=workers,
        multiprocessing_context=arguments.dataloader_multiprocessing_context if workers else None,
        pin_memory=arguments.dataloader_pin_memory and arguments.device.type == "cuda",
        prefetch_factor=arguments.dataloader_prefetch_factor,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # or else it draws a seed from the global one, which a resumed run repeats
    )


class SlicedExamples(Dataset[Any]):
    """A store that is asked for a whole ``Slice`` of ``plan`` at a time and answers with the collator's features."""

    def __init__(self, examples: ExampleStore, plan: StepPlan) -> None:
        self.examples, self.plan = examples, plan

    def __len__(self) -> int:
        return self.plan.num_examples

    def __getitem__(self, sample: int) -> Feature:
        return {"epoch": 0, "sample": sample, "input_ids": self.examples[sample]}

    def __getitems__(self, part: Slice) -> list[Feature]:  # what the DataLoader calls, if it is there
        return [{**self[int(sample)], "epoch": part.epoch} for sample in self.plan.samples(part)]


class WithPlaceholder:
    """A collator that makes of no features at all a batch that adds nothing to any loss: ``stand_in`` without labels.

    Processes must all run a model step, even one that has no example left at the end of an epoch.
    """

    def __init__(self, collate: Callable[[list[Any]], dict[str, torch.Tensor]], stand_in: Feature) -> None:
        self.collate, self.stand_in = collate, stand_in

    def __call__(self, features: list[Any]) -> dict[str, torch.Tensor]:
        """A batch of ``features``; where there are none, all labels are -100 and no token counts as real."""
        if features:
            return self.collate(features)
        batch = self.collate([self.stand_in])
        for name in ("labels", "next_sentence_label"):
            if name in batch:
                batch[name] = torch.full_like(batch[name], IGNORED)
        batch["num_real_tokens"] = torch.zeros_like(batch["num_real_tokens"])
        batch["sample_ids"] = batch["sample_ids"][:0]
        return batch
