"""TensorBoard gets the Trainer's figures and a picture of each kernel; a missing tracker is named."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerControl, TrainerState

from bert_convolutions.cli.main import main
from bert_convolutions.errors import UsageError
from bert_convolutions.training import arguments
from bert_convolutions.training.arguments import BertTrainingArguments
from bert_convolutions.training.progress import RunProgress, kernel_pictures
from tests.training.conftest import Workspace
from tests.training.helpers import MakeTrainer


def test_kernels_are_drawn_at_each_evaluation(workspace: Workspace) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    changes = {
        "eval_data_file": workspace.folder / "eval.ids",
        "eval_strategy": "steps",
        "eval_steps": 2,
        "max_steps": 4,
    }
    assert main(["pretrain", *workspace.flags("board", report_to="tensorboard", **changes)]) == 0
    events = [path.parent for path in (workspace.folder / "board").rglob("events.out.tfevents.*")]
    assert len(set(events)) == 1
    board = EventAccumulator(str(events[0])).Reload()
    assert sorted(board.Tags()["images"]) == ["kernels/convfixed", "kernels/convk", "kernels/convq"]
    drawn = board.Images("kernels/convfixed")
    assert [image.step for image in drawn] == [2, 4, 4], "in training, and after it"
    assert (drawn[0].width, drawn[0].height) == (7 * 12, 2 * 2 * 12), "offsets; 2 layers of 2 heads"
    assert drawn[0].encoded_image_string != drawn[1].encoded_image_string, "they have learned"
    assert [point.step for point in board.Scalars("eval/loss")] == [2, 4, 4]
    assert {"train/loss", "train/words_seen"} <= set(board.Tags()["scalars"])


def test_each_run_has_a_folder_of_events(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also an evaluation alone, which the Trainer would log to the working folder, and where a variable is set."""
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    assert workspace.run("events", max_steps=1) == 0
    evaluation = {"do_train": None, "do_eval": "true", "eval_data_file": workspace.folder / "eval.ids"}
    evaluation |= {"config_name": None, "model_name_or_path": workspace.folder / "events", "report_to": "tensorboard"}
    assert workspace.run("events-evaluated", **evaluation) == 0
    assert len(list((workspace.folder / "events-evaluated").glob("runs/*/events.out*"))) == 1
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    assert [workspace.run(name, **evaluation) for name in ("events-evaluated", "events-again")] == [0, 0]
    assert {path.parent.name for path in tmp_path.rglob("events.out*")} == {"events-evaluated", "events-again"}


def test_a_picture_shows_the_kernels(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    model = make_trainer(tmp_path).model
    for layer in model.bert.encoder.layer:
        attention = layer.attention.self
        torch.nn.init.zeros_(attention.convk_param)
        attention.convk_param.data[0, 0] = 1.0  # by query minus key: the key is three after the query
        torch.nn.init.zeros_(attention.convfixed_param)
    model.bert.encoder.layer[1].attention.self.convfixed_param.data[0, 1, 0, 2] = -1.0
    pictures = {name: picture[::12, ::12] for name, picture in kernel_pictures(model)}
    assert pictures["convk"].shape == (2, 7, 3)
    dark = pictures["convk"].sum(-1) < 3 * 255
    assert np.array_equal(np.argwhere(dark), [[0, 6], [1, 6]])
    fixed = pictures["convfixed"]
    assert fixed.shape == (4, 7, 3) and (fixed[:3] == 255).all()
    assert fixed[3, 2].tolist() == [127, 59, 8] and (fixed[3, 3] > 200).all()


@pytest.mark.parametrize(("name", "install"), [("tensorboard", "'bert-convolutions[tensorboard]'"), ("wandb", "wandb")])
def test_a_tracker_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, install: str
) -> None:
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", lambda: ["trackio"])
    for asked in (name, ["trackio", name]):
        with pytest.raises(UsageError, match=f"--report_to {name}: .*trackio") as error:
            BertTrainingArguments(output_dir=str(tmp_path), report_to=asked)
        assert f"pip install {install}," in str(error.value)
    with pytest.raises(UsageError, match=r"--report_to wadnb: unknown tracker; .*wandb") as error:
        BertTrainingArguments(output_dir=str(tmp_path), report_to="wadnb")
    assert "pip" not in str(error.value), "a package of that name may be anything"


def test_a_tracker_that_fails_is_named(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    monkeypatch.delattr(SummaryWriter, "add_text")  # as if transformers and the tracker did not fit together
    assert workspace.run("unfit", report_to="tensorboard") == 1
    assert "KernelBoard, a tracker of --report_to, failed: 'SummaryWriter' object has" in capsys.readouterr().err


def test_no_tracker_is_imported_without_the_flag(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer: Any = make_trainer(tmp_path)
    assert not [callback for callback in trainer.callback_handler.callbacks if "Board" in type(callback).__name__]
    assert "wandb" not in sys.modules


def test_a_log_line_stands_apart_from_bars_and_is_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training and after it; a bar may be on the terminal while the lines go to a file."""
    progress, training = RunProgress(lambda: ""), BertTrainingArguments(output_dir=str(tmp_path), disable_tqdm=False)
    state, control = TrainerState(global_step=5, max_steps=9, is_world_process_zero=True), TrainerControl()
    with (tmp_path / "terminal").open("w+", newline="") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "stderr", terminal)
        bars = (progress.on_prediction_step, progress.on_evaluate), (progress.on_train_begin, progress.on_train_end)
        for begins, ends in bars:
            begins(training, state, control, eval_dataloader=range(3))
            progress.on_log(training, state, control, {"eval_loss": 1.5})
            before, _, after = (tmp_path / "terminal").read_bytes().rpartition(b"step 5")
            assert before.endswith(b"\r") and after.startswith(b": eval_loss 1.5\n")
            ends(training, state, control)
