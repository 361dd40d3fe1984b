"""Pre-training with ``transformers.Trainer``: exact data order, losses over the global batch, tokens counted.

Which of the Trainer's members are overridden stands at the head of ``resumable``.
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
from bert_convolutions.training.sampling import SlicedExamples, StepPlan, WithPlaceholder, last_step, slices_loader

MASKED_METRICS, ORDER_METRICS = ("loss", "perplexity", "masked_accuracy"), ("sop_loss", "sop_accuracy")
"""What an evaluation measures that a best model may be chosen by; the second with a sentence-order head."""
Collate = Callable[[list[Any]], dict[str, torch.Tensor]]
_SPECIAL_TOKENS = 3
"""Of a pair; they are never masked."""
_IMPROBABLE = math.log(1e-9)


class PretrainingTrainer(ResumableTrainer):
    """Trains a model with a masked-language-model head on an example store.

    Args:
        train_dataset: store of the training examples, or None.
        eval_dataset: store of the evaluation examples, or None.
        data_collator: makes a training batch of features ``{"epoch", "sample", "input_ids"}``.
        eval_collator: the same for evaluation, with a masking that never changes.
        words: counts words and knows at how many to save.
        mlm_probability: of a token to be masked; steps without any are refused when they can't be chance.
        All others are those of ``ResumableTrainer`` and the ``Trainer``.
    """

    eval_dataset: Any
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
        self._blank_since: int | None = None
        self._chance = 0.0

    # Data

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Micro-batches of this process, in order; nothing in it draws a random number."""
        dataset = SlicedExamples(self.train_dataset, self.train_plan())
        return self.train_loader(dataset, WithPlaceholder(self.data_collator, dataset[0]))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The evaluation examples in their own order, each on one process."""
        store = self.eval_dataset if eval_dataset is None else eval_dataset
        size, processes = self.args.per_device_eval_batch_size, self.args.world_size
        plan = StepPlan(len(store), None, micro_batch_size=size, micro_batches=1, processes=processes)
        dataset = SlicedExamples(store, plan)
        return slices_loader(self.args, dataset, plan, lambda: 0, WithPlaceholder(self.eval_collator, dataset[0]))

    # A training step

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """The micro-batches of a step and the masked tokens of the global batch, counted before they leave the CPU.

        Losses are sums divided by the counts of the global batch, so that accumulation, packing and the number of
        processes do not change a gradient.
        """
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        words = sum(self.words.count(batch) for batch in batches)
        tokens = sum(int(batch.pop("num_real_tokens")) for batch in batches)
        masked = sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)
        examples = sum(len(batch.pop("sample_ids")) for batch in batches)
        masked, examples, tokens, words = self.collectives.sum([masked, examples, tokens, words])
        for batch in batches:
            if "next_sentence_label" in batch:
                batch["num_examples_in_batch"] = torch.full((), examples, device=device)
        self._refuse_blank_steps(masked, max(tokens - _SPECIAL_TOKENS * examples, examples))
        self.throughput.seen += tokens
        self.words.add(words, self.state)
        self.state.num_input_tokens_seen = self.throughput.seen
        return batches, torch.full((), max(masked, 1), device=device)

    def _refuse_blank_steps(self, masked: int, maskable: int) -> None:
        """Stop where no token of this step and those before was masked: no chance, though the loss of 0 looks good."""
        if masked:
            self._blank_since, self._chance = None, 0.0
            return
        if self._blank_since is None:
            self._blank_since = self.state.global_step
        self._chance += maskable * self._log_unmasked
        if self._chance < _IMPROBABLE:
            samples = ", ".join(map(str, self.samples_of_step(self._blank_since)[:8]))
            raise UsageError(
                f"from step {self._blank_since + 1} on (samples {samples}, ...) no token is to be predicted, so that "
                f"nothing can be learned: --train_data_file is damaged or has changed during training; build it anew "
                f"and go on from a checkpoint of step {self._blank_since} or before"
            )

    def _prepare_input(self, data: Any) -> Any:
        if not isinstance(data, torch.Tensor):
            return super()._prepare_input(data)
        data = data.to(self.args.device, non_blocking=True)
        if self.args.torch_compile and data.dim():  # rows or positions, whose number changes from step to step
            torch._dynamo.maybe_mark_dynamic(data, 0)
        return data

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """FLOPs of a training step by the Trainer's estimate, with the parameters counted once instead of each step."""
        return self._flops_per_token * inputs["input_ids"].numel()

    @functools.cached_property
    def _flops_per_token(self) -> int:
        return 6 * self.model.num_parameters(exclude_embeddings=True)

    def step_finished(self, control: TrainerControl) -> None:
        """As before; then save what is due by the words seen, before a checkpoint of this step records it as saved."""
        super().step_finished(control)
        for place in self.words.due():
            with self.throughput.paused():
                self.save_model_as(place)

    # Evaluation

    def evaluation_loop(self, dataloader: DataLoader[Any], *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Loss per masked token, perplexity and accuracy over the whole data set; nothing is kept but sums."""
        model = self._wrap_model(self.model, training=False)
        if not self.accelerator._models:  # evaluating without having trained: autocast is not set up yet
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
        model.eval()
        self.callback_handler.eval_dataloader = dataloader
        device = self.args.device
        exact = device.type in ("cpu", "cuda")  # others may have no float64
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

    def load_finished(self, checkpoint: str) -> None:
        """Take model and state from a checkpoint of the last step, where nothing is left to train."""
        self.state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        self.state.is_world_process_zero = self.is_world_process_zero()  # it was saved by the first process
        best = self.state.best_model_checkpoint
        wants_best = self.args.load_best_model_at_end and best is not None and Path(best).is_dir()
        self._load_from_checkpoint(best if best and wants_best else checkpoint)
        self.training_begins()

    # Time and logs

    def training_begins(self) -> None:
        """As before; then the clock starts, and the words go on being counted."""
        super().training_begins()
        self.throughput.start(self.state.num_input_tokens_seen)
        self.words.restore(self.state)

    def progress_note(self) -> str:
        """The tokens seen and the tokens per second."""
        return f"{self.throughput.seen:,} tokens, {self.throughput.tokens_per_second:,.0f} tokens/s"

    def figures(self) -> dict[str, float]:
        """Tokens and words seen, and tokens per second, under their names in the logs and in ``train_results.json``."""
        figures = {} if self.words.seen is None else {"words_seen": self.words.seen}
        rate = round(self.throughput.tokens_per_second)
        return {**figures, "non_padding_tokens_seen": self.throughput.seen, "real_tokens_per_second": rate}

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
            logs |= self.figures()
        super().log(logs, start_time)


_SUMS = ("loss", "tokens", "correct", "sop_loss", "sop_pairs", "sop_correct")


def _evaluation_sums(batch: Mapping[str, torch.Tensor], outputs: Any) -> torch.Tensor:
    """Loss, count and hits of the masked tokens and, where there is a sentence-order head, of the pairs.

    Args:
        batch: ``labels`` (M,) or (R, S) with -100 where nothing is to be predicted, and perhaps
            ``next_sentence_label`` (E,).
        outputs: the model's, with ``logits`` or ``prediction_logits`` (..., V), in the shape of ``labels``, and
            perhaps ``seq_relationship_logits`` (E, 2).

    Returns:
        ``_SUMS`` of the batch, (6,), to be added up over batches and processes.
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
    """What ``_SUMS`` of a data set come to: loss per masked token, perplexity, accuracy, number of masked tokens."""
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
