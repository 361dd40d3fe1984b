"""Option strings of the paper's code, parsed once into dataclasses; ``str()`` returns the canonical string.

``attention_kernel``  ``dot_product``, or terms joined by ``_`` and a reach: ``qk_convfixed_convq_convk 8``.
``qk``                ``linear``, or a convolution: ``convolution[_depth][_mixed][_no_act] REACH GROUPS``.
``value_forward``     ``feedforward``, or a convolution of the same form.

Imports neither PyTorch nor transformers, so that invalid options are refused immediately.
"""

import re
from dataclasses import dataclass

from bert_convolutions.attention.terms import TERMS

SCORE_TERMS = ("qk", *TERMS)
"""Terms of the score equation, in canonical order: the dot product, and those that ``attention.terms`` declares."""

OUTPUT_TERMS = ("convolution", "convolution_scaled", "convspan")
"""Convolutions beside attention: a depthwise one that is added to its output, without and with a trained scale per
head, and ConvBERT's span-based dynamic one, whose heads are concatenated with those of attention."""


@dataclass(frozen=True)
class AttentionKernel:
    """A parsed ``attention_kernel``: the composition of a layer's attention.

    Attributes:
        terms: names of the score terms, in the order of ``SCORE_TERMS``; empty for plain dot-product attention.
        convolution: one of ``OUTPUT_TERMS``, or None.
        reach: tokens that a convolution sees on each side (n in the paper; the kernel is 2n+1 wide).
    """

    terms: tuple[str, ...] = ()
    convolution: str | None = None
    reach: int = 0

    @property
    def score_terms(self) -> tuple[str, ...]:
        """The terms whose sum is the score: the dot product if no term is named."""
        return self.terms or ("qk",)

    @property
    def convolution_terms(self) -> tuple[str, ...]:
        """The score terms without the dot product, as declared in ``TERMS``."""
        return tuple(name for name in self.terms if name != "qk")

    def __str__(self) -> str:
        """The canonical option string."""
        names = [*self.terms, *([self.convolution] if self.convolution else [])]
        return f"{'_'.join(names)} {self.reach}" if names else "dot_product"


@dataclass(frozen=True)
class Projection:
    """A parsed projection of hidden states to queries, keys or values: a linear layer or a convolution.

    Attributes:
        convolution: whether it is a convolution, which the other fields describe.
        depth: depthwise-separable: depthwise convolution, activation, pointwise linear layer.
        mixed: a convolution computes the first half of the channels, a linear layer the second.
        no_activation: no activation between the depthwise and the pointwise part.
        reach: tokens seen on each side.
        groups: groups of a convolution that is not depthwise.
        linear_name: the option's name for a linear layer.
    """

    convolution: bool = False
    depth: bool = False
    mixed: bool = False
    no_activation: bool = False
    reach: int = 0
    groups: int = 1
    linear_name: str = "linear"

    def __str__(self) -> str:
        """The canonical option string."""
        if not self.convolution:
            return self.linear_name
        flags = [("_depth", self.depth), ("_mixed", self.mixed), ("_no_act", self.no_activation)]
        return f"convolution{''.join(name for name, on in flags if on)} {self.reach} {self.groups}"


def parse_kernel(text: str) -> AttentionKernel:
    """Parse ``attention_kernel``.

    Raises:
        ValueError: an unknown, repeated or missing term, or a reach that is not a whole number of at minimum 0.
    """
    quoted = f'attention_kernel "{text}"'
    words = str(text).split()
    if words == ["dot_product"]:
        return AttentionKernel()
    if len(words) != 2:
        form = 'write e.g. "qk_convfixed_convq_convk 8": terms joined by "_", then the reach in tokens'
        raise ValueError(f"{quoted} is not a list of terms and one number; {form}")
    names = re.split(r"(?<!convolution)_|_(?!scaled(?:_|$))", words[0])  # convolution_scaled is one name
    _check_names(quoted, "term", names, (*SCORE_TERMS, *OUTPUT_TERMS))
    output_terms = [name for name in names if name in OUTPUT_TERMS]
    if len(output_terms) > 1:
        raise ValueError(f"{quoted} names {' and '.join(output_terms)}; choose one of them")
    return AttentionKernel(
        terms=tuple(name for name in SCORE_TERMS if name in names),
        convolution=output_terms[0] if output_terms else None,
        reach=_whole_number(words[1], 0, f"the reach in {quoted}"),
    )


def parse_projection(text: str, option: str) -> Projection:
    """Parse ``qk`` or ``value_forward``.

    Args:
        text: the option string.
        option: ``qk`` or ``value_forward``; the two name their plain linear layer differently.

    Raises:
        ValueError: an unknown word or an invalid number.
    """
    quoted = f'{option} "{text}"'
    linear_name = {"qk": "linear", "value_forward": "feedforward"}[option]
    words = str(text).split()
    if words == [linear_name]:
        return Projection(linear_name=linear_name)
    form = f'write "{linear_name}" or e.g. "convolution_depth_mixed_no_act 8 1": the form, the reach and the groups'
    first, *names = re.split(r"_(?!act(?:_|$))|(?<!_no)_", words[0]) if words else [""]  # no_act is one name
    if first != "convolution":
        raise ValueError(f"{quoted} is not known; {form}")
    _check_names(quoted, "word", names, ("depth", "mixed", "no_act"))
    if len(words) != 3:
        raise ValueError(f"{quoted} needs two numbers; {form}")
    return Projection(
        convolution=True,
        depth="depth" in names,
        mixed="mixed" in names,
        no_activation="no_act" in names,
        reach=_whole_number(words[1], 0, f"the reach in {quoted}"),
        groups=_whole_number(words[2], 1, f"the number of groups in {quoted}"),
        linear_name=linear_name,
    )


def _check_names(quoted: str, kind: str, names: list[str], valid: tuple[str, ...]) -> None:
    for name in names:
        if name not in valid:
            raise ValueError(f'{quoted} has the unknown {kind} "{name}"; valid {kind}s are {", ".join(valid)}')
        if names.count(name) > 1:
            raise ValueError(f'{quoted} names the {kind} "{name}" twice; name each {kind} once')


def _whole_number(text: str, minimum: int, what: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < minimum or len(text) > 6:
        raise ValueError(f'{what} is "{text}", which is not a whole number from {minimum} to 999999')
    return int(text)
