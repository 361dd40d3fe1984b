"""Expands an experiment file into cells: ``bertconv`` commands, each with its own folder."""

import dataclasses
import difflib
import itertools
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bert_convolutions import files
from bert_convolutions.attention.spec import parse_kernel, parse_projection
from bert_convolutions.errors import UsageError
from bert_convolutions.flags import as_argv, as_text, convert
from bert_convolutions.glue.options import GlueOptions
from bert_convolutions.parsing import YamlLoader, parse, read_model, read_yaml
from bert_convolutions.probes.options import LocalOrderOptions, MinimalPairsOptions
from bert_convolutions.schemas import CellRecord, Experiment, Flags
from bert_convolutions.training.options import PretrainOptions

PRETRAIN, MINIMAL_PAIRS, LOCAL_ORDER, GLUE = "pretrain", "minimal-pairs", "local-order", "glue"
_RESULTS = {
    PRETRAIN: "eval_results.json",
    MINIMAL_PAIRS: "minimal_pairs.csv",
    LOCAL_ORDER: "local_order.csv",
    GLUE: "**/glue_state.json",
}
"""The file that a command writes last; for GLUE, that of each task and round."""

_SWEEP_FLAGS = ("seed", "output_dir", "resume_from_checkpoint", "overwrite_output_dir", "model_name_or_path")
_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
_SPEED_ONLY = {
    *("pack", "attn_implementation", "num_proc", "data_cache_dir", "save_every_minutes"),
    *("bf16", "fp16", "tf32", "torch_compile", "torch_compile_backend", "torch_compile_mode"),
    *("activation_checkpointing", "activation_checkpointing_kwargs"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs"),
    *("per_device_eval_batch_size", "eval_accumulation_steps", "torch_empty_cache_steps", "use_cpu"),
    *("dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_pin_memory"),
    *("dataloader_multiprocessing_context", "ddp_backend", "ddp_timeout", "ddp_bucket_cap_mb"),
    *("disable_tqdm", "logging_steps", "logging_strategy", "logging_first_step", "log_level", "report_to"),
    *("run_name", "project"),
    *("save_steps", "save_strategy", "save_total_limit"),
}
"""Flags that affect only the speed, logging or saving of a run, not its result."""
_MORE_OF_GLUE = ("--task_name=", "--rounds=")
"""Flags of GLUE that can change later: tasks and rounds that are done are not run again."""
_MAX_DEPTH = 8
"""Maximum depth of files that extend one another."""
_CANONICAL: dict[str, Callable[[str], str]] = {
    "attention_kernel": lambda value: str(parse_kernel(value)),
    "value_forward": lambda value: str(parse_projection(value, "value_forward")),
    "qk": lambda value: str(parse_projection(value, "qk")),
}


@dataclass(frozen=True)
class Cell:
    """One command of an experiment.

    Attributes:
        variant, seed: the model that it trains or evaluates.
        name: name of its folder; ``pretrain`` for the command that trains the model.
        command: the sub-command.
        flags: its flags, including those that the sweep sets.
        folder: its output folder; the record and the log of its run are beside it.
    """

    variant: str
    seed: int
    name: str
    command: str
    flags: Flags
    folder: Path

    @property
    def label(self) -> str:
        """``variant/seed1/pretrain``, which ``--only`` matches."""
        return f"{self.variant}/seed{self.seed}/{self.name}"

    @property
    def argv(self) -> list[str]:
        """The command-line arguments of ``bertconv``."""
        return [self.command, *as_argv(self.flags)]

    @property
    def record_path(self) -> Path:
        """The path of the record of the last run."""
        return self.folder.with_name(f"{self.name}.cell.json")

    @property
    def log_path(self) -> Path:
        """The path of the command's output."""
        return self.folder.with_name(f"{self.name}.log")

    def record(self) -> CellRecord | None:
        """The record of the cell's last run, or None."""
        return read_model(CellRecord, self.record_path) if self.record_path.is_file() else None

    def model_key(self) -> str | None:
        """The SHA-256 of the training results, duration included, of the model to evaluate; None if there are none."""
        results = self.folder.with_name(PRETRAIN) / "train_results.json"
        return files.sha256(results) if self.command != PRETRAIN and results.is_file() else None

    def is_of_this_model(self) -> bool:
        """Whether the record of the last run, if any, names no other model than the one to evaluate."""
        record = self.record()
        return record is None or record.model in (None, self.model_key())

    def is_finished(self) -> bool:
        """Whether the command has succeeded, its results exist, and they are of the current model.

        Raises:
            UsageError: results or checkpoints exist, but of a command with other flags.
        """
        record = self.record()
        finished = any(self.folder.glob(_RESULTS[self.command]))
        if record is None:
            return finished and self.command != GLUE  # of which other tasks may be missing
        finished = finished and record.exit_code == 0 and self.is_of_this_model()
        if finished or any(self.folder.glob("checkpoint-*")):
            now, before = map(_effective_words, (self.argv, record.command))
            if now != before and all(word.startswith(_MORE_OF_GLUE) for word in now ^ before):
                return False
            if now != before:
                raise UsageError(
                    f"{self.folder} was run with {' '.join(sorted(before - now)) or 'fewer flags'}, but the experiment "
                    f"now says {' '.join(sorted(now - before)) or 'less'}; give another --output_dir or remove it"
                )
        return finished


def read_experiment(path: Path, changes: Sequence[str] = ()) -> Experiment:
    """Read a YAML experiment file; ``changes`` (``flag=value``) override flags of its base.

    ``extends`` names files that give the missing keys; ``base`` is merged flag by flag.

    Raises:
        UsageError: it can't be read, has an unknown flag, or has two variants that differ only in speed.
    """
    value = _read_yaml(path)
    experiment = parse(Experiment, {"base": {}, **value}, path)
    base = {**experiment.base, **_parse_changes(changes)}
    experiment = parse(Experiment, {**dict(experiment), "base": base}, "--set")
    _check_flags(path, experiment)
    _refuse_equal_variants(path, experiment)
    if experiment.baseline is not None and experiment.baseline not in experiment.variants:
        raise UsageError(f"{path}: baseline {experiment.baseline} is not one of the variants")
    if len(set(experiment.seeds)) < len(experiment.seeds):
        raise UsageError(f"{path}: a seed is given twice")
    cells = [PRETRAIN, "local_order", GLUE, *experiment.evaluate.minimal_pairs]
    for key, names in (("variants", list(experiment.variants)), ("minimal_pairs", cells)):
        folders = [name.lower() for name in names]
        if taken := [name for number, name in enumerate(names) if name.lower() in folders[:number]]:
            raise UsageError(f"{path}: {key} can't be named {taken[0]}: another is, and some disks ignore case")
    return experiment


def _read_yaml(path: Path, depth: int = 0) -> dict[str, Any]:
    """The mapping of a file merged with those it extends."""
    value = read_yaml(path, f"experiment file {path}")
    parents = value.pop("extends", []) if isinstance(value, dict) else []
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(value, dict) or not isinstance(parents, list) or depth > _MAX_DEPTH:
        raise UsageError(f"{path} is not an experiment: give keys such as base, variants, seeds and extends")
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
            parsed[name] = yaml.load(text, YamlLoader)
        except (yaml.YAMLError, ValueError) as error:  # ValueError: the value of a !!tag
            raise UsageError(f"--set {change}: {text} is not valid YAML; put quotes around it") from error
    return parsed


def plan_cells(experiment: Experiment, folder: Path) -> list[Cell]:
    """All cells, ordered by seed, so that an interrupted sweep has all variants of the finished seeds."""
    return [
        cell
        for seed in experiment.seeds
        for variant in experiment.variants
        for cell in _model_cells(experiment, variant, seed, folder / variant / f"seed{seed}")
    ]


def group_by_model(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Planned cells grouped by variant and seed."""
    return [list(group) for _, group in itertools.groupby(cells, key=lambda cell: (cell.variant, cell.seed))]


def _model_cells(experiment: Experiment, variant: str, seed: int, folder: Path) -> Iterable[Cell]:
    model = folder / PRETRAIN
    flags: Flags = {**experiment.base, **experiment.variants[variant], "do_train": True, "do_eval": True, "seed": seed}
    flags |= {"output_dir": str(model), "resume_from_checkpoint": True}
    yield Cell(variant, seed, PRETRAIN, PRETRAIN, flags, model)
    evaluations = experiment.evaluate
    commands = [(name, MINIMAL_PAIRS, own) for name, own in evaluations.minimal_pairs.items()]
    if evaluations.local_order is not None:
        commands.append(("local_order", LOCAL_ORDER, evaluations.local_order))
    if evaluations.glue is not None:
        commands.append((GLUE, GLUE, {**evaluations.glue, "do_train": True, "do_eval": True}))
    for name, command, own in commands:
        paths: Flags = {"model_name_or_path": str(model), "output_dir": str(folder / name)}
        yield Cell(variant, seed, name, command, {**own, **paths}, folder / name)


def flag_paths(flags: Flags, name: str) -> list[Path]:
    """The files and folders that a flag names."""
    value = flags.get(name) or []
    return [Path(str(path)) for path in (value if isinstance(value, list) else [value])]


def batch_size(flags: Mapping[str, Any]) -> float:
    """The examples of a step of one process."""
    return float(flags.get(_BATCH[0]) or 8) * float(flags.get(_BATCH[1]) or 1)


def effective_flags(flags: Mapping[str, Any], command: str = PRETRAIN) -> dict[str, str]:
    """The flags that affect results, as canonical text: 1e-3 is 0.001; ``pretrain`` has one batch size."""
    chosen = {name: _canonical_text(name, value) for name, value in flags.items() if name not in _SPEED_ONLY}
    if command == PRETRAIN:
        chosen = {**chosen, _BATCH[0]: f"{batch_size(flags):g}", _BATCH[1]: ""}
    return {name: text for name, text in chosen.items() if text not in ("", "false", "dot_product", "feedforward")}


def _canonical_text(name: str, value: Any) -> str:
    text = "" if value is None else as_text(value)
    if name in _CANONICAL and text:
        return _CANONICAL[name](text)
    try:
        return f"{float(text):.12g}"
    except ValueError:
        return text


def _refuse_equal_variants(path: Path, experiment: Experiment) -> None:
    seen: list[tuple[str, dict[str, str]]] = []
    for name, flags in experiment.variants.items():
        try:
            effective = effective_flags({**experiment.base, **flags})
        except ValueError as error:
            raise UsageError(f"{path}, variant {name}: {error}") from error
        for other, before in seen:
            if before == effective:
                raise UsageError(
                    f"{path}: variants {other} and {name} are the same model and training, or differ only in speed, "
                    "which bertconv bench measures; remove one"
                )
        seen.append((name, effective))


def _check_flags(path: Path, experiment: Experiment) -> None:
    """Refuse unknown flags, and values of another type; the commands check their ranges."""
    from bert_convolutions.training.arguments import BertTrainingArguments

    trainer = _flag_types(BertTrainingArguments)
    evaluations = experiment.evaluate
    parts = [("base", experiment.base, _flag_types(PretrainOptions) | trainer)]
    parts += [(name, flags, _flag_types(PretrainOptions) | trainer) for name, flags in experiment.variants.items()]
    parts += [(name, flags, _flag_types(MinimalPairsOptions)) for name, flags in evaluations.minimal_pairs.items()]
    parts.append(("local_order", evaluations.local_order or {}, _flag_types(LocalOrderOptions)))
    parts.append(("glue", evaluations.glue or {}, _flag_types(GlueOptions) | trainer))
    for part, flags, known in parts:
        for flag, value in flags.items():
            if flag in _SWEEP_FLAGS:
                raise UsageError(f"{path}: {part} sets {flag}, which the sweep sets for each cell; remove it")
            if flag not in known:
                hint = difflib.get_close_matches(flag, known, n=1)
                raise UsageError(
                    f"{path}: {part}: there is no flag {flag}{f', did you mean {hint[0]}?' if hint else ''}"
                )
            if isinstance(value, list) and "list" not in str(known[flag]).lower():
                joined = ",".join(map(as_text, value))
                raise UsageError(f"{path}: {part}: {flag} takes one value, not a list; did you mean {flag}: {joined}?")
            try:
                if value is not None:  # which leaves the flag out
                    convert(flag, known[flag], value)
            except UsageError as error:
                raise UsageError(f"{path}: {part}: {error}") from error


def _flag_types(options: type) -> dict[str, Any]:
    """The types of flags."""
    hints = typing.get_type_hints(options)  # HfArgumentParser changes the fields' own types
    return {field.name: hints[field.name] for field in dataclasses.fields(options)}


def _effective_words(argv: Sequence[str]) -> set[str]:
    """The arguments that affect results, without paths in the sweep's folder, which may have been moved."""
    command, *words = argv
    flags: dict[str, str] = {}
    for word in words:
        if word.startswith("--"):
            name, _, flags[name] = word.removeprefix("--").partition("=")
        else:  # an item of a list
            flags[name] = f"{flags[name]} {word}".strip()
    paths = {*_SWEEP_FLAGS} - {"seed"}
    return {f"--{name}={text}" for name, text in effective_flags(flags, command).items() if name not in paths}
