import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from bert_convolutions import CompositeBertConfig
from bert_convolutions.cli.main import main
from bert_convolutions.convert import original
from bert_convolutions.convert.original import convert_checkpoint
from bert_convolutions.errors import UsageError
from bert_convolutions.model.presets import load_config

FIXTURE = Path(__file__).parents[1] / "parity" / "fixtures" / "composite"
CODE = {"configuration_composite_bert.py", "modeling_composite_bert.py"}  # loads it without this package


@pytest.fixture
def source(tmp_path):
    return Path(shutil.copytree(FIXTURE, tmp_path / "source"))


def refused(source, target, match):
    there_before = sorted(target.parent.rglob("*"))
    with pytest.raises(UsageError, match=match) as error:
        convert_checkpoint(source, target)
    assert "\n" not in str(error.value)
    assert sorted(target.parent.rglob("*")) == there_before


def test_the_converted_folder_has_these_files(source, tmp_path, capfd):
    target = convert_checkpoint(source, tmp_path / "new" / "target")
    assert not capfd.readouterr().err, "transformers draws a bar for the one file of the weights"
    assert {path.name for path in target.iterdir()} == {"config.json", "model.safetensors", *CODE}
    assert json.loads((target / "config.json").read_text())["architectures"] == ["CompositeBertForMaskedLM"]
    refuse = pytest.raises(UsageError, match="overwrite_output_dir")
    with refuse:
        convert_checkpoint(source, target)
    convert_checkpoint(source, target, overwrite_output_dir=True)


def test_a_folder_on_another_disk_than_its_parent_can_be_the_output(source, tmp_path, monkeypatch):
    target, genuine = tmp_path / "mounted", Path.replace
    target.mkdir()

    def replace(path, place):
        if target in Path(place).parents and target not in path.parents:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return genuine(path, place)

    monkeypatch.setattr(Path, "replace", replace)
    convert_checkpoint(source, target)
    assert (target / "config.json").is_file()


def test_an_overwrite_replaces_what_a_conversion_wrote_and_nothing_else(source, tmp_path):
    target = tmp_path / "target"
    arguments = ["convert", "--input", str(source), "--output_dir", str(target)]
    assert main(arguments) == 0
    (target / "notes.txt").write_text("mine")
    (target / "checkpoint-5").mkdir()
    old = (target / "model.safetensors").read_bytes()
    (target / "model.safetensors").write_bytes(b"old")
    (target / "spm.model").write_bytes(b"of an earlier conversion")
    assert main(arguments) == 2
    assert main([*arguments, "--overwrite_output_dir"]) == 0
    assert {path.name for path in target.iterdir()} == {
        *("config.json", "model.safetensors", "notes.txt", "checkpoint-5"),
        *CODE,
    }
    assert (target / "model.safetensors").read_bytes() == old

    (source / "pytorch_model.bin").write_bytes(b"")
    assert main([*arguments, "--overwrite_output_dir"]) == 2
    assert (target / "model.safetensors").read_bytes() == old, "nothing old goes before the new stands"


def test_a_failed_or_killed_overwrite_leaves_the_old_model(source, tmp_path, monkeypatch):
    target = convert_checkpoint(source, tmp_path / "target")
    (target / "model.safetensors").write_bytes(b"old")
    replace = Path.replace

    def full_disk(path, to):
        if path.name == "config.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(path, to)

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        convert_checkpoint(source, target, overwrite_output_dir=True)
    assert (target / "model.safetensors").read_bytes() == b"old" and (target / "config.json").is_file()

    monkeypatch.setattr(original.files, "put_back", lambda folder: None)  # as if killed
    with pytest.raises(OSError, match="No space"):
        convert_checkpoint(source, target, overwrite_output_dir=True)
    monkeypatch.undo()
    refused(source, target, "overwrite_output_dir")
    convert_checkpoint(source, target, overwrite_output_dir=True)
    assert {path.name for path in target.iterdir()} == {"config.json", "model.safetensors", *CODE}
    assert len((target / "model.safetensors").read_bytes()) > 3


