"""Jobs of attention cores, forward and backward: from queries, keys, values and terms to context, no projections.

Legend: B rows, S sequence, H heads, d head size, n reach.
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
from bert_convolutions.bench.corpus import Setup
from bert_convolutions.bench.plan import COMPOSITE, CONTESTANTS, REACH, Job
from bert_convolutions.bench.worker import Turns, Work
from bert_convolutions.cpu import fast_float32_products
from bert_convolutions.model import CompositeBertConfig
from bert_convolutions.model.backends import attend_interface, attention_backend, cache_for_backend
from bert_convolutions.model.flops import FlopCounter
from bert_convolutions.model.presets import load_config

SHORTEST, LONGEST = 16, 128
"""Range of the lengths of examples in packed rows."""


class AttentionRun:
    """A contestant's attention on random inputs with a job's B, S and precision and a configuration's heads.

    Attributes:
        query, key, value: (B, H, S, d), in the memory layout of projections.
        parts: the parts of the score, with all terms of composite attention.
        leaves: all tensors that get a gradient.
        attend: () -> context, whose dimensions are in the contestant's own order.
        work: work of a step, with the FLOPs of scores and weighted values only.
    """

    def __init__(self, job: Job, config: CompositeBertConfig, dropout: float = 0.0, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.dropout, self.device = dropout, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if job.precision == "bf16" else torch.float32
        self.new = partial(torch.randn, device=self.device, dtype=dtype, requires_grad=True)
        heads, size = config.num_attention_heads, config.head_size
        self.leaves = [self.new(job.batch_size, job.length, heads, size) for _ in range(3)]
        self.query, self.key, self.value = (leaf.transpose(1, 2) for leaf in self.leaves)
        kernel = parse_kernel((CONTESTANTS[COMPOSITE].flags or {})["attention_kernel"])
        module = CompositeAttention(heads * size, heads, kernel).to(self.device, dtype)
        segments, lengths = Segments(), torch.full((job.batch_size,), job.length)
        if job.packed:
            segments, lengths = packed_rows(job.batch_size, job.length, self.device)
        self.parts = module.score_parts(self.query, self.key, segments, dtype)
        self.leaves += [parameter for terms in self.parts.terms.values() for _, parameter in terms]
        self.attend: Callable[[], Tensor] = _MAKE_ATTENTION[job.contestant](self)
        flops = FlopCounter(0, 0, layers=1, attention_width=heads * size).training(lengths.numpy(), 0)
        self.work = Work(len(lengths), int(lengths.sum()), flops)

    def step(self) -> None:
        """Forward and backward: the gradients of all leaves for a gradient of ones."""
        context = self.attend()
        torch.autograd.grad(context, self.leaves, torch.ones_like(context), allow_unused=True)


def packed_rows(rows: int, length: int, device: torch.device) -> tuple[Segments, Tensor]:
    """Rows filled with examples of ``SHORTEST`` to ``LONGEST`` tokens, the last one truncated; and the lengths (N,)."""
    ends = torch.randint(SHORTEST, LONGEST + 1, (rows, -(-length // SHORTEST))).cumsum(1)
    examples = torch.searchsorted(ends, torch.arange(length).repeat(rows, 1), right=True) + 1  # (B, S)
    unique_numbers = examples + torch.arange(rows).unsqueeze(1) * (length + 1)
    return Segments(examples.to(device)), unique_numbers.flatten().unique_consecutive(return_counts=True)[1]


@fast_float32_products()
def run_attention_job(job: Job, setup: Setup, turns: Turns) -> None:
    """Attend in turns: first as many forward passes as steps, then the steps."""
    run = AttentionRun(job, load_config(setup.configs[job.length]), seed=setup.options.seed)
    while True:
        steps = turns.next()
        for _ in range(steps):
            run.attend()
        turns.forward_done()
        for _ in range(steps):
            run.step()
        turns.report(steps, sum([run.work] * steps, Work()))


def _with_terms(run: AttentionRun, backend: str, attend: Attend) -> Callable[[], Tensor]:
    segments = cache_for_backend(run.parts.segments, backend, run.value.dtype)  # once, as all layers share them
    parts = replace(run.parts, segments=segments)
    return lambda: attend(parts, run.value, run.dropout)[0]


def _ours(run: AttentionRun) -> Callable[[], Tensor]:
    backend = "triton" if run.device.type == "cuda" else "sdpa"
    return _with_terms(run, backend, attention_backend(backend))


def _flex(run: AttentionRun) -> Callable[[], Tensor]:
    """Terms are read by offset; there is no attention dropout."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled, examples, mask = torch.compile(flex_attention, dynamic=False), run.parts.segments.examples, None
    if examples is not None:
        (rows, length), device = examples.shape, run.device.type
        same = lambda b, h, i, j: examples[b, i] == examples[b, j]  # noqa: E731
        mask = create_block_mask(same, rows, None, length, length, device=device)

    def attend() -> Tensor:
        by_query, by_key = run.parts.offset_weights("query"), run.parts.offset_weights("key")
        assert by_query is not None and by_key is not None

        def score(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            offset = torch.clamp(j - i, -REACH, REACH)
            return score + by_query[b, h, i, REACH + offset] + by_key[b, h, j, REACH - offset]

        return compiled(run.query, run.key, run.value, score, block_mask=mask, scale=run.parts.scaling)

    return attend


def _flashdeberta(run: AttentionRun) -> Callable[[], Tensor]:
    """With its own terms, of 256 buckets, and our shapes."""
    from flashdeberta.ops.flash_attention import flash_attention_with_disentangled  # type: ignore[import-not-found]

    inputs = [part.contiguous() for part in (run.query, run.key, run.value)]
    heads, size = inputs[0].shape[1], inputs[0].shape[3]
    positions = [run.new(1, heads, 512, size) for _ in range(2)]
    run.leaves = [*positions, *run.leaves[:3]]
    options = {"sm_scale": (3 * size) ** -0.5, "position_buckets": 256, "max_relative_distance": 512}
    return lambda: flash_attention_with_disentangled(*inputs, None, *positions, **options)


def _disentangled_flash(run: AttentionRun) -> Callable[[], Tensor]:
    """Its attention layer with its own terms and, unlike the others, with projections."""
    from disentangled_flash import TritonTrainingDisentangledSelfAttention  # type: ignore[import-not-found]
    from transformers import DebertaV2Config

    rows, heads, length, size = run.value.shape
    config = DebertaV2Config(hidden_size=heads * size, num_attention_heads=heads, attention_probs_dropout_prob=0.0)
    for name, value in (("relative_attention", True), ("pos_att_type", ["c2p", "p2c"]), ("position_buckets", 256)):
        setattr(config, name, value)
    module = TritonTrainingDisentangledSelfAttention(config).to(run.device, run.value.dtype)
    hidden, positions = run.new(rows, length, heads * size), run.new(512, heads * size)
    mask = torch.ones(rows, length, device=run.device)
    run.leaves = [hidden, positions, *module.parameters()]
    return lambda: module(hidden, mask, rel_embeddings=positions)[0]


_MAKE_ATTENTION: dict[str, Callable[[AttentionRun], Callable[[], Tensor]]] = {
    "plain_sdpa": lambda run: partial(
        functional.scaled_dot_product_attention, run.query, run.key, run.value, dropout_p=run.dropout
    ),
    "ours": _ours,
    # it needs the mask of eager, which our own sdpa does not
    "sdpa_bias": lambda run: _with_terms(run, "eager", partial(attend_interface, "sdpa")),
    "flex": _flex,
    "eager": lambda run: _with_terms(run, "eager", attend_eager),
    "flashdeberta": _flashdeberta,
    "disentangled_flash": _disentangled_flash,
}
"""Functions that make a contestant's attention, by name."""
