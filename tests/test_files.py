import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bert_convolutions.errors import UsageError
from bert_convolutions.files import LOCK_NAME, run_lock

HOLDER = """
import os, sys, time
from pathlib import Path
from bert_convolutions.files import run_lock
with run_lock(Path(sys.argv[1])):
    if os.fork():
        print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    environment = {**os.environ, "BERT_CONVOLUTIONS_LAZY": "1"}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, env=environment, start_new_session=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match=rf"in use by another run \(process {holder.pid} on "), run_lock(tmp_path):
            pass
        holder.kill()  # its forked child lives on and must not keep the lock
        holder.wait()
        time.sleep(0.05)
        with run_lock(tmp_path):
            assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
    finally:
        os.killpg(holder.pid, signal.SIGKILL)


def test_a_lock_is_free_after_use_and_its_file_alone_does_not_lock(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_text("not even JSON")
    for _ in range(2):
        with run_lock(tmp_path):
            pass
