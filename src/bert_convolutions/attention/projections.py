"""Projections to queries, keys and values: linear, grouped, depthwise-separable and mixed (paper, section 4.2).

Legend: B batch, S sequence, D hidden, H*d heads times head size, n reach (the kernel is 2n+1 wide).
The parts of a projection are named as in the paper's code, so that its checkpoints load: ``value`` for a plain linear
layer; ``value_conv``, ``value_pointwise``, ``value_linear`` for the parts of a convolution.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bert_convolutions.attention.segments import Segments
from bert_convolutions.attention.spec import Projection


def depthwise_convolution(channels_in: int, channels_out: int, reach: int, groups: int) -> nn.Conv1d:
    """A Conv1d with ``groups`` groups, or one group per output channel if ``groups`` doesn't divide the channels.

    The paper's code always uses ``groups`` = D, which fails when H*d is not a multiple of D; any head size works here.
    """
    if channels_out % groups or channels_in % groups:
        groups = channels_out
    return nn.Conv1d(channels_in, channels_out, 2 * reach + 1, groups=groups)


def check_projection(spec: Projection, option: str, hidden_size: int, size: int) -> None:
    """Check that a projection D -> H*d is possible.

    Args:
        spec: the projection.
        option: name of its option, for the message.
        hidden_size: D.
        size: H*d.

    Raises:
        ValueError: the channels can't be halved (mixed) or divided into the requested groups.
    """
    if spec.mixed and size % 2:
        raise ValueError(f'{option} "{spec}" needs an even number of channels to mix, not {size}; change the head size')
    convolved = size // 2 if spec.mixed else size
    if spec.convolution and not spec.depth and (hidden_size % spec.groups or convolved % spec.groups):
        raise ValueError(
            f'{option} "{spec}" asks for {spec.groups} groups, which must divide {hidden_size} and {convolved} channels'
        )


def projection_parts(spec: Projection, hidden_size: int, size: int) -> dict[str, nn.Module]:
    """Create the modules, by the suffix of their names, of a projection D -> H*d that passed ``check_projection``."""
    if not spec.convolution:
        return {"": nn.Linear(hidden_size, size)}
    convolved = size // 2 if spec.mixed else size
    parts: dict[str, nn.Module] = {}
    if spec.depth:
        # Depthwise to H*d channels, as in the paper's code, if this is a multiple of D; otherwise to D channels.
        channels = size if size % hidden_size == 0 else hidden_size
        parts["_conv"] = depthwise_convolution(hidden_size, channels, spec.reach, groups=hidden_size)
        parts["_pointwise"] = nn.Linear(channels, convolved)
    else:
        parts["_conv"] = nn.Conv1d(hidden_size, convolved, 2 * spec.reach + 1, groups=spec.groups)
    if spec.mixed:
        parts["_linear"] = nn.Linear(hidden_size, convolved)
    return parts


def project(
    parts: Callable[[str], nn.Module], spec: Projection, hidden: Tensor, segments: Segments, activation: nn.Module
) -> Tensor:
    """Apply a projection.

    Args:
        parts: function that returns the module of a suffix of ``projection_parts``.
        spec: the projection.
        hidden: (B, S, D).
        segments: the examples of each row.
        activation: applied between the depthwise and the pointwise part.

    Returns:
        (B, S, H*d).
    """
    if not spec.convolution:
        return parts("")(hidden)
    convolved = segments.convolve(parts("_conv"), spec.reach, hidden)
    if spec.depth:
        convolved = parts("_pointwise")(convolved if spec.no_activation else activation(convolved))
    if spec.mixed:
        convolved = torch.cat([convolved, parts("_linear")(hidden)], dim=-1)
    return convolved
