"""``bertconv minimal-pairs`` and ``bertconv local-order``: score each paradigm, resume, tabulate."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from rich.table import Table
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

import bert_convolutions.model  # noqa: F401  registers CompositeBert* with the Auto classes
from bert_convolutions import files
from bert_convolutions.data.build.sources import find_sources, text_lines
from bert_convolutions.data.loading import load_tokenizer, tokenizer_hash
from bert_convolutions.errors import UsageError, first_line
from bert_convolutions.hub import local_folder
from bert_convolutions.model.loading import count_positions, quiet_transformers
from bert_convolutions.parsing import read_model
from bert_convolutions.probes.options import LocalOrderOptions, MinimalPairsOptions, ProbeOptions
from bert_convolutions.probes.pairs import Paradigm, make_moved_word_pairs, read_paradigms
from bert_convolutions.probes.scoring import PseudoLikelihood
from bert_convolutions.schemas import Accuracy, ParadigmAccuracy, ProbeResults
from bert_convolutions.terminal import make_bar, make_console, make_table, say, shows_bars

TIE = 1e-4
"""Scores that differ by less (in nats) are ties: more than the float32 rounding error of a sentence's sum."""
_NORMAL_97_5 = 1.959964
_DEFAULT_ORDER_PAIRS = 500


def run_minimal_pairs(options: MinimalPairsOptions) -> ProbeResults:
    """Compute the accuracy on minimal pairs; write ``minimal_pairs.json`` and ``.csv`` and print a table.

    Raises:
        UsageError: bad input, or the folder holds results of another model or other pairs.
    """
    files.refuse_overlap(options.output_dir, "--output_dir", _inputs(options, "--data_dir", options.data_dir))
    paradigms = [paradigm.first(options.pairs) for paradigm in read_paradigms(options.data_dir)]
    return _run(options, paradigms, "minimal_pairs")


def run_local_order(options: LocalOrderOptions) -> ProbeResults:
    """Compute the accuracy on sentences with a moved word; write ``local_order.json`` and ``.csv``, print a table.

    Raises:
        UsageError: bad input, or the folder holds results of another model or other text.
    """
    files.refuse_overlap(options.output_dir, "--output_dir", _inputs(options, "--text", options.text))
    try:
        sentences = list(dict.fromkeys(text_lines(find_sources([str(options.text)]))))
    except UsageError as error:
        raise UsageError(f"--text can't be read: {error}") from error
    pairs = options.pairs or _DEFAULT_ORDER_PAIRS
    return _run(options, make_moved_word_pairs(sentences, options.distances, pairs, options.seed), "local_order")


def _inputs(options: ProbeOptions, flag: str, data: Path) -> dict[str, str | Path | None]:
    inputs: dict[str, str | Path | None] = {flag: data, "--tokenizer_name": options.tokenizer_name}
    # Results may be written to a subfolder of the model's folder, so only the folder itself is refused.
    model_folder = local_folder(options.model_name_or_path)
    if options.output_dir.resolve() == model_folder.resolve():
        inputs["--model_name_or_path"] = model_folder
    return inputs


def _run(options: ProbeOptions, paradigms: Sequence[Paradigm], name: str) -> ProbeResults:
    model, tokenizer = load_model(options.model_name_or_path, options.tokenizer_name)
    score = PseudoLikelihood(model, tokenizer, options.batch_tokens)
    _refuse_too_long(score, paradigms)
    folder = options.output_dir
    files.make_folder(folder, "--output_dir")
    with files.run_lock(folder):
        files.remove_temporaries(folder)
        fresh = ProbeResults(
            model=str(options.model_name_or_path),
            model_sha256=weights_sha256(model),
            tokenizer_sha256=tokenizer_hash(tokenizer),
            paradigms={},
            phenomena={},
            fields={},
        )
        results = fresh if options.overwrite_output_dir else _read_earlier(folder / f"{name}.json", fresh, paradigms)
        finished = dict(results.paradigms)
        unfinished = [paradigm for paradigm in paradigms if paradigm.name not in finished]
        if finished:
            say(f"{folder}: {len(finished)} of {len(paradigms)} paradigms are already done")
        with make_bar(None, sum(len(paradigm.pairs) for paradigm in unfinished), "pair") as bar:
            for paradigm in unfinished:
                bar.set_description(paradigm.name, refresh=shows_bars())
                finished[paradigm.name] = score_paradigm(score, paradigm)
                bar.update(len(paradigm.pairs))
                results = _with_group_means(results, finished)
                files.write_text(folder / f"{name}.json", results.model_dump_json(indent=2) + "\n")
        files.write_csv(folder / f"{name}.csv", _csv_rows(results))
    make_console().print(_as_table(results, name))
    return results


