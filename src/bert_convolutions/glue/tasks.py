"""The nine GLUE tasks and the diagnostic set as a table: columns, labels, metric, files.

Source: the GLUE benchmark's TSV files (Wang et al. 2019) and the original's readers. A task with named columns is read
from a YAML file (``schemas.TaskFile``), a user's or one of SuperGLUE's beside this module, or made from a GLUE task by
``from_dataset``. Imports neither PyTorch nor transformers.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_convolutions.errors import UsageError
from bert_convolutions.parsing import parse, read_yaml
from bert_convolutions.schemas import TaskFile

Texts = tuple[tuple[str | int, ...], ...]
"""For each text its columns, which are joined by a space: names, or numbers from 0 if they have no names."""
LAST = -1
"""The last column of a file according to its header."""
ROUND_SEEDS = (42, 97, 834, 622, 329, 75, 213, 101, 123, 57)
"""Seeds of the ten rounds of ``--task_name=ALL``, as in the original."""
DEFAULT_SEED = 42


@dataclass(frozen=True)
class DevSet:
    """A labelled development file of a task.

    Attributes:
        name: name in :attr:`results`.
        title: column title in the dev table.
        path: path relative to the root of the task's files.
        score: the entry of :attr:`results` by which rounds are compared.
    """

    name: str
    title: str
    path: str
    score: str

    @property
    def results(self) -> str:
        """The name of the file with the scores."""
        return f"eval_results_{self.name}.txt"


@dataclass(frozen=True)
class TestSet:
    """An unlabelled file of the benchmark and its file in the submission.

    Attributes:
        name: name in :attr:`results`.
        path: path relative to the root of the task's files.
        texts: columns of its texts.
        submission: file name that the GLUE site expects.
        rows: number of rows of the official file.
        chosen_by: name of the :class:`DevSet` whose best round is submitted.
    """

    name: str
    path: str
    texts: Texts
    submission: str
    rows: int
    chosen_by: str

    @property
    def results(self) -> str:
        """The name of the file with the predictions."""
        return f"test_results_{self.name}.txt"


@dataclass(frozen=True)
class Task:
    """One fine-tuning task.

    Attributes:
        name: name of the data folder and, followed by the round's number, of the results folder.
        texts: columns of one or two texts in the train and dev files.
        label_column: column of the label in these files.
        labels: labels in the order of their ids; empty for real numbers from 0 to 5.
        metric: name of a function in ``METRICS`` of :mod:`bert_convolutions.glue.predict`.
        train: training file, relative to the root of the task's files.
        dev: development files.
        tests: test files, all predicted by the same fine-tuned model.
        header: whether the train and dev files have a header line (test files always have one).
        starts_from_mnli: whether it starts from the encoder fine-tuned on MNLI in the same round.
        skips_short_lines: whether to skip a few lines with too few columns, which the official QQP files have.
        named: whether its files have named columns or are CoNLL files, unlike GLUE's TSVs.
        root: folder of its files; None for ``--data_dir``.
        dataset: name or folder that ``datasets`` loads, equal to ``root``; None for files.
        numbers: labels in the order of the label numbers in its files; empty if that is the order of ``labels``.
        per_token: whether it is a word-level task: a text is a list of words with a label each.
    """

    name: str
    texts: Texts
    label_column: int | str
    labels: tuple[str, ...]
    metric: str
    train: str
    dev: tuple[DevSet, ...]
    tests: tuple[TestSet, ...]
    header: bool = True
    starts_from_mnli: bool = False
    skips_short_lines: bool = False
    named: bool = False
    root: Path | None = None
    dataset: str | None = None
    numbers: tuple[str, ...] = ()
    per_token: bool = False

    @property
    def num_outputs(self) -> int:
        """Width of the classifier: the number of labels, or 1 for real numbers."""
        return len(self.labels) or 1

    @property
    def is_own(self) -> bool:
        """Whether it is described by a YAML file, a user's or one of SuperGLUE's."""
        return self.named and self.dataset is None


MIN_SCORE, MAX_SCORE = 0.0, 5.0
"""Range of STS-B's real-valued labels."""

_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_SCORES = {
    "accuracy": "eval_acc",
    "accuracy_and_f1": "eval_acc_and_f1",
    "accuracy_and_macro_f1": "eval_acc_and_f1",
    "entity_f1": "eval_f1",
    "matthews": "eval_mcc",
    "correlation": "eval_corr",
}


