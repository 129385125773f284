"""What works entry by entry or position by position, and what moves entries without changing them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from relusym.channels.flow import Call, handler
from relusym.channels.handlers import ACTIVATING, ACTIVATIONS, ADDITIONS
from relusym.channels.labels import FIXED, Labels, Weights

# ---- entry by entry

POINTWISE = (
    *[activation for activation in ACTIVATIONS if activation is not nn.PReLU],
    *(
        nn.Sigmoid,
        nn.Hardsigmoid,
        nn.Tanh,
        nn.Softsign,
        nn.LogSigmoid,
        nn.Tanhshrink,
        nn.Hardshrink,
        nn.Softshrink,
    ),
    *(
        nn.Threshold,
        nn.Dropout,
        nn.Dropout1d,
        nn.Dropout2d,
        nn.Dropout3d,
        nn.AlphaDropout,
        nn.FeatureAlphaDropout,
    ),
    nn.Identity,
)


@handler(
    *POINTWISE,
    *(ACTIVATING - {"prelu"}),
    *("sigmoid", "sigmoid_", "hardsigmoid", "tanh", "tanh_", "softsign", "logsigmoid", "hardtanh_", "silu_"),
    *(
        "clamp",
        "clamp_",
        "exp",
        "log",
        "log1p",
        "sqrt",
        "rsqrt",
        "square",
        "pow",
        "abs",
        "neg",
        "sign",
        "erf",
    ),
    *("sin", "cos", "reciprocal", "round", "floor", "ceil", "dropout", "dropout1d", "dropout2d", "dropout3d"),
    *("alpha_dropout", "feature_dropout", "stochastic_depth", "contiguous", "clone", "detach", "to", "type"),
    *(
        "float",
        "double",
        "half",
        "bfloat16",
        "type_as",
        "requires_grad_",
        "nan_to_num",
        "hardshrink",
        "softshrink",
    ),
)
def pointwise(call: Call, x: Any, *rest: Any, **options: Any) -> Any:
    others = [of for of in rest if isinstance(of, Weights | Labels) and of.shape == x.shape]
    return call.combine(x, *others) if others else x


@handler(
    *ADDITIONS, "sub", "isub", "sub_", "rsub", "mul", "imul", "mul_", "multiply", "div", "truediv", "div_"
)
@handler("itruediv", "maximum", "minimum", "addcmul", "where", "lerp", "atan2", "true_divide", "subtract")
def entrywise(call: Call, *operands: Any, **options: Any) -> Any:
    return call.combine(
        *operands, *(of for of in options.values() if isinstance(of, Labels | Weights | Tensor))
    )


# ---- moved without being changed

MOVES = (
    *(
        "view",
        "reshape",
        "flatten",
        "unflatten",
        "permute",
        "transpose",
        "swapaxes",
        "movedim",
        "moveaxis",
        "t",
    ),
    *(
        "unsqueeze",
        "squeeze",
        "expand",
        "expand_as",
        "view_as",
        "reshape_as",
        "getattr",
        "getitem",
        "chunk",
        "split",
    ),
    *(
        "split_with_sizes",
        "tensor_split",
        "unbind",
        "narrow",
        "select",
        "index_select",
        "flip",
        "roll",
        "repeat",
    ),
    *("repeat_interleave", "tile", "stack", "hstack", "vstack", "pixel_shuffle", "pixel_unshuffle"),
    *("channel_shuffle", "broadcast_to", "diagonal", "_get_relative_position_bias"),
)


@handler(*MOVES, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)
def moves(call: Call, *operands: Any, **options: Any) -> Any:
    """The same operation on the labels themselves."""
    if isinstance(operands[0], tuple | list) and call.node.target is not torch.stack:
        return operands[0][operands[1]]  # of a tuple of tensors
    weights = [of for of in tree_leaves((operands, options)) if isinstance(of, Weights)]
    if weights:
        if len(weights) > 1 or weights[0] is not operands[0]:
            raise call.refusal(f"{weights[0].name} is used in a way that isn't known")
        moved = {name: _moved(call, ids.expand(weights[0].shape), *operands[1:], **options)
                 for name, ids in weights[0].sources.items()}  # fmt: skip
        if not isinstance(call.result, Tensor):
            parts = zip(*moved.values(), strict=True)
            return tuple(Weights(part[0].shape, dict(zip(moved, part, strict=True))) for part in parts)
        return Weights(call.shape, moved)
    operands, options = tree_map(lambda of: of.entries if isinstance(of, Labels) else of, (operands, options))
    moved = _moved(call, *operands, **options)
    return Labels.of(moved) if isinstance(moved, Tensor) else tuple(map(Labels.of, moved))


def _moved(call: Call, x: Any, *rest: Any, **options: Any) -> Any:
    if call.layer is not None:
        return call.layer(x)
    if call.node.op == "call_method":
        target = {"view": "reshape", "view_as": "reshape_as"}.get(call.node.target, call.node.target)
        return getattr(x, target)(*rest, **options)
    return call.node.target(x, *rest, **options)


@handler("cat", "concat", "concatenate")
def cat(call: Call, tensors: Any, dim: int = 0, **options: Any) -> Any:
    dim = options.get("axis", dim) % call.result.ndim
    labelled = [of for of in tensors if isinstance(of, Labels)]
    if not labelled:
        raise call.refusal("parameters are joined in a way that isn't known")
    elsewhere = any(set(of.varies) - {dim} for of in labelled)
    if elsewhere and not any(dim in of.varies for of in labelled):  # tokens are joined, and not channels
        ids = None
        for of in labelled:
            ids = of.ids if ids is None else call.flow.ties.join(ids, of.ids, call.node.name)
        for of in tensors:
            if isinstance(of, Weights):
                call.meet(of, ids)
            elif isinstance(of, Tensor):
                call.flow.ties.join(ids, constant(call, of).ids, call.node.name)
        return Labels(call.shape, ids)
    pieces = [of if isinstance(of, Labels) else constant(call, of) for of in tensors]
    return Labels.of(torch.cat([piece.entries for piece in pieces], dim))


def constant(call: Call, of: Any) -> Labels:
    """The labels of a tensor that doesn't depend on the image: one, if all its entries are alike."""
    alike = isinstance(of, Tensor) and of.numel() and bool((of == of.flatten()[0]).all())
    return Labels.alike(call.flow.ties.constant(float(of.flatten()[0])) if alike else FIXED, of.shape)


