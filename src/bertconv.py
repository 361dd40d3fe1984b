"""The ``bertconv`` console script: start the command line without loading PyTorch, which takes seconds."""

import os
import sys

_LAZY = "BERT_CONVOLUTIONS_LAZY"


def main() -> int:
    """Run the command of ``sys.argv``.

    Returns:
        The exit code, for ``sys.exit``.
    """
    if os.name == "nt":  # signals, locks and pipes are those of POSIX
        print("bertconv: error: the command needs Linux or macOS; on Windows, run it in WSL", file=sys.stderr)
        return 2
    already_set = _LAZY in os.environ
    os.environ.setdefault(_LAZY, "1")
    from bert_convolutions.signals import exit_on_signal

    with exit_on_signal("run the same command again"):
        from bert_convolutions.cli.main import leave
        from bert_convolutions.cli.main import main as run_command_line

        if not already_set:  # child processes must register the classes
            del os.environ[_LAZY]
        return leave(run_command_line())


if __name__ == "__main__":
    raise SystemExit(main())
