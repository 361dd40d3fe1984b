"""``bertconv report``: the results of a sweep as one self-contained HTML file, with its figures and tables as files."""

import contextlib
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import islice
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from bert_convolutions import files
from bert_convolutions.data.build.sources import find_sources, text_lines
from bert_convolutions.data.loading import load_tokenizer, tokenizer_hash
from bert_convolutions.data.store import MANIFEST_FILE, ArrowStore, ExampleStore, read_manifest
from bert_convolutions.environment import environment
from bert_convolutions.errors import EXIT_INTERRUPTED, UsageError
from bert_convolutions.model.loading import count_positions
from bert_convolutions.model.presets import load_config
from bert_convolutions.parsing import read_json
from bert_convolutions.probes.run import load_model
from bert_convolutions.report import attention, sweep_figures
from bert_convolutions.report.kernels import kernel_figure, kernel_rows, read_kernels
from bert_convolutions.report.options import ReportOptions
from bert_convolutions.report.page import Page, Table
from bert_convolutions.report.sweep_results import (
    LOSS,
    Run,
    SweepResults,
    at_equal_flops,
    larger_is_better,
    read_sweep,
    run_records,
    token_savings,
)
from bert_convolutions.schemas import Flags
from bert_convolutions.sweep.cells import Cell, flag_paths, plan_cells
from bert_convolutions.sweep.statistics import SEEDS_FOR_INTERVAL, SEEDS_FOR_TEST, Comparison, Interval, compare
from bert_convolutions.terminal import duration, say
from bert_convolutions.training.setup import HELD_OUT_SEED

_MAX_TEXTS = 64
"""Maximum number of examples on which attention is measured."""
_MAX_TOKENS = 128
"""Maximum tokens of these examples, where the model takes so many."""


def write_report(options: ReportOptions) -> Path:
    """Write ``report.html`` with its figures and tables; return its path.

    Raises:
        UsageError: the folder is not a sweep's, no run is finished, or an option doesn't fit the models.
    """
    results = read_sweep(options.sweep)
    _check_options(options, results)
    folder = options.output_dir or options.sweep / "report"
    files.make_folder(folder, "--output_dir")
    page = Page(folder)
    cells = plan_cells(results.experiment, options.sweep)
    page.heading(results.experiment.question or "Experiment", _progress_note(results, cells), level=1)
    _add_curves(page, results)
    _add_metrics(page, results)
    _add_probes(page, results)
    _add_attention(page, results, options)
    _add_run_records(page, results, cells)
    files.write_json(folder / "runs.json", run_records(results))
    files.write_text(folder / "report.html", page.html(results.experiment.question or "Experiment"))
    return folder / "report.html"


def _check_options(options: ReportOptions, results: SweepResults) -> None:
    """Refuse a head, a sentence or a text of which no figure can be drawn, before any is drawn."""
    if options.text:
        find_sources([str(options.text)])
    for variant, (run, *_) in results.by_variant.items():
        config = load_config(str(run.folder))
        if options.head is not None and not 1 <= options.head <= config.num_attention_heads:
            raise UsageError(f"--head {options.head}: {variant} has the heads 1 to {config.num_attention_heads}")
        if options.sentence and not config.remove_position_embeddings:
            longest = config.max_position_embeddings
            length = len(load_tokenizer(run.folder)(options.sentence, verbose=False)["input_ids"])
            if length > longest:
                raise UsageError(f"--sentence has {length} tokens, and {variant} takes at most {longest}; shorten it")


def _progress_note(results: SweepResults, cells: Sequence[Cell]) -> str:
    """The progress of the experiment, with the cells that failed."""
    missing = [cell for cell in cells if not cell.is_finished()]
    seeds = ", ".join(f"{variant} {len(runs)}" for variant, runs in results.by_variant.items())
    note = f"{len(cells) - len(missing)} of {len(cells)} cells are finished. Seeds of each variant: {seeds}."
    records = {cell.label: cell.record() for cell in missing}
    failed = [label for label, record in records.items() if record and record.exit_code not in (0, EXIT_INTERRUPTED)]
    return note + (f" Failed: {', '.join(failed)}." if failed else "")


