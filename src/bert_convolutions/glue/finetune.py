"""Fine-tune one model on one task with the Trainer of ``transformers``."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerControl, TrainingArguments

from bert_convolutions.files import sync_tree
from bert_convolutions.glue.batching import CountingCollator, LengthGroupedExamples
from bert_convolutions.glue.encoding import EncodedExamples
from bert_convolutions.glue.hyperparameters import Hyperparameters, device_batch_size
from bert_convolutions.glue.models import quiet_transformers
from bert_convolutions.glue.predict import evaluate
from bert_convolutions.glue.state import ENCODER_FOLDER
from bert_convolutions.glue.tasks import DevSet, Task
from bert_convolutions.training.resumable import ResumableTrainer
from bert_convolutions.training.sampling import Slice, StepPlan

ArgumentsT = TypeVar("ArgumentsT", bound=TrainingArguments)


def num_devices(arguments: TrainingArguments) -> int:
    """Return the devices of all processes that share a step."""
    return arguments.world_size * max(1, arguments.n_gpu)


def global_batch_size(arguments: TrainingArguments) -> int:
    """Return the examples of one optimizer step over all devices."""
    return arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size


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

    model_accepts_loss_kwargs: bool
    loss_is_scaled_for_ga = True

    def __init__(
        self, task: Task, train: EncodedExamples, dev: Mapping[DevSet, EncodedExamples], **kwargs: Any
    ) -> None:
        eval_dataset = {dev_set.name: examples for dev_set, examples in dev.items()} or None
        super().__init__(train_dataset=train, eval_dataset=eval_dataset, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.task = task
        self.train_examples = train
        self.dev = dev

    def train_plan(self) -> StepPlan:
        """Which positions of an epoch's order each process takes in each step."""
        return StepPlan(
            len(self.train_examples),
            None,
            micro_batch_size=self.args.train_batch_size,
            micro_batches=self.args.gradient_accumulation_steps,
            processes=self.args.world_size,
        )

    def _grouped_examples(self) -> LengthGroupedExamples:
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LengthGroupedExamples(self.train_examples, self.train_plan(), seed)

    def samples_of_step(self, step: int) -> list[int]:
        """Rows of the training file, from 0, that a step (0-based) takes on all processes."""
        plan = self.train_plan()
        epoch, step_of_epoch = divmod(step, plan.steps_per_epoch)
        begin = step_of_epoch * plan.global_batch_size
        return self._grouped_examples().rows(Slice(epoch, begin, begin + plan.global_batch_size))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Micro-batches of this process, in order; nothing in it draws a random number."""
        collate = CountingCollator(self.data_collator, self.train_examples[0])
        return self.training_loader(self._grouped_examples(), self.train_plan(), collate)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], int]:
        """Return the micro-batches of a step and the number of its examples over all processes."""
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        return batches, self.collectives.sum([sum(batch["num_examples"] for batch in batches)])[0]

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        """Return the micro-batch's part of the mean loss over the examples of the whole step.

        The Trainer takes a model whose ``forward`` has ``**kwargs`` to divide by ``num_items_in_batch``; classifiers
        do not, so its loss would be too large by the number of processes and of accumulation steps.
        """
        share = inputs["num_examples"] * self.args.world_size / num_items_in_batch  # DDP takes the mean over processes
        return share * super().compute_loss(model, {name: inputs[name] for name in inputs if name != "num_examples"})

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
