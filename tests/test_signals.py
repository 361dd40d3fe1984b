import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bert_convolutions.errors import CommandError, RunInterrupted
from bert_convolutions.signals import SIGNALS, SignalWatch, interruptible, resume_command

TWICE = """
import os, signal, sys
from pathlib import Path
from bert_convolutions.signals import SignalWatch
watch = SignalWatch()
scratch = Path(sys.argv[1])
sys.argv[0] = sys.argv[2]
scratch.mkdir()
with watch.finish_step_on_signal(), watch.removed_on_exit(scratch):
    os.kill(os.getpid(), signal.SIGINT)
    print(watch.received.name, flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("still here", flush=True)
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_remembered_and_handlers_are_restored(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with interruptible("a build around it"), SignalWatch().finish_step_on_signal() as watch:
        assert watch.received is None
        os.kill(os.getpid(), number)
        assert watch.received == number
        os.kill(os.getpid(), signal.SIGTERM)  # a second one has no effect
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("launched", [False, True])
def test_a_second_ctrl_c_ends_the_run_at_once_but_not_under_a_launcher(tmp_path: Path, launched: bool) -> None:
    environment = {**os.environ, "BERT_CONVOLUTIONS_LAZY": "1"} | ({"TORCHELASTIC_RUN_ID": "x"} if launched else {})
    scratch = tmp_path / "scratch"
    done = subprocess.run(
        [sys.executable, "-c", TWICE, str(scratch), "bertconv"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == (0 if launched else 130)
    assert done.stdout.split("\n")[0] == "SIGINT" and ("still here" in done.stdout) == launched
    assert scratch.exists() == launched


def test_a_second_ctrl_c_ends_no_process_but_the_command(tmp_path: Path) -> None:
    """A notebook's kernel holds more than this run, and Python's own ``finally`` cleans up."""
    program = f"try:\n{textwrap.indent(TWICE, '    ')}\nexcept KeyboardInterrupt:\n    print('kept')"
    command = [sys.executable, "-c", program, str(tmp_path / "scratch"), "ipykernel_launcher.py"]
    environment = {**os.environ, "BERT_CONVOLUTIONS_LAZY": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (0, "SIGINT\nkept\n")


def test_impatience_while_a_build_is_cleaned_up_ends_no_notebook() -> None:
    with pytest.raises(RunInterrupted, match="a build: stopped by SIGINT"), interruptible("a build"):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            os.kill(os.getpid(), signal.SIGINT)


def test_the_resume_command_is_the_command_itself_with_resume_from_checkpoint() -> None:
    argv = ["/usr/bin/bertconv", "pretrain", "--do_train", "--attention_kernel", "qk_convq 8", "--output_dir=out"]
    expected = (
        "bertconv pretrain --do_train --attention_kernel 'qk_convq 8' --output_dir=out --resume_from_checkpoint true"
    )
    assert resume_command(argv) == expected
    more = ["--resume_from_checkpoint", "out/checkpoint-3", "--overwrite_output_dir", "--overwrite-output-dir=true"]
    assert resume_command(argv + more) == expected
    assert resume_command([*argv[:2], "--overwrite_output_dir", *argv[2:]]) == expected
    assert resume_command(["/site-packages/bert_convolutions/__main__.py", *argv[1:]]) == expected
    kernel = ["/site-packages/ipykernel_launcher.py", "-f", "kernel.json"]
    assert resume_command(kernel) == "the same call and resume_from_checkpoint=True"


def test_with_nothing_to_save_a_signal_ends_the_run_at_once() -> None:
    before = signal.getsignal(signal.SIGHUP)
    watch = SignalWatch()
    with (
        pytest.raises(RunInterrupted, match="stopped by SIGHUP; do it again"),
        watch.interrupt_on_signal("do it again"),
        watch.finish_step_on_signal(),
    ):
        os.kill(os.getpid(), signal.SIGTERM)  # remembered while a step may be in progress
        assert watch.cause == "SIGTERM"
        watch.received, watch.cause = None, ""
        with watch.interrupt_on_signal("do it again"):
            os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == before


@pytest.mark.parametrize("what", ["hidden", "told as another error"])
def test_a_signal_stays_one_where_errors_are_caught(what: str) -> None:
    reached = False
    with pytest.raises(RunInterrupted, match="stopped by SIGTERM; do it again"):  # noqa: SIM117
        with SignalWatch().interrupt_on_signal("do it again"):
            if what == "hidden":
                with contextlib.suppress(Exception):  # as where a file may be missing
                    os.kill(os.getpid(), signal.SIGTERM)
            else:
                try:
                    os.kill(os.getpid(), signal.SIGTERM)
                except BaseException as error:  # as C++ does
                    raise RuntimeError(f"cannot be read ({error})") from error
            reached = True
    assert not reached


def test_an_error_after_a_signal_that_was_only_noted_keeps_its_message() -> None:
    watch = SignalWatch()
    with (
        pytest.raises(CommandError, match="no room"),
        watch.interrupt_on_signal("nothing had been trained"),
        watch.finish_step_on_signal(),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        raise CommandError("the checkpoint could not be written: no room")


def test_signals_that_nohup_ignores_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SignalWatch().finish_step_on_signal() as watch:
            os.kill(os.getpid(), signal.SIGHUP)
            assert watch.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_a_run_sets_no_handlers() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]

    def nested() -> list[object]:
        with SignalWatch().interrupt_on_signal("do it again"), SignalWatch().finish_step_on_signal():
            return [signal.getsignal(number) for number in SIGNALS]

    with ThreadPoolExecutor() as threads:  # as in a worker of Ray or in a notebook
        assert threads.submit(nested).result() == before


def test_after_a_failure_a_signal_of_the_launcher_does_not_end_a_process_before_its_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("WORLD_SIZE", "2")
    try:
        with (
            pytest.raises(RunInterrupted),
            SignalWatch().interrupt_on_signal(""),
            SignalWatch().finish_step_on_signal(),
        ):
            raise RunInterrupted
        os.kill(os.getpid(), signal.SIGTERM)  # as torchrun does, before the message is printed
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_output_that_fails_counts_as_a_signal_and_changes_no_exit_code(tmp_path: Path) -> None:
    """Nor does what is still buffered for that output when the process ends."""
    program = """
