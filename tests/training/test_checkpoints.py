import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from transformers import TrainerState

from bert_convolutions.errors import UsageError
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


def test_publishing_again_replaces(tmp_path: Path) -> None:
    publish(tmp_path, 10)
    place = publish(tmp_path, 10, "others")
    assert (place / "model.safetensors").read_text() == "others" and checkpoints.fault_in(place) is None
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [checkpoints.STAGING_NAME]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "checksum": lambda place: flip(place / "model.safetensors"),
    "bytes instead of": lambda place: os.truncate(place / "model.safetensors", 3),
    "missing": lambda place: (place / "part" / "state.json").unlink(),
    "not written to its end": lambda place: (place / "manifest.json").unlink(),
    "cannot be read": lambda place: os.truncate(place / "manifest.json", 20),
    "none that this version": lambda place: (place / "manifest.json").write_text(json.dumps({"format": 99})),
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


def test_rotation_never_deletes_the_last_valid_one_for_a_damaged_one_of_a_later_step(tmp_path: Path) -> None:
    publish(tmp_path, 3)
    damaged, written = publish(tmp_path, 9), publish(tmp_path, 5)
    os.truncate(damaged / "model.safetensors", 1)
    checkpoints.rotate(tmp_path, 1, keep=written)
    assert checkpoints.newest_valid(tmp_path).found == written
    assert not (tmp_path / "checkpoint-3").exists()


def test_sweeping_removes_leftovers_only(tmp_path: Path) -> None:
    kept = publish(tmp_path, 3)
    for name in (".saving/checkpoint-4", ".deleting-checkpoint-1", ".replaced-checkpoint-2"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    (tmp_path / ".train_results.json.writing").write_text("half")
    (tmp_path / "notes.txt").write_text("the user's")
    checkpoints.sweep(tmp_path)
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
