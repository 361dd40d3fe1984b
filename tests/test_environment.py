"""What is recorded about the machine and the versions of a run."""

from importlib import metadata
from pathlib import Path

import pytest

from bert_convolutions import __version__
from bert_convolutions.environment import environment, machine_facts, memory_held, usable_cores


def test_a_package_that_is_not_installed_knows_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise, run from sources, a sweep fails before its first cell, and bench after all its measurements."""
    installed = metadata.version

    def version(name: str) -> str:
        if name == "bert_convolutions":
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(metadata, "version", version)
    assert f"bert_convolutions {__version__}, torch" in environment()["versions"]
    assert machine_facts()["bert_convolutions"] == __version__


def test_the_usable_cores_are_those_that_a_batch_system_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3, 4}, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 128)
    assert usable_cores() == 2
    monkeypatch.delattr("os.sched_getaffinity")  # macOS has none
    assert usable_cores() == 128


def test_peak_memory_is_reported_where_the_kernel_keeps_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path, **options: "Name:\tpython\nVmRSS:\t1000 kB\n")
    assert memory_held(peak=False) == 1000 * 1024
    assert memory_held(peak=True) > 1000 * 1024
