"""A small dataset in the exact layout of GLUE, made from the speeches: nine tasks and the diagnostic set (AX).

The labels are correct by construction. Most examples come in pairs: one example of either label from the same sentence,
so that labels are balanced. CoLA and QQP depend only on word order: both examples have the same words, so a
bag-of-words model scores exactly at chance. If one of two texts is changed, it is the first: pre-training uses only the
first token type, so a small model represents the first text better.

Each task is a line of ``TASKS``: its folder, the function that makes its examples, the columns of texts and labels, and
the columns of its files. Columns without a value in the demo hold ``n/a``, as many do in GLUE.
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
"""One or two texts, and the label as spelt in GLUE's files."""
Maker = Callable[[Sequence[Speech], Random], Iterator[Example]]

OLD, MODERN = 1880, 1945
"""Years that separate eras: SST-2's speeches before 1880 and since 1945; MNLI's genres before and since 1945."""

QUESTIONS = {
    "How much money was it?": re.compile(r"\$ ?\d"),
    "In which year was it?": re.compile(r"\b(?:1[789]\d\d|20[012]\d)\b"),
    "Which country is it about?": re.compile(
        r"\b(?:Great Britain|England|France|Spain|Mexico|Germany|Russia|China|Japan|Cuba|Italy|Iraq|Korea|Vietnam"
        r"|Brazil|Chile|Austria|Turkey)\b"
    ),
}
"""QNLI's questions, each with a pattern of its answers."""

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
    """Swap the 1st word with the 2nd, the 3rd with the 4th and so on; a final full stop stays at the end."""
    words = text.removesuffix(".").split()
    for left in range(0, len(words) - 1, 2):
        words[left], words[left + 1] = words[left + 1], words[left]
    return " ".join(words) + ("." if text.endswith(".") else "")


def halves(sentence: str) -> tuple[str, str]:
    """Split a sentence in the middle, without its final full stop; the second half may be one word longer."""
    words = sentence.removesuffix(".").split()
    middle = len(words) // 2
    return " ".join(words[:middle]), " ".join(words[middle:])


def acceptability(speeches: Sequence[Speech], rng: Random) -> Iterator[Example]:
    """CoLA: a sentence (1), and the same words with neighbours swapped (0)."""
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
    """STS-B: a sentence with some words replaced, and the sentence; the score is 5 times the fraction kept."""
    for sentence, other in pairwise(plain_sentences(speeches, rng)):
        words, strange = sentence.split(), re.findall(r"[a-z]+", other.lower())
        replaced = rng.sample(range(len(words)), rng.randint(0, len(words)))
        changed = list(words)
        for position in replaced:
            changed[position] = rng.choice([word for word in strange if word != words[position]])
        yield (" ".join(changed), sentence), f"{5 * (1 - len(replaced) / len(words)):.3f}"


def duplicate(speeches: Sequence[Speech], rng: Random) -> Iterator[Example]:
    """QQP: a sentence without one word, in order (1) or with neighbours swapped (0), and the sentence."""
    for sentence in plain_sentences(speeches, rng):
        words = sentence.split()
        del words[rng.randrange(len(words) - 1)]
        shorter = " ".join(words)
        if exchange_neighbours(shorter) != shorter:
            yield (shorter, sentence), "1"
            yield (exchange_neighbours(shorter), sentence), "0"


def continuation(speeches: Sequence[Speech], rng: Random) -> Iterator[Example]:
    """MNLI: the second text continues the first (entailment), precedes it (contradiction), or is unrelated (neutral).

    The texts are the two halves of a sentence; for the neutral label, halves of two different sentences.
    """
    for sentence, other in pairwise(plain_sentences(speeches, rng, 10, 24)):
        first, second = halves(sentence)
        yield (first, second), "entailment"
        yield (second, first), "contradiction"
        yield (rng.choice((first, second)), rng.choice(halves(other))), "neutral"


def answer(speeches: Sequence[Speech], rng: Random) -> Iterator[Example]:
    """QNLI: whether a sentence, which contains a sum of money, a year or a country, answers the question."""
    for sentence in plain_sentences(speeches, rng, 8, 22):
        answered = [question for question, pattern in QUESTIONS.items() if pattern.search(sentence)]
        if len(answered) == 1:
            yield (answered[0], sentence), "entailment"
            yield (
                (rng.choice([question for question in QUESTIONS if question not in answered]), sentence),
                "not_entailment",
            )


def order(speeches: Sequence[Speech], rng: Random) -> Iterator[Example]:
    """RTE: the halves of a sentence in order (entailment) or swapped (not_entailment)."""
    for sentence in plain_sentences(speeches, rng, 10, 24):
        first, second = halves(sentence)
        yield (first, second), "entailment"
        yield (second, first), "not_entailment"


def before(speeches: Sequence[Speech], rng: Random) -> Iterator[Example]:
    """WNLI: whether one word of the sentence precedes another; small and hard, like the original task."""
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
    """One task: the function that makes its examples, and its columns, separated by ``|``.

    ``texts`` and ``label`` name their columns; the test file has no label. CoLA's training and development files have
    no header. ``share`` is the number of examples relative to an ordinary task.
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
"""The tasks with one training, one development and one test file; MNLI has two of the last two."""
MNLI = Task("MNLI", continuation, "sentence1|sentence2", "gold_label", f"{_MNLI}|label1|gold_label", _MNLI)
_MNLI_DEV = replace(MNLI, train_columns=f"{_MNLI}|label1|label2|label3|label4|label5|gold_label")
DIAGNOSTIC = replace(MNLI, folder="diagnostic", label="label", test_columns=_PAIR)


def write_glue_data(
    parts: Mapping[Split, Sequence[Speech]], output_dir: Path, *, seed: int, num_train: int, num_eval: int
) -> None:
    """Write all tasks to ``output_dir``, which is replaced atomically.

    Training, development and test files come from the speeches of those parts, so no speech is in two of them. MNLI's
    training and matched files use speeches before 1945, the mismatched ones later ones. Files have ``num_train`` or
    ``num_eval`` examples, WNLI's 6 % of that, or fewer if there is too little text. A seed always gives the same bytes.
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
    """Write ``size`` shuffled examples of a task to ``<task>/<name>.tsv``; the test part has no labels."""
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
