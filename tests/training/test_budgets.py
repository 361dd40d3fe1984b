"""Checkpoints at numbers of words seen, and runs of a given number of minutes."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertTokenizerFast

from bert_convolutions.cli.main import main
from bert_convolutions.data.loading import load_tokenizer
from bert_convolutions.errors import UsageError
from bert_convolutions.files import sha256
from bert_convolutions.training import pretrain
from bert_convolutions.training.progress import checkpoint_name, parse_words, word_starts
from bert_convolutions.training.sampling import StepPlan
from tests.helpers import same_weights
from tests.training.conftest import Workspace

TARGETS = ["60", "100"]
STEPS = 6


def run(workspace: Workspace, output: str, *words: str, **changes: Any) -> int:
    flags = workspace.flags(output, **{"max_steps": STEPS, "save_steps": 1, **changes})
    return main(["pretrain", *flags, *(("--save_at_words", *words) if words else ())])


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "train_results.json").read_text())


def cut_back(folder: Path, step: int) -> None:
    """Delete what was written after the checkpoint of this step."""
    for path in folder.glob("checkpoint-*"):
        if int(path.name.rpartition("-")[2]) > step:
            shutil.rmtree(path)
    for name in ("train_results.json", "model.safetensors"):
        (folder / name).unlink()


@pytest.fixture(scope="module")
def counted(workspace: Workspace) -> Path:
    """A run with all its checkpoints, and those at 60 and at 100 words."""
    assert run(workspace, "counted", *TARGETS) == 0
    return workspace.folder / "counted"


@pytest.fixture(scope="module")
def words_by_step(workspace: Workspace, counted: Path) -> list[int]:
    """Words seen after each step, by the ids of its examples."""
    pieces = load_tokenizer(workspace.folder / "spm.model").convert_ids_to_tokens(list(range(64)))
    lines = (workspace.folder / "train.ids").read_text().splitlines()
    words = [sum(pieces[int(token)].startswith("▁") for token in line.split()) for line in lines]
    plan = StepPlan(len(lines), 42, micro_batch_size=4, micro_batches=1, processes=1)
    return np.cumsum([sum(words[sample] for sample in plan.samples_of_step(step)) for step in range(STEPS)]).tolist()


def test_a_checkpoint_is_saved_at_each_number_of_words(counted: Path, words_by_step: list[int]) -> None:
    """With the weights after the first step by which so many words were seen; each can be loaded by itself."""
    assert results(counted)["words_seen"] == words_by_step[-1] > 100
    reached = [next(step for step, seen in enumerate(words_by_step, 1) if seen >= target) for target in (60, 100)]
    assert 0 < reached[0] < reached[1] < STEPS
    for target, step in zip(TARGETS, reached, strict=True):
        place = counted / f"chck_{target}"
        assert same_weights(place, counted / f"checkpoint-{step}")
        assert not same_weights(place, counted / f"checkpoint-{step + 1}")
        model = AutoModelForMaskedLM.from_pretrained(place)
        tokenizer = AutoTokenizer.from_pretrained(place)
        assert model(**tokenizer("abc def", return_tensors="pt")).logits.shape[-1] == len(tokenizer)
        assert not (place / "optimizer.pt").exists()


def test_a_resumed_run_saves_the_same_models_at_words_and_deletes_none(workspace: Workspace, counted: Path) -> None:
    folder = workspace.folder / "interrupted"
    shutil.copytree(counted, folder)
    cut_back(folder, 1)
    shutil.rmtree(folder / "chck_100")
    shutil.rmtree(folder / "chck_60")
    assert run(workspace, folder.name, *TARGETS, resume_from_checkpoint="true", save_total_limit=1) == 0
    assert [path.name for path in folder.glob("checkpoint-*")] == [f"checkpoint-{STEPS}"]
    assert all(same_weights(folder / f"chck_{target}", counted / f"chck_{target}") for target in TARGETS)
    assert results(folder)["words_seen"] == results(counted)["words_seen"]


def test_a_run_resumed_with_another_rate_replaces_later_models_at_words(
    workspace: Workspace, counted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And names those for which it is too late, or which its text does not reach."""
    folder = workspace.folder / "changed"
    shutil.copytree(counted, folder)
    of_the_last = (path for path in folder.glob("checkpoint-*") if same_weights(path, folder / "chck_100"))
    step = max(int(path.name[11:]) for path in of_the_last) - 1
    cut_back(folder, step)
    late = ["20", *TARGETS, "1M"]
    assert run(workspace, folder.name, *late, resume_from_checkpoint="true", learning_rate=0.001) == 0
    assert same_weights(folder / "chck_60", counted / "chck_60")
    assert not same_weights(folder / "chck_100", counted / "chck_100")
    said = capsys.readouterr().err
    assert "too late for chck_20" in said and not (folder / "chck_20").exists()
    assert f"after {results(folder)['words_seen']:,} words, before chck_1M" in said


