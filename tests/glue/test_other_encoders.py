"""Encoders of ``transformers`` are fine-tuned as ours are."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraForPreTraining,
    FunnelConfig,
    FunnelForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaTokenizerFast,
    XLNetConfig,
    XLNetModel,
    set_seed,
)

from bert_convolutions.data.loading import load_tokenizer
from bert_convolutions.errors import RunInterrupted, UsageError
from bert_convolutions.glue.finetune import GlueTrainer
from bert_convolutions.glue.models import check_fit, load_pretrained
from bert_convolutions.glue.run import run_glue
from bert_convolutions.glue.tasks import find_task
from bert_convolutions.model.loading import load_config
from bert_convolutions.probes.run import load_model
from bert_convolutions.probes.scoring import PseudoLikelihood
from tests.glue.conftest import WORDS, make_tokenizer
from tests.glue.helpers import arguments, kill_in_step, options
from tests.helpers import same_weights

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def electra(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    assert len(tokenizer) == len(WORDS) + 5
    tokenizer.save_pretrained(folder)
    config = ElectraConfig(vocab_size=len(tokenizer), embedding_size=8, max_position_embeddings=32, **SMALL)
    ElectraForPreTraining(config).save_pretrained(folder)


def roberta(folder: Path) -> None:
    """A model without token types, whose positions start after the padding index, saved in bfloat16."""
    bpe = ByteLevelBPETokenizer()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator([" ".join(WORDS)], vocab_size=320, show_progress=False, special_tokens=specials)
    bpe.save_model(str(folder))
    tokenizer = RobertaTokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=34, type_vocab_size=1, **SMALL)
    RobertaForMaskedLM(config).to(torch.bfloat16).save_pretrained(folder)


def distilbert(folder: Path) -> None:
    electra(folder)
    config = DistilBertConfig(
        vocab_size=len(WORDS) + 5, dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=32
    )
    DistilBertModel(config).save_pretrained(folder)
    rules = json.loads((folder / "tokenizer_config.json").read_text())
    rules |= {"model_input_names": ["input_ids", "attention_mask"]}  # it has no token types
    (folder / "tokenizer_config.json").write_text(json.dumps(rules))


def without_sep_token(folder: Path) -> None:
    """A model whose tokenizer adds one token before a text and none after it, as EuroBERT's."""
    names = {"bos_token": "[CLS]", "pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer().backend_tokenizer, **names)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("[CLS] $A", "[CLS] $A [CLS] $B", [("[CLS]", 2)])
    tokenizer.save_pretrained(folder)
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **SMALL)
    BertForMaskedLM(config).save_pretrained(folder)


KINDS = {"electra": electra, "roberta": roberta, "distilbert": distilbert}


@pytest.fixture(scope="module", params=KINDS)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    set_seed(0)
    KINDS[request.param](folder)
    return folder


@pytest.mark.parametrize("encoder", ["electra", "roberta"], indirect=True)
def test_an_encoder_is_trained_stopped_resumed_scored_and_predicts(
    tmp_path: Path, glue_dir: Path, encoder: Path, model_dir: Path, monkeypatch, capsys
):
    """A second run has nothing to do, and another model is refused."""
    chosen, out = options(glue_dir, encoder), tmp_path / "out"
    flags = {"do_train": True, "do_eval": True, "do_predict": True, "max_steps": 4, "per_device_train_batch_size": 8}
    with monkeypatch.context() as patch:
        kill_in_step(patch, 2, signal.SIGTERM)
        with pytest.raises(RunInterrupted):
            run_glue(chosen, arguments(out, **flags))
    run_glue(chosen, arguments(out, **flags))
    assert "resuming from" in capsys.readouterr().out
    run_glue(chosen, arguments(tmp_path / "whole", **flags))
    assert same_weights(out, tmp_path / "whole")
    assert len((out / "test_results_rte.txt").read_text().splitlines()) == 8
    assert "eval_acc = " in (out / "eval_results_rte.txt").read_text()
    capsys.readouterr()
    run_glue(chosen, arguments(out, **flags))
    assert "RTE: done before" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"RTE in .* was fine-tuned with .*the weights of"):
        run_glue(options(glue_dir, model_dir), arguments(out, **flags))


