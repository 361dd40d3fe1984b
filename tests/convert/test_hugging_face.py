import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    ConvBertConfig,
    ConvBertForMaskedLM,
    DebertaV2Config,
    DebertaV2Model,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    ElectraForQuestionAnswering,
    ElectraModel,
    MPNetConfig,
    MPNetForMaskedLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import bert_convolutions
from bert_convolutions import CompositeBertConfig, CompositeBertForMaskedLM
from bert_convolutions.cli.main import main
from bert_convolutions.convert.hugging_face import convert_model
from bert_convolutions.convert.original import convert_checkpoint
from bert_convolutions.data.loading import load_tokenizer
from bert_convolutions.errors import UsageError
from tests.helpers import TINY

SIZES = TINY | {"vocab_size": 50, "max_position_embeddings": 20}
KERNEL = "qk_convfixed_convq_convk 3"
SOURCES = {
    "BertModel": (BertModel, BertConfig),
    "BertForMaskedLM": (BertForMaskedLM, BertConfig),
    "BertForSequenceClassification": (BertForSequenceClassification, BertConfig),
    "BertForQuestionAnswering": (BertForQuestionAnswering, BertConfig),
    "ElectraModel": (ElectraModel, ElectraConfig),
    "ElectraForMaskedLM": (ElectraForMaskedLM, ElectraConfig),
    "ElectraForQuestionAnswering": (ElectraForQuestionAnswering, ElectraConfig),
}


def make_source(model_class: Any, config_class: Any, folder: Path, **fields: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    if config_class in (ElectraConfig, ConvBertConfig):
        fields["embedding_size"] = 8
    model = model_class(config_class(**{**SIZES, **fields})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["dot_product", KERNEL])
@pytest.mark.parametrize("source", SOURCES)
def test_a_converted_model_equals_its_source_also_with_added_terms(source: str, kernel: str, tmp_path: Path) -> None:
    theirs = make_source(*SOURCES[source], tmp_path / "theirs")
    converted = convert_model(tmp_path / "theirs", {"attention_kernel": kernel})
    converted.save_pretrained(tmp_path / "ours")
    ours = type(converted).from_pretrained(tmp_path / "ours").eval()
    assert ours.config.attention_kernel == kernel
    inputs = {"input_ids": torch.arange(5, 25).view(2, 10), "token_type_ids": torch.tensor([[0] * 4 + [1] * 6] * 2)}
    got, expected = ours(**inputs), theirs(**inputs)
    for name, value in expected.items():  # ELECTRA's encoder has no pooler
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("model_class", "config_class"),
    [(BertForMaskedLM, BertConfig), (ElectraForMaskedLM, ElectraConfig), (MPNetForMaskedLM, MPNetConfig)],
)
def test_a_decoder_that_is_not_tied_to_the_embeddings_keeps_its_bias(
    model_class: Any, config_class: Any, tmp_path: Path
) -> None:
    theirs = make_source(model_class, config_class, tmp_path, tie_word_embeddings=False)
    ids = torch.arange(5, 25).view(2, 10)
    ours = convert_model(tmp_path, {}).eval()
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-5, atol=1e-5)


def test_added_terms_have_gradients_in_the_first_step(tmp_path: Path) -> None:
    make_source(BertForMaskedLM, BertConfig, tmp_path)
    model = convert_model(tmp_path, {"attention_kernel": KERNEL}).train()
    model(input_ids=torch.arange(5, 25).view(2, 10), labels=torch.arange(5, 25).view(2, 10)).loss.backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if name.endswith("_param")}
    assert len(grads) == 6 and all(grad is not None and grad.any() for grad in grads.values())


@torch.no_grad()
def test_of_a_discriminator_only_the_encoder_is_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = make_source(ElectraForPreTraining, ElectraConfig, tmp_path)
    ours = convert_model(tmp_path, {}).eval()
    assert "the head of ElectraForPreTraining has no counterpart here" in capsys.readouterr().err
    ids = torch.arange(5, 25).view(2, 10)
    torch.testing.assert_close(ours(ids).last_hidden_state, theirs.electra(ids).last_hidden_state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("add", "message"),
    [
        ({"attention_kernel": "convfixed 3"}, "name qk"),
        ({"attention_kernel": "qk_convolution 3"}, "no convolution of the values"),
        ({"hidden_size": "32"}, "--add hidden_size: only attention_kernel"),
    ],
)
def test_terms_that_would_change_a_model_of_transformers_are_refused(
    add: dict[str, str], message: str, tmp_path: Path
) -> None:
    make_source(BertModel, BertConfig, tmp_path)
    with pytest.raises(UsageError, match=message):
        convert_model(tmp_path, add)


