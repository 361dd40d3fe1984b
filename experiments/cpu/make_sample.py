"""Draw the text of the experiments in this folder: whole documents, half Wikipedia, half books, by a fixed seed.

    python experiments/cpu/make_sample.py --text wiki.txt.xz books.txt.xz --output_dir sample

writes ``train.txt`` (10 million words) and ``heldout.txt`` (other documents, 50,000 words, up to 200 sentences of each
document), and prints the SHA-256 of both, which must equal those in ``sample.sha256`` in the folder of this script.
Documents are separated by blank lines, words by white space.
"""

import argparse
import hashlib
import lzma
import random
import sys
from pathlib import Path

SEED = 20_211
HASHES = Path(__file__).with_name("sample.sha256")


def read_documents(path: Path) -> list[list[str]]:
    """The documents of a text, each a list of its sentences."""
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8", newline="\n") as file:
        documents = file.read().split("\n\n")
    return [[line for line in document.split("\n") if line.strip()] for document in documents]


def count(sentences: list[str]) -> int:
    """The number of words in sentences."""
    return sum(len(sentence.split()) for sentence in sentences)


def draw(documents: list[list[str]], words: int, longest: int) -> list[list[str]]:
    """Take documents from the end of the list, cut to ``longest`` sentences, until they hold ``words`` words."""
    taken = []
    while words > 0:
        document = documents.pop()[:longest]
        if len(document) > 1:
            taken.append(document)
            words -= count(document)
    return taken


def main() -> None:
    """Draw and write the text, and compare the hashes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="texts, plain or .xz, in equal parts")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--words", type=int, default=10_000_000, help="words of the training text")
    parser.add_argument("--heldout_words", type=int, default=50_000, help="words of the held-out text")
    options = parser.parse_args()

    parts: dict[str, list[list[str]]] = {"train": [], "heldout": []}
    for path in options.text:
        documents = read_documents(path)
        random.Random(SEED).shuffle(documents)
        parts["heldout"] += draw(documents, options.heldout_words // len(options.text), longest=200)
        parts["train"] += draw(documents, options.words // len(options.text), longest=sys.maxsize)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, chosen in parts.items():
        random.Random(SEED).shuffle(chosen)
        content = "\n\n".join("\n".join(document) for document in chosen) + "\n"
        (options.output_dir / f"{name}.txt").write_bytes(content.encode())
        lines.append(f"{hashlib.sha256(content.encode()).hexdigest()}  {name}.txt\n")
        print(f"{name}.txt: {len(chosen):,} documents, {sum(map(count, chosen)):,} words")
    print("".join(lines), end="")
    if HASHES.is_file() and HASHES.read_text() != "".join(lines):
        sys.exit(f"the hashes differ from those of {HASHES}: the texts or the sizes differ")


if __name__ == "__main__":
    main()
