"""Every kind of job, for every contestant, in this process."""

import json

import pytest
import torch
from transformers import TrainingArguments

from bert_convolutions.bench.attention import LONGEST, SHORTEST, AttentionRun, packed_rows
from bert_convolutions.bench.corpus import Setup
from bert_convolutions.bench.jobs import PairsRun, pretrain_options
from bert_convolutions.bench.plan import CONTESTANTS, Core, Job
from bert_convolutions.bench.worker import Report, Turns, run_job
from bert_convolutions.data.collate import PretrainingCollator
from bert_convolutions.model.presets import load_config
from bert_convolutions.training.arguments import BertTrainingArguments
from bert_convolutions.training.options import PretrainOptions
from tests.bench.conftest import ScriptedConnection

MODELS = [name for name, contestant in CONTESTANTS.items() if not isinstance(contestant, Core)]


def reports(job: Job, setup: Setup, turns: int = 1) -> list[Report]:
    connection = ScriptedConnection(turns)
    with pytest.raises(EOFError):
        run_job(job, setup, Turns(connection))  # type: ignore[arg-type]
    assert connection.sent[0] is None, "says that it is ready"
    return connection.sent[1:]


@pytest.mark.parametrize("name", MODELS)
def test_every_contestant_trains(name: str, bench_setup: Setup) -> None:
    first, second = reports(Job("pretraining", name, "float32", 128, 4), bench_setup, turns=2)
    for report in (first, second):
        assert report.steps == 1 and report.work.examples == 4 and report.seconds > 0
        assert report.peak_memory >= report.memory_before > 0
    assert first.work.tokens != second.work.tokens, "other examples in each step"


@pytest.mark.parametrize("name", ["composite", "electra", "convbert", "modernbert"])
def test_encoders_run_in_bf16(name: str, bench_setup: Setup) -> None:
    (report,) = reports(Job("inference", name, "bf16", 256, 2), bench_setup)
    assert report.work.examples == 2 and 300 < report.work.tokens <= 512, "joined sentences fill the examples"


def test_contestants_see_the_same_examples(bench_setup: Setup) -> None:
    peer = PairsRun(Job("pretraining", "electra", "float32", 128, 4), bench_setup)
    ours = PairsRun(Job("pretraining", "composite", "float32", 128, 4), bench_setup)
    assert ours.work(1) != ours.work(0) and ours.work(1).tokens == peer.work(1).tokens
    batches = [next(iter(run.trainer.get_train_dataloader())) for run in (ours, peer)]
    assert int(batches[0]["num_real_tokens"]) == int(batches[1]["attention_mask"].sum()) == ours.work(0).tokens
    lengths = [int(length) for length in batches[1]["attention_mask"].sum(dim=1)]
    assert batches[1]["input_ids"].shape == (4, max(lengths)), "padded to the longest, one example a row"
    assert batches[0]["input_ids"].shape[0] < 4, "packed"


def test_our_models_are_trained_as_by_the_command(bench_setup: Setup) -> None:
    """The measured step is that of ``bertconv pretrain`` with its defaults."""
    run = PairsRun(Job("pretraining", "composite", "float32", 128, 4), bench_setup)
    options = pretrain_options(Job("pretraining", "composite", "float32", 128, 4), bench_setup)
    for name in ("pack", "mlm_probability", "use_sop_head", "attn_implementation", "line_by_line"):
        assert getattr(options, name) == getattr(PretrainOptions(), name)
    collator = run.trainer.data_collator
    assert isinstance(collator, PretrainingCollator) and collator.pack and collator.block_size == 128
    defaults = BertTrainingArguments(output_dir="unused")
    for name in ("optim", "max_grad_norm", "gradient_accumulation_steps", "dataloader_num_workers", "torch_compile"):
        assert getattr(run.trainer.args, name) == getattr(defaults, name)


