import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_convolutions.attention.spec import OUTPUT_TERMS, SCORE_TERMS, parse_kernel, parse_projection

KERNELS = [
    "_".join([*terms, *convolution]) + " 8"
    for size in range(5)
    for terms in itertools.combinations(SCORE_TERMS, size)
    for convolution in ([], *([name] for name in OUTPUT_TERMS))
    if terms or convolution
]
PROJECTIONS = [
    "convolution" + "".join(flags) + " 3 2"
    for size in range(4)
    for flags in itertools.combinations(("_depth", "_mixed", "_no_act"), size)
]


@pytest.mark.parametrize("text", [*KERNELS, "dot_product"])
def test_every_kernel_is_its_own_canonical_form(text):
    assert str(parse_kernel(text)) == text


def test_the_order_of_terms_does_not_matter():
    assert str(parse_kernel("convolution_scaled_convk_qk_convfixed  4")) == "qk_convfixed_convk_convolution_scaled 4"
    assert parse_kernel("convolution 2").score_terms == ("qk",)


@pytest.mark.parametrize("text", PROJECTIONS)
def test_every_projection_is_its_own_canonical_form(text):
    assert str(parse_projection(text, "value_forward")) == text
    assert str(parse_projection("convolution_no_act_depth 3 2", "qk")) == "convolution_depth_no_act 3 2"


def test_plain_projections_keep_their_names():
    assert str(parse_projection("linear", "qk")) == "linear"
    assert str(parse_projection("feedforward", "value_forward")) == "feedforward"
    with pytest.raises(ValueError, match="linear"):
        parse_projection("feedforward", "qk")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("qk_convfixd 8", '"convfixd"'),
        ("qk_qk 8", "twice"),
        ("qk_scaled 8", '"scaled"'),
        ("qk_convolution_convolution_scaled 8", "choose one"),
        ("qk_convspan_convolution 8", "convspan and convolution; choose one"),
        ("qk_convq", "reach"),
        ("qk_convq eight", '"eight"'),
        ("qk_convq -1", '"-1"'),
        ("qk_convq 1.5", '"1.5"'),
        ("dot_product 8", "dot_product"),
        ("", "terms"),
    ],
)
def test_a_bad_kernel_is_refused_with_the_reason(text, named):
    with pytest.raises(ValueError) as error:
        parse_kernel(text)
    assert named in str(error.value)


def test_an_unknown_term_lists_the_valid_ones():
    with pytest.raises(ValueError) as error:
        parse_kernel("qk_konvq 8")
    assert all(term in str(error.value) for term in (*SCORE_TERMS, *OUTPUT_TERMS, "konvq"))


@pytest.mark.parametrize(
    "text", ["convolution_deep 3 1", "convolution 3", "convolution 3 0", "conv 3 1", "", "convolutiondepth 3 1"]
)
def test_a_bad_projection_is_refused(text):
    with pytest.raises(ValueError, match="value_forward"):
        parse_projection(text, "value_forward")


@given(st.text(max_size=30))
def test_any_text_is_parsed_or_refused(text):
    for parse in (parse_kernel, lambda value: parse_projection(value, "qk")):
        try:
            parse(text)
        except ValueError as error:
            assert text in str(error)