import sys
from bert_convolutions.signals import SignalWatch
with SignalWatch().finish_step_on_signal() as watch:
    for number in range(3000):
        print("a line of the log", file=sys.stderr)
        print("a line of the output")
print(watch.received.name, watch.cause, file=open(sys.argv[1], "w"))
sys.exit(75)
"""
    environment = {**os.environ, "BERT_CONVOLUTIONS_LAZY": "1"}
    command = [sys.executable, "-c", program, str(tmp_path / "said")]
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = subprocess.run(command, stdout=full, stderr=full, env=environment, check=False)
    assert done.returncode == 75
    assert (tmp_path / "said").read_text() == "SIGPIPE an output that failed (No space left on device)\n"


@pytest.mark.parametrize(
    ("launcher", "words"),
    [
        (["{python}", "{script}", "--nproc_per_node=2", "-m", "bert_convolutions"], "torchrun --nproc_per_node=2 -m b"),
        (["{python}", "-m", "torch.distributed.run", "{script}"], "-m torch.distributed.run "),
        (["sh", "-c", "bertconv pretrain --a 1", "{script}"], "torchrun --nnodes=1 --nproc_per_node=2 -m b"),
    ],
)
def test_the_resume_command_includes_the_launcher(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, launcher: list[str], words: str
) -> None:
    script = tmp_path / "torchrun"
    script.touch()
    arguments = ["pretrain", "--a", "1"] if "sh" not in launcher else []
    line = [word.format(python=sys.executable, script=script) for word in launcher] + arguments
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(Path, "read_text", lambda path, errors: "\0".join(line) + "\0")
    command = resume_command(["/usr/bin/bertconv", "pretrain", "--a", "1"])
    assert words in command and command.endswith(" pretrain --a 1 --resume_from_checkpoint true")
    assert command.count("pretrain") == 1
