"""What the functions of our own with a backward of their own have in common."""

import functools
from collections.abc import Callable
from typing import Any

import torch


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
