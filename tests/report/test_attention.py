"""Scores split into terms, shares of their variance, and mean attention by offset."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bert_convolutions import CompositeBertConfig, CompositeBertForMaskedLM
from bert_convolutions.cli.main import main
from bert_convolutions.probes.run import load_model
from bert_convolutions.report.attention import (
    OFFSETS,
    SentenceAttention,
    attention_of,
    measure,
    sentence_maps,
    sentence_values,
)
from bert_convolutions.report.style import save_figure
from tests.helpers import TINY
from tests.report.conftest import SENTENCE

TEXTS = [[1, 5, 3, 8, 2, 9, 4], [7, 7, 3, 6], [2, 4, 6, 8, 10, 12, 14, 16, 18, 11]]


def model_of(kernel: str) -> CompositeBertForMaskedLM:
    config = CompositeBertConfig(vocab_size=20, embedding_size=8, attention_kernel=kernel, **TINY)
    return CompositeBertForMaskedLM(config).eval()


def test_the_terms_add_up_to_the_scores(sweep: Path) -> None:
    model, tokenizer = load_model(str(sweep / "composite/seed1/pretrain"), None)
    model.eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    found = attention_of(model, tokenizer, SENTENCE)
    assert found.tokens == tokenizer.convert_ids_to_tokens(tokenizer(SENTENCE)["input_ids"])
    assert set(found.scores) == {"qk", "convfixed", "convq", "convk"}
    ids = torch.tensor([tokenizer(SENTENCE)["input_ids"]])
    expected = torch.stack(model(ids, output_attentions=True).attentions)[:, 0]
    total = torch.tensor(sum(found.scores.values()))
    torch.testing.assert_close(total.softmax(-1).float(), expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(found.probabilities, expected.detach().numpy(), atol=1e-6)
    for head in (None, 2):
        drawn = sentence_values(found, head)
        *terms, total, attention = drawn.values()
        np.testing.assert_allclose(sum(terms), total)
        np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(drawn["attention"], found.probabilities[:, 1])


def test_tokens_are_drawn_as_they_are_and_not_as_formulas(tmp_path: Path) -> None:
    score = np.zeros((1, 1, 2, 2))
    figure = sentence_maps(SentenceAttention([r"$\no$", "$x$"], {"qk": score}, score), "composite", None)
    save_figure(figure, tmp_path / "map.svg")
    text = (tmp_path / "map.svg").read_text()
    assert text.count(r">$\no$<") == text.count(">$x$<") == 4, "for the queries, and for the keys of three panels"


def test_the_term_that_decides_has_the_largest_share_of_variance() -> None:
    model = model_of("qk_convfixed 2")
    silent = measure(model, TEXTS)
    assert silent.terms == ["qk", "convfixed"]
    np.testing.assert_allclose(silent.shares[..., 1], 0, atol=1e-12)  # the term is initially zero
    for layer in model.bert.encoder.layer:
        kernel = layer.attention.self.convfixed_param.data
        kernel[:] = 100.0  # the same for all keys, which changes no probability
        kernel[:, 1] += torch.arange(5.0) * 1000
    loud = measure(model, TEXTS)
    np.testing.assert_allclose(loud.shares.sum(-1), 1)
    np.testing.assert_allclose(loud.layer_shares.sum(-1), 1)
    np.testing.assert_allclose(loud.shares[:, 0], silent.shares[:, 0], atol=0.01)
    assert (loud.shares[:, 1, 1] > 0.99).all() and (loud.layer_shares[:, 1] > 0.99).all()


def test_mean_attention_by_offset_equals_values_by_hand() -> None:
    model = model_of("convfixed 1")
    for layer in model.bert.encoder.layer:
        layer.attention.self.convfixed_param.data[..., 0] = 50.0  # all attention to the keys before the query
    found = measure(model, TEXTS)
    expected = np.zeros(2 * OFFSETS + 1)
    for offset in range(-OFFSETS, OFFSETS + 1):
        pairs = [(query, len(ids)) for ids in TEXTS for query in range(len(ids)) if 0 <= query + offset < len(ids)]
        given = [1 / length if query == 0 else (offset < 0) / query for query, length in pairs]
        expected[offset + OFFSETS] = np.mean(given) if given else np.nan
    np.testing.assert_allclose(found.by_offset, np.broadcast_to(expected, found.by_offset.shape), atol=1e-6)
    assert found.terms == ["convfixed"]


def test_a_model_without_convolution_has_the_dot_product_only() -> None:
    assert measure(model_of("dot_product"), TEXTS).terms == ["qk"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sentence", SENTENCE, "--head", "3"], "--head 3: absolute has the heads 1 to 2"),
        (["--sentence", 3 * SENTENCE], "--sentence has 41 tokens, and absolute takes at most 16; shorten it"),
        (["--text", "no.txt"], "no.txt: no such file or folder"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is(
    sweep: Path, tmp_path: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(sweep), "--output_dir", str(tmp_path / "report"), *flags]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "report").exists()
