import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import save_file
from transformers import TrainerState
from transformers.trainer_pt_utils import safe_globals

from bert_convolutions.errors import UsageError
from bert_convolutions.files import sha256
from bert_convolutions.training import checkpoints


def publish(folder: Path, step: int, content: str = "weights") -> Path:
    staged = folder / checkpoints.STAGING_NAME / f"checkpoint-{step}"
    staged.mkdir(parents=True)
    (staged / "model.safetensors").write_text(content)
    (staged / "part").mkdir()
    (staged / "part" / "state.json").write_text("{}")
    TrainerState(global_step=step).save_to_json(str(staged / "trainer_state.json"))
    place = folder / f"checkpoint-{step}"
    checkpoints.publish(staged, place, {"seed": 1})
    return place


def test_a_published_checkpoint_is_valid(tmp_path: Path) -> None:
    place = publish(tmp_path, 10)
    assert checkpoints.fault_in(place) is None
    manifest = checkpoints.read_manifest(place)
    assert manifest.run == {"seed": 1}
    assert set(manifest.files) == {"model.safetensors", "part/state.json", "trainer_state.json"}


def test_publishing_again_replaces_the_checkpoint(tmp_path: Path) -> None:
    publish(tmp_path, 10)
    place = publish(tmp_path, 10, "others")
    assert (place / "model.safetensors").read_text() == "others" and checkpoints.fault_in(place) is None
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [checkpoints.STAGING_NAME]


