"""The nine GLUE tasks and the diagnostic set as a table: columns, labels, metric, files.

Source: the GLUE benchmark's TSV files (Wang et al. 2019) and the original's readers. A new task is one entry here.
Imports neither torch nor transformers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from bert_convolutions.errors import UsageError

LAST = -1
"""The last column of a file, as its header counts them."""
ROUND_SEEDS = (42, 97, 834, 622, 329, 75, 213, 101, 123, 57)
"""Seeds of the ten rounds of ``--task_name=ALL``, as in the original."""
DEFAULT_SEED = 42


@dataclass(frozen=True)
class DevSet:
    """A labelled development file of a task.

    Attributes:
        name: as in ``eval_results_<name>.txt``.
        title: column of the dev table.
        file: path below the task's folder.
        score: the entry of ``eval_results_<name>.txt`` by which rounds are compared.
    """

    name: str
    title: str
    file: str
    score: str


@dataclass(frozen=True)
class TestSet:
    """An unlabelled file of the benchmark and the file of the submission that it becomes.

    Attributes:
        name: as in ``test_results_<name>.txt``.
        path: path below the data folder.
        texts: columns of the texts, 0-based.
        submission: file name that the GLUE site expects.
        rows: rows of the official file.
        chosen_by: name of the :class:`DevSet` whose best round is submitted.
    """

    name: str
    path: str
    texts: tuple[int, ...]
    submission: str
    rows: int
    chosen_by: str


@dataclass(frozen=True)
class Task:
    """One fine-tuning task.

    Attributes:
        name: folder of the data, and of the results before the round's number.
        texts: columns of one or two texts in the train and dev files, 0-based.
        label_column: column of the label there, 0-based or ``LAST``.
        labels: label words in the order of their ids; empty for real numbers from 0 to 5.
        metric: name of a function in ``METRICS`` of :mod:`bert_convolutions.glue.predict`.
        dev: development files.
        tests: test files, all predicted by the same fine-tuned model.
        header: whether the train and dev files have a header line (test files always have one).
        starts_from_mnli: whether it starts from the encoder fine-tuned on MNLI in the same round.
        skips_short_lines: whether a few lines with too few columns are skipped, as the official QQP files need.
    """

    name: str
    texts: tuple[int, ...]
    label_column: int
    labels: tuple[str, ...]
    metric: str
    dev: tuple[DevSet, ...]
    tests: tuple[TestSet, ...]
    header: bool = True
    starts_from_mnli: bool = False
    skips_short_lines: bool = False

    @property
    def train_path(self) -> str:
        """Path of the training file below the data folder."""
        return f"{self.name}/train.tsv"

    @property
    def num_outputs(self) -> int:
        """Width of the classifier: the number of labels, or 1 for real numbers."""
        return len(self.labels) or 1

    def dev_path(self, dev_set: DevSet) -> str:
        """Path of a development file below the data folder."""
        return f"{self.name}/{dev_set.file}"


MIN_SCORE, MAX_SCORE = 0.0, 5.0
"""Range of STS-B's real-valued labels."""

_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_SCORES = {
    "accuracy": "eval_acc",
    "accuracy_and_f1": "eval_acc_and_f1",
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
    header: bool = True,
    starts_from_mnli: bool = False,
    skips_short_lines: bool = False,
) -> Task:
    """Make a task with one dev and one test file, named as GLUE names them."""
    short = name.lower()
    return Task(
        name,
        texts,
        label_column,
        labels,
        metric,
        dev=(DevSet(short, name, "dev.tsv", _SCORES[metric]),),
        tests=(TestSet(short, f"{name}/test.tsv", test_texts, f"{name}.tsv", test_rows, chosen_by=short),),
        header=header,
        starts_from_mnli=starts_from_mnli,
        skips_short_lines=skips_short_lines,
    )


MNLI = Task(
    "MNLI",
    texts=(8, 9),
    label_column=LAST,
    labels=("contradiction", "entailment", "neutral"),
    metric="accuracy",
    dev=(
        DevSet("mnli", "MNLI-m", "dev_matched.tsv", "eval_mnli/acc"),
        DevSet("mnli-mm", "MNLI-mm", "dev_mismatched.tsv", "eval_mnli-mm/acc"),
    ),
    tests=(
        TestSet("mnli", "MNLI/test_matched.tsv", (8, 9), "MNLI-m.tsv", 9796, chosen_by="mnli"),
        TestSet("mnli-mm", "MNLI/test_mismatched.tsv", (8, 9), "MNLI-mm.tsv", 9847, chosen_by="mnli-mm"),
        TestSet("diagnostic", "diagnostic/diagnostic.tsv", (1, 2), "AX.tsv", 1104, chosen_by="mnli"),
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
"""In the order in which ``--task_name=ALL`` runs them."""

TASK_NAMES = tuple(task.name for task in TASKS)


def all_dev_sets() -> Iterator[tuple[Task, DevSet]]:
    """Yield every development file with its task, in the order of the table."""
    return ((task, dev_set) for task in TASKS for dev_set in task.dev)


def all_test_sets() -> Iterator[tuple[Task, TestSet]]:
    """Yield every test file with its task, in the order of the table."""
    return ((task, test_set) for task in TASKS for test_set in task.tests)


def find_task(name: str) -> Task:
    """Return the task of a name, upper and lower case alike.

    Raises:
        UsageError: no such task; the message lists the tasks.
    """
    by_name = {task.name.lower(): task for task in TASKS}
    try:
        return by_name[name.strip().lower()]
    except KeyError:
        raise UsageError(
            f"--task_name: there is no GLUE task {name.strip()!r}; choose from {', '.join(TASK_NAMES)}, "
            f"a list such as RTE,MRPC, or ALL"
        ) from None


def parse_tasks(task_name: str) -> tuple[Task, ...]:
    """Return the tasks that ``--task_name`` asks for, each once, in the order of ``TASKS`` (so MNLI comes first).

    Raises:
        UsageError: an unknown or empty name.
    """
    if task_name.strip().lower() == "all":
        return TASKS
    wanted = {find_task(name).name for name in task_name.split(",")}
    return tuple(task for task in TASKS if task.name in wanted)


def round_seed(round_number: int, seed: int) -> int:
    """Return the seed of a round: the original's list, plus ``--seed`` where that is not the default 42."""
    return ROUND_SEEDS[round_number] + (seed if seed != DEFAULT_SEED else 0)