def _task(
    name: str,
    texts: tuple[int, ...],
    label_column: int,
    labels: tuple[str, ...],
    metric: str,
    test_texts: tuple[int, ...],
    test_rows: int,
    **options: Any,
) -> Task:
    """Make a task with one dev and one test file, named as GLUE names them."""
    short = name.lower()
    dev = DevSet(short, name, f"{name}/dev.tsv", _SCORES[metric])
    test = TestSet(short, f"{name}/test.tsv", _single_columns(test_texts), f"{name}.tsv", test_rows, chosen_by=short)
    train = f"{name}/train.tsv"
    return Task(name, _single_columns(texts), label_column, labels, metric, train, dev=(dev,), tests=(test,), **options)


def _single_columns(columns: tuple[str | int, ...]) -> Texts:
    """Texts of one column each."""
    return tuple((column,) for column in columns)


MNLI = Task(
    "MNLI",
    texts=((8,), (9,)),
    label_column=LAST,
    labels=("contradiction", "entailment", "neutral"),
    metric="accuracy",
    train="MNLI/train.tsv",
    dev=(
        DevSet("mnli", "MNLI-m", "MNLI/dev_matched.tsv", "eval_mnli/acc"),
        DevSet("mnli-mm", "MNLI-mm", "MNLI/dev_mismatched.tsv", "eval_mnli-mm/acc"),
    ),
    tests=(
        TestSet("mnli", "MNLI/test_matched.tsv", ((8,), (9,)), "MNLI-m.tsv", 9796, chosen_by="mnli"),
        TestSet("mnli-mm", "MNLI/test_mismatched.tsv", ((8,), (9,)), "MNLI-mm.tsv", 9847, chosen_by="mnli-mm"),
        TestSet("diagnostic", "diagnostic/diagnostic.tsv", ((1,), (2,)), "AX.tsv", 1104, chosen_by="mnli"),
    ),
)

TASKS: tuple[Task, ...] = (
    MNLI,
    _task("CoLA", (3,), 1, _BINARY, "matthews", (1,), 1063, header=False),
    _task("SST-2", (0,), 1, _BINARY, "accuracy", (1,), 1821),
    _task("MRPC", (3, 4), 0, _BINARY, "accuracy_and_f1", (3, 4), 1725, starts_from_mnli=True),
    _task("STS-B", (7, 8), LAST, (), "correlation", (7, 8), 1379, starts_from_mnli=True),
    _task("QQP", (3, 4), 5, _BINARY, "accuracy_and_f1", (1, 2), 390965, skips_short_lines=True),
    _task("QNLI", (1, 2), LAST, _ENTAILMENT, "accuracy", (1, 2), 5463),
    _task("RTE", (1, 2), LAST, _ENTAILMENT, "accuracy", (1, 2), 3000, starts_from_mnli=True),
    _task("WNLI", (1, 2), LAST, _BINARY, "accuracy", (1, 2), 146),
)
"""The GLUE tasks in the order in which ``--task_name=ALL`` runs them."""

TASK_NAMES = tuple(task.name for task in TASKS)


def all_dev_sets() -> Iterator[tuple[Task, DevSet]]:
    """Yield every development set with its task, in the order of the table."""
    return ((task, dev_set) for task in TASKS for dev_set in task.dev)


def all_test_sets() -> Iterator[tuple[Task, TestSet]]:
    """Yield every test file with its task, in the order of the table."""
    return ((task, test_set) for task in TASKS for test_set in task.tests)


SUPERGLUE = ("BoolQ", "CB", "WiC")


