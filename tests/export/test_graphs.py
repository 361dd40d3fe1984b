"""A model as an ONNX graph or a torch.export program computes what the model does, at any batch and any length."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import bert_convolutions
from bert_convolutions import CompositeAttention, CompositeBertConfig, CompositeBertForMaskedLM, CompositeBertModel
from bert_convolutions.attention.spec import parse_kernel, parse_projection
from bert_convolutions.cli.main import main
from bert_convolutions.errors import CommandError
from bert_convolutions.export import graphs

HEADS = ("Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")


def config(**options):
    sizes = {"hidden_size": 16, "intermediate_size": 8, "embedding_size": 4, "num_attention_heads": 2}
    return CompositeBertConfig(
        **{
            "vocab_size": 31,
            "max_position_embeddings": 40,
            "num_hidden_layers": 1,
            "pad_token_id": 0,
            **sizes,
            **options,
        }
    )


def without_layers(head):
    """A model whose head alone is exported, since the export of each operation takes time."""
    model = getattr(bert_convolutions, f"CompositeBert{head}")(config(num_labels=3)).eval()
    model.base_model.encoder.layer = nn.ModuleList()
    return model


def with_every_term():
    """A model of two layers that have every term between them, the second with convolutional projections."""
    kernels = ("convfixed_convk_convqhead_convspan 5", "qk_convq_convkhead_convolution_scaled 2")
    model = CompositeBertForMaskedLM(
        config(num_hidden_layers=2, attention_kernel=kernels[1], remove_position_embeddings=True)
    )
    first, second = model.bert.encoder.layer
    first.attention.self = CompositeAttention(16, 2, parse_kernel(kernels[0]), head_size=4)
    second.attention.self = CompositeAttention(
        *(16, 2, parse_kernel(kernels[1])),
        query_key=parse_projection("convolution_depth 2 1", "qk"),
        value=parse_projection("convolution_mixed 1 2", "value_forward"),
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def export_and_compare(model, folder):
    """Write both formats, and compare their outputs with the model's."""
    program = graphs.export(model)
    torch.export.save(program, folder / "model.pt2")
    graphs.check(model, graphs.torch_run(folder / "model.pt2"), "model.pt2")
    graphs.save_onnx(model, program, folder / "model.onnx")
    graphs.check(model, graphs.onnx_run(folder / "model.onnx"), "model.onnx")
    written = (folder / "model.pt2").read_bytes() + (folder / "model.onnx").read_bytes()
    for module in (torch, bert_convolutions):
        assert str(Path(module.__file__).parent).encode() not in written, "a published file tells paths of this machine"


def test_a_model_saved_in_half_precision_is_written_in_float32(tmp_path):
    CompositeBertModel(config()).bfloat16().save_pretrained(tmp_path / "model")
    flags = ["--model_name_or_path", str(tmp_path / "model"), "--output_dir", str(tmp_path / "out")]
    assert main(["export", *flags, "--format", "torch"]) == 0
    program = torch.export.load(tmp_path / "out" / "model.pt2")
    assert {value.dtype for value in program.state_dict.values()} == {torch.float32}


def test_graphs_of_every_term_compute_what_the_model_does(tmp_path):
    export_and_compare(with_every_term(), tmp_path)


