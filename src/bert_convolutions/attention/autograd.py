"""What functions with a backward of their own have to ask: autocast, compilers and transforms don't reach inside."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def product_dtype(tensor: Tensor) -> torch.dtype:
    """The type that products of ``tensor`` have: autocast's where it is on."""
    device = tensor.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast else tensor.dtype


def is_transformed() -> bool:
    """Whether one of ``torch.func``'s transforms is at work; they take no such function."""
    transformed = torch._C._are_functorch_transforms_active  # what autograd.Function itself asks
    return not torch.compiler.is_compiling() and transformed()


def must_be_seen_through(tensor: Tensor) -> bool:
    """Whether operations on it are transformed or recorded, as by exports and compilers, which do their own fusing.

    Or it is none but in name, without data or spread over devices.
    """
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return recorded or type(tensor) not in (Tensor, nn.Parameter) or is_transformed()


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the ``backward`` of an autograd function that has no second derivative.

    PyTorch's own decorator of this name lets ``torch.autograd.grad`` leave out, without a word, what the function adds
    to a second derivative.

    Raises:
        RuntimeError: the gradient is asked for with ``create_graph``.
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "this function has no second derivative, which create_graph asks for; the one of "
                'attn_implementation="eager" has'
            )
        return backward(ctx, *grads)

    return checked
