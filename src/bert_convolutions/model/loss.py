"""The masked language model loss and its gradients in one pass, without holding all logits in memory.

The logits (M, V) are the largest tensor of a training step: 40 MB for 330 masked tokens and 30,004 words, which the
usual sequence of layers writes, casts, reads several times and keeps for backward. Here a tile of a few tokens is
processed at a time, including its gradients, as in Liger Kernel's fused linear cross-entropy (Hsu et al. 2024, arXiv
2410.10989). For the logits z of a token with the label y, and e = exp(z - max(z)),

    loss = max(z) + log(sum(e)) - z[y],        d loss / d z = e / sum(e) - onehot(y).

The division by sum(e) and, on a CPU, the one-hot vector are applied to small factors or results of the products that
follow. The GPU version has few kernels, few passes through memory and deterministic results.

Legend: M masked tokens, m of them in a tile, E embedding size, V vocabulary.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bert_convolutions.attention.autograd import once_differentiable, product_dtype, requires_plain_ops
from bert_convolutions.data.masking import IGNORED

TILE_LOGITS = 2**24
"""Logits per tile on a CPU: 64 MiB in float32, for 560 masked tokens and 30,000 words."""
TILE_LOGITS_ON_GPU = 2**27
"""The same on a GPU: 512 MiB, for 4,400 masked tokens and 30,000 words."""


def linear_cross_entropy(hidden: Tensor, decoder: nn.Linear, labels: Tensor) -> Tensor:
    """The cross-entropy of ``decoder(hidden)``, summed over the tokens, in float32.

    Compilers, ``torch.func``, passes without gradients and decoders changed by LoRA or pruning use the usual layers.

    Args:
        hidden: (M, E).
        decoder: E -> V, with a bias.
        labels: (M,) integers, ``IGNORED`` for tokens that don't count.

    Returns:
        A scalar; 0 if no token counts.
    """
    is_plain = type(decoder) is nn.Linear and not decoder._forward_pre_hooks
    if not is_plain or not torch.is_grad_enabled() or requires_plain_ops(hidden):
        return cross_entropy(decoder(hidden), labels)
    return _LinearCrossEntropy.apply(hidden.to(product_dtype(hidden)), decoder.weight, decoder.bias, labels)


def cross_entropy(logits: Tensor, labels: Tensor, reduction: str = "sum") -> Tensor:
    """PyTorch's, in float32 for logits of half precision, for the sums of 30,000 exponentials."""
    sums = torch.promote_types(logits.dtype, torch.float32)
    return functional.cross_entropy(logits.to(sums), labels, ignore_index=IGNORED, reduction=reduction)


class _LinearCrossEntropy(torch.autograd.Function):
    """hidden (M, E), weight (V, E), bias (V,), labels (M,) -> float32 scalar.

    Products are in the dtype of ``hidden``; sums and the gradients of weight and bias are in float32.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
        """Sum the losses, and compute the gradients that are needed."""
        sums = torch.promote_types(hidden.dtype, torch.float32)
        wants_hidden, wants_weight, wants_bias, _ = ctx.needs_input_grad
        ctx.dtypes, words = (hidden.dtype, weight.dtype, bias.dtype), weight.shape[0]
        weight, bias = weight.to(hidden.dtype), bias.to(hidden.dtype)
        tile_loss, tile_logits = _tile_loss_on_cpu, TILE_LOGITS
        if _is_on_gpu(hidden):
            tile_loss, tile_logits = _tile_loss_on_gpu, TILE_LOGITS_ON_GPU
            # Pad with words of probability 0: fast products need rows that are multiples of 16 bytes, better 128.
            weight = functional.pad(weight, (0, 0, 0, -words % 64))
            bias = functional.pad(bias, (0, -words % 64), value=-torch.inf)
        hidden_grad = torch.empty_like(hidden) if wants_hidden else None
        weight_grad = torch.zeros_like(weight, dtype=sums) if wants_weight else None
        bias_grad = torch.zeros_like(bias, dtype=sums) if wants_bias else None
        total = torch.zeros((), dtype=sums, device=hidden.device)
        counts = (labels != IGNORED).unsqueeze(1)  # (M, 1)
        labels = labels.where(labels != IGNORED, 0).unsqueeze(1)
        number = math.ceil(hidden.shape[0] * weight.shape[0] / tile_logits)  # of tiles
        tokens_at_once = math.ceil(hidden.shape[0] / max(number, 1)) or 1
        for start in range(0, hidden.shape[0], tokens_at_once):
            tile = slice(start, start + tokens_at_once)
            part_grad = None if hidden_grad is None else hidden_grad[tile]
            grads = part_grad, weight_grad, bias_grad
            total += tile_loss(hidden[tile], weight, bias, labels[tile], counts[tile], grads)
        weight_grad, bias_grad = (None if grad is None else grad[:words] for grad in (weight_grad, bias_grad))
        ctx.save_for_backward(hidden_grad, weight_grad, bias_grad)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients by the gradient of the loss."""
        saved = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *(None if grad is None else (grad * grads[0]).to(dtype) for grad, dtype in saved), None


_Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def _is_on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _tile_loss_on_cpu(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, counts: Tensor, grads: _Gradients
) -> Tensor:
    """Return the summed loss of a tile; write the gradient of ``hidden`` (m, E), add to those of weight and bias.

    Args:
        labels: (m, 1), any word for tokens that don't count.
        counts: (m, 1), whether a token counts.
    """
    hidden_grad, weight_grad, bias_grad = grads
    sums, label = torch.promote_types(hidden.dtype, torch.float32), labels.squeeze(1)
    logits = torch.addmm(bias, hidden, weight.mT).to(sums)  # (m, V)
    largest, label_logit = logits.amax(1, keepdim=True), logits.gather(1, labels)
    exponentials = logits.sub_(largest).exp_()
    total_per_token = exponentials.sum(1, keepdim=True)
    share = counts / total_per_token  # (m, 1)
    if bias_grad is not None:
        bias_grad += torch.mm(share.mT, exponentials).squeeze(0)  # addmv_ is ten times slower in oneDNN
        bias_grad.index_add_(0, label, -counts.squeeze(1).to(sums))
    exponentials = exponentials.to(hidden.dtype)
    if hidden_grad is not None:
        hidden_grad.copy_(torch.mm(exponentials, weight) * share - weight[label] * counts)
    if weight_grad is not None:
        shared = (hidden * share).to(hidden.dtype)
        if hidden.dtype == sums:
            weight_grad.addmm_(exponentials.mT, shared)
        else:
            weight_grad += torch.mm(exponentials.mT, shared)
        weight_grad.index_add_(0, label, -(hidden * counts).to(sums))
    return ((largest + total_per_token.log() - label_logit) * counts).sum()


def _tile_loss_on_gpu(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, counts: Tensor, grads: _Gradients
) -> Tensor:
    """As ``_tile_loss_on_cpu``, in fewer passes: e is computed in the products' dtype and includes the one-hot vector.

    This avoids additions by index, whose order would differ from run to run.
    """
    hidden_grad, weight_grad, bias_grad = grads
    logits = torch.addmm(bias, hidden, weight.mT)
    largest = logits.amax(1, keepdim=True).to(torch.promote_types(hidden.dtype, torch.float32))
    largest += max(math.log(logits.shape[1] / 2**15), 0)  # else float16 can't hold the sum in a large vocabulary
    below = logits.gather(1, labels) - largest
    exponentials = torch.exp(logits - largest, out=logits)
    total_per_token = exponentials.sum(1, keepdim=True, dtype=largest.dtype)
    share = counts / total_per_token
    exponentials.scatter_(1, labels, (below.exp() - total_per_token).to(hidden.dtype))
    if bias_grad is not None:
        bias_grad += torch.mv(exponentials.mT, share.squeeze(1).to(hidden.dtype))
    if hidden_grad is not None:
        torch.mul(torch.mm(exponentials, weight), share, out=hidden_grad)
    if weight_grad is not None:
        weight_grad += torch.mm(exponentials.mT, (hidden * share).to(hidden.dtype))
    return ((total_per_token.log() - below) * counts).sum()
