"""``bertconv minimal-pairs``: formats, accuracies, resuming and bad input."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from tokenizers import models, pre_tokenizers
from transformers import RobertaConfig, RobertaForMaskedLM

from bert_convolutions.cli.main import main
from bert_convolutions.errors import UsageError
from bert_convolutions.parsing import read_model
from bert_convolutions.probes import run
from bert_convolutions.probes.options import MinimalPairsOptions
from bert_convolutions.probes.pairs import Paradigm, read_paradigms
from bert_convolutions.probes.scoring import PseudoLikelihood, Score
from bert_convolutions.schemas import ProbeResults
from tests.helpers import TINY, fast_tokenizer

PAIRS = [("the cat sleeps .", "the cat sleep ."), ("dogs bark at the mat .", "dogs barks at the mat .")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, term, field in (("one", "agreement", "syntax"), ("two", "agreement", "syntax"), ("three", "npi", "sem")):
        rows = [
            {"sentence_good": good, "sentence_bad": bad, "linguistics_term": term, "field": field, "UID": name}
            for good, bad in PAIRS
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def options(model_dir: Path, data: Path, folder: Path, **others: Any) -> MinimalPairsOptions:
    return MinimalPairsOptions(model_name_or_path=str(model_dir), data_dir=data, output_dir=folder, **others)


def test_the_three_formats_give_the_same_pairs(data: Path) -> None:
    (data / "agreement-zorro.txt").write_text("".join(f"{bad}\n{good}\n" for good, bad in PAIRS))
    rows = "".join(f"{bad}\tagreement\t{good}\n" for good, bad in PAIRS)
    (data / "own.tsv").write_text("sentence_bad\tlinguistics_term\tsentence_good\n" + rows)
    (data / "README.md").write_text("not a paradigm")
    (data / "._one.jsonl").write_bytes(b"\0\5\x16\7")  # as macOS writes on other disks
    paradigms = {paradigm.name: paradigm for paradigm in read_paradigms(data)}
    assert list(paradigms) == ["agreement-zorro", "one", "own", "three", "two"]
    assert all(paradigm.pairs == tuple(PAIRS) for paradigm in paradigms.values())
    assert {paradigms[name].phenomenon for name in ("agreement-zorro", "one", "own")} == {"agreement"}
    assert (paradigms["one"].field, paradigms["three"].field) == ("syntax", "sem")
    assert read_paradigms(data / "own.tsv") == [paradigms["own"]]


def test_blimps_two_spellings_of_a_field_are_read_as_one(tmp_path: Path) -> None:
    for name, field in (("one", "syntax/semantics"), ("two", "syntax_semantics")):
        row = {"sentence_good": "a", "sentence_bad": "b", "field": field}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    assert {paradigm.field for paradigm in read_paradigms(tmp_path)} == {"syntax_semantics"}


def test_the_command_writes_json_and_csv_and_prints_a_table(
    model_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    argv = ["minimal-pairs", "--model_name_or_path", str(model_dir), "--data_dir", str(data)]
    assert main([*argv, "--output_dir", str(folder)]) == 0
    stored = json.loads((folder / "minimal_pairs.json").read_text())
    assert set(stored["paradigms"]) == {"one", "two", "three"}
    result = stored["paradigms"]["one"]
    assert {"accuracy", "accuracy_within_word", "pairs", "interval"} <= set(result)
    assert result["pairs"] == 2
    model, tokenizer = run.load_model(str(model_dir), None)
    good, bad = (PseudoLikelihood(model, tokenizer)(list(side)) for side in zip(*PAIRS, strict=True))
    right = [one.whole > other.whole for one, other in zip(good, bad, strict=True)]
    assert result["accuracy"] == sum(right) / 2
    with (folder / "minimal_pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["level"] for row in rows] == [*["paradigm"] * 3, *["phenomenon"] * 2, *["field"] * 2, "all"]
    assert float(rows[-1]["accuracy"]) == pytest.approx(stored["all"]["accuracy"], abs=1e-4)
    output, errors = capsys.readouterr()
    assert not errors, "no bar in a log file in the first minute"
    assert "agreement" in output and "all" in output


def test_ties_count_half_and_groups_are_means_over_paradigms() -> None:
    scores = {"a": -10.0, "b": -11.0, "c": -10.00001, "d": -9.0}

    def score(texts: list[str]) -> list[Score]:
        return [Score(scores[text], scores[text]) for text in texts]

    one = run.score_paradigm(score, Paradigm("one", "p", "f", (("a", "b"), ("a", "c"), ("a", "d"), ("a", "b"))))  # type: ignore[arg-type]
    two = run.score_paradigm(score, Paradigm("two", "p", "f", (("a", "a"),)))  # type: ignore[arg-type]
    assert one.accuracy == 2.5 / 4
    assert two.accuracy == 0.5
    empty = ProbeResults(model="m", model_sha256="", paradigms={}, phenomena={}, fields={})
    grouped = run._with_group_means(empty, {"one": one, "two": two})
    assert grouped.phenomena["p"].accuracy == pytest.approx((2.5 / 4 + 0.5) / 2)
    assert grouped.all and grouped.all.pairs == 5


@pytest.mark.parametrize(("share", "pairs"), [(0.5, 100), (0.9, 200), (0.0, 50), (1.0, 1000)])
def test_intervals_are_close_to_wilsons(share: float, pairs: int) -> None:
    wilson = stats.binomtest(int(share * pairs), pairs).proportion_ci(method="wilson")
    low, high = run.mean_interval([(share, pairs)])
    assert low <= share <= high
    assert low == pytest.approx(wilson.low, abs=0.03)
    assert high == pytest.approx(wilson.high, abs=0.03)
    both = run.mean_interval([(share, pairs)] * 4)
    assert both[1] - both[0] <= high - low


def test_a_stopped_run_resumes_and_gives_the_same_results(
    model_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run.run_minimal_pairs(options(model_dir, data, tmp_path / "whole"))
    judged: list[str] = []
    score_paradigm = run.score_paradigm

    def stop_at_the_third(score: PseudoLikelihood, paradigm: Paradigm) -> Any:
        if len(judged) == 2:
            raise KeyboardInterrupt
        judged.append(paradigm.name)
        return score_paradigm(score, paradigm)

    monkeypatch.setattr(run, "score_paradigm", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run.run_minimal_pairs(options(model_dir, data, tmp_path / "parts"))
    assert judged == ["one", "three"]
    judged.clear()
    resumed = run.run_minimal_pairs(options(model_dir, data, tmp_path / "parts"))
    assert judged == ["two"]
    assert resumed == whole == read_model(ProbeResults, tmp_path / "parts" / "minimal_pairs.json")


def test_results_of_other_pairs_models_or_tokenizers_are_refused(
    model_dir: Path, data: Path, tmp_path: Path, tokenizer: Any
) -> None:
    folder = tmp_path / "out"
    run.run_minimal_pairs(options(model_dir, data, folder))
    before = (folder / "minimal_pairs.json").read_bytes()
    with pytest.raises(UsageError, match=r"other pairs \(one\).*--overwrite_output_dir"):
        run.run_minimal_pairs(options(model_dir, data, folder, pairs=1))
    model, _ = run.load_model(str(model_dir), None)
    with torch.no_grad():
        model.cls.predictions.bias += torch.randn_like(model.cls.predictions.bias)
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    (tmp_path / "vocabulary").mkdir()
    pieces = (model_dir / "spm.model").read_bytes()
    longest = max((piece for piece in tokenizer.get_vocab() if piece[0] == "▁"), key=len).encode()
    (tmp_path / "vocabulary" / "spm.model").write_bytes(pieces.replace(longest, longest.swapcase()))
    with pytest.raises(UsageError, match=r"--tokenizer_name .*vocabulary has other tokens than"):
        run.run_minimal_pairs(options(model_dir, data, folder, tokenizer_name=str(tmp_path / "vocabulary")))
    shutil.copytree(model_dir, tmp_path / "bare", ignore=shutil.ignore_patterns("spm.model", "token*"))
    run.run_minimal_pairs(options(tmp_path / "bare", data, tmp_path / "bare-out", tokenizer_name=str(model_dir)))
    other = options(tmp_path / "bare", data, tmp_path / "bare-out", tokenizer_name=str(tmp_path / "vocabulary"))
    with pytest.raises(UsageError, match="another tokenizer"):
        run.run_minimal_pairs(other)
    with pytest.raises(UsageError, match="another model"):
        run.run_minimal_pairs(options(tmp_path / "other", data, folder))
    assert (folder / "minimal_pairs.json").read_bytes() == before
    (tmp_path / "same").symlink_to(model_dir)  # the same model under another path is accepted
    run.run_minimal_pairs(options(tmp_path / "same", data, folder))
    run.run_minimal_pairs(options(model_dir, data, folder, pairs=1, overwrite_output_dir=True))
    assert read_model(ProbeResults, folder / "minimal_pairs.json").paradigms["one"].pairs == 1


def test_a_limited_number_of_pairs_is_spread_over_the_paradigm() -> None:
    pairs = tuple((f"good {number}", f"bad {number}") for number in range(101))
    chosen = Paradigm("name", "", "", pairs).first(5).pairs
    assert [good for good, _ in chosen] == ["good 0", "good 25", "good 50", "good 75", "good 100"]
    assert Paradigm("name", "", "", pairs).first(1000).pairs == pairs


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", '{"sentence_good": "a"}\n', r"p\.jsonl, line 1: sentence_bad"),
        ("p.jsonl", '{"sentence_good": "a", "sentence_bad": "b"}\n{oops\n', r"line 2 is not valid JSON"),
        ("p.jsonl", '{"sentence_good": 3, "sentence_bad": "b"}\n', "sentence_good"),
        ("p.txt", "a\nb\nc\n", "3 lines"),
        ("p.txt", "a\n\nc\nd\n", "line 2 is blank"),
        ("p.tsv", "sentence_good\tsentence_bad\na\tb\n \tb\n", "pair 2 of p has a blank sentence"),
        ("p.tsv", "good\tbad\na\tb\n", "sentence_good and sentence_bad"),
        ("p.tsv", "sentence_good\tsentence_bad\na\n", "line 2 has 1 columns"),
        ("p.tsv", "sentence_good\tsentence_bad\n", "no pairs"),
        ("p.jsonl", b"\xff\xfe", "UTF-8"),
        ("p.json", "{}", "holds no .jsonl"),
    ],
)
def test_bad_files_are_refused_with_the_reason(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=message):
        read_paradigms(tmp_path)


def test_two_files_of_the_same_name_are_refused(data: Path) -> None:
    (data / "one.txt").write_text("a\nb\n")
    with pytest.raises(UsageError, match="two files named one"):
        read_paradigms(data)


def test_bad_models_and_flags_are_refused(
    model_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["minimal-pairs", "--data_dir", str(data), "--output_dir", str(tmp_path / "out"), "--model_name_or_path"]
    assert main([*argv, str(tmp_path)]) == 2
    assert main([*argv, str(model_dir), "--pairs", "0"]) == 2
    assert "--pairs 0 is less than 1" in capsys.readouterr().err
    assert main([*argv[:3], "--output_dir", str(data), *argv[5:], str(model_dir)]) == 2
    assert "--output_dir" in capsys.readouterr().err
    model, tokenizer = run.load_model(str(model_dir), None)
    model.bert.save_pretrained(tmp_path / "headless")
    tokenizer.save_pretrained(tmp_path / "headless")
    with pytest.raises(UsageError, match=r"lacks .* weights of a masked language model, such as cls\."):
        run.load_model(str(tmp_path / "headless"), None)
    assert not (tmp_path / "out").exists()


def test_a_sentence_longer_than_the_positions_is_refused(model_dir: Path, data: Path, tmp_path: Path) -> None:
    (data / "long.txt").write_text(f"a cat\na dog\n{'cat ' * 70}\na dog\n")
    with pytest.raises(UsageError, match=r"pair 2 of long has .* positions"):
        run.run_minimal_pairs(options(model_dir, data, tmp_path / "out"))


def test_robertas_positions_start_after_the_padding_index(tmp_path: Path) -> None:
    tokenizer = fast_tokenizer(models.WordLevel, pre_tokenizers.Whitespace(), ["cat", "dog"])
    config = RobertaConfig(vocab_size=len(tokenizer), **TINY, max_position_embeddings=8, pad_token_id=0)
    RobertaForMaskedLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "p.txt").write_text("cat cat cat cat cat\ndog\ncat cat cat cat cat cat\ndog\n")
    with pytest.raises(UsageError, match="pair 2 of p has 8 tokens, more than the model's 7 positions"):
        run.run_minimal_pairs(options(tmp_path / "model", tmp_path / "p.txt", tmp_path / "out"))
