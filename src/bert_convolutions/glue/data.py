"""The GLUE files of a run: checked before anything is trained, tokenised once, and shared by all rounds."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from bert_convolutions import files
from bert_convolutions.data.tokenizer import tokenizer_hash
from bert_convolutions.errors import UsageError
from bert_convolutions.glue.examples import EncodedExamples, encode, encode_words
from bert_convolutions.glue.plan import Job
from bert_convolutions.glue.reading import Examples, has_split, read_dev, read_test, read_train
from bert_convolutions.glue.tasks import DevSet, Task, TestSet


class GlueData:
    """Reads and encodes files, and keeps the encodings.

    Args:
        data_dir: folder with the tasks' folders; None where no task needs it.
        max_seq_length: most tokens of an example.
    """

    def __init__(self, data_dir: Path | None, max_seq_length: int) -> None:
        self.data_dir = data_dir
        self.max_seq_length = max_seq_length
        self._encoded: dict[tuple[str, str, Path], EncodedExamples] = {}
        self._indices: dict[Path, list[int]] = {}
        self._hashes: dict[Path, str] = {}

    def check(self, jobs: Sequence[Job]) -> dict[str, int]:
        """Read every file that the jobs need, so that a bad line ends the run before days of training, not after.

        Returns:
            The number of training examples of each task that is trained.

        Raises:
            UsageError: a file is missing or does not fit its task. A missing test file is not: see ``has_test``.
        """
        train = {job.task.name: job.task for job in jobs if job.train}
        dev = {job.task.name: job.task for job in jobs if job.reads_dev}
        tests = {test: job.task for job in jobs for test in job.predict if self.has_test(job.task, test)}
        counts = {name: len(self._noted(read_train(self.root(task), task))) for name, task in train.items()}
        for task in dev.values():
            for dev_set in task.dev:
                self._noted(read_dev(self.root(task), task, dev_set))
        for test, task in tests.items():
            self._noted(read_test(self.root(task), test, task))
        return counts

    def train_hash(self, task: Task) -> str | None:
        """Return the SHA-256 of a task's training examples; None where there is no such file."""
        path = self.root(task) / task.train_path
        if path not in self._hashes and task.dataset is not None:
            self._noted(read_train(self.root(task), task))
        elif path not in self._hashes and path.is_file():
            self._hashes[path] = files.sha256(path)
        return self._hashes.get(path)

    def train(self, tokenizer: PreTrainedTokenizerBase, task: Task) -> EncodedExamples:
        """Return a task's training examples."""
        return self._encode(tokenizer, task, task.train_path, lambda: read_train(self.root(task), task))

    def dev(self, tokenizer: PreTrainedTokenizerBase, task: Task) -> dict[DevSet, EncodedExamples]:
        """Return a task's development sets."""
        return {
            dev_set: self._encode(
                tokenizer, task, task.dev_path(dev_set), partial(read_dev, self.root(task), task, dev_set)
            )
            for dev_set in task.dev
        }

    def test(self, tokenizer: PreTrainedTokenizerBase, task: Task, test: TestSet) -> tuple[EncodedExamples, list[int]]:
        """Return a test set and the index of each of its examples."""

        def read() -> Examples:
            examples = read_test(self.root(task), test, task)
            self._indices[examples.path] = examples.indices or []
            return examples

        return self._encode(tokenizer, task, test.path, read), self._indices[self.root(task) / test.path]

    def has_test(self, task: Task, test: TestSet) -> bool:
        """Whether a test file is there."""
        if task.dataset is not None:
            return has_split(task.dataset, test.path)
        return (self.root(task) / test.path).is_file()

    def root(self, task: Task) -> Path:
        """Return the folder below which a task's files are."""
        root = task.root if task.root is not None else self.data_dir
        if root is None:
            way_out = "" if task.named else ", or --dataset nyu-mll/glue"
            raise UsageError(f"{task.name} needs --data_dir, the folder with its files{way_out}")
        return root

    def _encode(
        self, tokenizer: PreTrainedTokenizerBase, task: Task, path: str, read: Callable[[], Examples]
    ) -> EncodedExamples:
        key = (tokenizer_hash(tokenizer), task.name, self.root(task) / path)
        if key not in self._encoded:
            encoder = encode_words if task.per_token else encode
            self._encoded[key] = encoder(tokenizer, self._noted(read()), self.max_seq_length)
        return self._encoded[key]

    def _noted(self, examples: Examples) -> Examples:
        """The examples, whose file must be the same whenever it is read."""
        if self._hashes.setdefault(examples.path, examples.sha256) != examples.sha256:
            raise UsageError(f"{examples.path} has changed since this run began: start it again")
        return examples