@torch.no_grad()
@pytest.mark.parametrize("source", ["BertModel", "BertForMaskedLM", "BertForSequenceClassification", "ElectraModel"])
def test_terms_can_be_added_to_a_converted_model_too(source: str, tmp_path: Path) -> None:
    theirs = make_source(*SOURCES[source], tmp_path / "theirs")
    inputs = {"input_ids": torch.arange(5, 25).view(2, 10)}
    expected = theirs(**inputs)
    last = tmp_path / "theirs"
    for kernel in ("dot_product", "qk_convq 3", KERNEL):
        add = {} if kernel == "dot_product" else {"attention_kernel": kernel}
        convert_checkpoint(last, tmp_path / kernel, add=add)
        last = tmp_path / kernel
        architecture = json.loads((last / "config.json").read_text())["architectures"][0]
        ours = getattr(bert_convolutions, architecture).from_pretrained(last).eval()
        assert ours.config.attention_kernel == kernel
        for name, value in expected.items():
            torch.testing.assert_close(ours(**inputs)[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (None, "is already converted: give it to --model_name_or_path"),
        ({"hidden_size": "32"}, "--add hidden_size: only attention_kernel"),
        ({"attention_kernel": "qk_convq 3"}, "name all of its terms and more of convfixed, convq"),
        ({"attention_kernel": "qk_convfixed 3"}, "name all of its terms"),
        ({"attention_kernel": "qk_convfixed_convq 4"}, "its reach and its convolution of values"),
        (
            {"attention_kernel": "qk_convfixed_convq_convolution 3"},
            "its reach and its convolution of values",
        ),
    ],
)
def test_terms_that_would_change_a_model_of_ours_are_refused(
    add: dict[str, str] | None, message: str, tmp_path: Path
) -> None:
    fields = SIZES | {"embedding_size": 8, "attention_kernel": "qk_convq 3"}
    CompositeBertForMaskedLM(CompositeBertConfig(**fields)).save_pretrained(tmp_path / "ours")
    with pytest.raises(UsageError, match=message):
        convert_checkpoint(tmp_path / "ours", tmp_path / "more", add=add)
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize("ours", [False, True])
def test_a_truncated_file_of_weights_is_refused_by_name(ours: bool, tmp_path: Path) -> None:
    make_source(BertForMaskedLM, BertConfig, tmp_path / "0")
    if ours:
        convert_checkpoint(tmp_path / "0", tmp_path / "1")
    folder = tmp_path / str(int(ours))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=str(folder)):
        convert_checkpoint(folder, tmp_path / "more", add={"attention_kernel": KERNEL})


def test_models_without_a_counterpart_are_refused_with_the_reason(tmp_path: Path) -> None:
    make_source(RobertaModel, RobertaConfig, tmp_path)
    with pytest.raises(UsageError, match=r"roberta model.*positions start at the padding index"):
        convert_model(tmp_path, {})
    for kind, reason in (("ltgbert", "feed-forward layers are gated"), ("unheard-of", "only bert, mpnet, ")):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))  # neither is known to transformers
        with pytest.raises(UsageError, match=f"{kind} model.*{reason}"):
            convert_model(tmp_path, {})


