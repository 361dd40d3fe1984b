"""The model that flags ask for, and what is refused before anything is written."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase, TrainingArguments

from bert_convolutions import CompositeBertForMaskedLM
from bert_convolutions.errors import UsageError
from bert_convolutions.model import CompositeBertConfig
from bert_convolutions.training.options import PretrainOptions
from bert_convolutions.training.setup import cuda_graph_buckets, make_config, make_model, report_lost_text
from tests.training.helpers import CLS, PIECES, SEP, make_collator


class Tokens:
    """The parts of a tokenizer that a configuration is made from."""

    pad_token_id = 98

    def __len__(self):
        return 100


def config_of(**flags):
    options = PretrainOptions(tokenizer_name="tokenizer", **flags)
    return make_config(options, cast(PreTrainedTokenizerBase, Tokens()))


@pytest.fixture
def config_file(tmp_path):
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "max_position_embeddings": 64}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(sizes))
    return path


def test_a_preset_takes_the_size_of_the_tokenizer_and_of_the_block(tmp_path, monkeypatch):
    """Also where a folder has the name of the preset."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert_small").mkdir()
    (tmp_path / "bert_small" / "config.json").write_text('{"vocab_size": 7}')
    config = config_of(config_name="bert_small", block_size=512, attention_kernel="convk_qk 4", num_hidden_layers=3)
    assert (config.vocab_size, config.pad_token_id, config.max_position_embeddings) == (100, 98, 512)
    assert (config.attention_kernel, config.num_hidden_layers, config.hidden_size) == ("qk_convk 4", 3, 256)


def test_rows_longer_than_the_positions_of_a_config_file_are_refused(config_file):
    with pytest.raises(UsageError, match="block_size 65"):
        config_of(config_name=str(config_file), block_size=65)
    assert config_of(config_name=str(config_file), block_size=65, remove_position_embeddings=True)


def test_a_config_file_of_another_vocabulary_is_refused(config_file):
    config_file.write_text(json.dumps({**json.loads(config_file.read_text()), "vocab_size": 101}))
    with pytest.raises(UsageError, match=r"101.*100"):
        config_of(config_name=str(config_file), block_size=64)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"config_name": "bert_tiny"}, "bert_small"),
        ({"config_name": "bert_small", "attention_kernel": "qk_konvq 8"}, "konvq"),
        ({"config_name": "bert_small", "value_forward": "convolution 8"}, "value_forward"),
        ({"config_name": "bert_small", "num_attention_heads": 7}, "num_attention_heads"),
        ({"config_name": "bert_small", "num_attention_heads": 0}, "^--num_attention_heads: .* not 0"),
        ({"config_name": "bert_small", "num_hidden_layers": 0}, "^--num_hidden_layers: .* not 0"),
        ({"config_name": "bert_small", "num_hidden_layers": -1}, "^--num_hidden_layers: .* not -1"),
        ({"config_name": "bert_small", "attention_head_size": 0}, "^--attention_head_size must"),
        ({"config_name": "bert_small", "attention_head_size": 7, "remove_qk": True}, "^--remove_qk needs"),
        ({"model_name_or_path": "nowhere"}, "nowhere"),
    ],
)
def test_bad_architectures_are_refused_by_name(flags, named):
    with pytest.raises(UsageError, match=named):
        config_of(**flags)


def test_architecture_flags_must_not_contradict_a_model(config_file, tmp_path):
    config = CompositeBertConfig(**json.loads(config_file.read_text()), vocab_size=100, attention_kernel="qk_convq 2")
    CompositeBertForMaskedLM(config).save_pretrained(tmp_path / "model")
    model = str(tmp_path / "model")
    with pytest.raises(UsageError, match=r"attention_kernel qk_convk 2 contradicts"):
        config_of(model_name_or_path=model, attention_kernel="qk_convk 2", block_size=64)
    again = config_of(model_name_or_path=model, attention_kernel="convq_qk 2", block_size=64)
    assert make_model(PretrainOptions(model_name_or_path=model), again, seed=0).config.attention_kernel == "qk_convq 2"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("sentence_order", [True, False])