@pytest.mark.parametrize("encoder", ["electra"], indirect=True)
def test_tasks_start_from_the_encoder_of_mnli(tmp_path: Path, glue_dir: Path, encoder: Path):
    run_glue(options(glue_dir, encoder, "MNLI,RTE", rounds=1), arguments(tmp_path, do_train=True))
    state = json.loads((tmp_path / "RTE0" / "glue_state.json").read_text())
    assert state["settings"]["model"].endswith("MNLI0/transformer_subgraph")


@pytest.mark.parametrize("encoder", ["electra"], indirect=True)
def test_batches_have_the_examples_that_our_models_get(
    tmp_path: Path, glue_dir: Path, encoder: Path, composite_dir: Path, monkeypatch
):
    """Though rows are padded instead of packed."""
    taken: list[list[list[int]]] = []
    train = GlueTrainer.train

    def record_and_train(self, *args, **kwargs):
        taken.append([self.train_plan().samples_of_step(step) for step in range(5)])
        return train(self, *args, **kwargs)

    monkeypatch.setattr(GlueTrainer, "train", record_and_train)
    for number, model in enumerate((encoder, composite_dir)):
        run_glue(options(glue_dir, model), arguments(tmp_path / str(number), do_train=True))
    assert taken[0] == taken[1]


@pytest.mark.parametrize("encoder", ["electra"], indirect=True)
def test_a_model_without_the_files_of_its_tokenizer_is_refused(tmp_path: Path, glue_dir: Path, encoder: Path):
    """``transformers`` would make a tokenizer to which every word is unknown."""
    shutil.copytree(encoder, tmp_path / "model", ignore=shutil.ignore_patterns("*token*", "vocab.txt"))
    with pytest.raises(UsageError, match="no vocabulary, as"):
        run_glue(options(glue_dir, tmp_path / "model"), arguments(tmp_path / "out", do_train=True))


def test_only_special_tokens_that_are_used_are_required(tmp_path: Path, glue_dir: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    without_sep_token(folder)
    run_glue(options(glue_dir, folder), arguments(tmp_path / "out", do_train=True, do_eval=True, do_predict=True))
    model, tokenizer = load_model(str(folder), None)
    assert PseudoLikelihood(model, tokenizer)(["w1 w2"])[0].whole < 0
    with pytest.raises(UsageError, match="has no cls_token, sep_token, which is needed here"):
        load_tokenizer(folder)


@pytest.mark.parametrize("load", [load_config, load_model])
def test_custom_code_in_a_folder_is_refused_without_a_question(tmp_path: Path, monkeypatch, load):
    without_sep_token(tmp_path)
    own = {"AutoConfig": "code.Config", "AutoModelForMaskedLM": "code.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "of_my_own", "auto_map": own}))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    with pytest.raises(UsageError, match="custom code"):
        load(tmp_path, *([None] if load is load_model else []))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("encoder", ["electra", "roberta"], indirect=True)
def test_a_classifier_for_other_labels_is_initialised_again(tmp_path: Path, encoder: Path):
    load_pretrained(encoder, find_task("MNLI")).save_pretrained(tmp_path)
    model = load_pretrained(tmp_path, find_task("RTE"))
    assert model.num_labels == 2
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_weights_that_a_classifier_does_not_have_are_left_out(tmp_path: Path):
    """Such as Funnel's decoder, which the model for masked tokens has."""
    config = FunnelConfig(vocab_size=9, block_sizes=[1], num_decoder_layers=1, d_model=8, n_head=2, d_head=4, d_inner=8)
    FunnelForMaskedLM(config).save_pretrained(tmp_path)
    assert load_pretrained(tmp_path, find_task("RTE"))


def test_a_model_without_a_maximum_length_takes_any(tmp_path: Path):
    config = XLNetConfig(vocab_size=9, d_model=8, n_layer=1, n_head=2, d_inner=8)
    XLNetModel(config).save_pretrained(tmp_path)
    check_fit(load_pretrained(tmp_path, find_task("RTE")), range(9), True, 600)


def test_an_encoder_is_trained_in_float32_and_within_its_positions(tmp_path: Path, glue_dir: Path, encoder: Path):
    model = load_pretrained(encoder, find_task("RTE"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with pytest.raises(UsageError, match="--max_seq_length 33 is above the model's 32 positions"):
        run_glue(options(glue_dir, encoder, max_seq_length=33), arguments(tmp_path / "out", do_train=True))