def test_a_field_of_the_wrong_type_is_refused_by_name(tmp_path: Path) -> None:
    make_source(BertModel, BertConfig, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": "many"}))
    with pytest.raises(UsageError, match=rf"{tmp_path}: cannot load a model configuration .*hidden_size"):
        convert_model(tmp_path, {})


def test_missing_weights_are_refused_and_not_initialised(tmp_path: Path) -> None:
    make_source(BertForMaskedLM, BertConfig, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"lacks bert\.encoder\.layer\.1\.output\.dense\.weight"):
        convert_model(tmp_path, {})


def test_the_command_adds_terms_and_keeps_the_tokenizer_but_adds_none_to_originals(tmp_path: Path) -> None:
    make_source(BertForMaskedLM, BertConfig, tmp_path / "bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(tmp_path / "bert")
    flags = ["--input", str(tmp_path / "bert"), "--output_dir", str(tmp_path / "ours")]
    assert main(["convert", *flags, "--add", f"attention_kernel={KERNEL}"]) == 0
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "ours").config.attention_kernel == KERNEL
    assert AutoTokenizer.from_pretrained(tmp_path / "ours")("a b")["input_ids"] == [2, 5, 6, 3]
    assert main(["convert", *flags, "--overwrite_output_dir"]) == 0
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "ours").config.attention_kernel == "dot_product"
    assert main(["convert", *flags, "--overwrite_output_dir", "--add", "attention_kernel"]) == 2
    config = json.loads((tmp_path / "bert" / "config.json").read_text()) | {"attention_kernel": "dot_product"}
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config))
    assert main(["convert", *flags, "--overwrite_output_dir", "--add", f"attention_kernel={KERNEL}"]) == 2


def test_a_model_that_has_only_a_vocabulary_file_keeps_its_tokenizer(tmp_path: Path) -> None:
    """As the oldest models on the Hub, whose tokenizer has the class of their model type."""
    make_source(BertModel, BertConfig, tmp_path / "bert")
    (tmp_path / "bert" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n")
    convert_checkpoint(tmp_path / "bert", tmp_path / "ours")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert tokenizer("a b")["input_ids"] == [2, 5, 6, 3]
    assert tokenizer.model_max_length == SIZES["max_position_embeddings"]


@torch.no_grad()
@pytest.mark.parametrize("fields", [{}, {"num_groups": 2, "head_ratio": 4, "conv_kernel_size": 5}])
@pytest.mark.parametrize("head", ["Model", "ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering"])
def test_convberts_span_based_convolution_is_converted(head: str, fields: dict[str, int], tmp_path: Path) -> None:
    """Also with another ratio of heads, and with grouped layers, which become block-diagonal matrices."""
    theirs = make_source(getattr(transformers, f"ConvBert{head}"), ConvBertConfig, tmp_path / "theirs", **fields)
    converted = convert_model(tmp_path / "theirs", {})
    converted.save_pretrained(tmp_path / "ours")
    reach = 2 if fields else 4
    assert type(converted) is getattr(bert_convolutions, f"CompositeBert{head}")
    assert converted.config.attention_kernel == f"qk_convspan {reach}" and converted.config.num_attention_heads == 1
    ours = type(converted).from_pretrained(tmp_path / "ours").eval()
    inputs = {"input_ids": torch.arange(5, 35).view(2, 15), "token_type_ids": torch.tensor([[0] * 4 + [1] * 11] * 2)}
    got, expected = ours(**inputs, output_hidden_states=True), theirs(**inputs, output_hidden_states=True)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match="nothing can be added"):
        convert_model(tmp_path / "theirs", {"attention_kernel": KERNEL})


@pytest.mark.parametrize(
    ("model_class", "config_class"),
    [(ConvBertForMaskedLM, ConvBertConfig), (ElectraForMaskedLM, ElectraConfig), (MPNetForMaskedLM, MPNetConfig)],
)
def test_a_head_for_masked_tokens_is_refused_where_the_encoder_has_another_activation(
    model_class: Any, config_class: Any, tmp_path: Path
) -> None:
    make_source(model_class, config_class, tmp_path, hidden_act="relu")
    with pytest.raises(UsageError, match="hidden_act is relu, but its head for masked tokens uses gelu"):
        convert_model(tmp_path, {})


