"""What operations do to pixels, where it isn't what they do to channels (`channels.handlers`)."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from relusym.channels import handlers
from relusym.channels.flow import ENTRYWISE, Call
from relusym.channels.handlers import BATCH_NORMS, INSTANCE_NORMS
from relusym.channels.labels import FIXED, Labels, Weights
from relusym.channels.tracing import REGISTERED, function_name, handler

of_pixels = partial(handler, on="pixels")
UNKNOWN = "its effect on pixels is unknown"
RESIZING = handlers.conv, handlers.conv_function, handlers.spatial


@of_pixels(*(key for key, known in REGISTERED.channels.items() if known in RESIZING))
def resized(call: Call, x: Labels, *rest: Any, **options: Any) -> Labels:
    """A map of another size, whose pixels come from neighbourhoods of the former one's, or one number of all."""
    called = (type(call.layer).__name__ if call.layer is not None else function_name(call.node)).lower()
    if called.startswith("adaptive") and set(call.shape[2:]) == {1}:
        return Labels(call.shape, call.mix(x, [*range(2, len(call.shape))]))
    if len(call.shape) != 4 or not set(x.varies) <= {2, 3}:
        raise call.refusal(UNKNOWN)
    return call.flow.grid(call.shape)


@of_pixels("pad")
def padded(call: Call, x: Labels, pad: Any, *rest: Any, **options: Any) -> Labels:
    return resized(call, x) if any(pad) else x


@of_pixels("roll")
def rolled(call: Call, x: Any, *rest: Any, **options: Any) -> Any:
    return handlers.moves(call, x, *rest, **options) if call.flow.shifted else x


@of_pixels(nn.Linear, "linear")
def linear(
    call: Call, x: Any, weight: Weights | str = "weight", *rest: Any, reads: int = 1, **options: Any
) -> Labels:
    if isinstance(x, Weights) and len(x.shape) == 4:  # a table of positions, which an inner net reads
        for dim in (1, 2):
            sides = (x.shape[dim] if side == dim else 1 for side in (1, 2))
            call.index(x, dim, call.relations.pixels(*sides))
        return Labels.alike(FIXED, call.shape)
    if not isinstance(x, Labels):
        raise call.refusal("it reads positions that are in no state dict, so they can't be moved")
    last = len(x.shape) - 1
    if last not in x.varies:
        return Labels(call.shape, x.ids)
    call.index(weight, reads, call.along(x, last))
    return Labels(call.shape, call.mix(x, [last]))


@of_pixels("matmul", "bmm", "imatmul")
def matmul(call: Call, first: Any, second: Any) -> Labels:
    if isinstance(second, Weights) and len(second.shape) == 2:
        return linear(call, first, second, reads=0)
    return handlers.matmul(call, first, second)


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
        return handlers.batch_norm_function(call, x, *rest, **options)
    if 1 in x.varies:
        raise call.refusal("it has weights of single pixels in a way that isn't known")
    return x


@of_pixels(nn.MultiheadAttention)
def multihead_attention(call: Call, query: Labels, key: Labels, value: Labels, **options: Any) -> tuple:
    """Attention asks for no order of its tokens."""
    if len(query.shape) - 1 in query.varies:
        raise call.refusal(UNKNOWN)
    weights = None if call.result[1] is None else Labels.alike(FIXED, call.result[1].shape)
    return Labels(call.result[0].shape, query.ids), weights


@of_pixels("scaled_dot_product_attention")
def attention(
    call: Call, query: Labels, key: Labels, value: Labels, attn_mask: Any = None, *rest: Any, **options: Any
) -> Labels:
    """As `multihead_attention`, without a mask; else pair by pair of tokens."""
    if any(rest[1:2]) or options.get("is_causal"):
        raise call.refusal("its tokens have an order")
    if attn_mask is None and all(len(x.shape) - 1 not in x.varies for x in (query, key, value)):
        return Labels(call.shape, query.ids)
    return handlers.attention(call, query, key, value, attn_mask)


ENTRYWISE.add(attention)

# ---- Swin Transformer's, as torchvision calls them

REGISTERED.pixels["_patch_merging_pad"] = handlers.moves


@of_pixels("shifted_window_attention", "shifted_window_attention_v2")
def windows(call: Call, input: Labels, *rest: Any, **options: Any) -> Labels:
    if len(input.shape) - 1 in input.varies:
        raise call.refusal(UNKNOWN)
    return Labels(call.shape, input.ids)


@of_pixels("_get_relative_position_bias")
def relative_positions(call: Call, table: Any, index: Tensor, window: list[int]) -> Labels:
    """A table has one row for each displacement, from the bottom left to the top right."""
    if isinstance(table, Weights):
        call.index(table, 0, call.relations.pixels(*(2 * side - 1 for side in window)))
    return Labels.alike(FIXED, call.shape)