def load_model(path: str, tokenizer_name: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A masked language model in float32, on the GPU if there is one, and its tokenizer.

    Raises:
        UsageError: there is no model, it lacks weights (such as those of the head), or the tokenizer is not the
            model's.
    """
    folder = local_folder(path)
    if not (folder / "config.json").is_file():
        raise UsageError(f"--model_name_or_path {path} holds no config.json; give the folder of a saved model")
    tokenizer = load_tokenizer(tokenizer_name or folder, folder, needs=("pad_token", "mask_token"))
    try:
        with quiet_transformers():
            model, report = AutoModelForMaskedLM.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
            )
    except Exception as error:  # PyTorch, safetensors and transformers raise different errors
        raise UsageError(
            f"--model_name_or_path {path}: no masked language model can be loaded ({first_line(error)})"
        ) from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UsageError(
            f"--model_name_or_path {path} lacks {len(missing)} weights of a masked language model, such as {missing[0]}"
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UsageError(
            f"{tokenizer_name or path}: the tokenizer's {len(tokenizer)} tokens are not the model's {rows}"
        )
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def weights_sha256(model: PreTrainedModel) -> str:
    """The SHA-256 of a model's weights and configuration, independent of its path."""
    config = {key: value for key, value in model.config.to_dict().items() if key != "_name_or_path"}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _refuse_too_long(score: PseudoLikelihood, paradigms: Sequence[Paradigm]) -> None:
    positions = count_positions(score.model)
    if positions is None:
        return
    for paradigm in paradigms:
        length, index = score.longest([sentence for pair in paradigm.pairs for sentence in pair])
        if length > positions:
            raise UsageError(
                f"pair {index // 2 + 1} of {paradigm.name} has {length} tokens, more than the model's {positions} "
                "positions; leave it out"
            )


def _read_earlier(path: Path, fresh: ProbeResults, paradigms: Sequence[Paradigm]) -> ProbeResults:
    """The results of an earlier run on the same model and pairs, or ``fresh``."""
    if not path.is_file():
        return fresh
    done = read_model(ProbeResults, path)
    pairs = {paradigm.name: paradigm.sha256 for paradigm in paradigms}
    other = [name for name, result in done.paradigms.items() if pairs.get(name) != result.sha256]
    what = f"other pairs ({other[0]})" if other else ""
    if done.tokenizer_sha256 not in (None, fresh.tokenizer_sha256):
        what = "another tokenizer"
    if done.model_sha256 != fresh.model_sha256:
        what = f"another model ({done.model})"
    if what:
        raise UsageError(f"{path} holds results of {what}; give another --output_dir or --overwrite_output_dir")
    return done


def score_paradigm(score: PseudoLikelihood, paradigm: Paradigm) -> ParadigmAccuracy:
    """Score one paradigm."""
    sentences = list(dict.fromkeys(sentence for pair in paradigm.pairs for sentence in pair))
    scores = dict(zip(sentences, score(sentences), strict=True))
    pairs = [(scores[good], scores[bad]) for good, bad in paradigm.pairs]
    accuracy, interval = _accuracy_of(good.whole - bad.whole for good, bad in pairs)
    within, interval_within = _accuracy_of(good.within_word - bad.within_word for good, bad in pairs)
    return ParadigmAccuracy(
        accuracy=accuracy,
        interval=interval,
        accuracy_within_word=within,
        interval_within_word=interval_within,
        pairs=len(pairs),
        phenomenon=paradigm.phenomenon,
        field=paradigm.field,
        sha256=paradigm.sha256,
    )


def _accuracy_of(differences: Iterable[float]) -> tuple[float, tuple[float, float]]:
    """The fraction of differences above 0 (ties count half) and its interval."""
    outcomes = [0.5 if abs(difference) < TIE else float(difference > 0) for difference in differences]
    accuracy = sum(outcomes) / len(outcomes)
    return accuracy, mean_interval([(accuracy, len(outcomes))])


def mean_interval(accuracies: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """A 95 % interval of the mean of ``accuracies``, each given with its number of pairs.

    It is a normal interval with the variance of Agresti and Coull (1998): two successes and two failures are added to
    each count, so that accuracies of 0 and 1 have an interval too.
    """
    variance = 0.0
    for accuracy, pairs in accuracies:
        added = (accuracy * pairs + 2) / (pairs + 4)
        variance += added * (1 - added) / (pairs + 4)
    mean = sum(accuracy for accuracy, _ in accuracies) / len(accuracies)
    half = _NORMAL_97_5 * math.sqrt(variance) / len(accuracies)
    return max(mean - half, 0.0), min(mean + half, 1.0)


def _with_group_means(results: ProbeResults, paradigms: Mapping[str, ParadigmAccuracy]) -> ProbeResults:
    """The results with these paradigms and the means over each phenomenon, each field and all paradigms."""
    groups: dict[str, dict[str, list[ParadigmAccuracy]]] = {"phenomena": {}, "fields": {}}
    for paradigm in paradigms.values():
        for group, name in (("phenomena", paradigm.phenomenon), ("fields", paradigm.field)):
            if name:
                groups[group].setdefault(name, []).append(paradigm)
    means = {group: {name: _mean(members) for name, members in named.items()} for group, named in groups.items()}
    everything = _mean(list(paradigms.values())) if paradigms else None
    return results.model_copy(update={"paradigms": dict(paradigms), **means, "all": everything})


def _mean(members: Sequence[Accuracy]) -> Accuracy:
    """The mean over paradigms with equal weights, as in BLiMP."""
    return Accuracy(
        accuracy=sum(member.accuracy for member in members) / len(members),
        interval=mean_interval([(member.accuracy, member.pairs) for member in members]),
        accuracy_within_word=sum(member.accuracy_within_word for member in members) / len(members),
        interval_within_word=mean_interval([(member.accuracy_within_word, member.pairs) for member in members]),
        pairs=sum(member.pairs for member in members),
    )


def _rows(results: ProbeResults) -> list[tuple[str, str, Accuracy]]:
    """(level, name, accuracy), from paradigms to all."""
    rows: list[tuple[str, str, Accuracy]] = [("paradigm", *item) for item in results.paradigms.items()]
    rows += [("phenomenon", *item) for item in results.phenomena.items()]
    rows += [("field", *item) for item in results.fields.items()]
    return [*rows, ("all", "all", results.all)] if results.all else rows


def _csv_rows(results: ProbeResults) -> Iterator[tuple[object, ...]]:
    ends = ("low", "high", "accuracy_within_word", "low_within_word", "high_within_word")
    yield "level", "name", "pairs", "accuracy", *ends
    for level, name, figures in _rows(results):
        values = (figures.accuracy, *figures.interval, figures.accuracy_within_word, *figures.interval_within_word)
        yield level, name, figures.pairs, *(f"{value:.4f}" for value in values)


def _as_table(results: ProbeResults, name: str) -> Table:
    """A row for each phenomenon (or paradigm, if there are no phenomena), each field, and all."""
    title = f"{name.replace('_', ' ')}, {results.model}: correct pairs in % (ties count half) and 95 % intervals"
    table = make_table(title, "", "pairs", "accuracy", "interval", "within word", "interval")
    for level, row_name, figures in _rows(results):
        if level != "paradigm" or not results.phenomena:
            numbers = [f"{100 * figures.accuracy:.1f}", _percent(figures.interval)]
            numbers += [f"{100 * figures.accuracy_within_word:.1f}", _percent(figures.interval_within_word)]
            style = "bold" if level in ("field", "all") else None
            table.add_row(row_name, str(figures.pairs), *numbers, style=style)
    return table


def _percent(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
