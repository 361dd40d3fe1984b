"""``bertconv pretrain`` as a whole: what it writes and refuses, and a process that is stopped and killed."""

import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, Trainer

from bert_convolutions.data.loading import load_tokenizer
from bert_convolutions.self_contained import CODE_FILES
from bert_convolutions.training import arguments, checkpoints, progress, setup
from bert_convolutions.training.trainer import PretrainingTrainer
from tests.training.conftest import Workspace


def test_a_cpu_without_bf16_computes_in_float32_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for available in (True, False):
        monkeypatch.setattr(arguments, "cpu_has_bf16", lambda available=available: available)
        made = arguments.BertTrainingArguments(output_dir="x", use_cpu=True, bf16=True)
        assert made.bf16 == available
        assert Trainer(torch.nn.Linear(1, 1), made).accelerator.mixed_precision == ("bf16" if available else "no")
        assert ("computing in float32" in capsys.readouterr().err) != available


def test_fp16_is_for_gpus_only_and_a_lower_perplexity_is_better(capsys: pytest.CaptureFixture[str]) -> None:
    made = arguments.BertTrainingArguments(output_dir="x", use_cpu=True, fp16=True, fp16_full_eval=True)
    assert made.mixed_precision == "no"
    assert not made.fp16 and not made.fp16_full_eval and "--fp16 is for GPUs" in capsys.readouterr().err
    for metric, greater in (("perplexity", False), ("eval_loss", False), ("masked_accuracy", True)):
        assert (
            arguments.BertTrainingArguments(output_dir="x", metric_for_best_model=metric).greater_is_better == greater
        )


def test_flags_of_precision_apply_to_evaluation(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "cpu_has_bf16", lambda: True)
    perplexity = {}
    for flag in ("bf16_full_eval", "bf16", None):
        changes = {
            "do_eval": "true",
            "eval_data_file": workspace.folder / "eval.ids",
            **({flag: "true"} if flag else {}),
        }
        assert workspace.run(f"precision-{flag}", max_steps=1, learning_rate=1e-9, **changes) == 0
        results = json.loads((workspace.folder / f"precision-{flag}" / "eval_results.json").read_text())
        perplexity[flag] = results["eval_perplexity"]
    assert perplexity["bf16_full_eval"] == perplexity["bf16"] != perplexity[None]


