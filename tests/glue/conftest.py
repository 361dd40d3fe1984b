"""A GLUE folder of a few rows in GLUE's own layout, and tiny models with a tokenizer for it."""

import random
from pathlib import Path

import pytest
from tokenizers import models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast, set_seed

from bert_convolutions import CompositeBertConfig, CompositeBertForMaskedLM
from tests.helpers import TINY, fast_tokenizer

WORDS = [f"w{number}" for number in range(40)]
ROWS = {"train": 24, "dev": 10, "test": 7}


def sentence(generator: random.Random) -> str:
    return " ".join(generator.choices(WORDS, k=generator.choice([1, 2, 3, 5, 8, 13, 21])))


def write_rows(path: Path, header: str | None, rows: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ([header] if header else []) + ["\t".join(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


MNLI_HEADER = "index\tpromptID\tpairID\tgenre\tb1\tb2\tp1\tp2\tsentence1\tsentence2"
STS_HEADER = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
LAYOUT = {
    # task: (train header, row of two texts and a label, test header, test row, labels)
    "CoLA": (None, lambda i, a, b, y: ["src", y, "", a], "index\tsentence", lambda i, a, b: [i, a], "01"),
    "SST-2": ("sentence\tlabel", lambda i, a, b, y: [a, y], "index\tsentence", lambda i, a, b: [i, a], "01"),
    "MRPC": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        lambda i, a, b, y: [y, "1", "2", a, b],
        "index\t#1 ID\t#2 ID\t#1 String\t#2 String",
        lambda i, a, b: [i, "1", "2", a, b],
        "01",
    ),
    "STS-B": (
        STS_HEADER + "\tscore",
        lambda i, a, b, y: [i, *["n"] * 6, a, b, y],
        STS_HEADER,
        lambda i, a, b: [i, *["n"] * 6, a, b],
        ["0.000", "1.250", "3.800", "5.000"],
    ),
    "QQP": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        lambda i, a, b, y: [i, "1", "2", a, b, y],
        "id\tquestion1\tquestion2",
        lambda i, a, b: [i, a, b],
        "01",
    ),
    "QNLI": (
        "index\tquestion\tsentence\tlabel",
        lambda i, a, b, y: [i, a, b, y],
        "index\tquestion\tsentence",
        lambda i, a, b: [i, a, b],
        ["entailment", "not_entailment"],
    ),
    "MNLI": (
        MNLI_HEADER + "\tlabel1\tgold_label",
        lambda i, a, b, y: [i, *["n/a"] * 7, a, b, "neutral", y],
        MNLI_HEADER,
        lambda i, a, b: [i, *["n/a"] * 7, a, b],
        ["contradiction", "entailment", "neutral"],
    ),
}
LAYOUT["RTE"] = LAYOUT["QNLI"]
LAYOUT["WNLI"] = (*LAYOUT["QNLI"][:4], "01")
SPLITS = {
    "MNLI": {
        "train": ["train"],
        "dev": ["dev_matched", "dev_mismatched"],
        "test": ["test_matched", "test_mismatched"],
    }
}


def write_glue(folder: Path, seed: int = 0) -> Path:
    """Nine tasks and the diagnostic set with random labels; 24 train, 10 dev and 7 test rows each."""
    generator = random.Random(seed)
    for task, (header, row, test_header, test_row, labels) in LAYOUT.items():
        for split, names in SPLITS.get(task, {name: [name] for name in ROWS}).items():
            for name in names:
                rows = []
                for number in range(ROWS[split]):
                    a, b = sentence(generator), sentence(generator)
                    if split == "test":
                        rows.append(test_row(str(number), a, b))
                    else:
                        rows.append(row(str(number), a, b, labels[number % len(labels)]))
                write_rows(folder / task / f"{name}.tsv", test_header if split == "test" else header, rows)
    rows = [[str(number), sentence(generator), sentence(generator)] for number in range(ROWS["test"])]
    write_rows(folder / "diagnostic" / "diagnostic.tsv", "index\tsentence1\tsentence2", rows)
    return folder


def make_tokenizer() -> PreTrainedTokenizerFast:
    return fast_tokenizer(models.WordLevel, pre_tokenizers.Whitespace(), WORDS)


@pytest.fixture(scope="session")
def glue_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_glue(tmp_path_factory.mktemp("glue"))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A pre-trained BERT in a folder whose name must not be taken for a step to resume from."""
    folder = tmp_path_factory.mktemp("pretrained") / "checkpoint-1000"
    set_seed(0)
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **TINY, max_position_embeddings=64)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def composite_dir(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A pre-trained composite-attention model with every kind of convolution and no position embeddings."""
    folder = tmp_path_factory.mktemp("composite")
    set_seed(0)
    config = CompositeBertConfig(
        vocab_size=len(tokenizer),
        embedding_size=8,
        **TINY,
        attention_kernel="qk_convfixed_convq_convk_convolution 3",
        value_forward="convolution_depth_mixed 3 2",
        remove_position_embeddings=True,
    )
    CompositeBertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
