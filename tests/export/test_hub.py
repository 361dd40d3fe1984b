"""``bertconv export --format hub``: the folder, its card, and its way to the Hub, which is a stand-in here."""

import json
import shutil
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from transformers import AutoModelForMaskedLM, AutoTokenizer

from bert_convolutions.cli.main import main
from bert_convolutions.export.options import ExportOptions
from bert_convolutions.export.run import FORMATS
from bert_convolutions.files import write_json


def export(source: Path, target: Path, *more: str) -> int:
    return main(["export", "--format", "hub", f"--model_name_or_path={source}", f"--output_dir={target}", *more])


@pytest.fixture
def trained(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A folder as runs leave it: the results of training and evaluation beside the model, and checkpoints below it."""
    folder = tmp_path / "trained"
    shutil.copytree(folders["composite"], folder)
    write_json(
        folder / "train_results.json", {"steps": 4000, "train_loss": 3.25, "run": {"seed": 7, "block_size": 128}}
    )
    write_json(folder / "eval_results.json", {"eval_loss": 2.0, "eval_perplexity": 7.389})
    (folder / "eval_results_rte.txt").write_text("eval_loss = 0.6\neval_acc = 0.5625\n")
    for name in ("checkpoint-2000", "chck_1M"):
        shutil.copytree(folders["composite"], folder / name)
        (folder / name / "optimizer.pt").write_bytes(b"moments")
    return folder


def test_the_folder_and_its_card(trained: Path, tmp_path: Path) -> None:
    assert export(trained, tmp_path / "out", "--license=cc-by-4.0") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("README.md", "config.json", "model.safetensors", "kernels.png", "spm.model", "tokenizer_config.json"),
        *("configuration_composite_bert.py", "modeling_composite_bert.py", "tokenization_composite_bert.py"),
        "added_tokens.json",
    }
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")(["a cat"], return_tensors="pt")
    logits = [AutoModelForMaskedLM.from_pretrained(place)(**ids).logits for place in (trained, tmp_path / "out")]
    assert torch.equal(*logits)

    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.pipeline_tag, card.data.library_name) == (
        "cc-by-4.0",
        "fill-mask",
        "transformers",
    )
    scores = {(result.dataset_name, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert scores == {("held-out text", "perplexity"): 7.389, ("GLUE RTE", "acc"): 0.5625}
    for said in (
        "| steps | 4,000 |",
        "| seed | 7 |",
        "| GLUE RTE, acc | 0.5625 |",
        "qk_convfixed_convq_convk 3",
        "(kernels.png)",
    ):
        assert said in card.text, said
    assert "Weights: cc-by-4.0" in card.text


def test_a_card_says_what_is_not_recorded(folders: dict[str, Path], tmp_path: Path) -> None:
    assert export(folders["convolved"], tmp_path / "out") == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert "has no records of its training" in text
    assert "None are recorded" in text
    assert "kernels.png" not in text
    assert not (tmp_path / "out" / "kernels.png").exists()


@pytest.mark.parametrize(
    "fault", ["no model", "not ours", "damaged weights", "damaged results", "target", "into itself"]
)
def test_what_cannot_be_exported_leaves_nothing(
    fault: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    if fault == "no model":
        (trained / "config.json").unlink()
    elif fault == "not ours":
        write_json(trained / "config.json", {"model_type": "bert"})
    elif fault == "damaged weights":
        (trained / "model.safetensors").write_bytes(b"no weights")
    elif fault == "damaged results":
        write_json(trained / "train_results.json", {"steps": -1})
    elif fault == "target":
        target.mkdir()
        (target / "notes.txt").write_text("mine")
    else:
        target = trained / "out"
    assert export(trained, target) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("bertconv: error: ")
    assert not (target / "config.json").exists()
    assert not list(tmp_path.glob(".*"))
    assert fault != "target" or (target / "notes.txt").read_text() == "mine"


class Hub:
    """What the Hub keeps: for each branch of each repository, the files that were uploaded to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fault: Exception | None = None) -> None:
        self.branches: dict[tuple[str, str], dict[str, bytes]] = {}
        self.private: dict[str, bool | None] = {}
        self.fault = fault
        for name in ("create_repo", "create_branch", "upload_folder"):
            monkeypatch.setattr(
                HfApi, name, lambda api, *args, name=name, **kwargs: getattr(self, name)(*args, **kwargs)
            )

    def create_repo(self, repo_id: str, *, private: bool | None = None, exist_ok: bool = False) -> None:
        if self.fault:
            raise self.fault
        self.private.setdefault(repo_id, private)
        self.branches.setdefault((repo_id, "main"), {})

    def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool = False) -> None:
        assert exist_ok or (repo_id, branch) not in self.branches
        self.branches.setdefault((repo_id, branch), dict(self.branches[repo_id, "main"]))

    def upload_folder(self, *, repo_id: str, folder_path: Any, revision: str = "main", commit_message: str) -> None:
        files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        self.branches[repo_id, revision] |= files  # an error where there is no such branch


def test_checkpoints_become_branches(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch)
    weights = trained / "chck_1M" / "model.safetensors"
    weights.write_bytes(trained.joinpath("model.safetensors").read_bytes())
    assert export(trained, tmp_path / "out", "--push_to_hub=someone/small", "--revisions", "--private") == 0
    assert hub.private == {"someone/small": True}
    assert {branch for _, branch in hub.branches} == {"main", "checkpoint-2000", "chck_1M"}
    for files in hub.branches.values():
        assert {"README.md", "model.safetensors", "config.json", "spm.model", "modeling_composite_bert.py"} <= set(
            files
        )
        assert not {"optimizer.pt", "train_results.json"} & set(files)
        assert json.loads(files["config.json"])["auto_map"]["AutoModel"] == "modeling_composite_bert.CompositeBertModel"
    assert b'from_pretrained("someone/small"' in hub.branches["someone/small", "main"]["README.md"]


def test_publishing_again_is_the_same(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch)
    for name in ("first", "second"):
        assert export(trained, tmp_path / name, "--push_to_hub=someone/small", "--revisions") == 0
    assert len(hub.branches) == 3


def test_a_hub_that_refuses_leaves_the_folder_and_says_how_to_go_on(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Hub(monkeypatch, OSError("Invalid user token."))
    assert export(trained, tmp_path / "out", "--push_to_hub=someone/small") == 2
    said = capsys.readouterr().err
    assert f"hf upload someone/small {tmp_path / 'out'}" in said
    assert "Invalid user token" in said
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_flags_that_need_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(tmp_path, tmp_path / "out", "--revisions") == 2
    assert "--push_to_hub" in capsys.readouterr().err


def test_every_format_has_its_function() -> None:
    assert set(get_type_hints(ExportOptions)["format"].__args__) == set(FORMATS)
