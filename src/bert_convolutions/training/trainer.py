"""Pre-training with ``transformers.Trainer``: exact data order, losses over the global batch, tokens counted."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import EvalLoopOutput

from bert_convolutions.data.masking import IGNORED
from bert_convolutions.training.evaluation import EvaluationSums
from bert_convolutions.training.progress import Throughput, TokenProgress
from bert_convolutions.training.resumable import ResumableTrainer
from bert_convolutions.training.sampling import Examples, SlicedExamples, StepPlan, StepSlices, WithPlaceholder

Collate = Callable[[list[Any]], dict[str, torch.Tensor]]


class PretrainingTrainer(ResumableTrainer):
    """Trains a model with a masked-language-model head on an example store.

    Args:
        train_dataset: store of the training examples, or None.
        eval_dataset: store of the evaluation examples, or None.
        data_collator: makes a training batch of features ``{"epoch", "sample", "input_ids"}``.
        eval_collator: the same for evaluation, with a masking that never changes.
        All others are those of ``ResumableTrainer`` and the ``Trainer``.
    """

    train_dataset: Any
    eval_dataset: Any
    loss_is_scaled_for_ga = True  # the model divides by the masked tokens of the whole global batch

    def __init__(self, *args: Any, eval_collator: Collate | None = None, **kwargs: Any) -> None:
        self.eval_collator = eval_collator
        self.throughput = Throughput()
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True
        self._flops_per_token: int | None = None
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(TokenProgress(self.throughput))
        self.add_callback(_StartClock(self.throughput))

    # Data

    def train_plan(self) -> StepPlan:
        """Which examples each training step takes."""
        return StepPlan(
            len(self.train_dataset),
            self.args.seed if self.args.data_seed is None else self.args.data_seed,
            micro_batch_size=self.args.per_device_train_batch_size,
            micro_batches=self.args.gradient_accumulation_steps,
            processes=self.args.world_size,
        )

    def samples_of_step(self, step: int) -> list[int]:
        """The examples of a step (0-based) on all processes."""
        return self.train_plan().samples_of_step(step)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Micro-batches of this process, in order; nothing in it draws a random number."""
        self.train_slices = StepSlices(self.train_plan(), self.args.process_index)
        return self._loader(self.train_dataset, self.train_slices, self.data_collator)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The evaluation examples in their own order, each on one process."""
        store = self.eval_dataset if eval_dataset is None else eval_dataset
        plan = StepPlan(
            len(store),
            None,
            micro_batch_size=self.args.per_device_eval_batch_size,
            micro_batches=1,
            processes=self.args.world_size,
        )
        return self._loader(store, StepSlices(plan, self.args.process_index), self.eval_collator or self.data_collator)

    def _loader(self, store: Examples | Any, slices: StepSlices, collate: Collate) -> DataLoader[Any]:
        stand_in = {"epoch": 0, "sample": 0, "input_ids": store[0]}
        return self.slices_loader(SlicedExamples(store, slices.plan), slices, WithPlaceholder(collate, stand_in))

    # A training step

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """The micro-batches of a step and the masked tokens of the global batch, counted before they leave the CPU.

        Losses are sums divided by the counts of the global batch, so that accumulation, packing and the number of
        processes do not change a gradient.
        """
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        tokens = sum(int(batch.pop("num_real_tokens")) for batch in batches)
        masked = sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)
        examples = sum(len(batch.pop("sample_ids")) for batch in batches)
        masked, examples, tokens = self.collectives.sum([masked, examples, tokens])
        for batch in batches:
            if "next_sentence_label" in batch:
                batch["num_examples_in_batch"] = torch.full((), examples, device=device)
        self.throughput.add(tokens)
        self.state.num_input_tokens_seen = self.throughput.seen
        return batches, torch.full((), max(masked, 1), device=device)

    def _prepare_input(self, data: Any) -> Any:
        if isinstance(data, torch.Tensor):
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """FLOPs of a training step by the Trainer's estimate, with the parameters counted once instead of each step."""
        if self._flops_per_token is None:
            self._flops_per_token = 6 * self.model.num_parameters(exclude_embeddings=True)
        return self._flops_per_token * inputs["input_ids"].numel()

    # Evaluation

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Loss per masked token, perplexity and accuracy over the whole data set; nothing is kept but sums."""
        model = self._wrap_model(self.model, training=False)
        if not self.accelerator._models:  # evaluating without having trained: autocast is not set up yet
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
        model.eval()
        self.callback_handler.eval_dataloader = dataloader
        sums = EvaluationSums(self.args.device)
        for batch in dataloader:
            del batch["num_real_tokens"], batch["sample_ids"]
            inputs = self._prepare_inputs(batch)
            with torch.no_grad(), self.compute_loss_context_manager():
                sums.add(inputs, model(**inputs))
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        sums.total = self.accelerator.reduce(sums.total, reduction="sum")
        metrics = sums.metrics(metric_key_prefix)
        return EvalLoopOutput(
            predictions=np.empty(0),
            label_ids=None,
            metrics=metrics,
            num_samples=len(dataloader.dataset),  # type: ignore[arg-type]
        )

    def last_step(self) -> int:
        """The step after which the run is finished."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        return math.ceil(self.args.num_train_epochs * self.train_plan().steps_per_epoch)

    def load_finished(self, checkpoint: str) -> None:
        """Take model and state from a checkpoint of the last step, where nothing is left to train."""
        self._load_from_checkpoint(checkpoint)
        self.state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        self.throughput.seen = self.state.num_input_tokens_seen

    # Time and logs

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, off the clock that measures training."""
        with self.throughput.paused():
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        with self.throughput.paused():
            super()._save_checkpoint(model, trial)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the tokens seen and the tokens per second beside the training loss."""
        if "loss" in logs or "train_loss" in logs:
            logs |= self.throughput.figures()
        super().log(logs, start_time)


class _StartClock(TrainerCallback):
    """Starts the clock when the model is ready and the state of a resumed run has been read."""

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.throughput.start(state.num_input_tokens_seen)
