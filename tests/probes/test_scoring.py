"""Pseudo-log-likelihood against a loop that masks one token at a time."""

from typing import Any

import pytest
import torch
from tokenizers import models, pre_tokenizers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    FNetConfig,
    FNetForMaskedLM,
    MobileBertConfig,
    MobileBertForMaskedLM,
    PreTrainedTokenizerFast,
    set_seed,
)

from bert_convolutions.data.tokenizer import CompositeBertTokenizer
from bert_convolutions.probes import scoring
from bert_convolutions.probes.scoring import PseudoLikelihood, words_of_pieces
from tests.helpers import TINY, fast_tokenizer
from tests.probes.conftest import composite

SENTENCES = [
    "the cat sleeps on the warm mat .",
    "the cats sleep on the warm mat .",
    "nobody has ever seen an unbelievable, warm dog that barks at the small cat and at the mat.",
    "dog",
]
WORDS = ["cat", "cats", "dog", "sleeps", "the", "un", "##believ", "##able", "warm", "mat", "on"]


@torch.no_grad()
def by_loop(model: Any, tokenizer: Any, sentence: str, words: list[int] | None = None) -> float:
    """The sum over tokens, masked one by one; with ``words``, later tokens of the same word are masked too."""
    ids = tokenizer(sentence)["input_ids"]
    total = 0.0
    for position in range(1, len(ids) - 1):
        masked = list(ids)
        for other in range(position, len(ids) - 1):
            if other == position or (words and words[other - 1] == words[position - 1]):
                masked[other] = tokenizer.mask_token_id
        logits = model(input_ids=torch.tensor([masked])).logits[0, position]
        total += float(logits.double().log_softmax(-1)[ids[position]])
    return total


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"remove_position_embeddings": True},
        {"attention_kernel": "qk_convfixed_convq_convk 3", "remove_position_embeddings": True},
        {"value_forward": "convolution_depth_mixed 2 1"},
    ],
)
@pytest.mark.parametrize("batch_tokens", [20, 2048])
def test_packed_copies_have_the_scores_of_single_sentences(
    tokenizer: CompositeBertTokenizer, options: dict[str, Any], batch_tokens: int
) -> None:
    model = composite(tokenizer, **options)
    scores = PseudoLikelihood(model, tokenizer, batch_tokens)(SENTENCES)
    for sentence, score in zip(SENTENCES, scores, strict=True):
        words = words_of_pieces(tokenizer.tokenize(sentence))
        assert score.whole == pytest.approx(by_loop(model, tokenizer, sentence), abs=1e-4)
        assert score.within_word == pytest.approx(by_loop(model, tokenizer, sentence, words), abs=1e-4)
    assert abs(scores[2].whole - scores[2].within_word) > 0.01


def word_piece() -> PreTrainedTokenizerFast:
    return fast_tokenizer(models.WordPiece, pre_tokenizers.BertPreTokenizer(), [".", ",", *WORDS])


OTHERS: dict[str, Any] = {
    "bert": lambda size: BertForMaskedLM(BertConfig(vocab_size=size, **TINY)),
    "distilbert": lambda size: DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=size, dim=16, n_layers=2, n_heads=2, hidden_dim=32)
    ),
    "electra": lambda size: ElectraForMaskedLM(ElectraConfig(vocab_size=size, embedding_size=8, **TINY)),
    # Its last matrix is not called as a module, so masked positions are selected after the head.
    "mobilebert": lambda size: MobileBertForMaskedLM(
        MobileBertConfig(vocab_size=size, embedding_size=8, intra_bottleneck_size=8, true_hidden_size=8, **TINY)
    ),
    # It treats padding as text.
    "fnet": lambda size: FNetForMaskedLM(
        FNetConfig(vocab_size=size, hidden_size=16, num_hidden_layers=2, intermediate_size=32)
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_masked_language_models_of_transformers_have_the_scores_of_single_sentences(name: str) -> None:
    set_seed(3)
    tokenizer = word_piece()
    model = OTHERS[name](len(tokenizer)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    sentences = ["the cat sleeps on the warm mat .", "the unbelievable dog sleeps", "cats, cats, cats."]
    scores = PseudoLikelihood(model, tokenizer, 100)(sentences)
    for sentence, score in zip(sentences, scores, strict=True):
        words = [word for word in tokenizer(sentence).word_ids() if word is not None]
        assert score.whole == pytest.approx(by_loop(model, tokenizer, sentence), abs=1e-4)
        assert score.within_word == pytest.approx(by_loop(model, tokenizer, sentence, words), abs=1e-4)


def test_the_head_computes_masked_positions_only_and_each_copy_once(
    tokenizer: CompositeBertTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = composite(tokenizer)
    sizes: list[torch.Size] = []
    model.get_output_embeddings().register_forward_hook(lambda module, arguments, output: sizes.append(output.shape))
    one, two = "the cat sleeps", "the dog sleeps"
    pieces = [len(tokenizer.tokenize(text)) for text in (one, two)]
    PseudoLikelihood(model, tokenizer)([one])
    assert all(len(size) == 2 for size in sizes)
    alone = sum(size[0] for size in sizes)
    words = words_of_pieces(tokenizer.tokenize(one))
    assert alone == pieces[0] + sum(word in words[place + 1 :] for place, word in enumerate(words))
    sizes.clear()
    PseudoLikelihood(model, tokenizer)([one, one])
    assert sum(size[0] for size in sizes) == alone


def test_half_precision_weights_are_scored_in_float32(tokenizer: CompositeBertTokenizer) -> None:
    model = composite(tokenizer).to(torch.bfloat16)
    expected = PseudoLikelihood(composite(tokenizer).to(torch.bfloat16).float(), tokenizer)(SENTENCES)
    assert PseudoLikelihood(model, tokenizer)(SENTENCES) == expected


def test_pieces_are_grouped_into_words() -> None:
    assert words_of_pieces(["▁the", "▁neigh", "bours", ",", "▁", "un", ".", '"']) == [1, 2, 2, 3, 4, 4, 5, 6]
    assert words_of_pieces(["the", "neigh", "##bours", "'", "s"]) == [1, 2, 2, 3, 4]
    assert words_of_pieces(["▁wait", "!", "what"]) == [1, 2, 3]
    assert words_of_pieces([]) == []


def test_an_empty_sentence_has_probability_one(tokenizer: CompositeBertTokenizer) -> None:
    assert PseudoLikelihood(composite(tokenizer), tokenizer)([""]) == [scoring.Score(0.0, 0.0)]


class RefuseFloat64(TorchDispatchMode):
    """MPS has no float64, and some of Intel's GPUs don't either."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        assert getattr(result, "dtype", None) != torch.float64, func
        return result


def test_nothing_is_computed_in_float64(tokenizer: CompositeBertTokenizer) -> None:
    model = composite(tokenizer, attention_kernel="qk_convfixed_convq_convk 3")
    with RefuseFloat64():
        PseudoLikelihood(model, tokenizer, 2048)(SENTENCES)