def find_task(name: str) -> Task:
    """The task of a name in any case, or of a YAML file.

    Raises:
        UsageError: there is no such task (lists the tasks), or the file doesn't describe one.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        return own_task(Path(name), Path(name).parent)
    for task in TASKS:
        if task.name.lower() == name.lower():
            return task
    for shipped in SUPERGLUE:
        if shipped.lower() == name.lower():
            return own_task(Path(__file__).parent / "superglue" / f"{shipped}.yaml", None)
    raise UsageError(
        f"--task_name: there is no GLUE task {name!r}; choose from {', '.join((*TASK_NAMES, *SUPERGLUE))}, "
        f"a list such as RTE,MRPC, ALL, or the path of your own task's .yaml file"
    )


def own_task(path: Path, root: Path | None) -> Task:
    """The task that a YAML file describes; its data files are in ``root`` or, if None, in ``--data_dir``.

    Raises:
        UsageError: names the file and the key.
    """
    where = f"--task_name {path}"
    read = parse(TaskFile, read_yaml(path, where), where)
    if read.metric == "entity_f1":
        import seqeval  # noqa: F401 - fails before the training, not after it
    name = read.name or path.stem
    if root is not None and name.lower() in {known.lower() for known in (*TASK_NAMES, *SUPERGLUE)}:
        raise UsageError(f"{where}: name: {name} is the name of another task; choose a different one")
    tokens = read.columns.tokens
    texts: Texts = tuple(map(tuple, read.columns.text)) if tokens is None else ((tokens,),)
    return Task(
        name,
        texts,
        read.columns.label,
        tuple(read.labels),
        read.metric,
        read.files.train,
        dev=(DevSet(name, name, read.files.dev, _SCORES[read.metric]),),
        tests=(TestSet(name, read.files.test, texts, "", 0, chosen_by=name),) if read.files.test else (),
        named=True,
        root=root,
        per_token=tokens is not None,
    )


_PAIR = ("sentence1", "sentence2")
_DATASET_COLUMNS = {  # task: configuration and text columns of nyu-mll/glue
    "MNLI": ("mnli", ("premise", "hypothesis")),
    "CoLA": ("cola", ("sentence",)),
    "SST-2": ("sst2", ("sentence",)),
    "MRPC": ("mrpc", _PAIR),
    "STS-B": ("stsb", _PAIR),
    "QQP": ("qqp", ("question1", "question2")),
    "QNLI": ("qnli", ("question", "sentence")),
    "RTE": ("rte", _PAIR),
    "WNLI": ("wnli", _PAIR),
}


def from_dataset(task: Task, dataset: str) -> Task:
    """A GLUE task that reads a dataset in the layout of ``nyu-mll/glue`` instead of TSV files.

    Raises:
        UsageError: it isn't a GLUE task.
    """
    if task.name not in _DATASET_COLUMNS:
        raise UsageError(f"--dataset has only GLUE's tasks, not {task.name}, whose YAML file names its files")
    configuration, columns = _DATASET_COLUMNS[task.name]
    texts = _single_columns(columns)

    def split(config: str, file: str) -> str:
        return f"{config}/{Path(file).stem.replace('dev', 'validation').replace('diagnostic', 'test')}"

    def renamed(test: TestSet) -> TestSet:
        config = "ax" if test.name == "diagnostic" else configuration
        return dataclasses.replace(test, path=split(config, test.path), texts=texts)

    return dataclasses.replace(
        task,
        texts=texts,
        label_column="label",
        train=split(configuration, task.train),
        dev=tuple(dataclasses.replace(dev_set, path=split(configuration, dev_set.path)) for dev_set in task.dev),
        tests=tuple(map(renamed, task.tests)),
        named=True,
        root=Path(dataset),
        dataset=dataset,
        numbers=("entailment", "neutral", "contradiction") if task.name == "MNLI" else (),
    )


def parse_tasks(task_name: str, dataset: str | None = None) -> tuple[Task, ...]:
    """The tasks that ``--task_name`` and ``--dataset`` ask for, each once: GLUE's in order, then those of YAML files.

    Raises:
        UsageError: an unknown or empty name, a bad YAML file, or two tasks with the same name.
    """
    words = TASK_NAMES if task_name.strip().lower() == "all" else task_name.split(",")
    found: dict[str, Task] = {}
    for word in words:
        task = find_task(word.strip())
        if found.setdefault(task.name.lower(), task) != task:  # some disks ignore case
            raise UsageError(f"--task_name: two tasks are called {task.name}; give one another name: in its YAML file")
    tasks = sorted(found.values(), key=lambda task: TASK_NAMES.index(task.name) if not task.named else len(TASKS))
    return tuple(from_dataset(task, dataset) if dataset else task for task in tasks)


def round_seed(round_number: int, seed: int) -> int:
    """The seed of a round: the original's, plus ``--seed`` if that is not the default 42."""
    return ROUND_SEEDS[round_number] + (seed if seed != DEFAULT_SEED else 0)