@pytest.mark.parametrize("at", [1, 2])
def test_while_a_checkpoint_is_replaced_a_complete_one_can_always_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Killed before either rename: the old one is found at once, and under its own name after ``clean_up``."""
    place = publish(tmp_path, 10)
    publish(tmp_path, 9)
    genuine, calls = Path.rename, iter(range(1, 100))

    def killed(source: Path, target: Path) -> Path:
        if next(calls) == at:
            raise KeyboardInterrupt
        return genuine(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        publish(tmp_path, 10, "others")
    found = checkpoints.newest_valid(tmp_path).found
    assert found is not None and checkpoints.step_of(found) == 10 and (found == place) == (at == 1)
    assert checkpoints.newest_complete(tmp_path) == found
    checkpoints.clean_up(tmp_path)
    assert checkpoints.newest_valid(tmp_path).found == place
    assert (place / "model.safetensors").read_text() == "weights"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]


@pytest.mark.parametrize("mask", [0o022, 0o007])
def test_files_of_a_checkpoint_have_the_mode_of_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        staged = tmp_path / checkpoints.STAGING_NAME / "checkpoint-1"
        staged.mkdir(parents=True)
        save_file({"weight": torch.zeros(2)}, staged / "model.safetensors")
        (staged / "model.safetensors").chmod(0o600)  # as some versions of safetensors leave it
        checkpoints.publish(staged, tmp_path / "checkpoint-1", {})
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "checkpoint-1").iterdir()}
    assert modes == {0o666 & ~mask}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


MANIFEST, STATE = "manifest.json", "trainer_state.json"


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def with_file(manifest: dict[str, Any], **changes: Any) -> dict[str, Any]:
    files = manifest["files"]
    return manifest | {"files": files | {"model.safetensors": files["model.safetensors"] | changes}}


def with_state(place: Path, change: Callable[[Any], Any]) -> None:
    """Change the state and its entry in the manifest: the checksums are right, the content is not."""
    rewrite(place / STATE, change)
    fact = {"size": (place / STATE).stat().st_size, "sha256": sha256(place / STATE)}
    rewrite(place / MANIFEST, lambda manifest: manifest | {"files": manifest["files"] | {STATE: fact}})


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "checksum": lambda place: flip(place / "model.safetensors"),
    "bytes instead of": lambda place: os.truncate(place / "model.safetensors", 3),
    "missing": lambda place: (place / "part" / "state.json").unlink(),
    "so it is incomplete": lambda place: (place / "manifest.json").unlink(),
    "it is not a regular file": lambda place: ((place / MANIFEST).unlink(), os.mkfifo(place / MANIFEST)),
    "cannot be read": lambda place: os.truncate(place / "manifest.json", 20),
    "not one that this version": lambda place: (place / "manifest.json").write_text(json.dumps({"format": 99})),
    **{
        f"not one that this version can read ({MANIFEST}: {where}": lambda place, change=change: rewrite(
            place / MANIFEST, change
        )
        for where, change in {
            "Input should be a valid dictionary": lambda manifest: [manifest],
            "files: Input": lambda manifest: manifest | {"files": []},
            "files.model.safetensors: Input": lambda manifest: manifest | {"files": {"model.safetensors": 5}},
            "files.model.safetensors.size": lambda manifest: with_file(manifest, size="7"),
            "files.model.safetensors.sha256": lambda manifest: with_file(manifest, sha256=None),
            "run: Input": lambda manifest: manifest | {"run": "seed 1"},
        }.items()
    },
    "model.safetensors is not in its manifest": lambda place: rewrite(
        place / MANIFEST, lambda manifest: manifest | {"files": {}}
    ),
    **{
        where: lambda place, change=change: with_state(place, change)
        for where, change in {
            "trainer_state.json: Input": lambda state: [],
            "global_step: Input": lambda state: state | {"global_step": "10"},
            "is of step 9": lambda state: state | {"global_step": 9},
            "log_history: Input": lambda state: state | {"log_history": None},
            "num_input_tokens_seen: Input": lambda state: state | {"num_input_tokens_seen": -1},
            "holds colour": lambda state: state | {"colour": "blue"},
        }.items()
    },
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_with_the_reason(tmp_path: Path, reason: str) -> None:
    good, bad = publish(tmp_path, 9), publish(tmp_path, 10)
    DAMAGES[reason](bad)
    search = checkpoints.newest_valid(tmp_path)
    assert search.found == good
    assert [path for path, _ in search.skipped] == [bad] and reason in search.skipped[0][1]


def test_steps_are_compared_as_numbers_and_other_names_ignored(tmp_path: Path) -> None:
    newest = publish(tmp_path, 100)
    publish(tmp_path, 99)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert checkpoints.newest_valid(tmp_path).found == newest
    assert [checkpoints.step_of(path) for path in checkpoints.list_checkpoints(tmp_path)] == [99, 100]
    assert checkpoints.newest_valid(tmp_path / "nowhere").found is None


def test_rotation_keeps_the_newest_the_best_and_the_last_valid(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        publish(tmp_path, step)
    checkpoints.rotate(tmp_path, 2, keep=tmp_path / "checkpoint-4", best=tmp_path / "checkpoint-1")
    assert [checkpoints.step_of(path) for path in checkpoints.list_checkpoints(tmp_path)] == [1, 4]
    checkpoints.rotate(tmp_path, None, keep=tmp_path / "checkpoint-4")
    assert len(checkpoints.list_checkpoints(tmp_path)) == 2


def test_rotation_keeps_the_last_valid_checkpoint_beside_a_damaged_later_one(tmp_path: Path) -> None:
    publish(tmp_path, 3)
    damaged, written = publish(tmp_path, 9), publish(tmp_path, 5)
    os.truncate(damaged / "model.safetensors", 1)
    checkpoints.rotate(tmp_path, 1, keep=written)
    assert checkpoints.newest_valid(tmp_path).found == written
    assert not (tmp_path / "checkpoint-3").exists()


def test_cleaning_up_removes_leftovers_only(tmp_path: Path) -> None:
    kept = publish(tmp_path, 3)
    for name in (".saving/checkpoint-4", ".deleting-checkpoint-1", ".replaced-checkpoint-2"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    (tmp_path / ".train_results.json.writing").write_text("half")
    (tmp_path / "notes.txt").write_text("the user's")
    checkpoints.clean_up(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [kept.name, "notes.txt"]


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo harmful",)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"step": torch.zeros(1)}, tmp_path / "optimizer.pt")
    checkpoints.refuse_unsafe_files(tmp_path)
    (tmp_path / "scheduler.pt").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(UsageError, match=r"scheduler\.pt is refused"):
        checkpoints.refuse_unsafe_files(tmp_path)


@pytest.mark.parametrize("package", [b"numpy.core", b"numpy._core"])
def test_a_random_state_is_loaded_whichever_numpy_saved_it(tmp_path: Path, package: bytes) -> None:
    """NumPy 2 renamed the package that a pickled array names."""
    state = numpy.random.get_state()
    torch.save({"numpy": state}, tmp_path / "current.zip")
    with zipfile.ZipFile(tmp_path / "current.zip") as saved, zipfile.ZipFile(tmp_path / "rng_state.pth", "w") as other:
        for name in saved.namelist():
            other.writestr(name, re.sub(rb"numpy\._?core(?=\.multiarray)", package, saved.read(name)))
        assert any(package + b".multiarray" in other.read(name) for name in other.namelist())
    checkpoints.refuse_unsafe_files(tmp_path)
    with checkpoints.safe_globals(), safe_globals():  # as the Trainer loads it
        loaded = torch.load(tmp_path / "rng_state.pth", weights_only=True)["numpy"]
    assert loaded[0] == state[0] and (loaded[1] == state[1]).all()
