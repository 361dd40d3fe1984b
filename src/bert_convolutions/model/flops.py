"""Model FLOPs: what the mathematics of a step needs, however it is computed.

Two for each weight of a matrix product and token that passes it; 4 A l^2 for each layer and example of l tokens, A
being the width of attention (heads x head size): scores and weighted values, 2 A l^2 each. The head counts for masked
tokens alone. Padding, softmax, norms and dropout count nothing; a training step counts three times its forward pass.
So a model that computes logits for all tokens, or works on padding, gets no credit for it. The last layer counts in
full, though ours spares its linear layers all tokens but those that the head reads.
"""

from dataclasses import dataclass

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from bert_convolutions.attention.composite import CompositeAttention
from bert_convolutions.attention.span import SpanConvolution
from bert_convolutions.attention.terms import TERMS

TRAINING_FACTOR = 3
"""A backward pass costs two forward passes: the products for the gradients of inputs and of weights."""

PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "A10G": 70.0, "V100": 125.0}
"""Part of a GPU's name to its dense bf16 (V100: fp16) TFLOP/s, from the makers' data sheets."""


@dataclass(frozen=True)
class FlopCounter:
    """Counts by four numbers of a model.

    Attributes:
        encoder_weights: of all matrix products and convolutions that a token passes in the encoder.
        head_weights: of those that a masked token passes in the head.
        layers: of the encoder.
        attention_width: A; half where there is no dot product of queries and keys.
    """

    encoder_weights: int
    head_weights: int
    layers: int
    attention_width: float

    def forward(self, lengths: np.ndarray, predicted: float = 0.0) -> float:
        """FLOPs of a forward pass.

        Args:
            lengths: (N,) tokens of each example.
            predicted: tokens that pass the head.
        """
        tokens, squares = float(lengths.sum()), float((lengths.astype(np.float64) ** 2).sum())
        products = 2 * (self.encoder_weights * tokens + self.head_weights * predicted)
        return products + 4 * self.layers * self.attention_width * squares

    def training(self, lengths: np.ndarray, predicted: float) -> float:
        """FLOPs of a training step."""
        return TRAINING_FACTOR * self.forward(lengths, predicted)


def count_flops(model: PreTrainedModel) -> FlopCounter:
    """Read the four numbers off a masked language model of ours, or one of BERT's shape such as ELECTRA."""
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
    """Weights of a module, its children not counted, that each token is multiplied with."""
    if isinstance(module, nn.Linear | nn.Conv1d):
        return module.weight.numel()
    if isinstance(module, CompositeAttention):  # a convolution weight made of each head's query or key
        dynamic = sum(TERMS[name].dynamic for name in module.kernel.convolution_terms)
        return dynamic * module.num_heads * module.head_size * (2 * module.kernel.reach + 1)
    if isinstance(module, SpanConvolution):  # its weights for each head's values
        return module.kernel.out_features * module.head_size
    return 0


def peak_flops(device_name: str, peak_tflops: float | None) -> float | None:
    """Dense bf16 FLOP/s of a GPU; None where its name is not known and no figure is given."""
    if peak_tflops is not None:
        return peak_tflops * 1e12
    found = [value for name, value in PEAK_TFLOPS.items() if name in device_name]
    return found[0] * 1e12 if found else None
