"""Saved models give the same results in an interpreter that can't import this package."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_imports

import bert_convolutions
from bert_convolutions import CompositeBertConfig, CompositeBertForMaskedLM, CompositeBertTokenizer, self_contained
from bert_convolutions.model.configuration import AUTO_CLASSES
from bert_convolutions.self_contained import CODE_FILES, code, write_code

WITHOUT_THIS_PACKAGE = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("bert_convolutions", "bertconv"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())

import datasets
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module

def outputs(name, folder):
    auto = AutoModelForSequenceClassification if name == "classifier" else AutoModelForMaskedLM
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = auto.from_pretrained(folder, trust_remote_code=True)
    encoded = tokenizer(TEXTS, padding=True, return_tensors="pt")
    found = {"ids": encoded["input_ids"].tolist()}
    for backend in ("sdpa", "eager"):
        model.set_attn_implementation(backend)
        found[backend] = model(**encoded).logits.tolist()
    model.train()
    labels = torch.tensor([0, 1]) if name == "classifier" else encoded["input_ids"]
    torch.manual_seed(0)
    model.set_attn_implementation("sdpa")
    loss = model(**encoded, labels=labels).loss
    loss.backward()
    found["grad"] = model.bert.embeddings.word_embeddings.weight.grad.tolist()
    return found, model, tokenizer

folders, trained, TEXTS, again = json.loads(sys.argv[1])
result = {}
for name, folder in folders.items():
    result[name], model, tokenizer = outputs(name, folder)
model.save_pretrained(again)
tokenizer.save_pretrained(again)
result["saved again"], _, _ = outputs(name, again)
fill = pipeline("fill-mask", model=folders["composite"], trust_remote_code=True)
result["filled"] = [[found["token"], found["score"]] for found in fill("the [MASK] sleeps")]
rows = datasets.Dataset.from_dict({"text": TEXTS})
result["mapped"] = rows.map(lambda row: tokenizer(row["text"]), batched=True, num_proc=2)["input_ids"][:]
result["called"] = tokenizer(TEXTS)["input_ids"]
result["trained"] = dict(AutoTokenizer.from_pretrained(trained, trust_remote_code=True)(TEXTS, padding=True))
try:
    AutoModelForMaskedLM.from_pretrained(folders["composite"])
except ValueError as error:
    result["advice"] = str(error)
try:
    model.set_attn_implementation("triton")
    model(torch.tensor([[1]]))
except ValueError as error:
    result["kernels"] = str(error)
print()
print(json.dumps(result))
"""
TEXTS = ["In 1,900 the [MASK] sleeps.", "A dog"]


def outputs(folder: Path) -> tuple[dict[str, Any], PreTrainedModel]:
    config = CompositeBertConfig.from_pretrained(folder)
    model = getattr(bert_convolutions, config.architectures[0]).from_pretrained(folder)
    encoded = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    found = {"ids": encoded["input_ids"].tolist(), "sdpa": model(**encoded).logits.tolist()}
    labels = torch.tensor([0, 1]) if "Sequence" in config.architectures[0] else encoded["input_ids"]
    model.train()
    torch.manual_seed(0)
    model(**encoded, labels=labels).loss.backward()
    found["grad"] = model.bert.embeddings.word_embeddings.weight.grad.tolist()
    return found, model


