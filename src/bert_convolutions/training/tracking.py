"""TensorBoard with the learned kernels as pictures beside the Trainer's figures."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.integrations import TensorBoardCallback

from bert_convolutions.attention.composite import CompositeAttention
from bert_convolutions.attention.terms import TERMS

_PIXELS = 12
"""Of an offset, in each direction."""
_NEGATIVE, _POSITIVE = np.array([127, 59, 8]), np.array([45, 0, 75])
"""Brown and violet, which the colour-blind tell apart; zero is white."""


class KernelBoard(TensorBoardCallback):
    """Writes ``kernels/<term>`` at each evaluation: a row a head (a layer, of a dynamic term), the layers downwards.

    From left to right is the offset of the key from the query, from -n to n. Of a fixed term the weights less their
    mean are drawn, of a dynamic one the norm of each offset's vector; the darkest colour is the largest in a picture.
    """

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Draw the kernels of the model, after the evaluation's figures have been written."""
        if self.tb_writer is None or model is None:
            return
        for name, picture in kernel_pictures(model):
            self.tb_writer.add_image(f"kernels/{name}", picture, state.global_step, dataformats="HWC")
        self.tb_writer.flush()


def kernel_pictures(model: torch.nn.Module) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Term and picture, uint8 (rows x 12, offsets x 12, 3), of each convolution term that a model's attention has."""
    attentions = [module for module in model.modules() if isinstance(module, CompositeAttention)]
    for name, term in TERMS.items():
        rows = []
        for attention in attentions:
            if name in attention.kernel.convolution_terms:
                kernel = term.seen_from_query(getattr(attention, f"{name}_param").detach()).float().cpu().numpy()
                norm, less_mean = np.linalg.norm(kernel, axis=0, keepdims=True), kernel - kernel.mean(1, keepdims=True)
                rows.append(norm if term.dynamic else less_mean)
        if rows:
            yield name, _coloured(np.concatenate(rows))


def _coloured(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """(rows, offsets) as squares of colour."""
    share = values[..., None] / max(float(np.abs(values).max()), 1e-12)
    colours = 255 + np.abs(share) * (np.where(share < 0, _NEGATIVE, _POSITIVE) - 255)
    return colours.round().astype(np.uint8).repeat(_PIXELS, 0).repeat(_PIXELS, 1)