def test_models_of_transformers_are_trained_as_by_its_trainer(bench_setup: Setup) -> None:
    trainer = PairsRun(Job("pretraining", "electra", "float32", 128, 4), bench_setup).trainer
    assert trainer.model.config._attn_implementation == "sdpa"
    defaults = TrainingArguments(output_dir="unused", use_cpu=not torch.accelerator.is_available())
    for name in ("optim", "max_grad_norm", "gradient_accumulation_steps", "dataloader_num_workers", "torch_compile"):
        assert getattr(trainer.args, name) == getattr(defaults, name)


def test_models_of_transformers_have_our_shape(bench_setup: Setup) -> None:
    with open(bench_setup.configs[128], encoding="utf-8") as file:  # noqa: PTH123
        shape = json.load(file)
    for name in ("composite", "electra", "bert", "convbert", "modernbert"):
        model = PairsRun(Job("pretraining", name, "float32", 128, 4), bench_setup).trainer.model
        config = model.config
        assert config.hidden_size == shape["hidden_size"] and config.num_hidden_layers == shape["num_hidden_layers"]
        assert model.get_input_embeddings().weight.shape[0] == bench_setup.vocabulary == 300


def test_loading_is_measured_alone(bench_setup: Setup) -> None:
    first, second = reports(Job("loading", "composite", "float32", 128, 4), bench_setup, turns=2)
    run = PairsRun(Job("loading", "composite", "float32", 128, 4), bench_setup)
    assert [first.work.tokens, second.work.tokens] == [run.work(0).tokens, run.work(1).tokens]
    assert first.work.examples == 4 and first.work.flops is None


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_settings_reach_the_model(backend: str, bench_setup: Setup) -> None:
    job = Job("settings", "composite", "bf16", 128, 2, backend=backend)
    run = PairsRun(job, bench_setup)
    assert run.trainer.model.config._attn_implementation == backend and run.trainer.args.bf16
    (report,) = reports(job, bench_setup)
    assert report.work.examples == 2


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["plain_sdpa", "ours", "sdpa_bias", "eager"])
def test_attention_is_measured_forward_and_backward(name: str, packed: bool, bench_setup: Setup) -> None:
    job = Job("attention", name, "float32", 128, 2, packed=packed)
    (report,) = reports(job, bench_setup)
    assert report.work.tokens == 2 * 128 and (report.work.examples > 2) == packed
    assert report.seconds > 0 and report.forward_seconds is not None and report.forward_seconds > 0
    width = 16
    assert report.work.flops == pytest.approx(3 * 4 * width * 2 * 128**2) or packed


@pytest.mark.parametrize("packed", [False, True])
def test_attention_contestants_with_our_terms_agree(packed: bool, bench_setup: Setup) -> None:
    config = load_config(bench_setup.configs[128])
    contexts = {}
    for name in ("ours", "sdpa_bias", "eager"):
        attention = AttentionRun(Job("attention", name, "float32", 128, 2, packed=packed), config)
        attention.step()
        contexts[name] = attention.attend()
    for name in ("ours", "sdpa_bias"):
        assert torch.allclose(contexts[name], contexts["eager"], atol=1e-5)


def test_packed_rows_are_full_of_examples() -> None:
    segments, lengths = packed_rows(3, 300, torch.device("cpu"))
    assert segments.examples is not None and segments.examples.shape == (3, 300) and int(segments.examples.min()) == 1
    assert int(lengths.sum()) == 3 * 300 and int(lengths.max()) <= LONGEST
    assert sum(int(length) < SHORTEST for length in lengths) <= 3, "the last of a row is cut"


@pytest.mark.parametrize("backend", ["PyTorch", "onnxruntime int8"])
def test_an_exported_model_computes_a_padded_batch(backend: str, bench_setup: Setup) -> None:
    if backend != "PyTorch":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    (report,) = reports(Job("onnx", "composite", "float32", 128, 2, backend=backend), bench_setup)
    assert report.work.examples == 2 and 128 < report.work.tokens <= 2 * 128 and report.seconds > 0
