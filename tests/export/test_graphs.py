"""A model as an ONNX graph or a torch.export program computes what the model does, at any batch and any length."""

import pytest
import torch
from torch import nn

import bert_convolutions
from bert_convolutions import CompositeAttention, CompositeBertConfig, CompositeBertForMaskedLM
from bert_convolutions.attention.spec import parse_kernel, parse_projection
from bert_convolutions.errors import CommandError
from bert_convolutions.export import graphs

KERNELS = ("convfixed 3", "convq 2", "convk 5", "convolution 2", "qk_convfixed_convq_convk_convolution_scaled 3")
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
    """A model whose head alone is looked at, since each operation takes its time to export."""
    model = getattr(bert_convolutions, f"CompositeBert{head}")(config(num_labels=3)).eval()
    model.base_model.encoder.layer = nn.ModuleList()
    return model


def of_all_kernels():
    """A layer of each kernel, and one of convolutional projections."""
    model = CompositeBertForMaskedLM(
        config(num_hidden_layers=len(KERNELS) + 1, attention_kernel=KERNELS[-1], remove_position_embeddings=True)
    )
    for layer, kernel in zip(model.bert.encoder.layer[:-1], KERNELS, strict=True):
        layer.attention.self = CompositeAttention(16, 2, parse_kernel(kernel))
    model.bert.encoder.layer[-1].attention.self = CompositeAttention(
        *(16, 2, parse_kernel("qk 1")),
        query_key=parse_projection("convolution_depth 2 1", "qk"),
        value=parse_projection("convolution_mixed 1 2", "value_forward"),
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def exported(model, folder):
    """Written in both formats, and compared."""
    program = graphs.export(model)
    torch.export.save(program, folder / "model.pt2")
    graphs.check(model, graphs.torch_run(folder / "model.pt2"), "model.pt2")
    graphs.save_onnx(model, program, folder / "model.onnx")
    graphs.check(model, graphs.onnx_run(folder / "model.onnx"), "model.onnx")


def test_every_kernel(tmp_path):
    exported(of_all_kernels(), tmp_path)


@pytest.mark.parametrize("head", HEADS)
def test_every_head(head, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = without_layers(head)
    exported(model, tmp_path)
    axes = ["batch", "choices", "length"] if head == "ForMultipleChoice" else ["batch", "length"]
    inputs = onnxruntime.InferenceSession(tmp_path / "model.onnx").get_inputs()
    assert {item.name: item.shape for item in inputs} == {
        name: axes for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    with pytest.raises(CommandError, match=r"model\.onnx: \w+ is .* from the model's for 1 rows of 1 tokens"):
        graphs.check(without_layers(head), graphs.onnx_run(tmp_path / "model.onnx"), "model.onnx")  # other weights


def test_what_int8_loses_is_measured_without_padding():
    exact = torch.tensor([[[0.0, 2.0], [1.0, 0.0], [5.0, 0.0]]])
    inexact = torch.tensor([[[0.5, 2.0], [1.0, 1.5], [0.0, 9.0]]])
    batch = {"attention_mask": torch.tensor([[1, 1, 0]])}
    sentence = graphs.difference({"logits": exact}, {"logits": inexact}, batch)
    assert "differ by 0.5000 on average, 1.5000 at most" in sentence
    assert sentence.endswith("the likeliest is the same in 50.0 %")
    answers = {"start_logits": torch.tensor([[1.0, 2.0, 9.0]])}, {"start_logits": torch.tensor([[3.0, 2.0, 1.0]])}
    assert graphs.difference(*answers, batch).endswith("the same in 0.0 %")
    hidden = {"last_hidden_state": exact}
    assert "likeliest" not in graphs.difference(hidden, hidden, batch)
