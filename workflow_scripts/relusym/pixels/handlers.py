"""What operations do to pixels, one small handler each, as `handlers` has them of channels."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from relusym.channels.flow import Call
from relusym.channels.handlers import BATCH_NORMS, INSTANCE_NORMS, layers, mixing, moves
from relusym.channels.labels import FIXED, Labels, Weights
from relusym.channels.tracing import REGISTERED, handler

of_pixels = partial(handler, on="pixels")
ALIKE = (
    moves.pointwise,
    moves.kept,
    moves.typed,
    moves.entrywise,
    moves.moves,
    moves.looked_up,
    moves.cat,
    mixing.reduction,
)
ALIKE += (
    mixing.along_a_dimension,
    mixing.softmax,
    mixing.glu,
    mixing.einsum,
    mixing.matmul,
)
ALIKE += (layers.layer_norm, layers.layer_norm_function)
REGISTERED.pixels |= {
    key: found
    for key, found in REGISTERED.channels.items()
    if found in ALIKE and key != "_get_relative_position_bias"
}


@of_pixels(
    *(
        key
        for key, found in REGISTERED.channels.items()
        if found in (layers.conv, layers.conv_function, moves.spatial)
    ),
    "pad",
)
def resized(call: Call, x: Labels, *rest: Any, **options: Any) -> Labels:
    """A map of another size, whose pixels come from neighbourhoods of the former one's."""
    if len(call.shape) != 4 or not set(x.varies) <= {2, 3}:
        raise call.refusal("its effect on pixels is unknown")
    return call.flow.grid(call.shape)


@of_pixels(nn.Linear, "linear")
def linear(call: Call, x: Any, weight: Weights | str = "weight", *rest: Any, **options: Any) -> Labels:
    if isinstance(x, Weights):  # a table of positions, which an inner net reads
        if len(x.shape) != 4:
            raise call.refusal("its effect on pixels is unknown")
        for dim in (1, 2):
            call.index(x, dim, call.flow.pixels(*(x.shape[dim] if d == dim else 1 for d in (1, 2))))
        return Labels.alike(FIXED, call.shape)
    last = len(x.shape) - 1
    if last not in x.varies:
        return Labels(call.shape, x.ids)
    call.index(weight, 1, call.along(x, last))
    shape = call.flow.patches.get(int(x.ids.flatten()[0]))
    if shape is None or x.varies != [last]:
        return Labels.alike(FIXED, call.shape)
    return Labels(call.shape, call.flow.pixels(*shape[1:3]).reshape(1, *shape[1:3], 1))


@of_pixels(*BATCH_NORMS)
def batch_norm(call: Call, x: Labels) -> Labels:
    if 1 in x.varies:
        for key, tensor in call.layer.state_dict().items():
            if tensor.ndim:
                call.index(key, 0, call.along(x, 1))
    return x


@of_pixels(*INSTANCE_NORMS, nn.GroupNorm, nn.PReLU, "group_norm", "batch_norm", "prelu")
def weights_of_channels(call: Call, x: Any, *rest: Any, **options: Any) -> Any:
    if isinstance(x, Weights):  # they are standardised
        return layers.batch_norm_function(call, x, *rest, **options)
    if 1 in x.varies:
        raise call.refusal("it has weights of single pixels in a way that isn't known")
    return x


@of_pixels(nn.MultiheadAttention)
def multihead_attention(call: Call, query: Labels, key: Labels, value: Labels, **options: Any) -> tuple:
    """Attention asks for no order of its tokens."""
    if len(query.shape) - 1 in query.varies:
        raise call.refusal("its effect on pixels is unknown")
    weights = None if call.result[1] is None else Labels.alike(FIXED, call.result[1].shape)
    return Labels(call.result[0].shape, query.ids), weights


@of_pixels("scaled_dot_product_attention")
def attention(
    call: Call, query: Labels, key: Labels, value: Labels, attn_mask: Any = None, *rest: Any, **options: Any
) -> Labels:
    """As `multihead_attention`; keys and values lie at the same pixels."""
    if attn_mask is not None or any(len(of.shape) - 1 in of.varies for of in (query, key, value)):
        raise call.refusal("its effect on pixels is unknown")
    call.flow.ties.join(key.ids, value.ids, call.node.name)
    return Labels(call.shape, query.ids)


# ---- Swin Transformer's, as torchvision calls them


@of_pixels("shifted_window_attention", "shifted_window_attention_v2")
def windows(call: Call, input: Labels, *rest: Any, **options: Any) -> Labels:
    if len(input.shape) - 1 in input.varies:
        raise call.refusal("its effect on pixels is unknown")
    return Labels(call.shape, input.ids)


@of_pixels("_get_relative_position_bias")
def relative_positions(call: Call, table: Any, index: Tensor, window: list[int]) -> Labels:
    """A table has one row for each displacement, from the bottom left to the top right."""
    if isinstance(table, Weights):
        call.index(table, 0, call.flow.pixels(*(2 * side - 1 for side in window)))
    return Labels.alike(FIXED, call.shape)


@of_pixels("_patch_merging_pad")
def merged_patches(call: Call, x: Labels) -> Labels:
    """Of every patch of four pixels the channels, one pixel after another: top left, bottom left, top right, …"""
    if len(x.shape) != 4 or len(x.shape) - 1 in x.varies:
        raise call.refusal("its effect on pixels is unknown")
    ids = call.flow.pixels(2, 2)[[0, 2, 1, 3]].repeat_interleave(x.shape[-1])
    call.flow.patches[int(ids[0])] = call.shape
    return Labels(call.shape, ids.reshape(1, 1, 1, -1))
