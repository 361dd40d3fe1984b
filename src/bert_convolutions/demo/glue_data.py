"""A small data set in the exact layout of GLUE, made from the speeches: nine tasks and the diagnostic set (AX).

The labels are true because of how each example is made. Most examples come as twins: from one sentence one example of
either label, so that the labels balance. CoLA and QQP are about word order alone: both twins have the same words, so a
model that sees bags of words scores exactly as well as chance. Where one of two texts is changed, it is the first:
pre-training sees the first token type only, so a small model reads the first text better.

Each task is a line of ``TASKS``: its folder, the function that makes its examples, which columns hold what, and the
columns of its files. Columns that the demo has nothing for hold ``n/a``, as many do in GLUE.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from random import Random

from bert_convolutions.demo.corpus import Speech, Split

Example = tuple[tuple[str, ...], str]
"""One or two texts, and the label as the GLUE files spell it."""
Maker = Callable[[Sequence[Speech], Random], Iterator[Example]]

OLD, MODERN = 1880, 1945
"""Years that part the eras: SST-2 tells speeches before 1880 from those since 1945; MNLI's two genres part at 1945."""

QUESTIONS = {
    "How much money was it?": re.compile(r"\$ ?\d"),
    "In which year was it?": re.compile(r"\b(?:1[789]\d\d|20[012]\d)\b"),
    "Which country is it about?": re.compile(
        r"\b(?:Great Britain|England|France|Spain|Mexico|Germany|Russia|China|Japan|Cuba|Italy|Iraq|Korea|Vietnam"
        r"|Brazil|Chile|Austria|Turkey)\b"
    ),
}
"""QNLI's questions, each with what an answer to it looks like."""

_AUXILIARY = re.compile(r"\b(?:is|are|was|were|will|must|should|would|can|may)(?= )")
_NEGATION = re.compile(r"\b(?:not|no|never|nor|neither|none|nothing|cannot)\b|n't", re.IGNORECASE)
_EMPHASES = ("indeed", "certainly", "surely")


def plain_sentences(speeches: Sequence[Speech], rng: Random, shortest: int = 8, longest: int = 16) -> list[str]:
    """The distinct sentences of ``shortest`` to ``longest`` words that look like ordinary prose, in random order."""
    found = dict.fromkeys(
        sentence
        for speech in speeches
        for sentence in speech.sentences
        if shortest <= len(sentence.split()) <= longest
        and sentence[0].isupper()
        and sentence.endswith(".")
        and not re.search(r"[\"“”•\[\]\t;:—]", sentence)
    )
    sentences = list(found)
    rng.shuffle(sentences)
    return sentences


def exchange_neighbours(text: str) -> str:
    """Exchange the 1st word with the 2nd, the 3rd with the 4th and so on; a final full stop stays at the end."""
    words = text.removesuffix(".").split()
    for left in range(0, len(words) - 1, 2):
        words[left], words[left + 1] = words[left + 1], words[left]
    return " ".join(words) + ("." if text.endswith(".") else "")


def halves(sentence: str) -> tuple[str, str]:
    """Cut a sentence in the middle, without its final full stop; the second half is the longer of two unequal ones."""
    words = sentence.removesuffix(".").split()
    middle = len(words) // 2
    return " ".join(words[:middle]), " ".join(words[middle:])


def acceptability(speeches: Sequence[Speech], rng: Random) -> Iterator[Example]:
    """CoLA: a sentence as it was spoken (1), and the same words with neighbours exchanged (0)."""
    for sentence in plain_sentences(speeches, rng):
        if exchange_neighbours(sentence) != sentence:
            yield (sentence,), "1"
            yield (exchange_neighbours(sentence),), "0"


def era(speeches: Sequence[Speech], rng: Random) -> Iterator[Example]:
    """SST-2: a sentence of a speech since 1945 (1), and one of a speech before 1880 (0)."""
    old = plain_sentences([speech for speech in speeches if speech.year < OLD], rng)
    modern = plain_sentences([speech for speech in speeches if speech.year >= MODERN], rng)
    for old_sentence, modern_sentence in zip(old, modern, strict=False):
        yield (modern_sentence,), "1"
        yield (old_sentence,), "0"


