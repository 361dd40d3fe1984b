"""The attention core alone, forward and backward: queries, keys, values and terms in, context out, no projections.

Legend: B rows, S sequence, H heads, d head size, D hidden, n reach.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from bert_convolutions.attention.composite import Attend, CompositeAttention, attend_eager
from bert_convolutions.attention.segments import Segments
from bert_convolutions.attention.spec import parse_kernel
from bert_convolutions.bench.contestants import COMPOSITE, CONTESTANTS, REACH
from bert_convolutions.bench.corpus import Setup
from bert_convolutions.bench.plan import Job
from bert_convolutions.bench.worker import Turns, Work
from bert_convolutions.model import CompositeBertConfig
from bert_convolutions.model.backends import attend_interface, attention_backend, keep_shared
from bert_convolutions.model.flops import FlopCounter
from bert_convolutions.model.presets import load_config

SHORTEST, LONGEST = 16, 128
"""Tokens of the examples in packed rows."""


class Core:
    """A contestant's attention on random inputs.

    Args:
        job: contestant, B, S, precision of all inputs, and whether rows are packed.
        config: H, d and D.
        dropout: of the probabilities.
        seed: of the inputs.

    Attributes:
        query, key, value: (B, H, S, d), in memory as projections leave them.
        parts: of the score, all terms of composite attention.
        leaves: all that gets a gradient.
        attend: () -> context, its dimensions in the contestant's own order.
        work: of a step, with the FLOPs of scores and weighted values alone.
    """

    def __init__(self, job: Job, config: CompositeBertConfig, dropout: float = 0.0, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.dropout, self.device = dropout, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if job.precision == "bf16" else torch.float32
        self.new = partial(torch.randn, device=self.device, dtype=dtype, requires_grad=True)
        heads, size = config.num_attention_heads, config.head_size
        shape = (job.batch_size, job.length, heads, size)
        self.leaves = [self.new(shape) for _ in range(3)]
        self.query, self.key, self.value = (leaf.transpose(1, 2) for leaf in self.leaves)
        kernel = parse_kernel((CONTESTANTS[COMPOSITE].flags or {})["attention_kernel"])
        module = CompositeAttention(heads * size, heads, kernel).to(self.device, dtype)
        segments, lengths = Segments(), torch.full((job.batch_size,), job.length)
        if job.packed:
            segments, lengths = packed_rows(job.batch_size, job.length, self.device)
        self.parts = module.score_parts(self.query, self.key, segments, dtype)
        self.leaves += [parameter for terms in self.parts.terms.values() for _, parameter in terms]
        self.attend: Callable[[], Tensor] = CORES[job.contestant](self)
        flops = FlopCounter(0, 0, layers=1, attention_width=heads * size).training(lengths.numpy(), 0)
        self.work = Work(len(lengths), int(lengths.sum()), flops)

    def forward_and_backward(self) -> None:
        """A step: the gradients of all leaves, of a random gradient of the context."""
        context = self.attend()
        torch.autograd.grad(context, self.leaves, torch.ones_like(context), allow_unused=True)


def packed_rows(rows: int, length: int, device: torch.device) -> tuple[Segments, Tensor]:
    """Rows filled with examples of ``SHORTEST`` to ``LONGEST`` tokens, the last one cut; and their (N,) lengths."""
    ends = torch.randint(SHORTEST, LONGEST + 1, (rows, -(-length // SHORTEST))).cumsum(1)
    examples = torch.searchsorted(ends, torch.arange(length).expand(rows, -1).contiguous(), right=True) + 1
    apart = examples + torch.arange(rows).unsqueeze(1) * (length + 1)
    return Segments(examples.to(device)), apart.flatten().unique_consecutive(return_counts=True)[1]


def run_attention_job(job: Job, setup: Setup, turns: Turns) -> None:
    """Attend in turns: first as many forward passes as steps, then the steps.

    Raises:
        FinishedError: there are no more turns.
    """
    core = Core(job, load_config(setup.configs[job.length]), seed=setup.options.seed)
    while True:
        steps = turns.next()
        for _ in range(steps):
            core.attend()
        turns.forward_done()
        for _ in range(steps):
            core.forward_and_backward()
        turns.report(steps, sum((core.work for _ in range(steps)), Work()))


def _with_terms(core: Core, backend: str, attend: Attend) -> Callable[[], Tensor]:
    segments = keep_shared(core.parts.segments, backend, core.value.dtype)  # once, as all layers of a model share it
    parts = replace(core.parts, segments=segments)
    return lambda: attend(parts, core.value, core.dropout)[0]


def _ours(core: Core) -> Callable[[], Tensor]:
    backend = "triton" if core.device.type == "cuda" else "sdpa"
    return _with_terms(core, backend, attention_backend(backend))


def _flex(core: Core) -> Callable[[], Tensor]:
    """The terms read by offset; there is no dropout of probabilities."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled, examples, block_mask = torch.compile(flex_attention, dynamic=False), core.parts.segments.examples, None
    if examples is not None:
        rows, length = examples.shape
        same = lambda b, h, i, j: examples[b, i] == examples[b, j]  # noqa: E731
        block_mask = create_block_mask(same, rows, None, length, length, device=core.device.type)

    def attend() -> Tensor:
        by_query, by_key = core.parts.offset_weights("query"), core.parts.offset_weights("key")
        assert by_query is not None and by_key is not None

        def score(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            offset = torch.clamp(j - i, -REACH, REACH)
            return score + by_query[b, h, i, REACH + offset] + by_key[b, h, j, REACH - offset]

        return compiled(core.query, core.key, core.value, score, block_mask=block_mask, scale=core.parts.scaling)

    return attend


def _flashdeberta(core: Core) -> Callable[[], Tensor]:
    """Its own terms, of 256 buckets, at our shapes."""
    from flashdeberta.ops.flash_attention import flash_attention_with_disentangled  # type: ignore[import-not-found]

    heads, size = core.value.shape[1], core.value.shape[3]
    positions = [core.new(1, heads, 512, size) for _ in range(2)]
    inputs = [part.contiguous() for part in (core.query, core.key, core.value)]
    options = {"sm_scale": (3 * size) ** -0.5, "position_buckets": 256, "max_relative_distance": 512}
    core.leaves = [*positions, *core.leaves[:3]]
    return lambda: flash_attention_with_disentangled(*inputs, None, *positions, **options)


def _disentangled_flash(core: Core) -> Callable[[], Tensor]:
    """Its attention layer with its own terms, projections included, which the others don't have."""
    from disentangled_flash import TritonTrainingDisentangledSelfAttention  # type: ignore[import-not-found]
    from transformers import DebertaV2Config

    rows, heads, length, size = core.value.shape
    width, terms = heads * size, {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 256}
    config = DebertaV2Config(hidden_size=width, num_attention_heads=heads, attention_probs_dropout_prob=0.0)
    for name, value in terms.items():
        setattr(config, name, value)
    module = TritonTrainingDisentangledSelfAttention(config).to(core.device, core.value.dtype)
    hidden, positions = core.new(rows, length, width), core.new(512, width)
    mask = torch.ones(rows, length, device=core.device)
    core.leaves = [hidden, positions, *module.parameters()]
    return lambda: module(hidden, mask, rel_embeddings=positions)[0]


CORES: dict[str, Callable[[Core], Callable[[], Tensor]]] = {
    "plain_sdpa": lambda core: partial(
        functional.scaled_dot_product_attention, core.query, core.key, core.value, dropout_p=core.dropout
    ),
    "ours": _ours,
    "sdpa_bias": lambda core: _with_terms(core, "sdpa", partial(attend_interface, "sdpa")),
    "flex": _flex,
    "eager": lambda core: _with_terms(core, "eager", attend_eager),
    "flashdeberta": _flashdeberta,
    "disentangled_flash": _disentangled_flash,
}
"""Contestant to what makes its attention, () -> context, of the inputs."""