@pytest.mark.parametrize("relation", [".", "..", "../link", "inside/deeper"])
def test_an_output_that_overlaps_the_input_is_refused(source, relation, tmp_path):
    (tmp_path / "link").symlink_to(source)
    there_before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=r"--output_dir .* the input --input"):
        convert_checkpoint(source, source / relation, overwrite_output_dir=True)
    assert sorted(tmp_path.rglob("*")) == there_before


@pytest.mark.parametrize("config", ['{"model_type": "roberta"}', "not json", "[]"])
def test_a_model_that_conversion_did_not_write_is_not_overwritten(config, source, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "config.json").write_text(config)
    (target / "model.safetensors").write_bytes(b"theirs")
    with pytest.raises(UsageError, match="did not write"):
        convert_checkpoint(source, target, overwrite_output_dir=True)
    assert (target / "model.safetensors").read_bytes() == b"theirs"


def test_missing_and_damaged_files_are_refused(source, tmp_path):
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


@pytest.mark.parametrize("config", ["[]", "null", '"text"', "3"])
def test_a_configuration_that_is_no_object_is_refused(config, source, tmp_path):
    (source / "config.json").write_text(config)
    refused(source, tmp_path / "target", "config.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", -32),
        ("hidden_size", 0),
        ("hidden_size", "many"),
        ("num_hidden_layers", None),
        ("num_hidden_layers", 2.5),
        ("hidden_dropout_prob", float("nan")),
        ("attention_probs_dropout_prob", 1.5),
        ("layer_norm_eps", 0),
        ("initializer_range", -0.1),
        ("hidden_act", "jump"),
        ("pad_token_id", 10**6),
        ("attention_kernel", ["qk"]),
        ("attention_kernel", "qk_konvq 3"),
        ("attention_head_size", 0),
        ("remove_qk", "yes"),
        ("architectures", 5),
        ("architectures", {"a": 1}),
        ("architectures", []),
    ],
)
def test_a_field_of_the_wrong_type_or_out_of_range_is_refused_by_name(field, value, source, tmp_path):
    """By both readers of a configuration file, and by the constructor."""
    values = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**values, field: value}))
    refused(source, tmp_path / "target", field)
    if field != "architectures":
        with pytest.raises(UsageError, match=field):
            load_config(str(source))
        with pytest.raises(Exception, match=field) as error:
            CompositeBertConfig(**{field: value})
        assert isinstance(error.value, ValueError | StrictDataclassError)


def test_weights_that_are_not_finite_are_refused(source, tmp_path):
    path, target = source / "pytorch_model.bin", tmp_path / "target"
    weights = torch.load(path, weights_only=True)
    name = "bert.encoder.layer.0.output.dense.weight"
    for damaged, match in (
        (weights[name] * torch.tensor(float("nan")), f"{name} holds NaN"),
        (weights[name] / 0, f"{name} holds NaN or inf"),
        (weights[name] * 1j, f"{name} is of torch.complex64"),
        (weights[name].long(), f"{name} is of torch.int64"),
    ):
        torch.save({**weights, name: damaged}, path)
        refused(source, target, match)


def test_changed_bytes_are_refused(source, tmp_path):
    path = source / "pytorch_model.bin"
    torch.save(torch.load(path, weights_only=True), path)
    convert_checkpoint(source, tmp_path / "intact")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)
    refused(source, tmp_path / "target", "the checksum of .* differs")


def test_a_pickle_that_would_run_code_is_refused(source, tmp_path):
    class Harmful:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"bert": Harmful()}, source / "pytorch_model.bin")
    refused(source, tmp_path / "target", "not loaded")
    assert not (tmp_path / "ran").exists()


def test_weights_that_do_not_fit_the_configuration_are_refused(source, tmp_path):
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
