"""From an experiment file to its cells: ``bertconv`` commands, each with a folder of its own."""

import dataclasses
import difflib
import itertools
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bert_convolutions import files
from bert_convolutions.attention.spec import parse_kernel, parse_projection
from bert_convolutions.errors import UsageError
from bert_convolutions.flags import as_argv, as_text
from bert_convolutions.glue.options import GlueOptions
from bert_convolutions.parsing import parse, read_model, read_yaml
from bert_convolutions.probes.options import LocalOrderOptions, MinimalPairsOptions
from bert_convolutions.schemas import CellRecord, Experiment, Flags
from bert_convolutions.training.options import PretrainOptions

PRETRAIN, MINIMAL_PAIRS, LOCAL_ORDER, GLUE = "pretrain", "minimal-pairs", "local-order", "glue"
_RESULTS = {
    PRETRAIN: "eval_results.json",
    MINIMAL_PAIRS: "minimal_pairs.csv",
    LOCAL_ORDER: "local_order.csv",
}
"""What a command writes last."""

_SET_BY_THE_SWEEP = ("seed", "output_dir", "resume_from_checkpoint", "overwrite_output_dir", "model_name_or_path")
_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
_SPEED_ONLY = {
    *("pack", "attn_implementation", "num_proc", "data_cache_dir", "save_every_minutes"),
    *("bf16", "fp16", "tf32", "torch_compile", "torch_compile_backend", "torch_compile_mode", "gradient_checkpointing"),
    *("per_device_eval_batch_size", "dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_pin_memory"),
    *("disable_tqdm", "logging_steps", "logging_strategy", "report_to", "use_cpu", "ddp_backend"),
    *("save_steps", "save_strategy", "save_total_limit"),
}
"""Flags by which a run is faster, or is told and saved differently, and not another run."""
_DEEPEST = 8
"""How many files may extend one another."""
_CANONICAL: dict[str, Any] = {
    "attention_kernel": lambda value: str(parse_kernel(value)),
    "value_forward": lambda value: str(parse_projection(value, "value_forward")),
    "qk": lambda value: str(parse_projection(value, "qk")),
}


@dataclass(frozen=True)
class Cell:
    """One command of an experiment.

    Attributes:
        variant, seed: which model it makes or judges.
        name: of its folder; ``pretrain`` for the command that makes the model.
        command: the sub-command.
        flags: its flags, those that the sweep sets included.
        folder: its output folder; the record of its run and its log lie beside it.
    """

    variant: str
    seed: int
    name: str
    command: str
    flags: Flags
    folder: Path

    @property
    def label(self) -> str:
        """``variant/seed1/pretrain``: what ``--only`` is matched with."""
        return f"{self.variant}/seed{self.seed}/{self.name}"

    @property
    def argv(self) -> list[str]:
        """The words after ``bertconv``."""
        return [self.command, *as_argv(self.flags)]

    @property
    def record_path(self) -> Path:
        """Where the record of the last run is."""
        return self.folder.with_name(f"{self.name}.cell.json")

    @property
    def log_path(self) -> Path:
        """Where the command's output goes."""
        return self.folder.with_name(f"{self.name}.log")

    def record(self) -> CellRecord | None:
        """How the cell was run last, or None."""
        return read_model(CellRecord, self.record_path) if self.record_path.is_file() else None

    def judged(self) -> str | None:
        """SHA-256 of what the training of the model to be judged has left, its duration included; None if nothing."""
        results = self.folder.with_name(PRETRAIN) / "train_results.json"
        return files.sha256(results) if self.command != PRETRAIN and results.is_file() else None

    def is_finished(self) -> bool:
        """Whether the command has said so, its own results are there, and the model they judge is that of today.

        Raises:
            UsageError: results or checkpoints are there, but of a command with other flags.
        """
        record = self.record()
        finished = (self.folder / _RESULTS[self.command]).is_file() if self.command in _RESULTS else record is not None
        if record is None:
            return finished
        finished = finished and record.exit_code == 0 and record.model in (None, self.judged())
        if finished or any(self.folder.glob("checkpoint-*")):
            now, before = (set(_scientific_words(words)) for words in (self.argv, record.command))
            if now != before:
                raise UsageError(
                    f"{self.folder} was run with {' '.join(sorted(before - now)) or 'fewer flags'} and the experiment "
                    f"now says {' '.join(sorted(now - before)) or 'less'}; give another --output_dir or remove it"
                )
        return finished


