"""Fine-tune one model on one task with the Trainer of ``transformers``."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from bert_convolutions.glue.batching import LengthGroupedSampler
from bert_convolutions.glue.encoding import EncodedExamples
from bert_convolutions.glue.models import quiet_transformers
from bert_convolutions.glue.predict import Collator, evaluate
from bert_convolutions.glue.presets import Hyperparameters, device_batch_size
from bert_convolutions.glue.state import ENCODER_FOLDER
from bert_convolutions.glue.tasks import DevSet, Task

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


class GlueTrainer(Trainer):
    """The Trainer with batches of like length, in training and in evaluation.

    Args:
        task: what is trained.
        dev: development sets, for evaluation during training.
        kwargs: the Trainer's own.
    """

    def __init__(self, task: Task, dev: Mapping[DevSet, EncodedExamples], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.task = task
        self.dev = dev

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int]:
        examples = train_dataset if train_dataset is not None else self.train_dataset
        if not isinstance(examples, EncodedExamples):
            raise TypeError(f"expected EncodedExamples, not {type(examples).__name__}")
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LengthGroupedSampler(examples.lengths, global_batch_size(self.args), seed)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Score the development sets, log the scores and tell the callbacks."""
        model = self.accelerator.unwrap_model(self.model)
        training = model.training
        results = evaluate(model, self.task, self.dev, self.data_collator, self.args)
        model.train(training)
        scores = {name: value for values in results.values() for name, value in values.items()}
        self.log(scores)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        return scores


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    train: EncodedExamples,
    dev: Mapping[DevSet, EncodedExamples],
    collator: Collator,
    arguments: TrainingArguments,
) -> PreTrainedModel:
    """Train a model and save it, its tokenizer and its encoder in ``arguments.output_dir``.

    All steps are run: the folder that the model came from has no say in it.

    Returns:
        The trained model, unwrapped.
    """
    trainer = GlueTrainer(
        task,
        dev,
        model=model,
        args=arguments,
        train_dataset=train,
        data_collator=collator,
        processing_class=tokenizer,
    )
    trainer.train()
    trained = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.is_world_process_zero():
        save_finetuned(trained, tokenizer, Path(str(arguments.output_dir)))
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
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
