"""A small data set in the exact layout of GLUE, made from the speeches: nine tasks and the diagnostic set (AX).

Each task is a line of ``TASKS``: its folder, the function that makes its examples, which columns hold what, and the
columns of its files. Columns that the demo has nothing for hold ``n/a``, as many do in GLUE.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from random import Random

from bert_convolutions.demo import glue_examples as examples
from bert_convolutions.demo.corpus import Speech, Split

Maker = Callable[[Sequence[Speech], Random], Iterator[examples.Example]]

_MNLI = (
    "index|promptID|pairID|genre|sentence1_binary_parse|sentence2_binary_parse|sentence1_parse|sentence2_parse|"
    "sentence1|sentence2"
)
_STSB = "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2"
_MRPC = "#1 ID|#2 ID|#1 String|#2 String"
_PAIR = "index|sentence1|sentence2"


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


_COLA, _QNLI, _QQP = (
    "source|label|mark|sentence",
    "index|question|sentence",
    "id|qid1|qid2|question1|question2|is_duplicate",
)
TASKS = (
    Task("CoLA", examples.acceptability, "sentence", "label", _COLA, "index|sentence", labelled_header=False),
    Task("SST-2", examples.era, "sentence", "label", "sentence|label", "index|sentence"),
    Task("MRPC", examples.paraphrase, "#1 String|#2 String", "Quality", f"Quality|{_MRPC}", f"index|{_MRPC}"),
    Task("STS-B", examples.similarity, "sentence1|sentence2", "score", f"{_STSB}|score", _STSB),
    Task("QQP", examples.duplicate, "question1|question2", "is_duplicate", _QQP, "id|question1|question2"),
    Task("QNLI", examples.answer, "question|sentence", "label", f"{_QNLI}|label", _QNLI),
    Task("RTE", examples.order, "sentence1|sentence2", "label", f"{_PAIR}|label", _PAIR),
    Task("WNLI", examples.before, "sentence1|sentence2", "label", f"{_PAIR}|label", _PAIR, share=0.06),
)
"""The tasks with one training, one development and one test file; MNLI has two of the last two and stands apart."""
MNLI = Task("MNLI", examples.continuation, "sentence1|sentence2", "gold_label", f"{_MNLI}|label1|gold_label", _MNLI)
_MNLI_DEV = replace(MNLI, train_columns=f"{_MNLI}|label1|label2|label3|label4|label5|gold_label")
DIAGNOSTIC = replace(MNLI, folder="diagnostic", label="label", test_columns=_PAIR)


def write_glue_data(
    parts: Mapping[Split, Sequence[Speech]], output_dir: Path, *, seed: int, num_train: int = 4000, num_eval: int = 500
) -> None:
    """Write all tasks under ``output_dir``, which appears only when it is complete and replaces what stood there.

    Training, development and test files come from the speeches of those parts, so no speech is in two of them. MNLI is
    trained and matched on speeches before 1945 and mismatched on later ones.

    Args:
        parts: The speeches of each part.
        output_dir: The folder to write, as ``--data_dir`` takes it.
        seed: Decides which sentences are taken and how they are changed; the same seed writes the same bytes.
        num_train: Training examples a task; WNLI has 6 % of that. Fewer where the speeches hold no more.
        num_eval: Likewise for each development and test file.
    """
    temporary = output_dir.with_name(output_dir.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    sizes: dict[Split, int] = {"train": num_train, "dev": num_eval, "test": num_eval}
    for task in TASKS:
        for part, size in sizes.items():
            _write_file(temporary, task, part, part, parts[part], round(task.share * size), seed)
    early = {part: [s for s in speeches if s.year < examples.MODERN] for part, speeches in parts.items()}
    late = {part: [s for s in speeches if s.year >= examples.MODERN] for part, speeches in parts.items()}
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
