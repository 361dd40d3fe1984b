"""Fine-tune one model on one task with the Trainer of ``transformers``."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerControl, TrainingArguments

from bert_convolutions.glue.batching import LengthGroupedSampler, length_grouped_order
from bert_convolutions.glue.encoding import EncodedExamples
from bert_convolutions.glue.models import quiet_transformers
from bert_convolutions.glue.predict import evaluate
from bert_convolutions.glue.presets import Hyperparameters, device_batch_size
from bert_convolutions.glue.state import ENCODER_FOLDER
from bert_convolutions.glue.tasks import DevSet, Task
from bert_convolutions.training.durable import sync_tree
from bert_convolutions.training.resumable import ResumableTrainer

ArgumentsT = TypeVar("ArgumentsT", bound=TrainingArguments)


def num_devices(arguments: TrainingArguments) -> int:
    """Return the devices of all processes that share a step."""
    return arguments.world_size * max(1, arguments.n_gpu)


def global_batch_size(arguments: TrainingArguments) -> int:
    """Return the examples of one optimizer step over all devices."""
    accumulation = arguments.gradient_accumulation_steps
    return arguments.per_device_train_batch_size * accumulation * num_devices(arguments)


def task_arguments(
    arguments: ArgumentsT, folder: Path, seed: int, hyperparameters: Hyperparameters | None
) -> ArgumentsT:
    """Return the Trainer's arguments for one task and round.

    Args:
        arguments: as given on the command line.
        folder: where the task is trained.
        seed: seed of the round.
        hyperparameters: of the task; None keeps the arguments' own learning rate, batch, steps and warm-up. Their
            steps are cut to ``--max_steps`` where that is given.
    """
    changes: dict[str, Any] = {"output_dir": str(folder), "seed": seed}
    if hyperparameters is not None:
        steps = hyperparameters.steps
        steps = min(steps, arguments.max_steps) if arguments.max_steps > 0 else steps
        changes |= {
            "learning_rate": hyperparameters.learning_rate,
            "max_steps": steps,
            "warmup_steps": dataclasses.replace(hyperparameters, steps=steps).warmup_steps,
            "per_device_train_batch_size": device_batch_size(
                hyperparameters.batch_size,
                arguments.per_device_train_batch_size,
                num_devices(arguments),
                arguments.gradient_accumulation_steps,
            ),
        }
    return dataclasses.replace(arguments, **changes)


class GlueTrainer(ResumableTrainer):
    """Trains on batches of like length; stops, saves and goes on exactly, as :class:`ResumableTrainer` does.

    Args:
        task: what is trained.
        train: training examples.
        dev: development sets, for evaluation during training.
        kwargs: those of ``ResumableTrainer`` and the ``Trainer``.
    """

    def __init__(
        self, task: Task, train: EncodedExamples, dev: Mapping[DevSet, EncodedExamples], **kwargs: Any
    ) -> None:
        eval_dataset = {dev_set.name: examples for dev_set, examples in dev.items()} or None
        super().__init__(train_dataset=train, eval_dataset=eval_dataset, **kwargs)
        self.task = task
        self.train_examples = train
        self.dev = dev

    @property
    def data_seed(self) -> int:
        """Seed of the examples' order."""
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def samples_of_step(self, step: int) -> list[int]:
        """Rows of the training file, from 0, that a step (0-based) takes on all processes."""
        size = global_batch_size(self.args)
        epoch, step_of_epoch = divmod(step, -(-len(self.train_examples) // size))
        order = length_grouped_order(self.train_examples.lengths, size, self.data_seed, epoch)
        return [int(index) for index in order[step_of_epoch * size : (step_of_epoch + 1) * size]]

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches in the order of :func:`length_grouped_order`; nothing in it draws a random number."""
        arguments = self.args
        workers = arguments.dataloader_num_workers
        loader: DataLoader[Any] = DataLoader(
            self.train_examples,
            batch_size=arguments.train_batch_size,
            sampler=LengthGroupedSampler(self.train_examples.lengths, global_batch_size(arguments), self.data_seed),
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=arguments.dataloader_pin_memory and arguments.device.type == "cuda",
            persistent_workers=arguments.dataloader_persistent_workers and workers > 0,
            prefetch_factor=arguments.dataloader_prefetch_factor,
            generator=torch.Generator(),  # or else it draws a seed from the global one, which a resumed run repeats
        )
        return self.accelerator.prepare(loader)

    def step_finished(self, control: TrainerControl) -> None:
        """No checkpoint of the last step, unless a signal asks for it: the model itself is saved next."""
        super().step_finished(control)
        last = self.state.global_step >= self.state.max_steps
        if last and self.watch.received is None and not self.args.load_best_model_at_end:
            control.should_save = False

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Score the development sets, log the scores and tell the callbacks."""
        model = self.accelerator.unwrap_model(self.model)
        training = model.training
        results = evaluate(
            model, self.task, self.dev, self.data_collator, self.args, before_batch=self.evaluation_batch_finished
        )
        model.train(training)
        scores = {name: value for values in results.values() for name, value in values.items()}
        self.log(scores)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        return scores


def finetune(trainer: GlueTrainer, tokenizer: PreTrainedTokenizerBase, checkpoint: Path | None) -> PreTrainedModel:
    """Train a model and save it, its tokenizer and its encoder in the trainer's output folder.

    All steps are run: the name of the folder that the model came from has no say in it.

    Args:
        trainer: made for the task.
        tokenizer: saved beside the model.
        checkpoint: of this very run, to go on from; None starts at the first step.

    Returns:
        The trained model, unwrapped.

    Raises:
        RunInterrupted: a signal came; a checkpoint has been saved.
        TrainingDiverged: the loss became NaN or infinite.
    """
    with trainer.watch.installed():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trained = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.is_world_process_zero():
        save_finetuned(trained, tokenizer, Path(str(trainer.args.output_dir)))
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.free_memory()
    return trained


def save_finetuned(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a model as safetensors with its tokenizer, and its encoder alone below it, and sync both to the disk."""
    encoder = model.base_model
    if not isinstance(encoder, PreTrainedModel):
        raise TypeError(f"{type(model).__name__} has no encoder to save")
    with quiet_transformers():
        model.save_pretrained(folder)
        encoder.save_pretrained(folder / ENCODER_FOLDER)
    tokenizer.save_pretrained(folder)
    tokenizer.save_pretrained(folder / ENCODER_FOLDER)
    sync_tree(folder)