@handler("pad")
def pad(call: Call, x: Labels, pad: Any, mode: str = "constant", value: float | None = None) -> Labels:
    """Constants beside channels are entries of their own; beside pixels they belong to the channel."""
    pads = {x.ids.ndim - 1 - i // 2: tuple(pad[i : i + 2]) for i in range(0, len(pad), 2)}
    ids = x.ids
    for dim in x.varies:
        before, after = pads.get(dim, (0, 0))
        if (before or after) and mode != "constant":
            raise call.refusal(f"channels are padded by {mode}")
        if before < 0 or after < 0:
            ids = ids.narrow(dim, max(0, -before), ids.shape[dim] - max(0, -before) - max(0, -after))
        label = call.flow.ties.constant(float(value or 0))
        sizes = [(*ids.shape[:dim], max(0, count), *ids.shape[dim + 1 :]) for count in (before, after)]
        ids = torch.cat([ids.new_full(sizes[0], label), ids, ids.new_full(sizes[1], label)], dim)
    return Labels(call.shape, ids)


# ---- position by position

SPATIAL = (
    *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "lp_pool2d"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d"),
    *("adaptive_max_pool2d", "adaptive_max_pool3d", "interpolate", "upsample", "boolean_dispatch"),
)


@handler(
    *(
        getattr(nn, f"{kind}Pool{n}d")
        for kind in ("Max", "Avg", "AdaptiveAvg", "AdaptiveMax")
        for n in (1, 2, 3)
    ),
    *(
        getattr(nn, f"{kind}Pad{n}d")
        for kind in ("Zero", "Constant", "Reflection", "Replication")
        for n in (1, 2, 3)
    ),
    *(nn.LPPool1d, nn.LPPool2d, nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
    *SPATIAL,
)
def spatial(call: Call, x: Labels, *rest: Any, **options: Any) -> Labels:
    if not isinstance(call.result, Tensor):
        raise call.refusal("pooling that returns indices isn't supported")
    return Labels.along(call.along(x, 1), 1, call.shape)