def _add_curves(page: Page, results: SweepResults) -> None:
    baseline = results.experiment.baseline
    others = [variant for variant in results.experiment.variants if variant != baseline]
    savings = {variant: found for variant in others if (found := token_savings(results, variant))}
    page.heading(f"Tokens to a given loss, against {baseline}" if savings else "Held-out loss")
    page.figure(
        sweep_figures.loss_curves(results),
        "loss",
        "Held-out loss against steps, real tokens and training FLOPs; the band spans the seeds, the line is the mean.",
        (("variant", "seed", "step", "tokens", "training FLOPs", "held-out loss"), sweep_figures.curve_rows(results)),
    )
    if not savings:
        return
    page.paragraph(
        "The factor by which the variant needs fewer tokens than the baseline until its held-out loss first reaches "
        "the given one: geometric mean over seeds and 95 % bootstrap interval. All runs of the baseline pass through "
        "these losses; ≥: the variant reached the loss by its first evaluation. The factor in hours uses the measured "
        "tokens per second, which other work on the machine affects.",
        "note",
    )
    rows = []
    for variant, levels in savings.items():
        for saving in levels:
            factor = "not reached" if saving.factor is None else f"{'≥ ' if saving.at_least else ''}{saving.factor:.2f}"
            needed = [_significant(tokens / 1e6) if tokens else "" for tokens in saving.tokens]
            hours = "" if saving.time_factor is None else f"{saving.time_factor:.2f}"
            ends = _interval(saving.interval, 2) or ("too few seeds" if saving.factor else "")
            rows.append((variant, f"{saving.level:.2f}", *needed, factor, ends, hours, str(saving.seeds)))
    tokens = (f"{baseline}: million tokens", "variant: million tokens")
    page.table((("variant", "loss", *tokens, "factor", "interval", "factor in hours", "seeds"), rows), "token_savings")
    page.figure(
        sweep_figures.saving_lines(savings, results),
        "token_factors",
        "The same factors against the loss, on a logarithmic scale; above 1 the variant needs fewer tokens.",
    )


def _add_metrics(page: Page, results: SweepResults) -> None:
    baseline = results.experiment.baseline
    note = "Mean and standard deviation over seeds, 95 % bootstrap interval over them "
    note += f"(none below {SEEDS_FOR_INTERVAL})."
    if baseline:
        note += (
            f" Paired difference to {baseline} over common seeds; p-value of the exact permutation test of signs, "
            f"corrected by Holm (none below {SEEDS_FOR_TEST} seeds, where it can't reach 0.05). Bold: better than "
            f"{baseline}, and the interval of the difference excludes zero, as does Student's interval if there is no "
            "test."
        )
    flops, equal = at_equal_flops(results)
    if equal:
        note += " At equal FLOPs: interpolated on the curves at the total FLOPs of the cheapest run, which a costlier "
        note += "run reaches before its learning rate has fallen to 0."
    page.heading("Scores", note)
    tables = []
    for metric in results.metrics:
        tables.append((metric, metric, f"score_{metric}", results.values(metric)))
        if metric in equal:
            title = f"{metric} at {flops:.3g} training FLOPs"
            tables.append((metric, title, f"score_{metric}_at_equal_FLOPs", equal[metric]))
    for metric, title, name, values in tables:
        compared = compare(values, baseline, larger_is_better(metric))
        table, bold = _score_table(metric, compared, results)
        name = re.sub(r"\W", "_", name)  # the same in a later report, with other metrics or FLOPs
        page.heading(title, level=3)
        page.table(table, name, bold)
        if title == metric:
            unit = f"{metric} (nats per masked token)" if metric == LOSS else metric
            figure = sweep_figures.dots(values, compared, results, unit)
            page.figure(figure, name, f"{metric}: mean, 95 % interval over seeds, and single seeds.")


def _score_table(metric: str, compared: Mapping[str, Comparison], results: SweepResults) -> tuple[Table, list[bool]]:
    digits = 4 if larger_is_better(metric) else 3
    rows = []
    for variant, summary in compared.items():
        runs = results.by_variant[variant]
        deviation = f" ± {summary.deviation:.{digits}f}" if summary.seeds > 1 else ""
        difference = "" if summary.difference is None else f"{summary.difference:+.{digits}f}"
        few = "" if summary.difference is None else "too few seeds"
        p_value = few if summary.p_holm is None else f"{summary.p_holm:.3f}"
        rows.append(
            (
                variant,
                str(summary.seeds),
                f"{summary.mean:.{digits}f}{deviation}",
                _interval(summary.interval, digits) or "too few seeds",
                f"{summary.best:.{digits}f}",
                difference,
                _interval(summary.difference_interval, digits) or few,
                p_value,
                f"{runs[0].parameters / 1e6:.2f} M",
                f"{sum(run.flops[-1] for run in runs) / len(runs):.3g}",
                f"{sum(run.tokens_per_second for run in runs) / len(runs):,.0f}",
            )
        )
    header = ("variant", "seeds", "mean ± sd", "interval", "best", "difference", "its interval", "p (Holm)")
    costs = ("parameters", "training FLOPs", "tokens/s")
    better = [
        summary.differs and ((summary.difference or 0.0) > 0) == larger_is_better(metric)
        for summary in compared.values()
    ]
    return ((*header, *costs), rows), better


