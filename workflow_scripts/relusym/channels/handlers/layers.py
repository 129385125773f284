"""Convolutions, linear layers and norms."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from relusym.channels.flow import Call
from relusym.channels.handlers import BATCH_NORMS, CONVS, INSTANCE_NORMS, TRANSPOSED
from relusym.channels.labels import FIXED, Labels, Weights
from relusym.channels.tracing import handler

# ---- convolutions and linear layers


def convolved(call: Call, x: Any, weight: Any, bias: Any, groups: int, transposed: bool, dim: int) -> Labels:
    """A convolution's channels, or, along the last dimension, a linear layer's; each of its groups is one channel."""
    if isinstance(weight, Labels | Tensor):
        return _filtered(call, x, weight, bias, groups, dim)
    shape = call.layer.weight.shape if isinstance(weight, str) else weight.shape
    reads, writes = (0, 1) if transposed else (1, 0)
    if not isinstance(x, Labels):  # a table that an inner net reads
        if isinstance(x, Weights):
            call.fix(x)
        x = Labels.alike(FIXED, x.shape)
    if (
        x.varies
        and dim % len(x.shape) not in x.varies
        and all(size == 1 for size in shape[2:])
        and groups == 1
    ):
        return _along_positions(call, x, weight, bias)
    read = call.along(x, dim)
    if groups == 1:
        call.index(weight, reads, read)
        written = call.write(weight, writes, shape[writes])
    else:
        of_groups = call.flow.ties.join_along(read.clamp(min=FIXED).reshape(groups, -1), [1], call.node.name)
        outputs = call.shape[dim]
        written = of_groups.expand(-1, outputs // groups).flatten()
        call.index(weight, 0, of_groups.expand(-1, len(read) // groups).flatten() if transposed else written)
        call.writes(written)
    call.index(bias, 0, written)
    return Labels.along(written, dim % len(call.shape), call.shape)


def _along_positions(call: Call, x: Labels, weight: Any, bias: Any) -> Labels:
    """A layer along a dimension in which positions lie, and not channels: it does the same to all channels."""
    for of in (weight, bias):
        if of is not None:
            name = f"{call.node.target}.{of}" if isinstance(of, str) else of.name
            call.fix(Weights(torch.Size(), {name: torch.zeros(1)}))
    return Labels(call.shape, no_constants(x.ids))


def _filtered(call: Call, x: Any, weight: Any, bias: Any, groups: int, dim: int) -> Labels:
    """A convolution with a kernel that is no parameter, as a fixed blur: each channel's the same, or channels stay."""
    same = isinstance(weight, Tensor) and bool((weight == weight[:1]).all())
    if not (same and isinstance(x, Labels) and groups == len(weight) == x.shape[dim]) or bias is not None:
        raise call.refusal("its kernel isn't a parameter")
    return Labels.along(call.along(x, dim), dim % len(call.shape), call.shape)


@handler(*CONVS, *TRANSPOSED)
def conv(call: Call, x: Any) -> Labels:
    layer = call.layer
    bias = None if layer.bias is None else "bias"
    return convolved(call, x, "weight", bias, layer.groups, layer.transposed, 1 - layer.weight.ndim)


@handler("conv1d", "conv2d", "conv3d")
def conv_function(
    call: Call, input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Labels:  # fmt: skip
    return convolved(call, input, weight, bias, groups, False, 1 - len(weight.shape))


@handler(nn.Linear)
def linear(call: Call, x: Any) -> Labels:
    return convolved(call, x, "weight", None if call.layer.bias is None else "bias", 1, False, -1)


@handler("linear")
def linear_function(call: Call, input: Any, weight: Any, bias: Any = None) -> Labels:
    return convolved(call, input, weight, bias, 1, False, -1)


# ---- norms


def no_constants(ids: Tensor) -> Tensor:
    """A constant is no longer alike in all channels once each has weights of its own."""
    return ids.clamp(min=FIXED)


@handler(*BATCH_NORMS, *INSTANCE_NORMS)
def batch_norm(call: Call, x: Labels) -> Labels:
    labels = call.along(x, 1)
    indexed = [key for key, tensor in call.layer.state_dict().items() if tensor.ndim]
    for key in indexed:
        call.index(key, 0, labels)
    return Labels.along(no_constants(labels) if indexed else labels, 1, call.shape)


@handler("batch_norm")
def batch_norm_function(
    call: Call, input: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None, *rest: Any,
    **options: Any,
) -> Any:  # fmt: skip
    if isinstance(input, Weights):  # they are standardised
        if any(isinstance(of, Labels | Tensor) for of in (weight, bias)):
            raise call.refusal("parameters are normalised in a way that isn't known")
        scale = [Weights(torch.Size([1, of.shape[0], 1]),
                         {name: ids.reshape(1, -1, 1) for name, ids in of.sources.items()})
                 for of in (weight, bias) if of is not None]  # fmt: skip
        return call.combine(input, *scale)
    labels = call.along(input, 1)
    for weights in (running_mean, running_var, weight, bias):
        call.index(weights, 0, labels)
    return Labels.along(no_constants(labels), 1, call.shape)


@handler(nn.PReLU)
def prelu(call: Call, x: Labels) -> Labels:
    labels = call.along(x, 1)
    if call.layer.weight.numel() > 1:
        call.index("weight", 0, labels)
        labels = no_constants(labels)
    return Labels.along(labels, 1, call.shape)


def normalised(call: Call, x: Labels, shape: Any, weight: Any, bias: Any) -> Labels:
    """Layer norm over the last dimensions, whose weights meet them entry by entry."""
    dims = list(range(x.ids.ndim - len(shape), x.ids.ndim))
    call.mix(x, dims)
    if weight is None and bias is None:
        return Labels(call.shape, x.ids)
    ids = no_constants(x.ids)
    for weights in (weight, bias):
        if isinstance(weights, str):
            name = f"{call.node.target}.{weights}"
            numbers = torch.arange(math.prod(shape)).reshape(shape)
            weights = Weights(numbers.shape, {name: numbers})
        if weights is not None:
            call.meet(weights, ids)
    return Labels(call.shape, ids)


@handler(nn.LayerNorm, nn.RMSNorm)
def layer_norm(call: Call, x: Labels) -> Labels:
    names = [key if getattr(call.layer, key, None) is not None else None for key in ("weight", "bias")]
    return normalised(call, x, call.layer.normalized_shape, *names)


@handler("layer_norm", "rms_norm")
def layer_norm_function(
    call: Call, input: Labels, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 0
) -> Labels:
    return normalised(call, input, normalized_shape, weight, bias)
