"""What the user is told when something is wrong, and the exit codes of the command."""

EXIT_USAGE = 2
"""Bad input or usage: nothing was started, or nothing was left half-written."""
EXIT_DIVERGED = 3
"""The loss became NaN or infinite and the run stopped instead of training on."""
EXIT_INTERRUPTED = 75
"""Interrupted by a signal, saved, and can be resumed (``EX_TEMPFAIL`` of sysexits.h)."""


class UsageError(Exception):
    """Bad input. The message is one sentence that names the file, line or flag, and the way out."""