def test_an_overwrite_deletes_the_models_at_words_of_the_old_run(workspace: Workspace, counted: Path) -> None:
    folder = workspace.folder / "overwritten"
    shutil.copytree(counted, folder)
    assert run(workspace, folder.name, overwrite_output_dir="true", learning_rate=-1) != 0
    assert same_weights(folder / "chck_60", counted / "chck_60")
    assert run(workspace, folder.name, "100", overwrite_output_dir="true", max_steps=5) == 0
    assert [path.name for path in folder.glob("chck_*")] == ["chck_100"]


def test_a_checkpoint_without_a_word_count_is_refused(
    workspace: Workspace, counted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = workspace.folder / "uncounted"
    shutil.copytree(counted, folder)
    cut_back(folder, 3)
    state = folder / "checkpoint-3" / "trainer_state.json"
    content = json.loads(state.read_text())
    del content["stateful_callbacks"]["WordCounter"]
    state.write_text(json.dumps(content))
    manifest = folder / "checkpoint-3" / "manifest.json"
    facts = json.loads(manifest.read_text())
    facts["files"]["trainer_state.json"] = {"size": state.stat().st_size, "sha256": sha256(state)}
    manifest.write_text(json.dumps(facts))
    assert run(workspace, folder.name, *TARGETS, resume_from_checkpoint="true") == 2
    assert "was saved without a word count" in capsys.readouterr().err
    assert run(workspace, folder.name, resume_from_checkpoint="true") == 0, "without the flag it goes on"
    assert "words_seen" not in results(folder)


@pytest.mark.parametrize("source", ["text", "shards"])
def test_an_epoch_sees_as_many_words_as_the_text_has(workspace: Workspace, tmp_path: Path, source: str) -> None:
    draw = np.random.default_rng(2)
    lines = [" ".join("".join(draw.choice(list("abcdefgh"), 3)) for _ in range(draw.integers(1, 5))) for _ in range(40)]
    text = tmp_path / "text.txt"
    text.write_text("\n".join(lines) + "\n")
    data: dict[str, Any] = {"train_data_file": text, "line_by_line": "true", "train_iterable": None}
    if source == "shards":
        flags = [f"--train_data_file={text}", f"--tokenizer_name={workspace.folder / 'spm.model'}"]
        assert main(["build-dataset", *flags, f"--output_dir={tmp_path / 'shards'}"]) == 0
        data = {"train_data_file": tmp_path / "shards", "train_iterable": None}
    output = f"epoch-{source}"
    changes = {"max_steps": None, "num_train_epochs": 1, "save_steps": 100, "block_size": 64, **data}
    assert run(workspace, output, "50", **changes) == 0
    assert results(workspace.folder / output)["words_seen"] == sum(len(line.split()) for line in lines)
    assert (workspace.folder / output / "chck_50" / "model.safetensors").exists()


def test_with_word_piece_punctuation_counts_as_no_word(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "##s", ".", "a"])
    )
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    starts = word_starts(tokenizer)
    assert int(starts[tokenizer("A dogs. a")["input_ids"]].sum()) == 3


