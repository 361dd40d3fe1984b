"""Fine-tunes one model on one task with the Trainer of ``transformers``."""

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerControl

from bert_convolutions.files import sha256, sync_tree
from bert_convolutions.glue.examples import CountingCollator, EncodedExamples, Layout, ShuffledExamples
from bert_convolutions.glue.predict import evaluate
from bert_convolutions.glue.state import ENCODER_FOLDER
from bert_convolutions.glue.tasks import MNLI, DevSet, Task
from bert_convolutions.model.loading import quiet_transformers, set_max_length
from bert_convolutions.training.resumable import ResumableTrainer
from bert_convolutions.training.sampling import next_batches


class GlueTrainer(ResumableTrainer):
    """A :class:`ResumableTrainer` for a GLUE task, with uniformly shuffled examples.

    Args:
        task, train: the task and its training examples.
        dev: the development sets for evaluation during training.
        layout: makes batches of examples.
        kwargs: those of ``ResumableTrainer`` and the ``Trainer``.
    """

    model_accepts_loss_kwargs: bool
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        task: Task,
        train: EncodedExamples,
        dev: Mapping[DevSet, EncodedExamples],
        layout: Layout,
        **kwargs: Any,
    ) -> None:
        eval_dataset = {dev_set.name: examples for dev_set, examples in dev.items()} or None
        super().__init__(train_dataset=train, eval_dataset=eval_dataset, **kwargs)
        self.model_accepts_loss_kwargs = False
        if not task.labels:
            self.label_smoother = None  # smooths classes only; STS-B is a regression
        self.task, self.dev, self.layout = task, dev, layout

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Micro-batches of this process, in order; draws no random numbers."""
        counted = CountingCollator(self.layout, self.train_dataset.select(np.array([0])))
        return self.train_loader(ShuffledExamples(self.train_dataset, self.train_plan()), counted)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], int]:
        """The micro-batches of a step and the number of its examples (or words) over all processes."""
        batches = next_batches(epoch_iterator, num_batches)
        return batches, self.collectives.sum([sum(batch["num_examples"] for batch in batches)])[0]

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        """The micro-batch's share of the mean loss over the examples (or words) of the whole step.

        The Trainer assumes that a model whose ``forward`` has ``**kwargs`` divides by ``num_items_in_batch``. As
        classifiers don't, its loss would be too large by the number of processes times accumulation steps.
        """
        share = inputs["num_examples"] * self.args.world_size / num_items_in_batch  # DDP averages over processes
        return share * super().compute_loss(model, {name: inputs[name] for name in inputs if name != "num_examples"})

    def step_finished(self, control: TrainerControl) -> None:
        """Also score the last step for trackers, and skip its checkpoint unless a signal was received."""
        super().step_finished(control)
        last = self.state.global_step >= self.state.max_steps
        if last and self.dev and self.args.report_to and not self._must_stop:
            control.should_evaluate = True
        if last and self.watch.received is None and not self.args.load_best_model_at_end:
            control.should_save = False

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Score the development sets, log the scores (for MNLI, the matched loss) and call the callbacks."""
        model = self.accelerator.unwrap_model(self.model)
        training = model.training
        results = evaluate(
            model, self.task, self.dev, self.layout, self.args, before_batch=self.evaluation_batch_finished
        )
        model.train(training)
        scores = {name: value for values in reversed(results.values()) for name, value in values.items()}
        self.log(scores)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        return scores


def finetune(
    trainer: GlueTrainer, tokenizer: PreTrainedTokenizerBase, checkpoint: Path | None
) -> tuple[PreTrainedModel, dict[str, str]]:
    """Train a model, from ``checkpoint`` if given, and save it in the trainer's output folder.

    Returns:
        The trained model, unwrapped; and the SHA-256 of the saved files, on the process that saves.

    Raises:
        RunInterrupted: a signal was received; a checkpoint has been saved.
        TrainingDiverged: the loss became NaN or infinite.
    """
    with trainer.watch.finish_step_on_signal():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trained = trainer.accelerator.unwrap_model(trainer.model)
    saved: dict[str, str] = {}
    if trainer.is_world_process_zero():
        saved = _save(trained, tokenizer, Path(str(trainer.args.output_dir)), trainer.task)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.free_memory()
    if "wandb" in (trainer.args.report_to or ()):  # the only one whose run would go on with the next task
        importlib.import_module("wandb").finish()
    return trained, saved


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, task: Task) -> dict[str, str]:
    """Save a model, its tokenizer and MNLI's encoder, in a subfolder; return the SHA-256 of each file by name."""
    of_tokenizer = [Path(name) for name in set_max_length(model.config, tokenizer).save_pretrained(folder)]
    with quiet_transformers():
        model.save_pretrained(folder)
        if task.name == MNLI.name:  # no other task is started from
            encoder = model.base_model
            assert isinstance(encoder, PreTrainedModel)  # true for all models of the Auto classes
            encoder.save_pretrained(folder / ENCODER_FOLDER)
            tokenizer.save_pretrained(folder / ENCODER_FOLDER)
    sync_tree(folder)
    of_model = [folder / "config.json", *folder.glob("model*.safetensors*")]
    files = {path for path in (*of_model, *of_tokenizer, *(folder / ENCODER_FOLDER).rglob("*")) if path.is_file()}
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(files)}
