"""The GLUE files of a run: checked before anything is trained, tokenised once, and shared by all rounds."""

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from bert_convolutions import files
from bert_convolutions.data.tokenizer import tokenizer_hash
from bert_convolutions.errors import UsageError
from bert_convolutions.glue.examples import EncodedExamples, encode
from bert_convolutions.glue.plan import Job
from bert_convolutions.glue.reading import Examples, read_dev, read_test, read_train
from bert_convolutions.glue.tasks import DevSet, Task, TestSet


class GlueData:
    """Reads and encodes files, and keeps the encodings.

    Args:
        data_dir: folder with the tasks' folders.
        max_seq_length: most tokens of an example.
    """

    def __init__(self, data_dir: Path, max_seq_length: int) -> None:
        self.data_dir = data_dir
        self.max_seq_length = max_seq_length
        self._encoded: dict[tuple[str, Path], EncodedExamples] = {}
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
        tests = {test for job in jobs for test in job.predict if self.has_test(test)}
        counts = {name: len(self._noted(read_train(self.data_dir, task))) for name, task in train.items()}
        for task in dev.values():
            for dev_set in task.dev:
                self._noted(read_dev(self.data_dir, task, dev_set))
        for test in tests:
            self._noted(read_test(self.data_dir, test))
        return counts

    def train_hash(self, task: Task) -> str | None:
        """Return the SHA-256 of a task's training file; None where there is no such file."""
        path = self.data_dir / task.train_path
        if path not in self._hashes and path.is_file():
            self._hashes[path] = files.sha256(path)
        return self._hashes.get(path)

    def train(self, tokenizer: PreTrainedTokenizerBase, task: Task) -> EncodedExamples:
        """Return a task's training examples."""
        return self._encode(tokenizer, self.data_dir / task.train_path, lambda: read_train(self.data_dir, task))

    def dev(self, tokenizer: PreTrainedTokenizerBase, task: Task) -> dict[DevSet, EncodedExamples]:
        """Return a task's development sets."""
        return {dev_set: self._dev(tokenizer, task, dev_set) for dev_set in task.dev}

    def test(self, tokenizer: PreTrainedTokenizerBase, test: TestSet) -> tuple[EncodedExamples, list[int]]:
        """Return a test set and the index of each of its examples."""
        path = self.data_dir / test.path

        def read() -> Examples:
            examples = read_test(self.data_dir, test)
            self._indices[path] = examples.indices or []
            return examples

        return self._encode(tokenizer, path, read), self._indices[path]

    def has_test(self, test: TestSet) -> bool:
        """Whether a test file is there."""
        return (self.data_dir / test.path).is_file()

    def _dev(self, tokenizer: PreTrainedTokenizerBase, task: Task, dev_set: DevSet) -> EncodedExamples:
        path = self.data_dir / task.dev_path(dev_set)
        return self._encode(tokenizer, path, lambda: read_dev(self.data_dir, task, dev_set))

    def _encode(self, tokenizer: PreTrainedTokenizerBase, path: Path, read: Callable[[], Examples]) -> EncodedExamples:
        key = (tokenizer_hash(tokenizer), path)
        if key not in self._encoded:
            self._encoded[key] = encode(tokenizer, self._noted(read()), self.max_seq_length)
        return self._encoded[key]

    def _noted(self, examples: Examples) -> Examples:
        """The examples, whose file must be the same whenever it is read."""
        if self._hashes.setdefault(examples.path, examples.sha256) != examples.sha256:
            raise UsageError(f"{examples.path} has changed since this run began: start it again")
        return examples
