"""``bertconv``: find the sub-command, run it, and turn what goes wrong into one sentence and an exit code."""

import atexit
import errno
import io
import os
import re
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence

from bert_convolutions import __version__
from bert_convolutions.cli.commands import COMMANDS
from bert_convolutions.cli.flags import nearest
from bert_convolutions.errors import EXIT_USAGE, EXTRAS, CommandError, UsageError, install_command

TRACEBACK_VARIABLE = "BERTCONV_TRACEBACK"
_STDOUT = 1
"""File descriptor of standard output."""
_LAUNCHER_NUMBERS = {"WORLD_SIZE": 1, "RANK": 0, "LOCAL_WORLD_SIZE": 1, "LOCAL_RANK": -1, "MASTER_PORT": 1}
"""What torchrun sets in the environment and many a library reads, with the least value of each."""
_BAD_PLACES = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
_FULL_DISK = ("No space left", "StorageFull", "PytorchStreamWriter failed writing")
_NO_MEMORY = ("DefaultCPUAllocator", "out of memory", "bad_alloc", "annot allocate memory")
"""In the words of PyTorch, CUDA, C++ and the kernel."""
_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",  # or its warning about forks, once a DataLoader has workers
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # or the network would be used for a local CSV too
}
_IRRELEVANT_WARNINGS = (
    r".*pin_memory.* argument is set as true but no accelerator is found",
    r".*`broadcast_buffers` is deprecated",  # accelerate, about the argument that it sets itself
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and report what goes wrong in one sentence.

    Args:
        argv: the arguments; ``sys.argv[1:]`` if None.

    Returns:
        The exit code: 0; 2 bad input or usage; 3 diverged; 75 interrupted and resumable; 130 interrupted by the
        keyboard; 1 anything else.
    """
    _make_streams_safe()
    try:
        run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and _reader_has_left():
            return 128 + signal.SIGPIPE
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
    if os.environ.get("WORLD_SIZE", "1") != "1":
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
        _check_launcher()
        silence_libraries()
        COMMANDS[name].run(argv[1:])
    else:
        hint = nearest(name.replace("_", "-"), COMMANDS)
        suggestion = f"did you mean {hint!r}?" if hint else f"the sub-commands are {', '.join(COMMANDS)}."
        raise UsageError(f"there is no sub-command {name!r}; {suggestion}")


def silence_libraries() -> None:
    """Keep messages of libraries that tell the user nothing off the terminal; what the user has set stays."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for message in _IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {command.name:<{width}}  {command.purpose}" for command in COMMANDS.values())
    return (
        "usage: bertconv SUB-COMMAND [--flag value ...]\n\n"
        "BERT encoders that mix self-attention with convolutions, from plain text to a GLUE submission.\n\n"
        f"{lines}\n\nbertconv SUB-COMMAND --help shows its flags. bertconv --version prints the version."
    )


def _make_streams_safe() -> None:
    """Give closed standard streams a place to go, and let no character be one that an output can't take."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # or the next file opened would get its number, and what is printed with it
            descriptor = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)
            setattr(sys, name, os.fdopen(descriptor, mode))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error does


def _check_launcher() -> None:
    """Raise about what the environment says of a launcher, which the libraries would take as it is."""
    for name, least in _LAUNCHER_NUMBERS.items():
        value = os.environ.get(name)
        if value is not None and not (re.fullmatch(r"-?[0-9]{1,9}", value) and int(value) >= least):
            raise UsageError(
                f"{name}={value} in the environment is no whole number of at least {least}; torchrun sets it, for a "
                "run of one process unset it"
            )


def _verdict(error: BaseException) -> tuple[int, str]:
    """The exit code and the message for what ended the command."""
    if isinstance(error, UsageError):
        return error.exit_code, f"error: {' '.join(str(error).splitlines())}"
    if isinstance(error, CommandError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT, "interrupted"
    module = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if module in EXTRAS:
        return EXIT_USAGE, f"error: this needs the package {module}, which is not here: {install_command(module)}"
    code, sentence = _foreign(error)
    return code, f"error: {sentence}"


def _reader_has_left() -> bool:
    """Whether stdout's reader, such as ``head``, has gone; if so nothing more is written there."""
    poll = select.poll()
    poll.register(_STDOUT, 0)  # errors are reported whatever is asked for
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)
    return True


def _foreign(error: BaseException) -> tuple[int, str]:
    """The exit code and one sentence for an error that no code of ours has put into words."""
    text = " ".join(str(error).split())
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, OSError):
        text = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error.strerror or text
    if number in (errno.ENOSPC, errno.EDQUOT) or any(words in text for words in _FULL_DISK):
        return 1, f"{text.rstrip('.')}; make room and run the same command again"
    if number in _BAD_PLACES or any(f"(os error {bad})" in text for bad in _BAD_PLACES):  # safetensors' words
        return EXIT_USAGE, f"{text}; name a place that this user may use"
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's
    if out_of_memory or number == errno.ENOMEM or any(words in text for words in _NO_MEMORY):
        return 1, f"out of memory; a smaller --per_device_train_batch_size or --block_size needs less. {text}".rstrip()
    if text.startswith("DataLoader worker"):  # torch's words for one that has ended
        return 1, f"{text}; it needs memory and room in /dev/shm, or else --dataloader_num_workers 0"
    if isinstance(error, OSError):
        return 1, text
    report = f"(please report it, with the traceback that {TRACEBACK_VARIABLE}=1 in the environment shows)"
    return 1, f"unexpected {type(error).__name__}: {text} {report}"
