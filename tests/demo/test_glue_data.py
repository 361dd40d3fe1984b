"""The demo's tasks have GLUE's layout, correct labels, and word orders that a bag of words can't tell apart."""

import csv
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from bert_convolutions.demo.corpus import Speech, split_speeches
from bert_convolutions.demo.glue_data import QUESTIONS, exchange_neighbours, halves, write_glue_data
from bert_convolutions.glue.reading import read_examples
from bert_convolutions.glue.tasks import TASKS

NUM_TRAIN, NUM_EVAL = 300, 100
Parts = dict[str, list[Speech]]


@pytest.fixture(scope="module")
def parts(speeches: list[Speech]) -> Parts:
    return dict(split_speeches(speeches))


@pytest.fixture(scope="module")
def glue(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "glue"
    write_glue_data(parts, folder, seed=7, num_train=NUM_TRAIN, num_eval=NUM_EVAL)
    return folder


def rows(path: Path, header: bool = True) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len({len(line) for line in lines}) == 1
    return lines[1:] if header else lines


# Task, training/development texts and label, test texts: the columns that the original reads (0-based).
COLUMNS = [
    ("CoLA", (3,), 1, (1,), {"0", "1"}),
    ("SST-2", (0,), 1, (1,), {"0", "1"}),
    ("MRPC", (3, 4), 0, (3, 4), {"0", "1"}),
    ("STS-B", (7, 8), -1, (7, 8), None),
    ("QQP", (3, 4), 5, (1, 2), {"0", "1"}),
    ("QNLI", (1, 2), -1, (1, 2), {"entailment", "not_entailment"}),
    ("RTE", (1, 2), -1, (1, 2), {"entailment", "not_entailment"}),
    ("WNLI", (1, 2), -1, (1, 2), {"0", "1"}),
]


@pytest.mark.parametrize(("task", "texts", "label", "test_texts", "labels"), COLUMNS)
def test_files_have_the_columns_of_glue(
    glue: Path, task: str, texts: tuple, label: int, test_texts: tuple, labels: set | None
) -> None:
    assert {path.name for path in (glue / task).iterdir()} == {"train.tsv", "dev.tsv", "test.tsv"}
    for split in ("train", "dev"):
        examples = rows(glue / task / f"{split}.tsv", header=task != "CoLA")
        assert len(examples) >= (6 if task == "WNLI" else 100)
        assert all(len(example[column].split()) >= 4 for example in examples for column in texts)
        found = Counter(example[label] for example in examples)
        if labels is None:
            assert all(0 <= float(value) <= 5 for value in found)
            assert len(found) > 20
        else:
            assert set(found) == labels
            assert max(found.values()) - min(found.values()) <= 1
    for example in rows(glue / task / "test.tsv"):
        assert example[0].isdigit()
        assert all(len(example[column].split()) >= 4 for column in test_texts)


@pytest.mark.parametrize("name", ["train", "dev_matched", "dev_mismatched"])
def test_files_of_mnli_have_the_columns_of_glue(glue: Path, name: str) -> None:
    examples = rows(glue / "MNLI" / f"{name}.tsv")
    assert len(examples[0]) == (12 if name == "train" else 16)
    counts = Counter(example[-1] for example in examples)
    assert set(counts) == {"contradiction", "entailment", "neutral"}
    assert max(counts.values()) - min(counts.values()) <= 1


def test_test_files_have_no_labels(glue: Path) -> None:
    for name in ("test_matched", "test_mismatched"):
        assert {len(example) for example in rows(glue / "MNLI" / f"{name}.tsv")} == {10}
    assert {len(example) for example in rows(glue / "diagnostic" / "diagnostic.tsv")} == {3}


def bag(text: str) -> tuple[str, ...]:
    """The words of a text without their order."""
    return tuple(sorted(re.findall(r"[^\s.]+", text.lower())))


@pytest.mark.parametrize(("task", "texts", "label"), [("CoLA", (3,), 1), ("QQP", (3, 4), 5)])
def test_a_bag_of_words_cannot_solve_the_order_tasks(glue: Path, task: str, texts: tuple, label: int) -> None:
    by_bags = defaultdict(list)
    for example in rows(glue / task / "dev.tsv", header=task != "CoLA"):
        by_bags[tuple(bag(example[column]) for column in texts)].append(example[label])
    assert all(labels.count("0") == labels.count("1") for labels in by_bags.values())


@pytest.fixture(scope="module")
def dev_sentences(parts: Parts) -> dict[str, int]:
    """The year of every sentence of the development speeches."""
    return {sentence: speech.year for speech in parts["dev"] for sentence in speech.sentences}


def test_labels_of_cola_and_sst2_are_correct(glue: Path, dev_sentences: dict[str, int]) -> None:
    for _, label, _, sentence in rows(glue / "CoLA" / "dev.tsv", header=False):
        assert (sentence in dev_sentences) == (label == "1")
        assert (exchange_neighbours(sentence) in dev_sentences) == (label == "0")
    for sentence, label in rows(glue / "SST-2" / "dev.tsv"):
        assert (dev_sentences[sentence] >= 1945) == (label == "1")
        assert (dev_sentences[sentence] < 1880) == (label == "0")


def test_labels_of_mrpc_and_qqp_are_correct(glue: Path, dev_sentences: dict[str, int]) -> None:
    for label, *_, original, changed in rows(glue / "MRPC" / "dev.tsv"):
        assert original in dev_sentences
        (added,) = (Counter(changed.rstrip(".").split()) - Counter(original.rstrip(".").split())).elements()
        assert (added == "not") == (label == "0")
    for *_, changed, original, label in rows(glue / "QQP" / "dev.tsv"):
        assert original in dev_sentences
        kept = iter(original.rstrip(".").split())
        in_order = all(word in kept for word in changed.rstrip(".").split())
        assert in_order == (label == "1")


def test_scores_of_stsb_are_correct(glue: Path) -> None:
    for *_, changed, original, score in rows(glue / "STS-B" / "dev.tsv"):
        pairs = list(zip(original.split(), changed.split(), strict=True))
        assert float(score) == pytest.approx(5 * sum(a == b for a, b in pairs) / len(pairs), abs=6e-4)


def test_labels_of_mnli_and_rte_are_correct(glue: Path, dev_sentences: dict[str, int]) -> None:
    wholes = {halves(sentence): year for sentence, year in dev_sentences.items()}
    for name in ("dev_matched", "dev_mismatched"):
        for *_, first, second, _l1, _l2, _l3, _l4, _l5, label in rows(glue / "MNLI" / f"{name}.tsv"):
            assert ((first, second) in wholes) == (label == "entailment")
            assert ((second, first) in wholes) == (label == "contradiction")
            year = wholes.get((first, second)) or wholes.get((second, first))
            assert year is None or (year >= 1945) == (name == "dev_mismatched")
    for _, first, second, label in rows(glue / "RTE" / "dev.tsv"):
        assert ((first, second) if label == "entailment" else (second, first)) in wholes


def test_labels_of_qnli_and_wnli_are_correct(glue: Path) -> None:
    for _, question, sentence, label in rows(glue / "QNLI" / "dev.tsv"):
        assert bool(QUESTIONS[question].search(sentence)) == (label == "entailment")
    for _, sentence, claim, label in rows(glue / "WNLI" / "dev.tsv"):
        words = re.findall(r"\w+", sentence.lower())
        match = re.fullmatch(r"The word (\w+) stands before the word (\w+)\.", claim)
        assert match is not None
        assert (words.index(match.group(1)) < words.index(match.group(2))) == (label == "1")


def test_no_training_sentence_is_from_a_held_out_speech(glue: Path, parts: Parts) -> None:
    held_out = {sentence for part in ("dev", "test") for speech in parts[part] for sentence in speech.sentences}
    repeated = {sentence for speech in parts["train"] for sentence in speech.sentences} & held_out
    for task, column in (("CoLA", 3), ("SST-2", 0), ("MRPC", 3), ("QQP", 4), ("STS-B", 8)):
        training = {example[column] for example in rows(glue / task / "train.tsv", header=task != "CoLA")}
        assert not (training & held_out) - repeated


def test_equal_seeds_give_equal_files(glue: Path, parts: Parts, tmp_path: Path) -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.tsv")}

    again, other = tmp_path / "again", tmp_path / "other"
    again.mkdir()
    (again / "stale.tsv").write_text("left from before")
    write_glue_data(parts, again, seed=7, num_train=NUM_TRAIN, num_eval=NUM_EVAL)
    write_glue_data(parts, other, seed=8, num_train=NUM_TRAIN, num_eval=NUM_EVAL)
    assert contents(again) == contents(glue)
    assert contents(other).keys() == contents(glue).keys()
    assert contents(other) != contents(glue)
    assert not list(tmp_path.glob("*.tmp"))


def test_glue_reads_every_file(glue: Path) -> None:
    for task in TASKS:
        assert len(read_examples(glue / task.train, task)) > 10
        for dev_set in task.dev:
            assert len(read_examples(glue / dev_set.path, task)) >= 6
        for test_set in task.tests:
            assert len(read_examples(glue / test_set.path, task, test_set)) >= 6