def test_a_saved_model_needs_no_package_of_ours(
    folders: dict[str, Path], tokenizer: CompositeBertTokenizer, tmp_path: Path
) -> None:
    """Nor does a tokenizer in a folder of ``train-tokenizer``."""
    trained = Path(tokenizer.vocab_file).parent
    process = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            WITHOUT_THIS_PACKAGE,
            json.dumps([{k: str(v) for k, v in folders.items()}, str(trained), TEXTS, str(tmp_path / "again")]),
        ],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=tmp_path,
        timeout=180,  # a lock that is copied to another process is never released there
        env={
            **os.environ,
            "HF_MODULES_CACHE": str(tmp_path / "modules"),
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(tmp_path),
        },
    )
    assert process.returncode == 0, process.stderr[-3000:]
    theirs = json.loads(process.stdout.splitlines()[-1])
    assert "trust_remote_code=True" in theirs.pop("advice")
    assert "bert_convolutions[gpu]" in theirs.pop("kernels")
    assert theirs.pop("mapped") == theirs.pop("called")
    assert theirs.pop("trained") == tokenizer(TEXTS, padding=True)
    filled = theirs.pop("filled")
    for name, folder in {**folders, "saved again": folders["classifier"]}.items():
        ours, model = outputs(folder)
        assert theirs[name]["ids"] == ours["ids"]
        for backend in ("sdpa", "eager"):
            assert torch.allclose(torch.tensor(theirs[name][backend]), torch.tensor(ours["sdpa"]), atol=1e-5), name
        assert torch.allclose(torch.tensor(theirs[name]["grad"]), torch.tensor(ours["grad"]), atol=1e-5), name
    model = CompositeBertForMaskedLM.from_pretrained(folders["composite"])
    tokenizer = AutoTokenizer.from_pretrained(folders["composite"])
    encoded = tokenizer("the [MASK] sleeps", return_tensors="pt")
    logits = model(**encoded).logits[0, encoded["input_ids"][0] == tokenizer.mask_token_id]
    scores, tokens = logits.softmax(-1).topk(5)
    assert [token for token, _ in filled] == tokens[0].tolist()
    assert torch.allclose(torch.tensor([score for _, score in filled]), scores[0])


def test_the_saved_code_imports_no_package_of_ours(tmp_path: Path) -> None:
    allowed = {*sys.stdlib_module_names, "numpy", "pydantic", "sentencepiece", "tokenizers", "torch", "transformers"}
    for path in write_code(tmp_path, *CODE_FILES):
        assert set(get_imports(path)) <= allowed
        compile(path.read_text(), path, "exec")
    assert "sentencepiece" not in code("modeling_composite_bert")
    assert "torch" not in get_imports(tmp_path / "tokenization_composite_bert.py")


def test_the_classes_in_auto_map_are_in_the_saved_code(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
        assert set(auto_map) == set(AUTO_CLASSES)
        of_tokenizer = json.loads((folder / "tokenizer_config.json").read_text())["auto_map"]["AutoTokenizer"][0]
        for reference in (*auto_map.values(), of_tokenizer):
            file, _, name = reference.partition(".")
            assert f"\nclass {name}(" in (folder / f"{file}.py").read_text()


def test_every_auto_class_makes_its_model() -> None:
    for auto, name in AUTO_CLASSES.items():
        if auto != "AutoConfig":
            mapping = getattr(sys.modules["transformers"], auto)._model_mapping
            assert mapping[CompositeBertConfig].__name__ == name


def test_a_configuration_is_the_same_before_and_after_saving(tmp_path: Path) -> None:
    """So the configuration of a resumed run equals that of its checkpoint."""
    config = CompositeBertConfig(attention_kernel="qk_convq 3")
    before = config.to_dict()
    config.save_pretrained(tmp_path)
    loaded = CompositeBertConfig.from_pretrained(tmp_path)
    assert config.to_dict() == before
    assert {**loaded.to_dict(), "transformers_version": None} == {**before, "transformers_version": None}
    assert "auto_map" not in BertConfig(**loaded.to_dict()).to_dict()


def test_where_this_package_is_imported_its_own_classes_are_used(folders: dict[str, Path]) -> None:
    for trust in (None, False, True):
        assert (
            type(AutoModel.from_pretrained(folders["composite"], trust_remote_code=trust))
            is bert_convolutions.CompositeBertModel
        )
        assert (
            type(AutoTokenizer.from_pretrained(folders["composite"], trust_remote_code=trust))
            is bert_convolutions.CompositeBertTokenizer
        )


def test_two_definitions_of_one_name_in_the_saved_code_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The saved code is one file with one name space."""
    needed = [*self_contained._needed("modeling_composite_bert"), ("attention.spec", "Dropout")]
    monkeypatch.setattr(self_contained, "_needed", lambda name: needed)
    monkeypatch.setattr(self_contained, "_IMPORTED_FROM", {})
    with pytest.raises(ValueError, match="Dropout is defined by"):
        code.__wrapped__("modeling_composite_bert")