@pytest.mark.parametrize("head", HEADS)
def test_graphs_of_every_head_compute_what_the_model_does(head, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = without_layers(head)
    export_and_compare(model, tmp_path)
    axes = ["batch", "choices", "length"] if head == "ForMultipleChoice" else ["batch", "length"]
    inputs = onnxruntime.InferenceSession(tmp_path / "model.onnx").get_inputs()
    assert {item.name: item.shape for item in inputs} == {
        name: axes for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    with pytest.raises(CommandError, match=r"model\.onnx: \w+ differs from the model.s by .* in 1 rows of 1 tokens"):
        graphs.check(
            without_layers(head), graphs.onnx_run(tmp_path / "model.onnx"), "model.onnx"
        )  # a model with other weights


def test_the_error_of_int8_is_measured_without_padding():
    exact = torch.tensor([[[0.0, 2.0], [1.0, 0.0], [5.0, 0.0]]])
    inexact = torch.tensor([[[0.5, 2.0], [1.0, 1.5], [0.0, 9.0]]])
    batch = {"attention_mask": torch.tensor([[1, 1, 0]])}
    sentence = graphs.difference({"logits": exact}, {"logits": inexact}, batch)
    assert "differ by 0.5000 on average, 1.5000 at most" in sentence
    assert sentence.endswith("the most probable is the same in 50.0 %")
    answers = {"start_logits": torch.tensor([[1.0, 2.0, 9.0]])}, {"start_logits": torch.tensor([[3.0, 2.0, 1.0]])}
    assert graphs.difference(*answers, batch).endswith("the same in 0.0 %")
    hidden = {"last_hidden_state": exact}
    assert "most probable" not in graphs.difference(hidden, hidden, batch)


def test_the_exported_folder_can_be_used_by_onnxruntime_and_transformers(folders, tokenizer, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    text = tmp_path / "text.txt"
    text.write_text("The cat sleeps.\n\nA dog barked, loudly.\n")
    argv = ["export", "--model_name_or_path", str(folders["classifier"]), "--output_dir", str(tmp_path / "out")]
    assert main([*argv, "--format", "onnx", "--quantize", "int8", "--text", str(text)]) == 0
    output = capsys.readouterr().out
    for words in ("2 rows of", "onnxruntime, int8", "int8: logits differ by", "the most probable is the same in"):
        assert words in output
    sizes = [(tmp_path / "out" / name).stat().st_size for name in ("model_int8.onnx", "model.onnx")]
    assert sizes[0] < sizes[1]

    batch = AutoTokenizer.from_pretrained(tmp_path / "out")(["The cat", "a dog barked ."], padding=True)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    found = session.run(["logits"], {item.name: batch[item.name] for item in session.get_inputs()})[0]
    model = AutoModelForSequenceClassification.from_pretrained(folders["classifier"])
    assert torch.allclose(torch.tensor(found), model(**batch.convert_to_tensors("pt")).logits, atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--format", "torch", "--quantize", "int8"), "--quantize int8 is for --format onnx"),
        (("--format", "onnx", "--text", "x"), "--text needs --quantize int8, which is measured on it"),
        (("--format", "onnx", "--revisions", "--push_to_hub", "a/b"), "--revisions needs --format hub"),
        (("--format", "hub", "--push_to_hub", "a/my model"), "--push_to_hub: Repo id must"),
    ],
)
def test_flags_that_cannot_be_followed_are_refused_before_anything_is_read(flags, message, tmp_path, capsys):
    argv = ["export", "--model_name_or_path", "model", "--output_dir", str(tmp_path / "out"), *flags]
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def test_a_missing_text_is_refused_before_the_export(folders, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(graphs, "export", lambda model: pytest.fail("exported"))
    argv = ["export", "--model_name_or_path", str(folders["classifier"]), "--output_dir", str(tmp_path / "out")]
    assert main([*argv, "--format", "onnx", "--quantize", "int8", "--text", str(tmp_path / "missing.txt")]) == 2
    assert "missing.txt: no such file" in capsys.readouterr().err


def test_a_graph_with_other_outputs_is_refused_and_leaves_nothing(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(graphs, "export", lambda model: torch.export.export(nn.Identity(), (torch.ones(1),)))
    wrong = {"logits": torch.zeros(1, 1, 1)}
    monkeypatch.setattr(graphs, "torch_run", lambda path: lambda batch: wrong)
    argv = ["--model_name_or_path", str(folders["positionless"]), "--output_dir", str(tmp_path / "out")]
    assert main(["export", *argv, "--format", "torch"]) == 1
    assert "bertconv doctor" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
