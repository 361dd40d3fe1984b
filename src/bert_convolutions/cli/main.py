"""``bertconv``: find the sub-command, run it, and turn what goes wrong into one sentence and an exit code."""

import atexit
import errno
import os
import select
import sys
import traceback
from collections.abc import Sequence

from bert_convolutions import __version__
from bert_convolutions.cli.command import Command
from bert_convolutions.cli.flags import nearest
from bert_convolutions.cli.quiet import silence_libraries
from bert_convolutions.errors import CommandError, UsageError

COMMANDS = {
    command.name: command
    for command in (
        Command("train-tokenizer", "Train a SentencePiece tokenizer on plain text."),
        Command("build-dataset", "Turn plain text into shuffled, tokenized sentence pairs on disk."),
        Command("pretrain", "Pre-train a composite-attention BERT encoder on masked-word prediction."),
        Command("glue", "Fine-tune a pre-trained encoder on the GLUE tasks, and predict their test sets."),
        Command("compile-glue", "Tabulate the dev scores and write the GLUE submission of the best rounds."),
        Command("convert", "Convert a checkpoint of the original code into one of this project."),
        Command("bench", "Measure speed and memory against Hugging Face's models on the same text."),
        Command("demo", "Run the whole path on public-domain speeches in under ten minutes."),
    )
}
TRACEBACK_VARIABLE = "BERTCONV_TRACEBACK"
EXIT_INTERRUPTED_BY_KEYBOARD = 130
"""128 + SIGINT, as shells report it."""
EXIT_BROKEN_PIPE = 141
"""128 + SIGPIPE."""
_STDOUT = 1
"""File descriptor of standard output."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and report what goes wrong in one sentence.

    Args:
        argv: the arguments; ``sys.argv[1:]`` if None.

    Returns:
        The exit code: 0; 2 bad input or usage; 3 diverged; 75 interrupted and resumable; 130 interrupted by the
        keyboard; 1 anything else.
    """
    try:
        run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and _reader_has_left():
            return EXIT_BROKEN_PIPE
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exc()
        code, message = _verdict(error)
        rank = os.environ.get("RANK", "0")
        print(f"bertconv: {message}" if rank == "0" else f"bertconv [rank {rank}]: {message}", file=sys.stderr)
        return code
    return 0


def leave(code: int) -> int:
    """Return ``code``, or, as one of several processes, end this one with it at once.

    The threads of gloo and NCCL sometimes abort a process that is done and only tears down its interpreter, and the
    launcher then takes the whole run for failed. What is registered for the exit is done before.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def run(argv: Sequence[str]) -> None:
    """Run a command line, or print the list of sub-commands where it names none.

    Raises:
        UsageError: there is no such sub-command, or its flags are wrong.
    """
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help", "help"):
        print(_overview())
    elif name in ("-V", "--version", "version"):
        print(f"bertconv {__version__}")
    elif name in COMMANDS:
        silence_libraries()
        COMMANDS[name].run(argv[1:])
    else:
        hint = nearest(name.replace("_", "-"), COMMANDS)
        suggestion = f"did you mean {hint!r}?" if hint else f"the sub-commands are {', '.join(COMMANDS)}."
        raise UsageError(f"there is no sub-command {name!r}; {suggestion}")


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {command.name:<{width}}  {command.purpose}" for command in COMMANDS.values()]
    return "\n".join(
        [
            "usage: bertconv SUB-COMMAND [--flag value ...]",
            "",
            "BERT encoders that mix self-attention with convolutions, from plain text to a GLUE submission.",
            "",
            *lines,
            "",
            "bertconv SUB-COMMAND --help shows its flags. bertconv --version prints the version.",
        ]
    )


def _verdict(error: BaseException) -> tuple[int, str]:
    """The exit code and the message for what ended the command."""
    if isinstance(error, UsageError):
        return error.exit_code, f"error: {' '.join(str(error).splitlines())}"
    if isinstance(error, CommandError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED_BY_KEYBOARD, "interrupted"
    return 1, f"error: {_sentence(error)}"


def _reader_has_left() -> bool:
    """Whether stdout's reader, such as ``head``, has gone; if so nothing more is written there."""
    poll = select.poll()
    poll.register(_STDOUT, 0)  # errors are reported whatever is asked for
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)
    return True


def _sentence(error: BaseException) -> str:
    """One sentence for an error that no code of ours has put into words."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        text = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error.strerror or text
    if _is_full_disk(error, text):
        return f"{text.rstrip('.')}; make room and run the same command again"
    if isinstance(error, OSError):
        return text
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without its import
        return f"out of memory; a smaller --per_device_train_batch_size or --block_size needs less. {text}".rstrip()
    return (
        f"unexpected {type(error).__name__}: {text} "
        f"(please report it, with the traceback that {TRACEBACK_VARIABLE}=1 in the environment shows)"
    )


def _is_full_disk(error: BaseException, text: str) -> bool:
    """Whether the disk or the quota is exhausted, also in the words of PyTorch and safetensors."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(words in text for words in ("No space left", "StorageFull", "PytorchStreamWriter failed writing"))
