import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bert_convolutions.training.signals import SignalWatch, resume_command

TWICE = """
import os, signal, sys
from pathlib import Path
from bert_convolutions.training.signals import SignalWatch
watch = SignalWatch()
scratch = Path(sys.argv[1])
scratch.mkdir()
with watch.installed(), watch.scratch(scratch):
    os.kill(os.getpid(), signal.SIGINT)
    print(watch.received.name, flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("still here", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_remembered_and_handlers_are_given_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with SignalWatch().installed() as watch:
        assert watch.received is None
        os.kill(os.getpid(), number)
        assert watch.received == number
        os.kill(os.getpid(), signal.SIGTERM)  # once more, to no effect
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("launched", [False, True])
def test_a_second_ctrl_c_leaves_at_once_unless_a_launcher_has_echoed_the_first(tmp_path: Path, launched: bool) -> None:
    environment = {**os.environ, "BERT_CONVOLUTIONS_LAZY": "1"} | ({"TORCHELASTIC_RUN_ID": "x"} if launched else {})
    scratch = tmp_path / "scratch"
    done = subprocess.run(
        [sys.executable, "-c", TWICE, str(scratch)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == (0 if launched else 130)
    assert done.stdout.split("\n")[0] == "SIGINT" and ("still here" in done.stdout) == launched
    assert scratch.exists() == launched


def test_the_resume_command_is_the_command_itself_with_the_flag() -> None:
    argv = ["/usr/bin/bertconv", "pretrain", "--do_train", "--attention_kernel", "qk_convq 8", "--output_dir=out"]
    expected = (
        "bertconv pretrain --do_train --attention_kernel 'qk_convq 8' --output_dir=out --resume_from_checkpoint true"
    )
    assert resume_command(argv) == expected
    more = ["--resume_from_checkpoint", "out/checkpoint-3", "--overwrite_output_dir", "--overwrite-output-dir=true"]
    assert resume_command(argv + more) == expected
    assert resume_command([*argv[:2], "--overwrite_output_dir", *argv[2:]]) == expected
