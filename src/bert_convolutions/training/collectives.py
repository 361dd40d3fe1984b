"""Collective operations between the processes of a run: sums of counts, stop flags, decisions of the first process.

They use gloo on CPU, so that they never wait for a GPU. With one process nothing is sent.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from bert_convolutions.environment import is_one_of_several
from bert_convolutions.errors import CommandError, first_line
from bert_convolutions.signals import resume_command

Number = TypeVar("Number", int, float)
Result = TypeVar("Result")


@contextlib.contextmanager
def lost_process_explained() -> Iterator[None]:
    """Explain the error of a process whose connection to another one is lost.

    Raises:
        CommandError: another process of this run has ended.
    """
    try:
        yield
    except Exception as error:
        lost = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
        if isinstance(error, CommandError) or not (lost and is_one_of_several()):
            raise
        raise CommandError(
            "another process of this run has ended, so this one stops too; see that process's message above, and "
            f"resume with: {resume_command()} ({first_line(error)[:200]})"
        ) from error


class Collectives:
    """Reductions and broadcasts over all processes, each of which must make the same calls in the same order."""

    def __init__(self, world_size: int) -> None:
        self._several = world_size > 1
        self._group: Any = None

    def sum(self, values: Sequence[Number]) -> list[Number]:
        """Each value summed over the processes, in int64 if all are integers, otherwise in float64."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def smallest(self, value: int) -> int:
        """The smallest value of all processes."""
        return self._reduced([value], dist.ReduceOp.MIN)[0]

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true on any process."""
        return self.sum([int(flag)])[0] > 0

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, ordered by rank, on every process."""
        if not self._several:
            return [value]
        boxes: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(boxes, value, group=self._gloo())
        return boxes

    def from_first(self, value: Any) -> Any:
        """The value of rank 0, on every process."""
        return self.gather(value)[0]

    def on_first(self, function: Callable[[], Result]) -> Result:
        """Call ``function`` on rank 0 only and return its value on every process.

        Raises:
            CommandError: on every process, if ``function`` raised it.
        """
        if not self._several:
            return function()
        answer: Any = None
        if dist.get_rank() == 0:
            try:
                answer = function()
            except CommandError as error:
                answer = error
        lost = [RuntimeError] if isinstance(answer, CommandError) else []  # the same signal may have ended the others
        with contextlib.suppress(*lost):
            answer = self.from_first(answer)
        if isinstance(answer, CommandError):
            raise answer
        return answer

    def failure_of(self, write: Callable[[], None]) -> Exception | None:
        """Call ``write`` on every process, of which the first writes to disk; return an error if any of them failed."""
        failure: Exception | None = None
        try:
            write()
        except (OSError, RuntimeError, SafetensorError) as error:  # PyTorch and safetensors have their own
            failure = error
        failed = self.any(failure is not None)
        return (failure or OSError("the first process could not write it")) if failed else None

    def _reduced(self, values: Sequence[Number], operation: Any) -> list[Number]:
        if not self._several:
            return list(values)
        whole = all(isinstance(value, int) for value in values)
        reduced = torch.tensor(values, dtype=torch.int64 if whole else torch.float64)
        dist.all_reduce(reduced, operation, group=self._gloo())
        return reduced.tolist()

    def _gloo(self) -> Any:
        if self._group is None and dist.get_backend() != "gloo":
            self._group = dist.new_group(backend="gloo")
        return self._group