@torch.no_grad()
@pytest.mark.parametrize("head", ["Model", "ForMaskedLM", "ForSequenceClassification", "ForMultipleChoice"])
def test_mpnets_distances_become_a_fixed_term(head: str, tmp_path: Path) -> None:
    """In rows longer than the greatest distance of its buckets, and with padding, which its positions depend on."""
    fields = {"max_position_embeddings": 152, "num_labels": 3}
    make_source(getattr(transformers, f"MPNet{head}"), MPNetConfig, tmp_path / "theirs", **fields)
    theirs = getattr(transformers, f"MPNet{head}").from_pretrained(tmp_path / "theirs").eval()
    convert_model(tmp_path / "theirs", {}).save_pretrained(tmp_path / "ours")
    ours = getattr(bert_convolutions, f"CompositeBert{head}").from_pretrained(tmp_path / "ours").eval()
    assert ours.config.attention_kernel == "qk_convfixed 128" and ours.config.max_position_embeddings == 150
    ids = torch.randint(3, 50, (2, 150))
    mask = torch.ones_like(ids)
    mask[1, 60:] = 0
    ids = ids.where(mask == 1, 1)
    shape = (1, 2, 150) if head == "ForMultipleChoice" else (2, 150)
    inputs = {"input_ids": ids.view(shape), "attention_mask": mask.view(shape)}
    got, expected = ours(**inputs)[0], theirs(**inputs)[0]
    if got.shape[:2] == mask.shape:
        got, expected = got[mask == 1], expected[mask == 1]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match="nothing can be added"):
        convert_model(tmp_path / "theirs", {"attention_kernel": KERNEL})


BUCKETS = {"position_buckets": 8, "max_relative_positions": 14, "norm_rel_ebd": "layer_norm", "share_att_key": True}
DEBERTAS = {  # version, head, fields, and the kernel they are converted to
    "v1": ("Deberta", "ForMaskedLM", {"position_biased_input": False}, "qk_convqhead_convkhead 20"),
    "v1 with positions": ("Deberta", "Model", {"pos_att_type": "p2c", "type_vocab_size": 2}, "qk_convkhead 20"),
    "v1 clipped": ("Deberta", "Model", {"max_relative_positions": 5, "pos_att_type": "c2p"}, "qk_convqhead 5"),
    "v1, its other head": ("Deberta", "ForMaskedLM", {"legacy": False}, "qk_convqhead_convkhead 20"),
    "without distances": ("Deberta", "Model", {"relative_attention": False}, "dot_product"),
    "v3": ("DebertaV2", "ForMaskedLM", {**BUCKETS, "position_biased_input": False}, "qk_convqhead_convkhead 14"),
    "v2": ("DebertaV2", "ForQuestionAnswering", {}, "qk_convqhead_convkhead 20"),
    "v2 with an odd number": ("DebertaV2", "ForTokenClassification", {**BUCKETS, "position_buckets": 7}, None),
    "v2 without a term": ("DebertaV2", "ForTokenClassification", {"pos_att_type": None}, "dot_product"),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", DEBERTAS)
def test_debertas_disentangled_attention_becomes_terms_with_a_kernel_for_each_head(kind: str, tmp_path: Path) -> None:
    """Also beyond the last bucket, and with padding."""
    version, head, fields, kernel = DEBERTAS[kind]
    fields = {"relative_attention": True, "pos_att_type": "c2p|p2c", **fields}
    config_class = getattr(transformers, f"{version}Config")
    theirs = make_source(getattr(transformers, f"{version}{head}"), config_class, tmp_path / "theirs", **fields)
    try:
        type(theirs).from_pretrained(tmp_path / "theirs")
    except AttributeError:  # in 5.19 the other head of version 1
        pytest.skip("this transformers doesn't load the model that it has saved")
    convert_model(tmp_path / "theirs", {}).save_pretrained(tmp_path / "ours")
    ours = getattr(bert_convolutions, f"CompositeBert{head}").from_pretrained(tmp_path / "ours").eval()
    assert kernel in (None, ours.config.attention_kernel)
    length = 60 if ours.config.remove_position_embeddings else 20
    ids, mask = torch.randint(1, 50, (2, length)), torch.ones(2, length, dtype=torch.long)
    mask[1, length // 2 :] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2, "output_hidden_states": True}
    got, expected = ours(**inputs), theirs(**inputs)
    for name, value in expected.items():
        values = zip(got[name], value, strict=True) if name == "hidden_states" else [(got[name], value)]
        for one, other in values:
            torch.testing.assert_close(one[mask == 1], other[mask == 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"conv_kernel_size": 3}, "conv_kernel_size is 3, .* no convolution between layers"),
        ({"embedding_size": 8}, "embedding_size is 8, .* before they are projected"),
        ({"pos_att_type": "c2p|p2p"}, "pos_att_type has p2p; only c2p and p2c"),
    ],
)
def test_options_of_deberta_without_a_counterpart_are_refused(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    make_source(DebertaV2Model, DebertaV2Config, tmp_path, relative_attention=True, **fields)
    with pytest.raises(UsageError, match=message):
        convert_model(tmp_path, {})


def test_a_debertas_tokenizer_is_not_taken_for_ours(tmp_path: Path) -> None:
    """Its file has the same name, but it keeps capitals and splits words in another way."""
    make_source(DebertaV2Model, DebertaV2Config, tmp_path / "deberta", relative_attention=True)
    pieces = {"[PAD]": "pad", "[CLS]": "bos", "[SEP]": "eos", "[UNK]": "unk"}
    ids = {f"{name}_id": index for index, name in enumerate(pieces.values())}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["The Cat sat on a mat", "a Dog ran to the big house"] * 9),
        model_prefix=str(tmp_path / "deberta" / "spm"),
        vocab_size=22,
        minloglevel=2,
        **ids,
        **{f"{name}_piece": piece for piece, name in pieces.items()},
    )
    (tmp_path / "deberta" / "tokenizer_config.json").write_text('{"do_lower_case": false, "vocab_type": "spm"}')
    expected = AutoTokenizer.from_pretrained(tmp_path / "deberta")
    convert_checkpoint(tmp_path / "deberta", tmp_path / "ours")
    for load in (AutoTokenizer.from_pretrained, load_tokenizer):
        assert load(tmp_path / "ours")("The Cat ran")["input_ids"] == expected("The Cat ran")["input_ids"]