def _add_probes(page: Page, results: SweepResults) -> None:
    baseline = results.experiment.baseline or ""
    for name in results.experiment.evaluate.minimal_pairs:
        caption = f"{name}: mean difference of accuracy to {baseline} over common seeds, by phenomenon."
        _add_differences(page, results, name, partial(Run.by_phenomenon, probe=name), caption)
    caption = f"GLUE: mean difference of dev scores to {baseline} over common seeds, times 100."
    _add_differences(page, results, "glue", lambda run: run.glue, caption)
    figure = sweep_figures.order_lines(results)
    if figure is not None:
        page.heading("Local order")
        caption = "Local order: accuracy by the distance of the moved word; 50 % is chance. The band spans the seeds."
        table = (("variant", "seed", "distance", "accuracy"), sweep_figures.order_rows(results))
        page.figure(figure, "local_order", caption, table)


def _add_differences(
    page: Page, results: SweepResults, name: str, figures_of: Callable[[Run], Mapping[str, float]], caption: str
) -> None:
    found = sweep_figures.differences(results, figures_of)
    if found is None:
        return
    names, variants, table = found
    rows = [(row, *(f"{value:.2f}" for value in values)) for row, values in zip(names, table, strict=True)]
    page.heading(f"{name}: differences by group")
    figure = sweep_figures.difference_map(found, results.experiment.baseline or "")
    page.figure(figure, name, caption, (("", *variants), rows))


def _add_attention(page: Page, results: SweepResults, options: ReportOptions) -> None:
    """Add kernels, mean attention and the shares of the terms, for the first run of each variant."""
    page.heading("Attention", "For the first seed of each variant.")
    on_text: dict[str, attention.AttentionOnText] = {}
    held_out = cache(partial(_held_out, results.experiment.base))  # opening it reads all of it
    for variant, (run, *_) in results.by_variant.items():
        kernels = read_kernels(run.folder)
        figure = kernel_figure(kernels, f"{variant}, seed {run.seed}")
        if figure is not None:
            table: Table = (("term", "layer", "head", "offset", "weight or norm"), kernel_rows(kernels))
            page.figure(figure, f"kernels_{variant}", f"Kernels of {variant}, by layer and head.", table)
        model, tokenizer = load_model(str(run.folder), None)
        model.eval()
        longest = min(_MAX_TOKENS, count_positions(model) or _MAX_TOKENS)
        texts = _texts(results, options, tokenizer, longest, held_out)
        if texts:
            on_text[variant] = attention.measure(model, texts)
            caption = f"Mean attention of {variant} by offset of the key, over {len(texts)} held-out examples."
            table = (("layer", "head", "offset", "probability"), attention.offset_rows(on_text[variant]))
            figure = attention.attention_by_offset(on_text[variant], f"{variant}, seed {run.seed}")
            page.figure(figure, f"attention_{variant}", caption, table)
        if options.sentence:
            _add_sentence(page, options, variant, attention.attention_of(model, tokenizer, options.sentence))
    if not on_text:
        say("the held-out data are not available: give --text to measure attention on text")
        page.paragraph("The held-out data were not available, so nothing was measured on text.")
    several_terms = {variant: found for variant, found in on_text.items() if len(found.terms) > 1}
    if several_terms:
        page.figure(
            attention.variance_bars(several_terms),
            "variance",
            "Each term's share of the variance of the scores over the keys of a query: its covariance with the sum, "
            "divided by the variance of the sum. A term with a negative share counteracts the others.",
            (("variant", "layer", "head", "term", "share"), attention.variance_rows(several_terms)),
        )


def _add_sentence(page: Page, options: ReportOptions, variant: str, found: attention.SentenceAttention) -> None:
    header = ("layer", "query", "key", *found.scores, "sum", "attention")
    page.figure(
        attention.sentence_maps(found, variant, options.head),
        f"sentence_{variant}",
        f"“{options.sentence}” in {variant}: the score of each term less its mean over the keys, their sum, and the "
        "attention; rows are queries, columns keys.",
        (header, attention.sentence_rows(found, options.head)),
    )


