"""Every head is used as BERT's, and without convolutions it equals BERT's, weight for weight."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForQuestionAnswering,
    BertForTokenClassification,
    PreTrainedModel,
)

import bert_convolutions
from bert_convolutions import CompositeBertConfig
from tests.helpers import TINY

SIZES = TINY | {"vocab_size": 50, "max_position_embeddings": 20}
HEADS = {
    "TokenClassification": BertForTokenClassification,
    "QuestionAnswering": BertForQuestionAnswering,
    "MultipleChoice": BertForMultipleChoice,
    "NextSentencePrediction": BertForNextSentencePrediction,
}


def sizes(head: str) -> dict[str, Any]:
    return SIZES | ({"num_labels": 3} if head == "TokenClassification" else {})


def make_head(head: str, **options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = CompositeBertConfig(**sizes(head), embedding_size=SIZES["hidden_size"], **options)
    return getattr(bert_convolutions, f"CompositeBertFor{head}")(config).eval()


def batch(head: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (4, 3, 11) if head == "MultipleChoice" else (4, 11)
    inputs = {"input_ids": torch.randint(5, 50, shape, generator=generator), "attention_mask": torch.ones(shape).long()}
    inputs["attention_mask"][1, ..., 7:] = 0
    if head == "TokenClassification":
        inputs["labels"] = torch.randint(3, shape, generator=generator).masked_fill(inputs["attention_mask"] == 0, -100)
    elif head == "QuestionAnswering":  # its loss includes the logits of padding, which differ
        inputs["attention_mask"] = torch.ones(shape).long()
        inputs |= {"start_positions": torch.tensor([1, 2, 30, 0]), "end_positions": torch.tensor([3, 2, 30, 6])}
    else:
        inputs["labels"] = torch.tensor([0, 1, 1, 0])
    return inputs


@pytest.mark.parametrize("head", HEADS)
def test_without_convolutions_a_head_equals_berts(head: str) -> None:
    ours = make_head(head)
    bert = HEADS[head](BertConfig(**sizes(head))).eval()
    assert set(ours.state_dict()) == set(bert.state_dict())
    bert.load_state_dict(ours.state_dict())
    got, expected = ours(**batch(head)), bert(**batch(head))
    assert type(got) is type(expected)
    assert got.keys() == expected.keys()
    real = batch(head)["attention_mask"].bool()
    for name, value in expected.items():
        of_tokens = value.shape[:2] == real.shape  # outputs of padding are not compared
        pair = (got[name][real], value[real]) if of_tokens else (got[name], value)
        torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_the_loss_of_a_head_in_float64_is_in_float64(head: str) -> None:
    assert make_head(head).double()(**batch(head)).loss.dtype == torch.float64


@pytest.mark.parametrize("head", HEADS)
def test_a_saved_head_is_loaded_by_its_auto_class(head: str, tmp_path: Path) -> None:
    model = make_head(head, attention_kernel="qk_convfixed_convq_convk 3", remove_position_embeddings=True)
    model.save_pretrained(tmp_path)
    loaded = getattr(transformers, f"AutoModelFor{head}").from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model)
    torch.testing.assert_close(loaded(**batch(head)).loss, model(**batch(head)).loss)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_learns_one_batch(head: str) -> None:
    model = make_head(head, attention_kernel="qk_convfixed_convq_convk 3", hidden_dropout_prob=0.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = model(**batch(head)).loss.item()
    for _ in range(25):
        loss = model(**batch(head)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < first / 2


def test_the_next_sentence_head_loads_the_weights_of_pre_training(tmp_path: Path) -> None:
    pretrained = make_head("PreTraining")
    pretrained.save_pretrained(tmp_path)
    loaded = bert_convolutions.CompositeBertForNextSentencePrediction.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.cls["seq_relationship"].weight, pretrained.cls.seq_relationship.weight)


def test_the_auto_class_for_text_encoding_is_the_plain_model() -> None:
    config = CompositeBertConfig(**SIZES)
    assert type(transformers.AutoModelForTextEncoding.from_config(config)) is bert_convolutions.CompositeBertModel
