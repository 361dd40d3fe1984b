"""Two CPU processes do what one does, and end together under torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bert_convolutions.cli.main import main
from bert_convolutions.errors import CommandError, RunInterrupted
from bert_convolutions.training import checkpoints
from bert_convolutions.training.collectives import Collectives, lost_process_explained
from tests.ranks import run_in_two_ranks
from tests.training.conftest import Workspace

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
COMMAND = ("-m", "bert_convolutions", "pretrain")


def test_two_processes_and_one_give_the_same_losses_also_when_one_run_is_resumed_by_two(workspace: Workspace) -> None:
    """15 steps of 8 examples are more than an epoch of 52, whose last step has 4."""
    common = {
        "max_steps": 15,
        "use_sop_head": "true",
        "do_eval": "true",
        "eval_data_file": workspace.folder / "eval.ids",
    }
    assert main(["pretrain", *workspace.flags("one", gradient_accumulation_steps=2, save_steps=6, **common)]) == 0
    resumed = workspace.flags("more", resume_from_checkpoint=workspace.folder / "one" / "checkpoint-6", **common)
    run_in_two_ranks(["pretrain", *workspace.flags("two", **common), "--save_at_words", "300"], ["pretrain", *resumed])
    losses = workspace.log("one")
    seen = [
        json.loads((workspace.folder / name / "train_results.json").read_text())["words_seen"]
        for name in ("one", "two")
    ]
    assert seen[0] == seen[1] > 300 and (workspace.folder / "two" / "chck_300" / "model.safetensors").exists()
    assert len(losses) == 15
    for name in ("two", "more"):
        np.testing.assert_allclose(workspace.log(name), losses, atol=1e-5)
    lines = [(workspace.folder / output / "eval_results_lm.txt").read_text().splitlines() for output in ("one", "two")]
    figures = [{line.split(" = ")[0]: float(line.split(" = ")[1]) for line in text} for text in lines]
    assert figures[0]["masked_tokens"] == figures[1]["masked_tokens"]
    assert figures[0]["perplexity"] == pytest.approx(figures[1]["perplexity"], rel=1e-4)
    saved = workspace.folder / "two" / "checkpoint-15"
    assert checkpoints.fault_in(saved) is None  # with two writers, files would have changed after the manifest
    random_states = [torch.load(path, weights_only=False)["cpu"] for path in sorted(saved.glob("rng_state_?.pth"))]
    assert len(random_states) == 2 and not torch.equal(*random_states)  # each process draws its own dropout


def workers_of(launcher: int) -> list[int]:
    """The process ids of the two workers."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(child) for child in children]


def wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} has not come"
        time.sleep(0.05)


@pytest.mark.parametrize(("fails", "error"), [(True, RunInterrupted), (False, RuntimeError)])
def test_the_first_process_tells_its_own_error_where_the_others_have_ended(
    fails: bool, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a signal to all, which ends those that wait before the one that builds the examples."""

    def work() -> None:
        if fails:
            raise RunInterrupted("stopped by SIGINT")

    def broken(*given: object, **options: object) -> None:
        raise RuntimeError("gloo: connection closed by peer")

    for name, value in (("get_rank", 0), ("get_world_size", 2), ("get_backend", "gloo")):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    monkeypatch.setattr(torch.distributed, "all_gather_object", broken)
    with pytest.raises(error):
        Collectives(2).on_first(work)


@pytest.mark.parametrize(("processes", "error"), [("2", CommandError), ("1", RuntimeError)])
def test_a_lost_connection_is_told_as_the_end_of_another_process(
    processes: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    told = "another process of this run has ended" if processes == "2" else "^gloo"
    with pytest.raises(error, match=told), lost_process_explained():
        raise RuntimeError("gloo: connection closed by peer")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, "died"), (signal.SIGTERM, "saved")])
def test_a_rank_that_dies_or_gets_a_signal_ends_the_others(
    workspace: Workspace, number: signal.Signals, code: str
) -> None:
    output = f"rank-{code}"
    flags = workspace.flags(output, max_steps=1_000_000, save_steps=50, logging_steps=1000, save_total_limit=2)
    launcher = subprocess.Popen(
        [sys.executable, *TORCHRUN, *COMMAND, *flags], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        wait_for(workspace.folder / output / "checkpoint-50")
        os.kill(workers_of(launcher.pid)[1], number)
        begun = time.monotonic()
        _, said = launcher.communicate(timeout=60)
        assert time.monotonic() - begun < 60 and launcher.returncode != 0
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
    assert checkpoints.newest_valid(workspace.folder / output).found is not None
    if code == "died":
        assert "another process of this run has ended" in said and "exitcode  : -9" in said, said
    else:
        assert "--resume_from_checkpoint true" in said and "exitcode  : 75" in said, said
        launcher_words = " ".join([*TORCHRUN, *COMMAND])
        assert f"resume with: {sys.executable} {launcher_words} --" in said
