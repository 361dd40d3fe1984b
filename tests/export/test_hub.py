"""``bertconv export --format hub``: the folder, its model card, and publishing to a stand-in for the Hub."""

import errno
import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, get_type_hints
from urllib.parse import urlsplit

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from transformers import AutoModelForMaskedLM, AutoTokenizer

from bert_convolutions.cli.main import main
from bert_convolutions.errors import UsageError
from bert_convolutions.export.options import ExportOptions
from bert_convolutions.export.run import FORMATS
from bert_convolutions.files import write_json
from bert_convolutions.hub import local_folder
from bert_convolutions.report import kernels


def export(source: Path, target: Path, *more: str) -> int:
    return main(["export", "--format", "hub", f"--model_name_or_path={source}", f"--output_dir={target}", *more])


@pytest.fixture
def trained(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A folder as runs leave it: the results of training and evaluation beside the model, and checkpoints below it."""
    folder = tmp_path / "trained"
    shutil.copytree(folders["composite"], folder)
    write_json(
        folder / "train_results.json",
        {"steps": 4000, "train_loss": 3.25, "model_name_or_path": "/home/me/m1", "run": {"seed": 7, "block_size": 128}},
    )
    log = [{"step": 2000, "loss": 4.5}, {"step": 4000, "loss": 2.25}, {"step": 4000, "train_loss": 3.25}]
    nothing = dict.fromkeys(("epoch", "best_metric", "best_global_step", "best_model_checkpoint"))
    state = {"global_step": 4000, "max_steps": 4000, "num_input_tokens_seen": 9, "total_flos": 0.0, "log_history": log}
    write_json(folder / "trainer_state.json", {**nothing, **state, "stateful_callbacks": {}})
    write_json(folder / "eval_results.json", {"eval_loss": 2.0, "eval_perplexity": 7.389})
    (folder / "eval_results_rte.txt").write_text("eval_loss = 0.6\neval_acc = 0.5625\n")
    for name in ("checkpoint-2000", "chck_1M"):
        shutil.copytree(folders["composite"], folder / name)
        (folder / name / "optimizer.pt").write_bytes(b"moments")
    return folder


@pytest.mark.parametrize("place", ["a mount point", "the working directory"])
def test_an_existing_folder_is_filled_and_not_replaced(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    genuine, before = Path.rename, out.stat().st_ino

    def rename(source: Path, target: Path) -> Path:
        if (out in Path(target).resolve().parents and out not in source.resolve().parents) or Path(target) == out:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return genuine(source, target)

    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.chdir(out)
    assert export(folders["composite"], out if place == "a mount point" else Path()) == 0
    assert out.stat().st_ino == before and (out / "config.json").is_file()
    assert "# out\n" in (out / "README.md").read_text(encoding="utf-8")


def test_the_folder_has_all_files_and_the_card_has_the_results(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert export(trained, tmp_path / "out", "--license=cc-by-4.0") == 0
    assert not capfd.readouterr().err, "transformers draws a bar for the one file of the weights"
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
        "| start | the weights of m1 |",
        "| steps | 4,000 |",
        "| seed | 7 |",
        "| last logged training loss | 2.2500 |",
        "| GLUE RTE, acc | 0.5625 |",
        "qk_convfixed_convq_convk 3",
        "(kernels.png)",
    ):
        assert said in card.text, said
    assert "Weights: cc-by-4.0" in card.text


def test_the_image_of_the_card_names_the_model(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = []
    monkeypatch.setattr(kernels, "save_figure", lambda figure, path: titles.append(figure.get_suptitle()))
    assert export(folders["composite"], tmp_path / "my model") == 0
    assert main(["plot-kernels", f"--checkpoint={folders['composite']}", f"--output={tmp_path / 'kernels.png'}"]) == 0
    assert titles == [f"Learned kernels of “qk_convfixed_convq_convk 3” ({name})" for name in ("my model", "composite")]


def test_a_card_says_what_is_not_recorded(folders: dict[str, Path], tmp_path: Path) -> None:
    assert export(folders["convolved"], tmp_path / "out") == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert "has no records of its training" in text
    assert "None are recorded" in text
    assert "kernels.png" not in text
    assert not (tmp_path / "out" / "kernels.png").exists()


@pytest.mark.parametrize(
    "fault", ["no model", "not ours", "own code", "damaged weights", "damaged results", "target", "into itself"]
)
def test_models_that_cannot_be_exported_are_refused_and_leave_nothing(
    fault: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    if fault == "no model":
        (trained / "config.json").unlink()
    elif fault == "not ours":
        write_json(trained / "config.json", {"model_type": "bert"})
    elif fault == "own code":
        write_json(trained / "config.json", {"model_type": "other", "auto_map": {"AutoConfig": "code.Config"}})
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
    printed, said = capsys.readouterr()
    assert "[y/N]" not in printed, "asks whether to run the code in the folder"
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("bertconv: error: ")
    assert not (target / "config.json").exists()
    assert not list(tmp_path.glob(".*"))
    assert fault != "target" or (target / "notes.txt").read_text() == "mine"


class Hub:
    """A stand-in for the Hub that keeps the files uploaded to each branch of each repository."""

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
        self.branches[repo_id, revision] |= files  # raises where there is no such branch


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
    cards = {branch: files["README.md"] for (_, branch), files in hub.branches.items()}
    assert all(b'from_pretrained("someone/small"' in card for card in cards.values())
    said = {branch: (b"7.389" in card, b"no records of its training" in card) for branch, card in cards.items()}
    assert said == {"main": (True, False), "checkpoint-2000": (False, True), "chck_1M": (False, True)}


def test_publishing_again_makes_no_further_branches(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(monkeypatch)
    for name in ("first", "second"):
        assert export(trained, tmp_path / name, "--push_to_hub=someone/small", "--revisions") == 0
    assert len(hub.branches) == 3


def test_where_the_hub_refuses_the_folder_is_kept_and_the_upload_command_printed(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Hub(monkeypatch, OSError("Invalid user token."))
    assert export(trained, tmp_path / "my model", "--push_to_hub=someone/small") == 2
    said = capsys.readouterr().err
    assert f"hf upload someone/small '{tmp_path / 'my model'}'" in said
    assert "Invalid user token" in said
    assert (tmp_path / "my model" / "model.safetensors").is_file()


def test_revisions_need_push_to_hub(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(tmp_path, tmp_path / "out", "--revisions") == 2
    assert "--push_to_hub" in capsys.readouterr().err


def test_every_format_has_a_function() -> None:
    assert set(get_type_hints(ExportOptions)["format"].__args__) == set(FORMATS)


def commit(branch: str) -> str:
    return hashlib.sha1(branch.encode()).hexdigest()


class _LocalHub(BaseHTTPRequestHandler):
    """Answers ``huggingface_hub`` for one repository, whose branches are the folders in ``root``."""

    root: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        words = urlsplit(self.path).path.removeprefix("/api/models").split("/")[1:]
        owner, repository, what, *rest = [*words, "", "", ""]
        branches = {name: folder for folder in self.root.iterdir() for name in (folder.name, commit(folder.name))}
        folder = branches.get(rest[0]) if (owner, repository) == ("someone", "small") else None
        files = [] if folder is None else [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
        answer: dict[str, Any] | list[Any] | None = None
        headers, body = {}, b""
        if folder is None:
            pass
        elif what == "revision":
            siblings = [{"rfilename": str(path)} for path in files]
            answer = {"id": "someone/small", "sha": commit(folder.name), "siblings": siblings}
        elif what == "tree":
            answer = [{"type": "file", "path": str(path), "size": 1, "oid": "0"} for path in files]
        elif what == "resolve":
            body = (folder / "/".join(rest[1:-3])).read_bytes()
            headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": commit(folder.name)}
        body = body if answer is None else json.dumps(answer).encode()
        self.send_response(200 if body else 404)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def local_hub(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_LocalHub]]:
    """A local Hub with the repository ``someone/small``: branch ``main`` is composite, ``v2`` convolved."""
    _LocalHub.root, _LocalHub.asked = tmp_path / "local_hub", []
    for branch, name in (("main", "composite"), ("v2", "convolved")):
        shutil.copytree(folders[name], _LocalHub.root / branch)
        (_LocalHub.root / branch / "onnx").mkdir()
        (_LocalHub.root / branch / "onnx" / "big.json").write_text("{}")
        (_LocalHub.root / branch / "flax_model.msgpack").write_text("big")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _LocalHub)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    yield _LocalHub
    server.shutdown()
    server.server_close()


def test_a_name_on_the_hub_becomes_a_folder_in_its_cache(
    local_hub: type[_LocalHub], folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def names(folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    tokenizer = {"added_tokens.json", "spm.model", "tokenizer_config.json"}
    assert names(local_folder("someone/small@v2", "tokenizer")) == {*tokenizer, "config.json"}
    newer = local_folder("someone/small@v2")
    assert names(newer) == {*tokenizer, "config.json", "model.safetensors"}, "what nobody reads was fetched"
    assert (newer / "config.json").read_bytes() == (folders["convolved"] / "config.json").read_bytes()
    folder = local_folder("someone/small")
    assert (folder / "config.json").read_bytes() == (folders["composite"] / "config.json").read_bytes()
    with pytest.raises(UsageError, match="someone/large: no such model on this machine, nor could it be had"):
        local_folder("someone/large")
    with pytest.raises(UsageError, match="someone/small@v3: no such model"):
        local_folder("someone/small@v3")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = list(local_hub.asked)
    assert local_folder("someone/small") == folder and local_folder("someone/small@v2") == newer
    monkeypatch.chdir(tmp_path)
    for path in ("someone/small", "someone/small@v2"):  # an existing path of that name has precedence
        Path(path).mkdir(parents=True)
        assert local_folder(path) == Path(path)
    assert local_folder("./someone/large") == Path("someone/large") and local_folder("a/b/c") == Path("a/b/c")
    assert local_hub.asked == asked


@pytest.mark.parametrize(
    "command",
    [
        "export --format hub --model_name_or_path NAME --output_dir OUT",
        "convert --input NAME --output_dir OUT --add attention_kernel=qk_convfixed_convq_convk_convkhead\\ 3",
        "plot-kernels NAME --output OUT",
        "build-dataset --tokenizer_name NAME --train_data_file TEXT --output_dir OUT",
        "minimal-pairs --model_name_or_path NAME --data_dir PAIRS --output_dir OUT",
        "local-order --model_name_or_path NAME --text TEXT --distances 2 --output_dir OUT",
        "pretrain --model_name_or_path NAME --do_train --line_by_line --train_data_file TEXT --block_size 32"
        " --max_steps 1 --output_dir OUT",
    ],
    ids=lambda command: command.split()[0],
)
@pytest.mark.usefixtures("local_hub")
def test_every_command_that_reads_a_model_takes_a_name_on_the_hub(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("TEXT").write_text("the cat sleeps on the warm mats\n a dog barked at 20 neighbours\n" * 9)
    Path("PAIRS").mkdir()
    Path("PAIRS", "own.tsv").write_text("sentence_good\tsentence_bad\nthe cat sleeps\tthe cat sleep\n")
    words = shlex.split(command.replace("NAME", "someone/small").replace("OUT", "out.png"))
    assert main(words) == 0 and Path("out.png").exists()


@pytest.mark.parametrize(
    "command",
    [
        "pretrain --model_name_or_path NAME --do_train --line_by_line --train_data_file TEXT --overwrite_output_dir",
        "minimal-pairs --model_name_or_path NAME --data_dir PAIRS",
        "convert --input NAME --overwrite_output_dir",
        "export --model_name_or_path NAME",
    ],
    ids=lambda command: command.split()[0],
)
@pytest.mark.usefixtures("local_hub")
def test_the_folder_in_the_cache_is_refused_as_output(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("TEXT").write_text("the cat sleeps\n a dog barked\n")
    Path("PAIRS").mkdir()
    folder = local_folder("someone/small")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    words = command.replace("NAME", "someone/small").split()
    assert main([*words, "--output_dir", str(folder)]) == 2
    assert re.search(r"--output_dir \S+ is the input --(model_name_or_path|input) ", capsys.readouterr().err)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_model_in_a_folder_is_used_without_any_request(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.getaddrinfo", lambda *address, **more: asked.append(address) or [])
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text("the cat sleeps on the warm mats\n a dog barked at 20 neighbours\n" * 9)
    assert export(folders["composite"], out) == 0
    flags = {"model_name_or_path": out, "text": text, "distances": 2, "output_dir": tmp_path / "order"}
    assert main(["local-order", *(f"--{name}={value}" for name, value in flags.items())]) == 0
    assert asked == []
