"""What works entry by entry or position by position, and what moves entries without changing them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from relusym.channels.flow import Call
from relusym.channels.handlers import ACTIVATING, ACTIVATIONS, ADDITIONS
from relusym.channels.labels import FIXED, Labels, Weights
from relusym.channels.tracing import handler

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


@handler(*POINTWISE)
def pointwise(call: Call, x: Any) -> Any:
    return x


@handler(
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "stochastic_depth"
)
@handler(
    "contiguous", "clone", "detach", "to", "type", "float", "double", "half", "bfloat16", "requires_grad_"
)
def kept(call: Call, x: Any, *rest: Any, **options: Any) -> Any:
    return x


@handler("type_as")
def typed(call: Call, x: Any, other: Any) -> Any:
    return x


@handler(
    *ADDITIONS, "sub", "isub", "sub_", "subtract", "rsub", "mul", "imul", "mul_", "multiply", "div", "div_"
)
@handler(
    "truediv",
    "itruediv",
    "true_divide",
    "pow",
    "pow_",
    "ipow",
    "maximum",
    "minimum",
    "addcmul",
    "where",
    "lerp",
)
@handler(
    "atan2", "clamp", "clamp_", "clip", "clamp_max", "exp", "log", "log1p", "sqrt", "rsqrt", "square", "abs"
)
@handler("neg")
@handler(
    "sign",
    "erf",
    "sin",
    "cos",
    "reciprocal",
    "round",
    "floor",
    "ceil",
    "nan_to_num",
    "hardshrink",
    "softshrink",
)
@handler(
    "sigmoid", "sigmoid_", "hardsigmoid", "tanh", "tanh_", "softsign", "logsigmoid", "hardtanh_", "silu_"
)
@handler(
    "hardswish_", "elu_", "mish_", "leaky_relu_", "expm1", "exp_", "sqrt_", "floordiv", "log2", "masked_fill"
)
@handler(
    "gt",
    "lt",
    "ge",
    "le",
    "eq",
    "ne",
    "logical_and",
    "logical_or",
    "logical_not",
    "invert",
    "masked_fill_",
    "addcdiv",
)
@handler(*(ACTIVATING - {"prelu"}))
def entrywise(call: Call, *operands: Any, **named: Any) -> Any:
    """A function of entries at the same place of tensors that are broadcast."""
    tensors = [of for of in (*operands, *named.values()) if isinstance(of, Labels | Weights | Tensor)]
    if len(tensors) == 1 and tensors[0].shape == call.shape:
        return tensors[0]
    return call.combine(*tensors)


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
    *("channel_shuffle", "broadcast_to", "diagonal", "_get_relative_position_bias", "rot90"),
)


@handler(*MOVES, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)
def moves(call: Call, *operands: Any, **options: Any) -> Any:
    """The same operation on the labels themselves."""
    if isinstance(operands[0], tuple | list) and call.node.target is not torch.stack:
        return operands[0][operands[1]]  # of a tuple of tensors
    if isinstance(operands[0], Tensor):
        raise call.refusal("what moves a constant depends on the image")
    weights = [of for of in tree_leaves((operands, options)) if isinstance(of, Weights)]
    if weights:
        if len(weights) > 1 or weights[0] is not operands[0]:
            raise call.refusal(f"{weights[0].name} is used in a way that isn't known")
        moved = {name: _moved(call, ids.expand(weights[0].shape), *operands[1:], **options)
                 for name, ids in weights[0].sources.items()}  # fmt: skip
        if not isinstance(call.result, Tensor):
            parts = zip(*moved.values(), strict=True)
            return tuple(Weights(part[0].shape, dict(zip(moved, part, strict=True))) for part in parts)
        return Weights(
            call.shape, {name: Labels.of(ids).ids for name, ids in moved.items()}, weights[0].pooled
        )
    if call.node.target is torch.stack:
        pieces = [constant(call, of).entries for of in operands[0]]
        operands = call.flow.ties.distinct(pieces), *operands[1:]
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


@handler("set_item")
def assigned(call: Call, x: Labels, index: Any, value: Any) -> Labels:
    """What takes the place of some entries is joined with what was there."""
    part = Labels.of(x.entries[index])
    call.combine(part, value, shape=part.shape)
    return x


@handler("cat", "concat", "concatenate")
def cat(call: Call, tensors: Any, dim: int = 0, **options: Any) -> Any:
    dim = options.get("axis", dim) % call.result.ndim
    labelled = [of for of in tensors if isinstance(of, Labels)]
    if not labelled:
        return _joined_weights(call, tensors, dim)
    elsewhere = any(set(of.varies) - {dim} for of in labelled)
    ids = None
    if elsewhere and not any(dim in of.varies for of in labelled):  # tokens are joined, and not channels
        ids = call.flow.ties.beside([of.ids for of in labelled], call.node.name)
    if ids is None:
        pieces = call.flow.ties.distinct([constant(call, of).entries for of in tensors])
        return Labels.of(torch.cat(pieces, dim))
    for of in tensors:
        if isinstance(of, Weights):
            call.meet(of, ids)
        elif isinstance(of, Tensor):
            call.flow.ties.join(ids, constant(call, of).ids, call.node.name)
    return Labels(call.shape, ids)


def _joined_weights(call: Call, tensors: Any, dim: int) -> Weights:
    """Parameters and constants beside each other: where one is, the others have no entries."""
    if any(of.pooled for of in tensors if isinstance(of, Weights)):
        raise call.refusal("what is computed of parameters is joined")
    sources: dict[str, list[Tensor]] = {
        name: [torch.full(of.shape, -1) for of in tensors]
        for of in tensors if isinstance(of, Weights) for name in of.sources
    }  # fmt: skip
    for i, of in enumerate(tensors):
        for name, entries in of.sources.items() if isinstance(of, Weights) else ():
            sources[name][i] = entries.expand(of.shape)
    return Weights(call.shape, {name: torch.cat(parts, dim) for name, parts in sources.items()})


def constant(call: Call, of: Any) -> Labels:
    """The labels of what a tensor lies beside; weights and constants that aren't alike everywhere stay."""
    if isinstance(of, Labels):
        return of
    return call.constant(of) if isinstance(of, Tensor) else Labels.alike(FIXED, of.shape)


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


@handler("embedding")
def looked_up(call: Call, input: Any, weight: Any, *rest: Any, **options: Any) -> Weights:
    """Rows of a table, as position embeddings."""
    if not (isinstance(input, Tensor) and isinstance(weight, Weights)):
        raise call.refusal("a table that is read by what an image has isn't supported")
    return Weights(
        call.shape, {name: ids.expand(weight.shape)[input] for name, ids in weight.sources.items()}
    )


@handler("unfold", "im2col", nn.Unfold)
def unfolded(call: Call, x: Labels, *rest: Any, **options: Any) -> Labels:
    """Patches as columns: of every channel all pixels of a patch, channel after channel; or windows of a dimension."""
    if call.node.op == "call_method":
        return moves(call, x, *rest, **options)
    labels = call.along(x, -3)
    dim = len(call.shape) - 2
    return Labels.along(labels.repeat_interleave(call.shape[dim] // len(labels)), dim, call.shape)


@handler("fold", "col2im", nn.Fold)
def folded(call: Call, x: Labels, *rest: Any, **options: Any) -> Labels:
    """Patches added up to a map again."""
    dim = len(call.shape) - 3
    labels = call.flow.ties.join_along(call.along(x, -2).reshape(call.shape[dim], -1), [1], call.node.name)
    return Labels.along(labels.flatten(), dim, call.shape)
