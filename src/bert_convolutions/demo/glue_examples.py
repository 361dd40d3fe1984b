"""Examples of nine tasks made from sentences, with labels that are true because of how each example was made.

Most examples come as twins: from one sentence one example of either label, so that the labels balance. CoLA and QQP
are about word order alone: there each text has the same words in both twins, so a model that sees bags of words scores
exactly as well as chance. Where one of two texts is changed, it is the first: pre-training sees the first token type
only, so a small model reads the first text better. Each function takes speeches and a random generator and yields
``(texts, label)``.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from random import Random

from bert_convolutions.demo.corpus import Speech

Example = tuple[tuple[str, ...], str]
"""One or two texts, and the label as the GLUE files spell it."""

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
    found = {
        sentence: None
        for speech in speeches
        for sentence in speech.sentences
        if shortest <= len(sentence.split()) <= longest
        and sentence[0].isupper()
        and sentence.endswith(".")
        and not re.search(r"[\"“”•\[\]\t;:—]", sentence)
    }
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