@pytest.mark.parametrize("longest", [128, 129])
def test_the_cost_of_a_long_reach_is_printed(longest: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_source(
        DebertaV2Model,
        DebertaV2Config,
        tmp_path,
        relative_attention=True,
        pos_att_type="c2p",
        max_relative_positions=longest,
    )
    convert_model(tmp_path, {})
    assert (f"reach {longest} tokens" in capsys.readouterr().err) == (longest > 128)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
@pytest.mark.parametrize("model_class", [BertForMaskedLM, BertModel])
def test_relative_positions_of_shaw_and_huang_become_dynamic_terms(
    kind: str, model_class: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against their equations in the attention of BERT, which transformers no longer has."""
    theirs = make_source(model_class, BertConfig, tmp_path, position_embedding_type=kind)
    theirs.base_model.embeddings.position_embeddings.weight.zero_()
    length, size = SIZES["max_position_embeddings"], SIZES["hidden_size"] // SIZES["num_attention_heads"]
    weights = load_file(tmp_path / "model.safetensors")
    prefix = "bert." if model_class is BertForMaskedLM else ""
    tables = [torch.randn(2 * length - 1, size) for _ in theirs.base_model.encoder.layer]
    for number, table in enumerate(tables):
        weights[f"{prefix}encoder.layer.{number}.attention.self.distance_embedding.weight"] = table
        theirs.base_model.encoder.layer[number].attention.self.distances = table
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})

    def attend(module: Any, query: Any, key: Any, value: Any, *args: Any, **options: Any) -> Any:
        positions = torch.arange(query.shape[2])
        embedded = module.distances[positions.unsqueeze(1) - positions + length - 1]  # of i - j, (S, S, d)
        scores = query @ key.mT + torch.einsum("bhid,ijd->bhij", query, embedded)
        if kind == "relative_key_query":
            scores = scores + torch.einsum("bhjd,ijd->bhij", key, embedded)
        return ((scores / size**0.5).softmax(-1) @ value).transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "relative", attend)
    theirs.config._attn_implementation = "relative"
    ours = convert_model(tmp_path, {}).eval()
    assert ours.config.remove_position_embeddings
    ids = torch.arange(5, 25).view(2, 10)
    torch.testing.assert_close(ours(ids)[0], theirs(ids)[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match="nothing can be added"):
        convert_model(tmp_path, {"attention_kernel": KERNEL})


def test_relative_positions_without_their_weights_are_refused(tmp_path: Path) -> None:
    make_source(BertModel, BertConfig, tmp_path, position_embedding_type="relative_key")
    with pytest.raises(UsageError, match=r"a layer's distance_embedding\.weight is missing"):
        convert_model(tmp_path, {})
