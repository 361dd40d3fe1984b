"""The results of a sweep's finished cells, read from their files: curves, scores, costs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bert_convolutions.errors import UsageError
from bert_convolutions.glue.state import STATE_FILE
from bert_convolutions.model.presets import load_config
from bert_convolutions.parsing import read_json, read_model
from bert_convolutions.schemas import Accuracy, Experiment, ProbeResults, TaskState
from bert_convolutions.sweep.cells import LOCAL_ORDER, MINIMAL_PAIRS, PRETRAIN, Cell, group_by_model, plan_cells
from bert_convolutions.sweep.estimate import on_meta_device, training_flops_per_token
from bert_convolutions.sweep.run import EXPERIMENT_NAME
from bert_convolutions.sweep.statistics import Interval, ratio_interval, tokens_to_loss
from bert_convolutions.training.checkpoints import TRAINER_STATE_NAME

LOSS = "held-out loss"
MASKED_ACCURACY = "masked tokens right"


@dataclass(frozen=True)
class Run:
    """A pre-trained model.

    Attributes:
        variant, seed: variant and seed of the experiment.
        folder: folder of the model.
        steps, tokens, flops, losses, accuracies: (E,) at each evaluation; accuracies are those of masked tokens.
        parameters: number of parameters.
        tokens_per_second: measured training speed.
        scores: values by metric.
        probes: results by evaluation.
        glue: scores of dev sets, means over rounds; also contained in ``scores``, as are their losses.
    """

    variant: str
    seed: int
    folder: Path
    steps: list[int]
    tokens: list[float]
    flops: list[float]
    losses: list[float]
    accuracies: list[float]
    parameters: int
    tokens_per_second: float
    scores: dict[str, float]
    probes: dict[str, ProbeResults]
    glue: dict[str, float]

    def by_phenomenon(self, probe: str) -> dict[str, float]:
        """The accuracy on minimal pairs by phenomenon (or by paradigm, if there are none); empty without the probe."""
        if probe not in self.probes:
            return {}
        groups: Mapping[str, Accuracy] = self.probes[probe].phenomena or self.probes[probe].paradigms
        return {group: found.accuracy for group, found in groups.items()}


@dataclass(frozen=True)
class SweepResults:
    """An experiment and its finished runs."""

    experiment: Experiment
    runs: list[Run]

    def values(self, metric: str) -> dict[str, dict[int, float]]:
        """A metric by variant (in the experiment's order) and seed."""
        found = {
            variant: {run.seed: run.scores[metric] for run in runs if metric in run.scores}
            for variant, runs in self.by_variant.items()
        }
        return {variant: values for variant, values in found.items() if values}

    @property
    def metrics(self) -> list[str]:
        """All metrics in order of first occurrence."""
        return list(dict.fromkeys(metric for run in self.runs for metric in run.scores))

    @property
    def by_variant(self) -> dict[str, list[Run]]:
        """The runs by variant, in the experiment's order, without variants that have none."""
        found = {variant: [run for run in self.runs if run.variant == variant] for variant in self.experiment.variants}
        return {variant: runs for variant, runs in found.items() if runs}


def larger_is_better(metric: str) -> bool:
    """Whether larger values of a metric are better, which is so for all but losses."""
    return metric != LOSS and not metric.endswith(" eval_loss")


def read_sweep(folder: Path) -> SweepResults:
    """Read a sweep's folder.

    Raises:
        UsageError: it is not a sweep's folder, no run is finished, or a file is damaged.
    """
    path = folder / EXPERIMENT_NAME
    if not path.is_file():
        raise UsageError(f"{folder} holds no {EXPERIMENT_NAME}: give the --output_dir of bertconv sweep")
    experiment = read_model(Experiment, path)
    models = [{cell.name: cell for cell in cells} for cells in group_by_model(plan_cells(experiment, folder))]
    runs = [_read_run(cells) for cells in models if cells[PRETRAIN].is_finished()]
    if not runs:
        raise UsageError(f"{folder}: no run is finished yet")
    return SweepResults(experiment, runs)


def _read_run(cells: Mapping[str, Cell]) -> Run:
    cell = cells[PRETRAIN]
    try:
        state = read_json(cell.folder / TRAINER_STATE_NAME)
        evaluation = read_json(cell.folder / "eval_results.json")
        training = read_json(cell.folder / "train_results.json")
        logged = [entry for entry in state["log_history"] if "eval_loss" in entry and entry["step"]]
        points = {int(entry["step"]): entry for entry in logged}  # without that of --eval_on_start, before any token
        points[int(state["global_step"])] = evaluation
        steps = sorted(points)
        losses = [float(points[step]["eval_loss"]) for step in steps]
        accuracies = [float(points[step]["eval_masked_accuracy"]) for step in steps]
        tokens_per_step = float(state["num_input_tokens_seen"]) / int(state["global_step"])
        scores = {LOSS: losses[-1], MASKED_ACCURACY: accuracies[-1]}
        speed = float(training["real_tokens_per_second"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UsageError(f"{cell.folder} holds no complete run ({error}); run bertconv sweep again") from error
    model = on_meta_device(load_config(str(cell.folder)))
    tokens = [tokens_per_step * step for step in steps]
    flops_per_token = training_flops_per_token(model, cell.flags)
    probes = {}
    for name, other in cells.items():
        if other.command in (MINIMAL_PAIRS, LOCAL_ORDER) and other.is_finished():
            result = f"{other.command.replace('-', '_')}.json"
            probes[name] = read_model(ProbeResults, other.folder / result)
            scores |= _probe_scores(name, other.command, probes[name])
    glue = _glue_metrics(cells["glue"].folder) if "glue" in cells and cells["glue"].is_of_this_model() else {}
    return Run(
        cell.variant,
        cell.seed,
        cell.folder,
        steps,
        tokens,
        [flops_per_token * seen for seen in tokens],
        losses,
        accuracies,
        sum(parameter.numel() for parameter in model.parameters()),
        speed,
        scores | glue,
        probes,
        {metric: value for metric, value in glue.items() if larger_is_better(metric)},
    )


def _probe_scores(name: str, command: str, results: ProbeResults) -> dict[str, float]:
    if results.all is None:
        return {}
    if command == LOCAL_ORDER:
        return {name.replace("_", " "): results.all.accuracy}
    return {name: results.all.accuracy, f"{name}, within word": results.all.accuracy_within_word}


def _glue_metrics(folder: Path) -> dict[str, float]:
    """Means over rounds of each dev set's metrics; without that of a single task before others or rounds were added."""
    found: dict[str, list[float]] = {}
    for path in sorted(folder.glob(f"*/{STATE_FILE}")) or folder.glob(STATE_FILE):
        for dev_set, metrics in read_model(TaskState, path).dev.items():
            for metric, value in metrics.items():
                found.setdefault(f"{dev_set} {metric}", []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


@dataclass(frozen=True)
class Saving:
    """The factor by which a variant needs fewer tokens than the baseline to reach a loss.

    Attributes:
        level: the loss.
        factor: geometric mean over common seeds; None if a run of the variant doesn't reach the loss.
        interval: 95 % bootstrap interval over seeds; None for too few.
        at_least: whether the factor is a lower bound, since a run reached the loss by its first evaluation.
        tokens: geometric means of the baseline's and the variant's tokens.
        time_factor: the factor in hours, from the mean measured tokens per second.
        seeds: number of seeds.
    """

    level: float
    factor: float | None
    interval: Interval | None
    at_least: bool
    tokens: tuple[float, float | None]
    time_factor: float | None
    seeds: int


def token_savings(results: SweepResults, variant: str) -> list[Saving]:
    """Factors at five evenly spaced losses that all runs of the baseline pass through; empty if there are none."""
    runs = results.by_variant
    reference = {run.seed: run for run in runs.get(results.experiment.baseline or "", [])}
    pairs = [(reference[run.seed], run) for run in runs.get(variant, []) if run.seed in reference]
    start = min((base.losses[0] for base, _ in pairs), default=0.0)
    end = max((min(base.losses) for base, _ in pairs), default=0.0)
    if start <= end:
        return []
    speed = np.mean([run.tokens_per_second for _, run in pairs]) / np.mean([b.tokens_per_second for b, _ in pairs])
    savings = []
    for level in np.linspace(start, end, 5).tolist():
        needed = [tokens_to_loss(base.tokens, base.losses, level) for base, _ in pairs]
        reached = [tokens_to_loss(run.tokens, run.losses, level) for _, run in pairs]
        if any(tokens is None for tokens in needed):  # rounding at the last level
            continue
        base_mean = float(np.exp(np.mean(np.log(np.array(needed, dtype=float)))))
        if any(tokens is None for tokens in reached):
            savings.append(Saving(level, None, None, False, (base_mean, None), None, len(pairs)))
            continue
        ratios = [float(one) / float(other) for one, other in zip(needed, reached, strict=True) if one and other]
        factor, interval = ratio_interval(ratios)
        first = any(tokens == run.tokens[0] for tokens, (_, run) in zip(reached, pairs, strict=True))
        means = base_mean, base_mean / factor
        savings.append(Saving(level, factor, interval, first, means, factor * float(speed), len(pairs)))
    return savings


def at_equal_flops(results: SweepResults) -> tuple[float, dict[str, dict[str, dict[int, float]]]]:
    """The total FLOPs of the cheapest run, and all runs' values at these FLOPs by metric, variant and seed.

    Between two evaluations a metric is interpolated linearly in the logarithm of the FLOPs. There are no values if a
    run has used more FLOPs by its first evaluation.
    """
    flops = min(run.flops[-1] for run in results.runs)
    found: dict[str, dict[str, dict[int, float]]] = {}
    in_order = [run for runs in results.by_variant.values() for run in runs]
    for run in in_order if flops >= max(run.flops[0] for run in in_order) else ():
        for metric, curve in ((LOSS, run.losses), (MASKED_ACCURACY, run.accuracies)):
            value = float(np.interp(np.log(flops), np.log(run.flops), curve))
            found.setdefault(metric, {}).setdefault(run.variant, {})[run.seed] = value
    return flops, found


def run_records(results: SweepResults) -> list[dict[str, Any]]:
    """All runs' results as JSON values, for other programs."""
    return [
        {
            "variant": run.variant,
            "seed": run.seed,
            "parameters": run.parameters,
            "tokens_per_second": run.tokens_per_second,
            "scores": run.scores,
            "curve": {"steps": run.steps, "tokens": run.tokens, "flops": run.flops, "losses": run.losses},
        }
        for run in results.runs
    ]
