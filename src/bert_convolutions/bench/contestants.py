"""Who takes part: a contestant is one short declaration. Imports neither PyTorch nor transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bert_convolutions.errors import UsageError

REACH = 8
"""n of all kernels: the paper's width of 17."""


@dataclass(frozen=True)
class Contestant:
    """A model, fed as its own training command feeds it.

    Attributes:
        name: what ``--contestants`` calls it.
        description: for tables.
        flags: architecture flags of ``bertconv pretrain``; None for a model of ``transformers``, which ``bench.peers``
            builds by its name and the Trainer's own collator feeds.
        default: takes part where ``--contestants`` is left out.
        quick: takes part in ``--quick``.
    """

    name: str
    description: str
    flags: dict[str, Any] | None = None
    default: bool = True
    quick: bool = False

    @property
    def is_ours(self) -> bool:
        """Whether it is a model of this project."""
        return self.flags is not None


@dataclass(frozen=True)
class Core(Contestant):
    """A way to compute attention, of the task ``attention``; its code is in ``bench.attention``.

    Attributes:
        score_tensors: B x H x S x S tensors that it holds at a time, about.
        only_gpu: why it is for GPUs, if it is.
        package: that it needs and no extra of ours brings, or None.
    """

    score_tensors: int = 0
    only_gpu: str | None = None
    package: str | None = None


def _kernel(terms: str, **others: str) -> dict[str, Any]:
    return {"attention_kernel": f"{terms} {REACH}", "remove_position_embeddings": True, **others}


_FULL = "qk_convfixed_convq_convk"
_DEPTHWISE = f"convolution_depth_mixed_no_act {REACH} 1"
_KERNELS = "its kernels are Triton's"

COMPOSITE, DOT_PRODUCT, ELECTRA, PLAIN_SDPA = "composite", "dot_product", "electra", "plain_sdpa"

CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant(COMPOSITE, "composite (fixed, query, key), no positions", _kernel(_FULL), quick=True),
        Contestant(DOT_PRODUCT, "dot product, positions", {"attention_kernel": "dot_product"}, quick=True),
        Contestant("qk_convfixed", "dot product + fixed, no positions", _kernel("qk_convfixed")),
        Contestant("qk_convq", "dot product + query, no positions", _kernel("qk_convq")),
        Contestant("qk_convk", "dot product + key, no positions", _kernel("qk_convk")),
        Contestant("composite_convolution", "composite + convolution", _kernel(f"{_FULL}_convolution"), default=False),
        Contestant("value_convolution", "depthwise-separable values", _kernel(_FULL, value_forward=_DEPTHWISE), False),
        Contestant("qk_convolution", "depthwise-separable queries and keys", _kernel(_FULL, qk=_DEPTHWISE), False),
        Contestant(ELECTRA, "Hugging Face ELECTRA, SDPA", quick=True),
        Contestant("convbert", "Hugging Face ConvBERT"),
        Contestant("modernbert", "Hugging Face ModernBERT, SDPA"),
        Core(PLAIN_SDPA, "PyTorch's SDPA without terms or borders in a row: the floor", quick=True),
        Core("ours", "composite, our kernels for this device", quick=True),
        Core("sdpa_bias", "composite, PyTorch's SDPA with the terms as a mask", score_tensors=4),
        Core("flex", "composite, PyTorch's FlexAttention", only_gpu="it has no backward on a CPU"),
        Core("eager", "composite, the equation as it stands", score_tensors=8, quick=True),
        Core("flashdeberta", "FlashDeBERTa, DeBERTa's terms", only_gpu=_KERNELS, package="flashdeberta"),
        Core("disentangled_flash", "DeBERTa's, with projections", only_gpu=_KERNELS, package="disentangled_flash"),
    )
}
"""All of them, by name."""


def choose_contestants(names: Sequence[str], quick: bool) -> list[Contestant]:
    """The contestants of a bench, each once, in the order of ``CONTESTANTS``.

    Raises:
        UsageError: an unknown name; says which there are.
    """
    for name in names:
        if name not in CONTESTANTS:
            raise UsageError(f"--contestants: there is no {name!r}; valid are {', '.join(CONTESTANTS)}")
    if names:
        return [contestant for name, contestant in CONTESTANTS.items() if name in names]
    return [contestant for contestant in CONTESTANTS.values() if (contestant.quick if quick else contestant.default)]