def read_experiment(path: Path, changes: Sequence[str] = ()) -> Experiment:
    """Read an experiment file in YAML, and ``changes``, ``flag=value`` for its base over what the file says.

    ``extends`` names other files, whose keys it takes where it has none; ``base`` is merged flag by flag.

    Raises:
        UsageError: it can't be read, names a flag that there is not, or two variants that differ in speed alone.
    """
    value = _read_yaml(path)
    experiment = parse(Experiment, {"base": {}, **value}, path)
    base = {**experiment.base, **_parse_changes(changes)}
    experiment = parse(Experiment, {**dict(experiment), "base": base}, "--set")
    _check_flags(path, experiment)
    _refuse_equal_variants(path, experiment)
    if experiment.baseline is not None and experiment.baseline not in experiment.variants:
        raise UsageError(f"{path}: baseline {experiment.baseline} is none of the variants")
    if len(set(experiment.seeds)) < len(experiment.seeds):
        raise UsageError(f"{path}: a seed is given twice")
    reserved = {PRETRAIN, "local_order", GLUE} & set(experiment.evaluate.minimal_pairs)
    if reserved:
        raise UsageError(f"{path}: minimal_pairs can't be named {reserved.pop()}, the name of another cell")
    return experiment


def _read_yaml(path: Path, depth: int = 0) -> dict[str, Any]:
    """The mapping of a file and of those it extends."""
    value = read_yaml(path, f"experiment file {path}")
    parents = value.pop("extends", []) if isinstance(value, dict) else []
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(value, dict) or not isinstance(parents, list) or depth > _DEEPEST:
        raise UsageError(f"{path} is no experiment: write keys such as base, variants and seeds, and what it extends")
    merged: dict[str, Any] = {}
    for part in (*(_read_yaml(path.parent / str(parent), depth + 1) for parent in parents), value):
        bases = [mapping for mapping in (merged.get("base"), part.get("base")) if isinstance(mapping, dict)]
        merged |= part
        if len(bases) > 1:
            merged["base"] = {**bases[0], **bases[1]}
    return merged


def _parse_changes(changes: Sequence[str]) -> dict[str, Any]:
    parsed = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise UsageError(f"--set {change} is not flag=value")
        try:
            parsed[name] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
            raise UsageError(f"--set {change}: {text} is not valid YAML; put quotes around it") from error
    return parsed


def plan_cells(experiment: Experiment, folder: Path) -> list[Cell]:
    """All cells, seed by seed, so that a sweep that is stopped has compared all variants with the seeds it has."""
    return [
        cell
        for seed in experiment.seeds
        for variant in experiment.variants
        for cell in _cells_of_model(experiment, variant, seed, folder / variant / f"seed{seed}")
    ]