def paraphrase(speeches: Sequence[Speech], rng: Random) -> Iterator[Example]:
    """MRPC: a sentence and itself with emphasis (1: "is indeed"), or with its first auxiliary negated (0: "is not")."""
    for sentence in plain_sentences(speeches, rng):
        auxiliary = _AUXILIARY.search(sentence)
        if auxiliary is None or _NEGATION.search(sentence):
            continue
        before, after = sentence[: auxiliary.end()], sentence[auxiliary.end() :]
        yield (sentence, f"{before} {rng.choice(_EMPHASES)}{after}"), "1"
        yield (sentence, f"{before} not{after}"), "0"


def similarity(speeches: Sequence[Speech], rng: Random) -> Iterator[Example]:
    """STS-B: a sentence with some words replaced where they stand, and as it was; 5 times the share that was kept."""
    for sentence, other in pairwise(plain_sentences(speeches, rng)):
        words, strange = sentence.split(), re.findall(r"[a-z]+", other.lower())
        replaced = rng.sample(range(len(words)), rng.randint(0, len(words)))
        changed = list(words)
        for place in replaced:
            changed[place] = rng.choice([word for word in strange if word != words[place]])
        yield (" ".join(changed), sentence), f"{5 * (1 - len(replaced) / len(words)):.3f}"


def duplicate(speeches: Sequence[Speech], rng: Random) -> Iterator[Example]:
    """QQP: a sentence less one word, the others in their order (1) or neighbours exchanged (0), and the sentence."""
    for sentence in plain_sentences(speeches, rng):
        words = sentence.split()
        del words[rng.randrange(len(words) - 1)]
        shorter = " ".join(words)
        if exchange_neighbours(shorter) != shorter:
            yield (shorter, sentence), "1"
            yield (exchange_neighbours(shorter), sentence), "0"


def continuation(speeches: Sequence[Speech], rng: Random) -> Iterator[Example]:
    """MNLI: the second text goes on from the first (entailment), comes before it (contradiction), or is from elsewhere.

    The texts are the two halves of one sentence; for the neutral label, halves of two different sentences, each the
    first or the second.
    """
    for sentence, other in pairwise(plain_sentences(speeches, rng, 10, 24)):
        first, second = halves(sentence)
        yield (first, second), "entailment"
        yield (second, first), "contradiction"
        yield (rng.choice((first, second)), rng.choice(halves(other))), "neutral"


def answer(speeches: Sequence[Speech], rng: Random) -> Iterator[Example]:
    """QNLI: whether a sentence answers the question: it names a sum of money, a year or a country, one of the three."""
    for sentence in plain_sentences(speeches, rng, 8, 22):
        answered = [question for question, pattern in QUESTIONS.items() if pattern.search(sentence)]
        if len(answered) == 1:
            yield (answered[0], sentence), "entailment"
            yield (
                (rng.choice([question for question in QUESTIONS if question not in answered]), sentence),
                "not_entailment",
            )


def order(speeches: Sequence[Speech], rng: Random) -> Iterator[Example]:
    """RTE: the halves of a sentence, in their order (entailment) or exchanged (not_entailment)."""
    for sentence in plain_sentences(speeches, rng, 10, 24):
        first, second = halves(sentence)
        yield (first, second), "entailment"
        yield (second, first), "not_entailment"


def before(speeches: Sequence[Speech], rng: Random) -> Iterator[Example]:
    """WNLI: whether one word of the sentence stands before another; tiny and hard, like the task it stands for."""
    for sentence in plain_sentences(speeches, rng):
        words = re.findall(r"\w+", sentence.lower())
        long_words = [word for word in words if len(word) >= 5 and words.count(word) == 1]
        if len(long_words) < 2:
            continue
        early, late = sorted(rng.sample(long_words, 2), key=words.index)
        yield (sentence, f"The word {early} stands before the word {late}."), "1"
        yield (sentence, f"The word {late} stands before the word {early}."), "0"


_MNLI = (
    "index|promptID|pairID|genre|sentence1_binary_parse|sentence2_binary_parse|sentence1_parse|sentence2_parse|"
    "sentence1|sentence2"
)
_STSB = "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2"
_MRPC = "#1 ID|#2 ID|#1 String|#2 String"
_PAIR = "index|sentence1|sentence2"
_COLA = "source|label|mark|sentence"
_QNLI = "index|question|sentence"
_QQP = "id|qid1|qid2|question1|question2|is_duplicate"


