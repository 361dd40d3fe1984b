"""Command lines in two processes each, as torchrun starts them, but forked from one that has imported PyTorch."""

import gc
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys


def run_in_two_ranks(*command_lines: list[str]) -> None:
    """Run the command lines, without ``bertconv``, one after the other; all must succeed."""
    done = subprocess.run([sys.executable, __file__, json.dumps(command_lines)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run_rank(argv: list[str], rank: int, port: int) -> None:
    from bert_convolutions.cli.main import leave, main

    signal.alarm(120)  # a rank would wait for ever for one that has failed
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    leave(main(argv))


if __name__ == "__main__":
    import bert_convolutions.glue.run
    import bert_convolutions.training.pretrain  # noqa: F401

    gc.freeze()  # as in conftest
    context = multiprocessing.get_context("fork")
    for argv in json.loads(sys.argv[1]):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        ranks = [context.Process(target=run_rank, args=(argv, rank, port)) for rank in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            sys.exit(1)