def by_model(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Planned cells, those of the same variant and seed together."""
    return [list(group) for _, group in itertools.groupby(cells, key=lambda cell: (cell.variant, cell.seed))]


def _cells_of_model(experiment: Experiment, variant: str, seed: int, folder: Path) -> Iterable[Cell]:
    model = folder / PRETRAIN
    flags: Flags = {**experiment.base, **experiment.variants[variant], "do_train": True, "do_eval": True, "seed": seed}
    flags |= {"output_dir": str(model), "resume_from_checkpoint": True}
    yield Cell(variant, seed, PRETRAIN, PRETRAIN, flags, model)
    asked = experiment.evaluate
    judged: list[tuple[str, str, Flags]] = [(name, MINIMAL_PAIRS, own) for name, own in asked.minimal_pairs.items()]
    if asked.local_order is not None:
        judged.append(("local_order", LOCAL_ORDER, asked.local_order))
    if asked.glue is not None:
        judged.append((GLUE, GLUE, {**asked.glue, "do_train": True, "do_eval": True}))
    for name, command, own in judged:
        places: Flags = {"model_name_or_path": str(model), "output_dir": str(folder / name)}
        yield Cell(variant, seed, name, command, {**own, **places}, folder / name)


def given_paths(flags: Flags, name: str) -> list[Path]:
    """The files and folders that a flag names."""
    value = flags.get(name) or []
    return [Path(str(path)) for path in (value if isinstance(value, list) else [value])]


def scientific_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags that make a run another run, in one spelling; the batch as one number."""
    chosen = {name: value for name, value in flags.items() if name not in (*_SPEED_ONLY, *_BATCH)}
    for name, canonical in _CANONICAL.items():
        if chosen.get(name) is not None:
            chosen[name] = canonical(chosen[name])
    if any(name in flags for name in _BATCH):
        chosen["batch"] = float(flags.get(_BATCH[0]) or 8) * float(flags.get(_BATCH[1]) or 1)
    return {name: value for name, value in chosen.items() if value not in (None, False, "dot_product", "feedforward")}


def _refuse_equal_variants(path: Path, experiment: Experiment) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []
    for name, flags in experiment.variants.items():
        try:
            effective = scientific_flags({**experiment.base, **flags})
        except ValueError as error:
            raise UsageError(f"{path}, variant {name}: {error}") from error
        for other, before in seen:
            if before == effective:
                raise UsageError(
                    f"{path}: variants {other} and {name} are the same model and the same training, or differ in speed "
                    "alone, which bertconv bench measures; take one out"
                )
        seen.append((name, effective))


def _check_flags(path: Path, experiment: Experiment) -> None:
    """Refuse flags that there are not, and several values for one; the values are for the commands to judge."""
    from bert_convolutions.training.arguments import BertTrainingArguments

    trainer = _kinds(BertTrainingArguments)
    asked = experiment.evaluate
    parts = [("base", experiment.base, _kinds(PretrainOptions) | trainer)]
    parts += [(name, flags, _kinds(PretrainOptions) | trainer) for name, flags in experiment.variants.items()]
    parts += [(name, flags, _kinds(MinimalPairsOptions)) for name, flags in asked.minimal_pairs.items()]
    parts.append(("local_order", asked.local_order or {}, _kinds(LocalOrderOptions)))
    parts.append(("glue", asked.glue or {}, _kinds(GlueOptions) | trainer))
    for part, flags, known in parts:
        for flag, value in flags.items():
            if flag in _SET_BY_THE_SWEEP:
                raise UsageError(f"{path}: {part} sets {flag}, which the sweep sets for each cell; leave it out")
            if flag not in known:
                hint = difflib.get_close_matches(flag, known, n=1)
                raise UsageError(
                    f"{path}: {part}: there is no flag {flag}{f', did you mean {hint[0]}?' if hint else ''}"
                )
            if isinstance(value, list) and "list" not in known[flag].lower():
                joined = ",".join(map(as_text, value))
                raise UsageError(f"{path}: {part}: {flag} takes one value, not a list; perhaps {flag}: {joined}")


def _kinds(options: type) -> dict[str, str]:
    """Flag to its type, as it is written."""
    hints = typing.get_type_hints(options)  # HfArgumentParser changes the types of the fields themselves
    return {field.name: str(hints[field.name]) for field in dataclasses.fields(options)}


def _scientific_words(argv: Sequence[str]) -> Iterable[str]:
    """Without flags of speed, and without the places in the sweep's folder, which may have been moved since."""
    others = {*_SPEED_ONLY, *_SET_BY_THE_SWEEP} - {"seed"}
    matters = True
    for word in argv:
        if word.startswith("--"):  # the items of a list follow its flag as words of their own
            matters = word.removeprefix("--").partition("=")[0] not in others
        if matters:
            yield word
