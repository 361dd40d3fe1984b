"""Masked-language-model evaluation: sums over all masked tokens of a data set, so that no batch layout weighs in."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from bert_convolutions import files
from bert_convolutions.data.masking import IGNORED

_SUMS = ("loss", "tokens", "correct", "sop_loss", "sop_pairs", "sop_correct")


class EvaluationSums:
    """Loss, count and hits of the masked tokens and, where there is a sentence-order head, of the pairs.

    Summed in float64 on the device; ``total`` is what to add up over the processes.
    """

    def __init__(self, device: torch.device) -> None:
        dtype = torch.float64 if device.type != "mps" else torch.float32
        self.total = torch.zeros(len(_SUMS), dtype=dtype, device=device)

    def add(self, batch: Mapping[str, torch.Tensor], outputs: Any) -> None:
        """Count a batch.

        Args:
            batch: ``labels`` (M,) or (R, S) with -100 where nothing is to be predicted, and perhaps
                ``next_sentence_label`` (E,).
            outputs: the model's, with ``logits`` or ``prediction_logits`` (..., V), in the shape of ``labels``, and
                perhaps ``seq_relationship_logits`` (E, 2).
        """
        logits = outputs.get("prediction_logits", outputs.get("logits"))
        sums = _loss_count_hits(logits, batch["labels"])
        if "next_sentence_label" in batch and "seq_relationship_logits" in outputs:
            sums += _loss_count_hits(outputs["seq_relationship_logits"], batch["next_sentence_label"])
        self.total[: len(sums)] += torch.stack([value.to(self.total) for value in sums])

    def metrics(self, prefix: str) -> dict[str, float]:
        """The figures under their names: loss per masked token, perplexity, accuracy, number of masked tokens."""
        sums = dict(zip(_SUMS, self.total.tolist(), strict=True))
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


def _loss_count_hits(logits: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    logits, labels = logits.flatten(0, -2).float(), labels.flatten()
    loss = functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    counted = labels != IGNORED
    return [loss, counted.sum(), ((logits.argmax(-1) == labels) & counted).sum()]


def write_results(folder: Path, metrics: Mapping[str, float]) -> None:
    """``eval_results_lm.txt`` with a ``name = value`` line a figure, as the original's, and ``eval_results.json``.

    In the text file the names come without ``eval_``, so that ``perplexity`` is found where it always was.
    """
    lines = [f"{name.removeprefix('eval_')} = {value}\n" for name, value in sorted(metrics.items())]
    files.write_text(folder / "eval_results_lm.txt", "".join(lines))
    files.write_json(folder / "eval_results.json", dict(metrics))
