"""FLOPs against counts by hand."""

import numpy as np
import pytest
from transformers import ElectraConfig, ElectraForMaskedLM

from bert_convolutions.attention import spec
from bert_convolutions.attention.terms import TERMS, Term
from bert_convolutions.model import CompositeBertConfig, CompositeBertForMaskedLM
from bert_convolutions.model.flops import FlopCounter, count_flops, peak_flops

SIZES = {
    "vocab_size": 100,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "embedding_size": 8,
}
LAYER = 4 * 16 * 16 + 2 * 16 * 40  # query, key, value, output; feed-forward
HEAD = 16 * 8 + 8 * 100


def test_dot_product_and_electra_have_the_same_counts() -> None:
    expected = FlopCounter(encoder_weights=8 * 16 + 3 * LAYER, head_weights=HEAD, layers=3, attention_width=16)
    assert count_flops(CompositeBertForMaskedLM(CompositeBertConfig(**SIZES))) == expected
    assert count_flops(ElectraForMaskedLM(ElectraConfig(**SIZES))) == expected


def test_dynamic_terms_are_counted_per_head() -> None:
    config = CompositeBertConfig(**SIZES, attention_kernel="qk_convfixed_convq_convkhead 3")
    term = 2 * 8 * 7  # heads x head size x width
    assert count_flops(CompositeBertForMaskedLM(config)).encoder_weights == 8 * 16 + 3 * (LAYER + 2 * term)


def test_span_based_convolution_counts_its_projections_and_its_weights_for_values() -> None:
    config = CompositeBertConfig(**SIZES, attention_kernel="qk_convspan 2", attention_head_size=4)
    attention = 3 * 16 * 8 + 16 * 16  # query, key, value; the output of both
    span = 5 * 16 + 2 * 16 * 8 + 8 * 2 * 5 + 2 * 5 * 4  # key in two parts and value; kernel; kernel for values
    expected = 8 * 16 + 3 * (LAYER - 4 * 16 * 16 + attention + span)
    assert count_flops(CompositeBertForMaskedLM(config)).encoder_weights == expected


def test_a_new_term_is_counted_by_its_declaration(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, dynamic in (("lookahead", True), ("steady", False)):
        new = Term("key", dynamic, lambda heads, head_size, width: (head_size, width), "zeros")
        monkeypatch.setitem(TERMS, name, new)
    monkeypatch.setattr(spec, "SCORE_TERMS", ("qk", *TERMS))
    config = CompositeBertConfig(**SIZES, attention_kernel="qk_lookahead_steady 2")
    expected = 8 * 16 + 3 * (LAYER + 2 * 8 * 5)
    assert count_flops(CompositeBertForMaskedLM(config)).encoder_weights == expected


def test_without_the_dot_product_attention_has_half_its_flops() -> None:
    config = CompositeBertConfig(**SIZES, attention_kernel="convfixed 2")
    counter = count_flops(CompositeBertForMaskedLM(config))
    assert counter.attention_width == 8
    assert counter.encoder_weights == 8 * 16 + 3 * (LAYER - 2 * 16 * 16), "no query, no key"


def test_a_training_step_equals_a_count_by_hand() -> None:
    counter = FlopCounter(encoder_weights=1000, head_weights=200, layers=3, attention_width=16)
    lengths = np.array([10, 20])
    forward = 2 * 1000 * 30 + 2 * 200 * 4 + 3 * 4 * 16 * (10 * 10 + 20 * 20)
    assert counter.forward(lengths, predicted=4) == forward
    assert counter.training(lengths, predicted=4) == 3 * forward


def test_the_peak_is_found_by_the_name_of_the_gpu_or_given_by_flag() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", None) == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", None) == 312e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", 100.0) == 100e12
    assert peak_flops("Some other device", None) is None


@pytest.mark.parametrize(("name", "expected"), [("NVIDIA L40S", 362e12), ("NVIDIA L4", 121e12)])
def test_gpus_whose_names_begin_alike_have_their_own_peaks(name: str, expected: float) -> None:
    assert peak_flops(name, None) == expected
