"""The GLUE files of a run: checked before anything is trained, tokenised once, and shared by all rounds."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from bert_convolutions import files
from bert_convolutions.data.tokenizer import tokenizer_hash
from bert_convolutions.errors import UsageError
from bert_convolutions.glue.examples import EncodedExamples, encode, encode_words
from bert_convolutions.glue.plan import Job
from bert_convolutions.glue.reading import Examples, has_split, read_examples
from bert_convolutions.glue.tasks import DevSet, Task, TestSet


class GlueData:
    """Reads and encodes files, below ``data_dir`` where no task brings its own folder, and keeps the encodings."""

    def __init__(self, data_dir: Path | None, max_seq_length: int) -> None:
        self.data_dir, self.max_seq_length = data_dir, max_seq_length
        self._encoded: dict[tuple[str, str, Path], EncodedExamples] = {}
        self._hashes: dict[Path, str] = {}

    def check(self, jobs: Sequence[Job]) -> dict[str, int]:
        """Read every file that the jobs need, so that a bad line ends the run before days of training, not after.

        Returns:
            The number of training examples of each task that is trained.

        Raises:
            UsageError: a file is missing or does not fit its task. A missing test file is not: see ``has_test``.
        """
        counts: dict[tuple[str, str], int] = {}
        for job in jobs:
            needed: list[tuple[str, TestSet | None]] = [(job.task.train, None)] if job.train else []
            needed += [(dev_set.path, None) for dev_set in job.task.dev if job.reads_dev]
            needed += [(test.path, test) for test in job.predict if self.has_test(job.task, test)]
            for path, test in needed:
                if (job.task.name, path) not in counts:
                    counts[job.task.name, path] = len(self._read(job.task, path, test))
        return {job.task.name: counts[job.task.name, job.task.train] for job in jobs if job.train}

    def train_hash(self, task: Task) -> str | None:
        """Return the SHA-256 of a task's training examples; None where there is no such file."""
        path = self.root(task) / task.train
        if path not in self._hashes and task.dataset is not None:
            self._read(task, task.train)
        elif path not in self._hashes and path.is_file():
            self._hashes[path] = files.sha256(path)
        return self._hashes.get(path)

    def dev(self, tokenizer: PreTrainedTokenizerBase, task: Task) -> dict[DevSet, EncodedExamples]:
        """Return a task's development sets."""
        return {dev_set: self.encoded(tokenizer, task, dev_set.path) for dev_set in task.dev}

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

    def encoded(
        self, tokenizer: PreTrainedTokenizerBase, task: Task, path: str, test: TestSet | None = None
    ) -> EncodedExamples:
        """Return the examples of a task's training or development file, or of the file of a ``test`` set."""
        key = (tokenizer_hash(tokenizer), task.name, self.root(task) / path)
        if key not in self._encoded:
            encoder = encode_words if task.per_token else encode
            self._encoded[key] = encoder(tokenizer, self._read(task, path, test), self.max_seq_length)
        return self._encoded[key]

    def _read(self, task: Task, path: str, test: TestSet | None = None) -> Examples:
        """The examples of a file, which must be the same whenever it is read."""
        examples = read_examples(self.root(task) / path, task, test)
        if self._hashes.setdefault(examples.path, examples.sha256) != examples.sha256:
            raise UsageError(f"{examples.path} has changed since this run began: start it again")
        return examples