def test_numbers_of_words_are_parsed_and_name_the_folders() -> None:
    assert [parse_words(text) for text in ("1M", "250k", "7", "1B")] == [1_000_000, 250_000, 7, 1_000_000_000]
    assert [checkpoint_name(words) for words in (10**6, 25 * 10**5, 7, 10**9)] == [
        *("chck_1M", "chck_2500K", "chck_7", "chck_1000M")
    ]
    for text in ("0", "1.5M", "M", "-1", "1e6"):
        with pytest.raises(UsageError, match="is not a number of words"):
            parse_words(text)


def test_a_run_of_minutes_equals_a_run_of_the_steps_that_it_measures(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Measuring changes nothing, not even the draws of dropout, and a resumed run does not measure again."""
    config = json.loads((workspace.folder / "config.json").read_text()) | {"hidden_dropout_prob": 0.1}
    (workspace.folder / "dropout.json").write_text(json.dumps(config))
    common = {"config_name": workspace.folder / "dropout.json", "max_steps": None, "save_steps": 2}
    monkeypatch.setattr(pretrain._Stopwatch, "seconds_a_step", property(lambda clock: 60.0 * len(clock.ends)))
    assert run(workspace, "timed", train_minutes=105, **common) == 0
    measured = pretrain._WARM_UP_STEPS + pretrain._MEASURED_STEPS + 1
    steps = results(workspace.folder / "timed")["steps"]
    assert steps == 105 // measured == 7
    assert f"7 steps ({60 * measured} s a step" in capsys.readouterr().err
    assert run(workspace, "stepped", **{**common, "max_steps": steps}) == 0
    assert same_weights(workspace.folder / "timed", workspace.folder / "stepped")

    def measures_again(*_: Any) -> int:
        raise AssertionError

    monkeypatch.setattr(pretrain, "count_steps_in", measures_again)
    cut_back(workspace.folder / "timed", 4)
    assert run(workspace, "timed", resume_from_checkpoint="true", train_minutes=105, **common) == 0
    assert results(workspace.folder / "timed")["steps"] == steps
    assert same_weights(workspace.folder / "timed", workspace.folder / "stepped")
    capsys.readouterr()
    assert run(workspace, "timed", resume_from_checkpoint="true", train_minutes=105, **common) == 0
    assert "the run is finished, 7 of 7" in capsys.readouterr().err
    assert run(workspace, "timed", resume_from_checkpoint="true", train_minutes=90, **common) == 2
    assert "--train_minutes was 105.0 and is now 90.0" in capsys.readouterr().err
    assert run(workspace, "stepped", resume_from_checkpoint="true", train_minutes=90, **common) == 2
    assert "was started with a number of steps" in capsys.readouterr().err


def test_minutes_are_measured_without_evaluation(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    evaluates = {"do_eval": "true", "eval_on_start": "true", "eval_data_file": workspace.folder / "eval.ids"}
    assert run(workspace, "timed-eval", max_steps=None, train_minutes=0.001, **evaluates) == 0
    assert capsys.readouterr().out.count("step 0: eval_loss") == 1, "in the run itself"


@pytest.mark.parametrize("changes", [{"max_steps": 5}, {"num_train_epochs": 2}, {"train_minutes": 0}])
def test_minutes_with_another_budget_are_refused(
    workspace: Workspace, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(workspace, "refused", **{"max_steps": None, "train_minutes": 1, **changes}) == 2
    assert "--train_minutes" in capsys.readouterr().err and not (workspace.folder / "refused").exists()


def test_steps_are_timed_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Trainer:
        class collectives:  # noqa: N801
            from_first = staticmethod(lambda value: value)

    class Control:
        should_training_stop = False

    for costs, expected in (([9.0, 5.0, 5.0, 1.0, 2.0, 3.0], 2.0), ([9.0, 4.0], 4.0)):
        clock = pretrain._Stopwatch(Trainer(), enough=1000.0)  # type: ignore[arg-type]
        clock.ends = np.cumsum([0.0, *costs]).tolist()
        assert clock.seconds_a_step == expected
    clock = pretrain._Stopwatch(Trainer(), enough=0.0)  # type: ignore[arg-type]
    stops = []
    clock.on_train_begin(None, None, None)
    for _ in range(2):
        control = Control()
        clock.on_step_end(None, None, control)
        stops.append(control.should_training_stop)
    assert stops == [False, True], "a step that warms up, and one that is timed"
