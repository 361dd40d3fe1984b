"""Helpers for autograd functions with a custom backward, which autocast, compilers and transforms can't see into."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def product_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of matrix products with ``tensor``: autocast's where it is enabled, otherwise the tensor's own."""
    device = tensor.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast else tensor.dtype


def func_transform_active() -> bool:
    """Whether a transform of ``torch.func`` is active; these transforms don't support custom autograd functions."""
    transformed = torch._C._are_functorch_transforms_active  # the check of autograd.Function itself
    return not torch.compiler.is_compiling() and transformed()


def requires_plain_ops(tensor: Tensor) -> bool:
    """Whether to use PyTorch's own operations on ``tensor`` instead of a custom autograd function.

    True while a compiler, an export or a ``torch.func`` transform is active, and for subclasses such as fake tensors.
    """
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return recorded or type(tensor) not in (Tensor, nn.Parameter) or func_transform_active()


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the ``backward`` of an autograd function that has no second derivative.

    With PyTorch's decorator of the same name, ``torch.autograd.grad`` silently omits the function's contribution to a
    second derivative.

    Raises:
        RuntimeError: the gradient is computed with ``create_graph=True``.
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "this function has no second derivative, so it can't be used with create_graph=True; use "
                'attn_implementation="eager"'
            )
        return backward(ctx, *grads)

    return checked