def _texts(
    results: SweepResults,
    options: ReportOptions,
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    held_out: Callable[[str], ExampleStore | None],
) -> list[list[int]]:
    """Up to ``longest`` ids of held-out texts: of ``--text``, or of the runs' evaluation data if they still exist."""
    base = results.experiment.base
    paths = [options.text] if options.text else flag_paths(base, "eval_data_file")
    if not options.text:
        if (store := held_out(tokenizer_hash(tokenizer))) is not None:
            return [store[index][:longest].tolist() for index in range(min(_MAX_TEXTS, len(store)))]
        if not (paths and base.get("line_by_line") and all(path.exists() for path in paths)):
            return []
    lines = text_lines(find_sources([*map(str, paths)]))
    encoded = (tokenizer(line, verbose=False)["input_ids"][:longest] for line in lines)
    return list(islice((ids for ids in encoded if len(ids) > 3), _MAX_TEXTS))  # more than a token between special ones


def _held_out(base: Flags, tokenizer: str) -> ExampleStore | None:
    """The runs' evaluation examples, if these are (a part of) a folder of ``build-dataset`` that is still the same.

    ``tokenizer`` is the hash of the one that it must have been built with.
    """
    fraction = float(str(base.get("eval_fraction") or 0))
    paths = flag_paths(base, "train_data_file" if fraction else "eval_data_file")
    if not (paths and (paths[0] / MANIFEST_FILE).is_file()):
        return None
    with contextlib.suppress(UsageError):  # it has been rebuilt or damaged since
        store = ArrowStore(paths[0], tokenizer)
        return store.split_by_document(fraction, HELD_OUT_SEED)[1] if fraction else store
    return None


def _add_run_records(page: Page, results: SweepResults, cells: Sequence[Cell]) -> None:
    finished = {(run.variant, run.seed) for run in results.runs}
    rows, seconds, by_content = [], 0.0, {}
    for cell in cells:
        record = cell.record() if (cell.variant, cell.seed) in finished else None
        if record is not None:
            command = shlex.join(["bertconv", *record.command])
            rows.append((cell.label, duration(record.seconds), str(record.exit_code), command))
            by_content[json.dumps(record.environment)] = record.environment
            seconds += record.seconds
    page.heading("What was run")
    environments = {f"run {number}: ": found for number, found in enumerate(by_content.values(), 1) if found}
    for when, found in (environments | {"reported: ": environment()}).items():
        for key, value in found.items():
            page.paragraph(f"{when}{key} {value}")
    page.paragraph(f"data: {_data_hashes(results)}")
    page.paragraph(f"wall time of all cells: {duration(seconds)}" if rows else "there is no record of the cells' times")
    if rows:
        page.table((("cell", "wall time", "exit code", "command"), rows), "commands", folded="Commands", kind="text")
    page.table(_all_options(results), "options", folded="All options, defaults included", kind="text")


def _all_options(results: SweepResults) -> Table:
    """All arguments of the Trainer and fields of the configuration in the first run of each variant."""
    found: dict[str, dict[str, object]] = {}
    for variant, (run, *_) in results.by_variant.items():
        paths = [run.folder / name for name in ("training_args.json", "config.json")]
        found[variant] = {key: value for path in paths if path.is_file() for key, value in read_json(path).items()}
    names = sorted({name for options in found.values() for name in options})
    rows = [(name, *(json.dumps(options.get(name)) for options in found.values())) for name in names]
    return ("option", *found), rows


def _data_hashes(results: SweepResults) -> str:
    """The hashes of the shards in the manifests of the build-dataset folders of all variants."""
    parts = (results.experiment.base, *results.experiment.variants.values())
    data = [
        (flag, path)
        for flag in ("train_data_file", "eval_data_file")
        for part in parts
        for path in flag_paths(part, flag)
    ]
    found = []
    for flag, path in dict.fromkeys(data):
        if (path / MANIFEST_FILE).is_file():
            shards = ", ".join(shard.sha256[:16] for shard in read_manifest(path / MANIFEST_FILE).shards)
            found.append(f"{flag} {path} (SHA-256 {shards})")
    return "; ".join(found) or "no folder of build-dataset is available"


def _significant(value: float) -> str:
    """Three significant digits, without an exponent."""
    return np.format_float_positional(value, precision=3, unique=False, fractional=False, trim="-")


def _interval(interval: Interval | None, digits: int) -> str:
    return "" if interval is None else f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"
