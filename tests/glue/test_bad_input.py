"""Bad input is refused with one sentence, before anything is written that a second run would accept."""

import json
import shutil
from pathlib import Path

import pytest

from bert_convolutions.cli.main import main
from bert_convolutions.errors import UsageError
from bert_convolutions.glue.options import GlueOptions
from bert_convolutions.glue.run import run_glue
from bert_convolutions.training.arguments import BertTrainingArguments

CASES: dict[str, tuple[dict, dict, str]] = {
    "nothing to do": ({}, {"do_train": False}, "nothing to do: give --do_train, --do_eval or --do_predict"),
    "no model": ({"model_name_or_path": None}, {}, "--do_train needs --model_name_or_path"),
    "no such model": ({"model_name_or_path": "./none"}, {}, r"\./none"),
    "no such tokenizer": ({"tokenizer_name": "./none"}, {}, "none: no such tokenizer"),
    "task": ({"task_name": "RTX"}, {}, "no GLUE task 'RTX'"),
    "preset": ({"hyperparams": "electr"}, {}, "unknown hyper-parameters 'electr'"),
    "rounds": ({"rounds": 11}, {}, "--rounds must be from 1 to 10"),
    "no rounds": ({"rounds": 0}, {}, "--rounds must be from 1 to 10"),
    "length": ({"max_seq_length": 65}, {}, "--max_seq_length 65 is above the model's 64 positions"),
    "short length": ({"max_seq_length": 3}, {}, "--max_seq_length 3"),
    "data": ({"data_dir": "nowhere"}, {}, r"nowhere/RTE/train.tsv: no such file"),
    "resume": ({}, {"resume_from_checkpoint": "x/checkpoint-1"}, "--resume_from_checkpoint takes no folder"),
}


def run(folder: Path, glue_dir: Path, model_dir: Path, options: dict, arguments: dict) -> None:
    given = {"data_dir": str(glue_dir), "task_name": "RTE", "model_name_or_path": str(model_dir), "max_seq_length": 32}
    run_glue(
        GlueOptions(**{**given, **options}),
        BertTrainingArguments(
            **{"output_dir": str(folder), "use_cpu": True, "do_train": True, "max_steps": 1, "disable_tqdm": True}
            | arguments
        ),
    )


@pytest.mark.parametrize("case", CASES)
def test_bad_flags_are_refused(tmp_path: Path, glue_dir: Path, model_dir: Path, case: str):
    options, arguments, message = CASES[case]
    with pytest.raises(UsageError, match=message):
        run(tmp_path / "out", glue_dir, model_dir, options, arguments)
    assert not list((tmp_path / "out").rglob("*.*")) or not (tmp_path / "out" / "glue_state.json").exists()


def test_a_tokenizer_of_another_size_is_refused_with_both_numbers(tmp_path: Path, glue_dir: Path, model_dir: Path):
    other = tmp_path / "tokenizer"
    shutil.copytree(model_dir, other, ignore=shutil.ignore_patterns("model.safetensors", "config.json"))
    content = json.loads((other / "tokenizer.json").read_text())
    del content["model"]["vocab"]["w39"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="the tokenizer has 44 tokens and the model 45 embeddings"):
        run(tmp_path / "out", glue_dir, model_dir, {"tokenizer_name": str(other)}, {})


def test_a_bad_line_of_the_last_task_stops_the_run_before_the_first(tmp_path: Path, glue_dir: Path, model_dir: Path):
    data = tmp_path / "data"
    shutil.copytree(glue_dir, data)
    with (data / "WNLI" / "dev.tsv").open("a") as file:
        file.write("9\ta\n")
    with pytest.raises(UsageError, match=r"WNLI/dev.tsv, line 12: 2 tab-separated"):
        run(tmp_path / "out", data, model_dir, {"task_name": "ALL"}, {"do_eval": True})
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_refused_and_they_survive_an_overwrite(
    tmp_path: Path, glue_dir: Path, model_dir: Path
):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="is not empty and was not made by bertconv glue"):
        run(tmp_path, glue_dir, model_dir, {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    run(tmp_path, glue_dir, model_dir, {"overwrite_output_dir": True}, {})
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_checkpoint_of_the_original_is_refused_with_the_command_to_convert_it(tmp_path: Path, glue_dir: Path):
    config = {"model_type": "bert", "attention_kernel": "qk 8", "vocab_size": 45}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="bertconv convert"):
        run(tmp_path / "out", glue_dir, tmp_path / "model", {"tokenizer_name": str(tmp_path / "none")}, {})


def test_weights_that_do_not_fit_the_configuration_are_refused(tmp_path: Path, glue_dir: Path, model_dir: Path):
    model = tmp_path / "model"
    shutil.copytree(model_dir, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UsageError, match=r"lacks bert\.encoder\.layer\.2\.\S+ and 15 more"):
        run(tmp_path / "a", glue_dir, model, {}, {})
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(UsageError, match=r"its configuration lacks: bert\.encoder\.layer\.1\.\S+ and 15 more"):
        run(tmp_path / "d", glue_dir, model, {}, {})
    (model / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))
    with pytest.raises(UsageError, match=r"model: bert\.\S+ has shape \(.*\), but the configuration requires \("):
        run(tmp_path / "b", glue_dir, model, {}, {})
    (model / "model.safetensors").write_bytes(b"\0" * 30)
    with pytest.raises(UsageError, match="model can't be loaded"):
        run(tmp_path / "c", glue_dir, model, {}, {})


def test_a_damaged_state_is_refused(tmp_path: Path, glue_dir: Path, model_dir: Path):
    (tmp_path / "glue_state.json").write_text("{")
    with pytest.raises(UsageError, match=r"glue_state.json is damaged"):
        run(tmp_path, glue_dir, model_dir, {}, {})


OUT_OF_RANGE = {
    "--gradient_accumulation_steps": "-1",
    "--max_steps": "0",
    "--num_train_epochs": "0",
    "--learning_rate": "nan",
    "--per_device_train_batch_size": "0",
    "--adam_beta1": "1",
    "--save_every_minutes": "0",
    "--rounds": "0",
    "--optim": "lomo",
    "--lr_scheduler_kwargs": '{"num_cycle": 1}',
}


@pytest.mark.parametrize("flag", OUT_OF_RANGE)
def test_a_flag_out_of_range_is_refused_before_an_overwrite_deletes_anything(
    tmp_path: Path, glue_dir: Path, model_dir: Path, flag: str, capsys
):
    run(tmp_path / "out", glue_dir, model_dir, {}, {})
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    command = [
        *("glue", "--task_name", "RTE", "--data_dir", glue_dir, "--model_name_or_path", model_dir, "--do_train"),
        *("--output_dir", tmp_path / "out", "--overwrite_output_dir", "--max_seq_length", "32", "--use_cpu"),
        *(("--lr_scheduler_type", "cosine") if "scheduler" in flag else ()),
        *(flag, OUT_OF_RANGE[flag]),
    ]
    assert main([str(word) for word in command]) == 2
    assert flag in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
