"""Model FLOPs: the operations that a step requires mathematically, regardless of the implementation.

These are two per weight of a matrix product and token, and 4 A l^2 per layer and example of l tokens, where A is the
width of attention (heads x head size): 2 A l^2 each for scores and weighted values. The head counts for masked tokens
only. Padding, softmax, norms and dropout count nothing; a training step counts three times its forward pass. A model
that computes logits for all tokens or processes padding gets no credit for it. The last layer counts in full, although
our models compute its linear layers only for the tokens that the head reads.
"""

from dataclasses import dataclass

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from bert_convolutions.attention.composite import CompositeAttention
from bert_convolutions.attention.span import SpanConvolution
from bert_convolutions.attention.terms import TERMS

TRAINING_FACTOR = 3
"""A backward pass costs two forward passes: matrix products for the gradients of inputs and of weights."""

PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "A10G": 70.0, "V100": 125.0}
"""Part of a GPU's name to its dense bf16 (V100: fp16) TFLOP/s, from the manufacturers' data sheets."""


@dataclass(frozen=True)
class FlopCounter:
    """Counts the FLOPs of a model from four numbers.

    Attributes:
        encoder_weights: weights of the encoder's matrix products and convolutions, per token.
        head_weights: weights of the head's matrix products, per masked token.
        layers: number of layers of the encoder.
        attention_width: A, or half of it without a dot product of queries and keys.
    """

    encoder_weights: int
    head_weights: int
    layers: int
    attention_width: float

    def forward(self, lengths: np.ndarray, predicted: float = 0.0) -> float:
        """FLOPs of a forward pass.

        Args:
            lengths: (N,) tokens of each example.
            predicted: number of tokens for which the head is computed.
        """
        tokens, squares = float(lengths.sum()), float((lengths.astype(np.float64) ** 2).sum())
        products = 2 * (self.encoder_weights * tokens + self.head_weights * predicted)
        return products + 4 * self.layers * self.attention_width * squares

    def training(self, lengths: np.ndarray, predicted: float) -> float:
        """FLOPs of a training step."""
        return TRAINING_FACTOR * self.forward(lengths, predicted)


def count_flops(model: PreTrainedModel) -> FlopCounter:
    """The counter of a masked language model of this package, or of one with BERT's architecture such as ELECTRA."""
    encoder = model.base_model
    config = model.config
    inside = {id(module) for module in encoder.modules()}
    head = sum(_weights(module) for module in model.modules() if id(module) not in inside)
    width = float(config.hidden_size)
    if hasattr(config, "kernel"):
        width = config.num_attention_heads * config.head_size
        width *= 1.0 if "qk" in config.kernel.score_terms else 0.5
    return FlopCounter(sum(map(_weights, encoder.modules())), head, config.num_hidden_layers, width)


def _weights(module: nn.Module) -> int:
    """The weights of a module, without its children, that are multiplied per token."""
    if isinstance(module, nn.Linear | nn.Conv1d):
        return module.weight.numel()
    if isinstance(module, CompositeAttention):  # each convolution weight is a product with a head's query or key
        dynamic = sum(TERMS[name].dynamic for name in module.kernel.convolution_terms)
        return dynamic * module.num_heads * module.head_size * (2 * module.kernel.reach + 1)
    if isinstance(module, SpanConvolution):  # the products of its weights with each head's values
        return module.kernel.out_features * module.head_size
    return 0


def peak_flops(device_name: str, peak_tflops: float | None) -> float | None:
    """Dense bf16 FLOP/s of a GPU, from ``peak_tflops`` or else by its name; None if the name is unknown."""
    if peak_tflops is not None:
        return peak_tflops * 1e12
    found = [value for name, value in PEAK_TFLOPS.items() if name in device_name]
    return found[0] * 1e12 if found else None