def test_every_parameter_that_processes_wait_for_has_a_gradient(config_file, tied, sentence_order):
    """All of them are trained, since an optimizer's state is loaded for those of the run that saved it."""
    config_file.write_text(json.dumps({**json.loads(config_file.read_text()), "tie_word_embeddings": tied}))
    options = PretrainOptions(config_name=str(config_file), block_size=32, use_sop_head=sentence_order)
    model = make_model(options, make_config(options, cast(PreTrainedTokenizerBase, Tokens())), seed=0).train()
    example = {"epoch": 0, "sample": 0, "input_ids": np.array([CLS, *range(20), SEP, *range(5), SEP])}
    batch = make_collator(sentence_order=sentence_order)([example])
    del batch["num_real_tokens"], batch["sample_ids"]
    model(**batch).loss.backward()
    ignored = getattr(model, "_ddp_params_and_buffers_to_ignore", [])
    assert [name for name, value in model.named_parameters() if value.grad is None] == ignored
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_weights_that_do_not_fit_the_configuration_are_refused_by_name(config_file, tmp_path):
    values = json.loads(config_file.read_text())
    config = CompositeBertConfig(**values, vocab_size=100, attention_kernel="qk_convq 2")
    CompositeBertForMaskedLM(config).save_pretrained(tmp_path / "model")
    options = PretrainOptions(tokenizer_name="tokenizer", model_name_or_path=str(tmp_path / "model"), block_size=64)
    for change, named in (
        ({"num_hidden_layers": 2}, "lacks bert.encoder.layer.1"),
        ({"attention_kernel": "dot_product"}, "convq_param"),
        ({"attention_kernel": "qk_convq_convolution 2"}, "lacks .*convolution"),
        ({"hidden_act": "jump"}, "jump"),
        ({"model_type": "bert"}, "holds a bert model"),
    ):
        path = tmp_path / "model" / "config.json"
        saved = path.read_text()
        path.write_text(json.dumps({**json.loads(saved), **change}))
        with pytest.raises(UsageError, match=named):
            make_model(options, make_config(options, cast(PreTrainedTokenizerBase, Tokens())), seed=0)
        path.write_text(saved)


def test_batches_for_cuda_graphs_have_few_shapes():
    examples, draw = 256, np.random.default_rng(2)
    arguments = cast(TrainingArguments, SimpleNamespace(per_device_train_batch_size=examples))
    buckets = cuda_graph_buckets(PretrainOptions(block_size=32), arguments)
    seen = set()
    for step in range(30):
        texts = [draw.integers(0, PIECES, length).tolist() for length in draw.integers(3, 29, examples)]
        batch = replace(make_collator(), **buckets)(
            [
                {
                    "epoch": 0,
                    "sample": examples * step + number,
                    "input_ids": np.array([CLS, *text[1:], SEP, text[0], SEP]),
                }
                for number, text in enumerate(texts)
            ]
        )
        seen.add((len(batch["input_ids"]), len(batch["labels"])))
    assert len(seen) <= 8


@pytest.mark.parametrize(
    ("example", "said"),
    [
        ([1] * 1000, ["--block_size 100 cuts off 90% of the tokens"]),
        ([1] * 105, []),
        ([1] * 9 + [0], ["10% of the tokens of --train_data_file are <unk>"]),
        ([0] * 1000, ["cuts off 90%", "100% of the tokens"]),
    ],
)
def test_text_that_is_lost_is_reported(example, said, capsys):
    """A corpus of one document a line, or one that the tokenizer was not made for, would be lost without a word."""
    tokenizer = SimpleNamespace(unk_token="<unk>", unk_token_id=0)
    report_lost_text([np.array(example)] * 5, tokenizer, 100)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(said) and all(part in line for part, line in zip(said, lines, strict=True))
