import json
import shutil
from pathlib import Path

import pytest
import torch

from bert_convolutions.convert.original import convert_checkpoint
from bert_convolutions.errors import UsageError

FIXTURE = Path(__file__).parents[1] / "parity" / "fixtures" / "composite"


@pytest.fixture
def source(tmp_path):
    return Path(shutil.copytree(FIXTURE, tmp_path / "source"))


def refused(source, target, match):
    with pytest.raises(UsageError, match=match) as error:
        convert_checkpoint(source, target)
    assert "\n" not in str(error.value)
    assert not target.exists() and not list(target.parent.glob(".*tmp"))


def test_files_of_the_converted_folder(source, tmp_path):
    target = convert_checkpoint(source, tmp_path / "new" / "target")
    assert {path.name for path in target.iterdir()} == {"config.json", "model.safetensors"}
    assert json.loads((target / "config.json").read_text())["architectures"] == ["CompositeBertForMaskedLM"]
    refuse = pytest.raises(UsageError, match="overwrite_output_dir")
    with refuse:
        convert_checkpoint(source, target)
    convert_checkpoint(source, target, overwrite_output_dir=True)


def test_missing_and_damaged_files(source, tmp_path):
    target = tmp_path / "target"
    refused(tmp_path / "nowhere", target, "config.json is missing")
    weights = source / "pytorch_model.bin"
    intact = weights.read_bytes()
    weights.write_bytes(intact[: len(intact) // 2])
    refused(source, target, "pytorch_model.bin")
    weights.unlink()
    refused(source, target, "pytorch_model.bin is missing")
    weights.write_bytes(intact)
    (source / "config.json").write_text("not json")
    refused(source, target, "JSON")


def test_a_pickle_that_would_run_code_is_refused(source, tmp_path):
    class Harmful:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"bert": Harmful()}, source / "pytorch_model.bin")
    refused(source, tmp_path / "target", "not loaded")
    assert not (tmp_path / "ran").exists()


def test_weights_that_do_not_fit_the_configuration(source, tmp_path):
    target = tmp_path / "target"
    values = json.loads((source / "config.json").read_text())
    for change, match in (
        ({"attention_kernel": "qk_convfixed 3"}, "convq_param"),
        ({"attention_kernel": "qk_convfixed_convq_convk 4"}, "convfixed_param is"),
        ({"remove_position_embeddings": False}, "lacks bert.embeddings.position_embeddings"),
        ({"architectures": ["BertForQuestionAnswering"]}, "BertForQuestionAnswering"),
    ):
        (source / "config.json").write_text(json.dumps({**values, **change}))
        refused(source, target, match)
