"""Pre-training with ``transformers.Trainer``: exact data order, losses over the global batch, token counts.

``OVERRIDDEN`` in ``resumable`` lists the overridden members of the Trainer.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import TrainerControl, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import EvalLoopOutput

from bert_convolutions.data.masking import IGNORED
from bert_convolutions.errors import UsageError
from bert_convolutions.training.arguments import evaluation_precision
from bert_convolutions.training.progress import Throughput, WordCounter
from bert_convolutions.training.resumable import ResumableTrainer
from bert_convolutions.training.sampling import (
    SlicedExamples,
    StepPlan,
    WithPlaceholder,
    last_step,
    next_batches,
    slices_loader,
)

MASKED_METRICS, ORDER_METRICS = ("loss", "perplexity", "masked_accuracy"), ("sop_loss", "sop_accuracy")
"""Metrics of an evaluation that may select the best model; the second group needs a sentence-order head."""
Collate = Callable[[list[Any]], dict[str, torch.Tensor]]
_SPECIAL_TOKENS_PER_PAIR = 3
"""[CLS] and two [SEP], which are never masked."""
_LOG_IMPROBABLE = math.log(1e-9)


class PretrainingTrainer(ResumableTrainer):
    """Trains a model with a masked-language-model head on an example store.

    Args:
        train_dataset: store of the training examples, or None.
        eval_dataset: store of the evaluation examples, or None.
        data_collator: makes a training batch of features ``{"epoch", "sample", "input_ids"}``.
        eval_collator: the same for evaluation, with masks that never change.
        words: counts words and knows at which counts to save.
        mlm_probability: probability of a token to be masked; too many steps without a masked token are refused.
        All others are those of ``ResumableTrainer`` and the ``Trainer``.
    """

    eval_dataset: Any
    data_collator: Any
    loss_is_scaled_for_ga = True  # the model divides by the masked tokens of the whole global batch

    def __init__(
        self, *args: Any, eval_collator: Collate, words: WordCounter, mlm_probability: float = 0.15, **kwargs: Any
    ) -> None:
        self.eval_collator = eval_collator
        self.words = words
        self.throughput = Throughput()
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True
        self._log_unmasked = math.log1p(-min(mlm_probability, 1 - 1e-9))
        self._unmasked_since: int | None = None
        self._log_probability = 0.0

    # Data

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Micro-batches of this process, in order; draws no random numbers."""
        dataset = SlicedExamples(self.train_dataset, self.train_plan())
        return self.train_loader(dataset, WithPlaceholder(self.data_collator, dataset[0]))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The evaluation examples in the order of the store, divided among the processes."""
        store = self.eval_dataset if eval_dataset is None else eval_dataset
        size, processes = self.args.per_device_eval_batch_size, self.args.world_size
        plan = StepPlan(len(store), None, micro_batch_size=size, micro_batches=1, processes=processes)
        dataset = SlicedExamples(store, plan)
        return slices_loader(self.args, dataset, plan, lambda: 0, WithPlaceholder(self.eval_collator, dataset[0]))

    # A training step

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """The micro-batches of a step and the number of masked tokens in the global batch, counted on the CPU.

        Losses are sums divided by counts over the global batch, so that gradients don't depend on accumulation,
        packing or the number of processes.
        """
        batches = next_batches(epoch_iterator, num_batches)
        words = sum(self.words.count(batch) for batch in batches)
        tokens = sum(int(batch.pop("num_real_tokens")) for batch in batches)
        masked = sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)
        examples = sum(len(batch.pop("sample_ids")) for batch in batches)
        masked, examples, tokens, words = self.collectives.sum([masked, examples, tokens, words])
        for batch in batches:
            if "next_sentence_label" in batch:
                batch["num_examples_in_batch"] = torch.full((), examples, device=device)
        self._refuse_unmasked_steps(masked, max(tokens - _SPECIAL_TOKENS_PER_PAIR * examples, examples))
        self.throughput.seen += tokens
        self.words.add(words, self.state)
        self.state.num_input_tokens_seen = self.throughput.seen
        return batches, torch.full((), max(masked, 1), device=device)

    def _refuse_unmasked_steps(self, masked: int, maskable: int) -> None:
        """Stop once so many steps without a masked token can't be chance: their loss of 0 only looks good."""
        if masked:
            self._unmasked_since, self._log_probability = None, 0.0
            return
        if self._unmasked_since is None:
            self._unmasked_since = self.state.global_step
        self._log_probability += maskable * self._log_unmasked
        if self._log_probability < _LOG_IMPROBABLE:
            samples = ", ".join(map(str, self.train_plan().samples_of_step(self._unmasked_since)[:8]))
            raise UsageError(
                f"from step {self._unmasked_since + 1} on (samples {samples}, ...) no token is masked, so nothing "
                f"can be learned: --train_data_file is damaged or was changed during training; build it anew "
                f"and resume from a checkpoint of step {self._unmasked_since} or before"
            )

    def _prepare_input(self, data: Any) -> Any:
        if not isinstance(data, torch.Tensor):
            return super()._prepare_input(data)
        data = data.to(self.args.device, non_blocking=True)
        if self.args.torch_compile and data.dim():  # rows or positions: their number changes between steps
            torch._dynamo.maybe_mark_dynamic(data, 0)
        return data

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """FLOPs of a training step by the Trainer's estimate, which would count the parameters anew in each step."""
        return self._flops_per_token * inputs["input_ids"].numel()

    @functools.cached_property
    def _flops_per_token(self) -> int:
        return 6 * self.model.num_parameters(exclude_embeddings=True)

    def step_finished(self, control: TrainerControl) -> None:
        """Also save the models whose word count is reached, before a checkpoint of this step records them as saved."""
        super().step_finished(control)
        for destination in self.words.pop_reached():
            with self.throughput.paused():
                self.save_model_as(destination)

    # Evaluation

    def evaluation_loop(self, dataloader: DataLoader[Any], *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Loss per masked token, perplexity and accuracy over the whole dataset, from running sums."""
        model = self._wrap_model(self.model, training=False)
        if not self.accelerator._models:  # without training before, autocast is not set up yet
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
        model.eval()
        self.callback_handler.eval_dataloader = dataloader
        device = self.args.device
        exact = device.type in ("cpu", "cuda")  # other devices may lack float64
        total = torch.zeros(len(_SUMS), dtype=torch.float64 if exact else torch.float32, device=device)
        for batch in dataloader:
            del batch["num_real_tokens"], batch["sample_ids"]
            inputs = self._prepare_inputs(batch)
            with torch.no_grad(), evaluation_precision(self.args):
                total += _evaluation_sums(inputs, model(**inputs)).to(total)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        return EvalLoopOutput(
            predictions=np.empty(0),
            label_ids=None,
            metrics=_evaluation_metrics(kwargs.get("metric_key_prefix", "eval"), self.collectives.sum(total.tolist())),
            num_samples=len(dataloader.dataset),  # type: ignore[arg-type]
        )

    def last_step(self) -> int:
        """The step after which the run is finished."""
        return last_step(self.args, len(self.train_dataset))

    def load_finished(self, folder: Path) -> None:
        """Load model and state of the last step, after which there is nothing to train."""
        self.state = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
        self.state.is_world_process_zero = self.is_world_process_zero()  # it was saved by the first process
        self._load_from_checkpoint(str(folder))

    def finish(self) -> None:
        """Do what is left after the last step: an evaluation that it lacks, and loading the best model."""
        self.training_begins()
        best = self.state.best_model_checkpoint
        if self.args.load_best_model_at_end and best is not None and Path(best).is_dir():
            self._load_from_checkpoint(best)

    # Time and logs

    def training_begins(self) -> None:
        """Also start the clock and restore the word count."""
        super().training_begins()
        self.throughput.start(self.state.num_input_tokens_seen)
        self.words.restore(self.state)

    def progress_note(self) -> str:
        """Tokens seen and tokens per second."""
        return f"{self.throughput.seen:,} tokens, {self.throughput.tokens_per_second:,.0f} tokens/s"

    def throughput_metrics(self) -> dict[str, float]:
        """Tokens and words seen and tokens per second, for the logs and ``train_results.json``."""
        words = {} if self.words.seen is None else {"words_seen": self.words.seen}
        rate = round(self.throughput.tokens_per_second)
        return {**words, "non_padding_tokens_seen": self.throughput.seen, "real_tokens_per_second": rate}

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate with the training clock paused."""
        with self.throughput.paused():
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        with self.throughput.paused():
            super()._save_checkpoint(model, trial)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, adding tokens seen and tokens per second to the training loss."""
        if "loss" in logs or "train_loss" in logs:
            logs |= self.throughput_metrics()
        super().log(logs, start_time)


_SUMS = ("loss", "tokens", "correct", "sop_loss", "sop_pairs", "sop_correct")


def _evaluation_sums(batch: Mapping[str, torch.Tensor], outputs: Any) -> torch.Tensor:
    """Summed loss, count and number of correct predictions of masked tokens and, if any, of sentence-order pairs.

    Args:
        batch: ``labels`` (M,) or (R, S), -100 where nothing is to be predicted, and optionally ``next_sentence_label``
            (E,).
        outputs: the model's, with ``logits`` or ``prediction_logits``, ``labels``' shape + (V,), and optionally
            ``seq_relationship_logits`` (E, 2).

    Returns:
        ``_SUMS`` of the batch, (6,), additive over batches and processes.
    """
    tokens = _loss_count_hits(outputs.get("prediction_logits", outputs.get("logits")), batch["labels"])
    pairs = torch.zeros_like(tokens)
    if "next_sentence_label" in batch and "seq_relationship_logits" in outputs:
        pairs = _loss_count_hits(outputs["seq_relationship_logits"], batch["next_sentence_label"])
    return torch.cat([tokens, pairs])


def _loss_count_hits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits, labels = logits.flatten(0, -2).float(), labels.flatten()
    loss = functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    counted = labels != IGNORED
    return torch.stack([loss, counted.sum(), ((logits.argmax(-1) == labels) & counted).sum()])


def _evaluation_metrics(prefix: str, total: list[float]) -> dict[str, float]:
    """The metrics of a dataset from its ``_SUMS``: loss per masked token, perplexity, accuracy, number of tokens."""
    sums = dict(zip(_SUMS, total, strict=True))
    tokens = sums["tokens"]
    loss = sums["loss"] / tokens if tokens else math.nan
    metrics = {
        f"{prefix}_loss": loss,
        f"{prefix}_perplexity": math.exp(loss) if loss < 700 else math.inf,  # float64 ends at exp(709)
        f"{prefix}_masked_accuracy": sums["correct"] / tokens if tokens else math.nan,
        f"{prefix}_masked_tokens": int(tokens),
    }
    if sums["sop_pairs"]:
        metrics[f"{prefix}_sop_loss"] = sums["sop_loss"] / sums["sop_pairs"]
        metrics[f"{prefix}_sop_accuracy"] = sums["sop_correct"] / sums["sop_pairs"]
    return metrics