@dataclass(frozen=True)
class Task:
    """One task: how its examples are made and how its files are laid out. Columns are parted by ``|``.

    ``texts`` and ``label`` are the columns that hold them; the test file has no label. All but CoLA's training and
    development files show their header. ``share``: examples for each of an ordinary task.
    """

    folder: str
    make: Maker
    texts: str
    label: str
    train_columns: str
    test_columns: str
    labelled_header: bool = True
    share: float = 1.0


TASKS = (
    Task("CoLA", acceptability, "sentence", "label", _COLA, "index|sentence", labelled_header=False),
    Task("SST-2", era, "sentence", "label", "sentence|label", "index|sentence"),
    Task("MRPC", paraphrase, "#1 String|#2 String", "Quality", f"Quality|{_MRPC}", f"index|{_MRPC}"),
    Task("STS-B", similarity, "sentence1|sentence2", "score", f"{_STSB}|score", _STSB),
    Task("QQP", duplicate, "question1|question2", "is_duplicate", _QQP, "id|question1|question2"),
    Task("QNLI", answer, "question|sentence", "label", f"{_QNLI}|label", _QNLI),
    Task("RTE", order, "sentence1|sentence2", "label", f"{_PAIR}|label", _PAIR),
    Task("WNLI", before, "sentence1|sentence2", "label", f"{_PAIR}|label", _PAIR, share=0.06),
)
"""The tasks with one training, one development and one test file; MNLI has two of the last two and stands apart."""
MNLI = Task("MNLI", continuation, "sentence1|sentence2", "gold_label", f"{_MNLI}|label1|gold_label", _MNLI)
_MNLI_DEV = replace(MNLI, train_columns=f"{_MNLI}|label1|label2|label3|label4|label5|gold_label")
DIAGNOSTIC = replace(MNLI, folder="diagnostic", label="label", test_columns=_PAIR)


def write_glue_data(
    parts: Mapping[Split, Sequence[Speech]], output_dir: Path, *, seed: int, num_train: int, num_eval: int
) -> None:
    """Write all tasks under ``output_dir``, which appears only when it is complete and replaces what stood there.

    Training, development and test files come from the speeches of those parts, so no speech is in two of them. MNLI is
    trained and matched on speeches before 1945 and mismatched on later ones. Files have ``num_train`` or ``num_eval``
    examples, WNLI's 6 % of that; fewer where the speeches hold no more. The same seed writes the same bytes.
    """
    temporary = output_dir.with_name(output_dir.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    sizes: dict[Split, int] = {"train": num_train, "dev": num_eval, "test": num_eval}
    for task in TASKS:
        for part, size in sizes.items():
            _write_file(temporary, task, part, part, parts[part], round(task.share * size), seed)
    early = {part: [s for s in speeches if s.year < MODERN] for part, speeches in parts.items()}
    late = {part: [s for s in speeches if s.year >= MODERN] for part, speeches in parts.items()}
    _write_file(temporary, MNLI, "train", "train", early["train"], num_train, seed)
    held_out: tuple[Split, Split] = ("dev", "test")
    for part in held_out:
        _write_file(temporary, _MNLI_DEV, f"{part}_matched", part, early[part], num_eval, seed)
        _write_file(temporary, _MNLI_DEV, f"{part}_mismatched", part, late[part], num_eval, seed)
    _write_file(temporary, DIAGNOSTIC, "diagnostic", "test", parts["test"], num_eval, seed)
    if output_dir.exists():
        shutil.rmtree(output_dir)
    temporary.rename(output_dir)


def _write_file(
    folder: Path, task: Task, name: str, part: Split, speeches: Sequence[Speech], size: int, seed: int
) -> None:
    """Write ``size`` examples of a task, shuffled, to ``<task>/<name>.tsv``; the test part without labels."""
    rng = Random(f"{seed} {task.folder} {name}")
    chosen = list(islice(task.make(speeches, rng), size))
    rng.shuffle(chosen)
    columns = (task.test_columns if part == "test" else task.train_columns).split("|")
    lines = ["\t".join(columns)] if part == "test" or task.labelled_header else []
    for index, (texts, label) in enumerate(chosen):
        values = {"index": str(index), "id": str(index), "mark": "", task.label: label, "label1": label}
        values |= dict(zip(task.texts.split("|"), texts, strict=True))
        lines.append("\t".join(values.get(column, "n/a") for column in columns))
    path = folder / task.folder / f"{name}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