def test_a_run_writes_model_and_results_and_a_finished_one_is_recognised(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"use_sop_head": "true", "bf16": "true"}
    evaluation = {"do_eval": "true", "eval_data_file": workspace.folder / "eval.ids", "eval_steps": 6}
    assert workspace.run("whole", eval_strategy="steps", **flags, **evaluation) == 0
    folder = workspace.folder / "whole"
    results = json.loads((folder / "train_results.json").read_text())
    assert results["steps"] == 12 and results["non_padding_tokens_seen"] > 500 and results["real_tokens_per_second"] > 0
    lines = dict(line.split(" = ") for line in (folder / "eval_results_lm.txt").read_text().splitlines())
    assert float(lines["perplexity"]) > 1 and "sop_accuracy" in lines
    model = AutoModelForMaskedLM.from_pretrained(folder)
    assert model.config.vocab_size == len(load_tokenizer(folder)) and model.config.attention_kernel.startswith(
        "qk_conv"
    )
    assert not list(folder.rglob("*.bin")) and not (folder / checkpoints.STAGING_NAME).exists()
    assert load_tokenizer(folder).model_max_length == model.config.max_position_embeddings
    assert {path.name for path in folder.glob("*.py")} == {f"{name}.py" for name in CODE_FILES}

    before = (folder / "model.safetensors").read_bytes()
    assert workspace.run("whole", **flags, resume_from_checkpoint="true") == 0
    assert "the run is finished, 12 of 12 steps" in capsys.readouterr().err
    (folder / "train_results.json").unlink()  # as if killed between the last checkpoint and the model
    (folder / "model.safetensors").unlink()
    assert workspace.run("whole", **flags, resume_from_checkpoint="true") == 0
    assert (folder / "model.safetensors").read_bytes() == before and (folder / "train_results.json").exists()

    assert workspace.run("next", config_name=None, tokenizer_name=None, model_name_or_path=folder, max_steps=2) == 0
    after = json.loads((workspace.folder / "next" / "train_results.json").read_text())
    assert after["steps"] == 2
    assert (results["model_name_or_path"], after["model_name_or_path"]) == (None, str(folder))
    assert results["train_data_file"] == after["train_data_file"] != []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_training_ends_the_run_with_its_message(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """For example while data are built. The message asks for the same command, also where it overwrites."""
    output = f"before-{number.name}"
    assert workspace.run(output, max_steps=1) == 0
    held = sorted((workspace.folder / output).iterdir())
    monkeypatch.setattr(setup, "open_corpus", lambda *_: os.kill(os.getpid(), number))
    assert workspace.run(output, overwrite_output_dir="true") == 75
    said = capsys.readouterr().err
    assert f"stopped by {number.name}" in said and "run the same command again" in said
    assert sorted((workspace.folder / output).iterdir()) == held


class FullDisk(io.StringIO):
    """A log on a disk that fills up."""

    def write(self, text: str) -> int:
        if self.tell() > 300:
            raise OSError(28, "No space left on device")
        return super().write(text)


@pytest.mark.parametrize("cause", ["a full disk under the log", "SIGHUP"])
def test_a_run_whose_terminal_or_log_is_lost_is_saved_and_resumes_with_equal_weights(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    output = cause.replace(" ", "-")
    assert workspace.run(f"no-{output}") == 0
    with monkeypatch.context() as patch:
        if cause == "SIGHUP":
            genuine = PretrainingTrainer.training_step
            patch.setattr(
                PretrainingTrainer,
                "training_step",
                lambda self, *args: os.kill(os.getpid(), signal.SIGHUP) or genuine(self, *args),
            )
        else:
            patch.setattr(sys, "stdout", FullDisk())
        assert workspace.run(output) == 75
    said = capsys.readouterr().err
    assert ("SIGHUP" if cause == "SIGHUP" else "an output that failed (No space left on device)") in said
    assert len(checkpoints.list_checkpoints(workspace.folder / output)) == 1
    assert workspace.run(output, resume_from_checkpoint="true") == 0
    one, other = (load_file(workspace.folder / name / "model.safetensors") for name in (output, f"no-{output}"))
    assert all(torch.equal(one[name], other[name]) for name in one)


TIMES = r", [^:]* left|real_tokens_per_second [0-9,]+|eval_\w+_second [0-9.]+|eval_runtime [0-9.]+"


def test_log_lines_are_the_same_with_and_without_a_progress_bar(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []
    for disable in ("true", "false"):
        changes = {"disable_tqdm": disable, "do_eval": "true", "eval_data_file": workspace.folder / "eval.ids"}
        assert workspace.run(f"lines-{disable}", max_steps=3, eval_strategy="steps", eval_steps=3, **changes) == 0
        said = capsys.readouterr()
        assert ("3/3" in said.err) == (disable == "false")
        found = [line for line in said.out.splitlines() if line.startswith("step ")]
        lines.append([re.sub(TIMES, "", line) for line in found])
    assert lines[0] == lines[1] and len(lines[0]) == 5  # the last is of the evaluation at the end
    assert re.fullmatch(r"step 1 of 3: loss \d\.\d+, grad_norm .*, learning_rate 0\.01, .*", lines[0][0])
    assert re.match(r"step 3 of 3: eval_loss \d", lines[0][3])


def test_a_log_file_has_no_bar_but_a_line_a_minute(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"disable_tqdm": None, "max_steps": 3, "logging_steps": 100}
    assert workspace.run("soon", **changes) == 0
    monkeypatch.setattr(progress, "_QUIET_SECONDS", -1)
    assert workspace.run("slow", **changes) == 0
    said = capsys.readouterr()
    assert "3/3" not in said.err and said.out.count("step 2 of 3") == 1
    assert re.search(r"step 2 of 3, .* left: [\d,]+ tokens, [\d,]+ tokens/s", said.out)


WRONG = {
    "do_train": ({"do_train": None}, "give --do_train"),
    "no data": ({"train_data_file": None}, "--do_train needs --train_data_file"),
    "lost data": ({"train_data_file": "nowhere.ids"}, "nowhere.ids does not exist"),
    "no eval data": ({"do_eval": "true"}, "--do_eval needs --eval_data_file"),
    "eval of nothing": (
        {"do_train": None, "do_eval": "true", "eval_data_file": "nowhere.ids"}, "give --model_name_or_path",
    ),
    "eval on start": ({"eval_on_start": "true"}, "--eval_on_start needs --do_eval"),
    "workers": ({"dataloader_persistent_workers": "true"}, "--dataloader_persistent_workers true is not supported"),
    "order": ({"dataloader_in_order": "false"}, "--dataloader_in_order false would make the order"),
    "sampling": ({"train_sampling_strategy": "sequential"}, "--train_sampling_strategy sequential is not supported"),
    "pushing": ({"push_to_hub": "true"}, "publish a finished model with bertconv export --format hub"),
    "liger": ({"use_liger_kernel": "true"}, "--use_liger_kernel true is not supported"),
    "preemption": ({"enable_jit_checkpoint": "true"}, "--enable_jit_checkpoint true is not needed: SIGTERM saves"),
    "drop last": ({"dataloader_drop_last": "true"}, "--dataloader_drop_last true would skip examples"),
    "tokens twice": ({"include_num_input_tokens_seen": "true"}, "--include_num_input_tokens_seen is not needed"),
    "batches": ({"accelerator_config": '{"split_batches": true}'}, "--accelerator_config {"),
    "evaluations": ({"eval_steps": 5, "eval_strategy": "epoch"}, "--eval_steps has no effect without --eval_strategy"),
    "smooth order": ({"use_sop_head": "true", "label_smoothing_factor": 0.1}, "--label_smoothing_factor does not"),
    "best by what": (
        {"metric_for_best_model": "beauty"}, "--metric_for_best_model beauty is not measured; known are loss, perp",
    ),
    "best by nothing": ({"save_strategy": "best"}, "--save_strategy best saves nothing without --eval_strategy"),
    "bare JSON": ({"lr_scheduler_kwargs": "{num_cycles:2}"}, "{num_cycles:2} is not JSON"),
    "no config": ({"config_name": None}, "give --config_name"),
    "bad preset": ({"config_name": "bert_huge"}, "bert_huge is neither a preset"),
    "bad kernel": ({"attention_kernel": "qk_konv 8"}, "konv"),
    "bad backend": ({"attn_implementation": "magic"}, "--attn_implementation magic"),
    "no tokenizer": ({"tokenizer_name": "nowhere"}, "nowhere"),
    "long block": ({"block_size": 65}, "--block_size 65 is more than"),
    "mask": ({"mlm_probability": 1.5}, "--mlm_probability 1.5"),
    "mlm": ({"mlm": "false"}, "--mlm false"),
    "two models": ({"model_name_or_path": "somewhere"}, "--config_name and --model_name_or_path"),
    "batch finder": ({"auto_find_batch_size": "true"}, "--auto_find_batch_size"),
    "resume": ({"resume_from_checkpoint": "nowhere"}, "--resume_from_checkpoint nowhere"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_refused_with_one_sentence_and_leaves_nothing(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    changes, message = WRONG[case]
    assert workspace.run("wrong", **changes) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("bertconv: error: ") and message in said
    left = workspace.folder / "wrong"
    assert not left.exists() or not [path for path in left.iterdir() if not path.name.startswith(".")]


def test_a_tokenizer_of_another_size_is_refused(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((workspace.folder / "config.json").read_text())
    (workspace.folder / "other.json").write_text(json.dumps(config | {"vocab_size": 30004}))
    assert workspace.run("wrong", config_name=workspace.folder / "other.json") == 2
    assert "has a vocabulary of 30004 and the tokenizer" in capsys.readouterr().err


def test_a_used_folder_is_kept_resumed_or_replaced(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert workspace.run("used", max_steps=4, save_steps=2) == 0
    assert workspace.run("used", max_steps=4) == 2
    said = capsys.readouterr().err
    assert "--resume_from_checkpoint true" in said and "--overwrite_output_dir" in said
    for changes, reason in (
        ({"seed": 7}, "--seed was 42 and is now 7"),
        ({"per_device_train_batch_size": 2}, "the global batch"),
        ({"value_forward": "convolution_depth 2 1"}, "value_forward"),
        ({"train_data_file": workspace.folder / "eval.ids"}, "the number of examples"),
    ):
        assert workspace.run("used", max_steps=8, resume_from_checkpoint="true", **changes) == 2
        assert reason in capsys.readouterr().err
    source = workspace.folder / "used" / "checkpoint-4"
    start = {"config_name": None, "model_name_or_path": source, "max_steps": 2}
    assert workspace.run("used", overwrite_output_dir="true", **start) == 2
    assert "used holds the input --model_name_or_path" in capsys.readouterr().err and source.exists()
    assert workspace.run("from", remove_position_embeddings="true", **start) == 2
    assert "--remove_position_embeddings True contradicts" in capsys.readouterr().err
    assert workspace.run("from", block_size=65, **start) == 2  # a table of positions can't be enlarged by a flag
    assert capsys.readouterr().err.endswith("checkpoint-4 has positions, 64; lower it\n")
    pieces = (workspace.folder / "spm.model").read_bytes()
    longest = max((piece for piece in load_tokenizer(source).get_vocab() if piece[0] == "▁"), key=len).encode()
    (workspace.folder / "other.model").write_bytes(pieces.replace(longest, longest.swapcase()))
    assert workspace.run("from", tokenizer_name=workspace.folder / "other.model", **start) == 2
    assert "other.model has other tokens than the tokenizer saved in" in capsys.readouterr().err
    extended = shutil.copytree(source, workspace.folder / "extended")
    tokenizer = load_tokenizer(extended)
    tokenizer.add_tokens(["newword"])
    tokenizer.save_pretrained(extended)
    assert workspace.run("from", **start | {"tokenizer_name": None, "model_name_or_path": extended}) == 2
    assert f"or resize it by resize_token_embeddings to {len(tokenizer)}\n" in capsys.readouterr().err
    assert workspace.run("used", overwrite_output_dir="true", max_steps=3, seed=7) == 0
    left = checkpoints.list_checkpoints(workspace.folder / "used")
    assert [checkpoints.step_of(path) for path in left] == [3]


def test_a_process_that_is_stopped_and_killed_ends_with_the_same_weights(workspace: Workspace) -> None:
    """First Ctrl-C, which reaches its DataLoader workers too, then kill -9 at a random moment."""
    changes = {"max_steps": 150, "save_steps": 7, "save_total_limit": 2, "gradient_accumulation_steps": 2}
    assert workspace.run("unharmed", **changes) == 0
    flags = workspace.flags("killed", resume_from_checkpoint="true", dataloader_num_workers=2, **changes)
    folder = workspace.folder / "killed"
    for number in (signal.SIGINT, signal.SIGKILL):
        process = subprocess.Popen(
            [sys.executable, "-m", "bert_convolutions", "pretrain", *flags],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        before = checkpoints.list_checkpoints(folder)
        end = time.monotonic() + 60
        while process.poll() is None and checkpoints.list_checkpoints(folder) == before:
            assert time.monotonic() < end
            time.sleep(0.005)
        time.sleep(random.Random(os.getpid()).uniform(0, 0.5))
        os.killpg(process.pid, number)
        _, said = process.communicate()
        assert not (folder / "train_results.json").exists()
        if number == signal.SIGINT:
            assert process.returncode == 75, said
            assert "resume with: bertconv pretrain" in said and "Traceback" not in said
    assert workspace.run("killed", resume_from_checkpoint="true", **changes) == 0
    one, other = (load_file(workspace.folder / name / "model.safetensors") for name in ("unharmed", "killed"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
