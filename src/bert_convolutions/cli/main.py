"""``bertconv``: runs a sub-command and reports errors in one sentence with an exit code."""

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
from bert_convolutions.environment import is_one_of_several
from bert_convolutions.errors import EXIT_USAGE, EXTRAS, CommandError, UsageError, install_command

TRACEBACK_VARIABLE = "BERTCONV_TRACEBACK"
_STDOUT = 1
"""File descriptor of standard output."""
_LAUNCHER_VARIABLES = {"WORLD_SIZE": 1, "RANK": 0, "LOCAL_WORLD_SIZE": 1, "LOCAL_RANK": -1, "MASTER_PORT": 1}
"""Environment variables that torchrun sets and libraries read, with minimum values."""
_PATH_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
_FULL_DISK = ("No space left", "StorageFull", "PytorchStreamWriter failed writing")
_NO_MEMORY = ("DefaultCPUAllocator", "out of memory", "bad_alloc", "annot allocate memory")
"""Messages of PyTorch, CUDA, C++ and the kernel."""
_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",  # avoids its warning about forked DataLoader workers
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # avoids network access for a local CSV
}
_IRRELEVANT_WARNINGS = (
    r".*pin_memory.* argument is set as true but no accelerator is found",
    r".*`broadcast_buffers` is deprecated",  # accelerate sets it itself
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and report an error in one sentence.

    Args:
        argv: the arguments; ``sys.argv[1:]`` if None.

    Returns:
        The exit code: 0; 2 bad input or usage; 3 diverged; 75 interrupted and resumable; 130 interrupted by the
        keyboard; 1 any other error.
    """
    _make_streams_safe()
    try:
        run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and _stdout_is_closed():
            return 128 + signal.SIGPIPE
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exc()
        code, message = _exit_code_and_message(error)
        rank = os.environ.get("RANK", "0")
        print(f"bertconv: {message}" if rank == "0" else f"bertconv [rank {rank}]: {message}", file=sys.stderr)
        return code
    return 0


def leave(code: int) -> int:
    """Return ``code`` or, in one of several processes, run the exit handlers and exit with it at once.

    The threads of gloo and NCCL sometimes abort a finished process while its interpreter shuts down, and the launcher
    would report the whole run as failed.
    """
    if is_one_of_several():
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def run(argv: Sequence[str]) -> None:
    """Run a command line, or print the list of sub-commands if it is empty.

    Raises:
        UsageError: the sub-command is unknown, or its flags are wrong.
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
    """Suppress irrelevant messages of libraries, except where the user has set the variables."""
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
    """Replace closed standard streams by the null device, and escape characters that stdout can't encode."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # or the next opened file would get its descriptor
            descriptor = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)
            setattr(sys, name, os.fdopen(descriptor, mode))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error does


def _check_launcher() -> None:
    """Raise for invalid variables of a launcher, which libraries would use unchecked."""
    for name, minimum in _LAUNCHER_VARIABLES.items():
        value = os.environ.get(name)
        if value is not None and not (re.fullmatch(r"-?[0-9]{1,9}", value) and int(value) >= minimum):
            raise UsageError(
                f"{name}={value} in the environment is not a whole number of at least {minimum}; torchrun sets "
                "it; unset it for a run of one process"
            )


def _exit_code_and_message(error: BaseException) -> tuple[int, str]:
    """The exit code and the message for the exception that ended the command."""
    if isinstance(error, UsageError):
        return error.exit_code, f"error: {' '.join(str(error).splitlines())}"
    if isinstance(error, CommandError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT, "interrupted"
    module = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if module in EXTRAS:
        return EXIT_USAGE, f"error: this needs the package {module}, which is not installed: {install_command(module)}"
    code, sentence = _explain_foreign_error(error)
    return code, f"error: {sentence}"


def _stdout_is_closed() -> bool:
    """Whether stdout's reader, such as ``head``, has exited; if so, redirect stdout to the null device."""
    poll = select.poll()
    poll.register(_STDOUT, 0)  # errors are reported in any case
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)
    return True


def _explain_foreign_error(error: BaseException) -> tuple[int, str]:
    """The exit code and one sentence for an error that our code did not explain."""
    text = " ".join(str(error).split())
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, OSError):
        text = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error.strerror or text
    if number in (errno.ENOSPC, errno.EDQUOT) or any(words in text for words in _FULL_DISK):
        return 1, f"{text.rstrip('.')}; make room and run the same command again"
    if number in _PATH_ERRORS or any(f"(os error {bad})" in text for bad in _PATH_ERRORS):  # safetensors
        return EXIT_USAGE, f"{text}; give a path that this user may use"
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # of PyTorch
    if out_of_memory or number == errno.ENOMEM or any(words in text for words in _NO_MEMORY):
        return 1, f"out of memory; a smaller --per_device_train_batch_size or --block_size needs less. {text}".rstrip()
    if text.startswith("DataLoader worker"):  # torch's words for one that has ended
        return 1, f"{text}; it needs memory and room in /dev/shm, or else --dataloader_num_workers 0"
    trackers = [
        type(frame.f_locals.get("self")).__name__
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__") == "transformers.integrations.integration_utils"
    ]
    if trackers:
        return 1, f"{trackers[0]}, a tracker of --report_to, failed: {text or type(error).__name__}; leave it out"
    if isinstance(error, OSError):
        return 1, text
    report = f"(please report it, with the traceback that {TRACEBACK_VARIABLE}=1 in the environment shows)"
    return 1, f"unexpected {type(error).__name__}: {text} {report}"
