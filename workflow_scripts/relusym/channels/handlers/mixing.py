"""What mixes channels: group norms, sums and means over them, products of matrices and attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from relusym.channels.flow import Call
from relusym.channels.handlers.layers import convolved, no_constants
from relusym.channels.labels import FIXED, Labels, Weights
from relusym.channels.tracing import PROJECTIONS, function_name, handler


def grouped(call: Call, x: Labels, groups: int, weights: list[Any]) -> Labels:
    """Group norm: its groups are permuted whole, and the channels within each."""
    labels = call.along(x, 1)
    if groups > 1:
        call.flow.ties.nest(labels.reshape(groups, -1), [1], call.node.name)
    else:
        call.flow.ties.mark(labels, call.node.name)
    for of in weights:
        call.index(of, 0, labels)
    return Labels.along(no_constants(labels), 1, call.shape)


@handler(nn.GroupNorm)
def group_norm(call: Call, x: Labels) -> Labels:
    return grouped(call, x, call.layer.num_groups, ["weight", "bias"] if call.layer.affine else [])


@handler("group_norm")
def group_norm_function(
    call: Call, input: Labels, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 0
) -> Labels:
    return grouped(call, input, num_groups, [weight, bias])


@handler("mean", "sum", "amax", "amin", "prod", "var", "std", "norm", "vector_norm", "logsumexp")
def reduction(call: Call, x: Any, *rest: Any, **options: Any) -> Any:
    rest = rest[1:] if "norm" in function_name(call.node) else rest  # whose first option is its order
    dims = options.get("dim", rest[0] if rest else None)
    every = list(range(len(x.shape)))
    dims = every if dims is None else [dims] if isinstance(dims, int) else list(dims)
    dims = [dim % len(x.shape) for dim in dims] or every
    kept = (
        [dim for dim in range(len(x.shape)) if dim not in dims] if call.result.ndim < len(x.shape) else None
    )
    if isinstance(x, Weights):
        first = {name: _first(ids.expand(x.shape), dims, kept) for name, ids in x.sources.items()}
        return Weights(call.shape, first, pooled=True)
    ids = call.mix(x, dims)
    return Labels(call.shape, ids if kept is None else ids.reshape([ids.shape[dim] for dim in kept]))


def _first(ids: Tensor, dims: list[int], kept: list[int] | None) -> Tensor:
    """The first entry along some dimensions, which have size 1 or are left out."""
    for dim in dims:
        ids = ids.narrow(dim, 0, 1)
    return ids if kept is None else ids.reshape([ids.shape[dim] for dim in kept])


@handler("softmax", "log_softmax", "normalize")
def along_a_dimension(call: Call, x: Labels, *rest: Any, **options: Any) -> Labels:
    rest = rest[1:] if function_name(call.node) == "normalize" else rest  # whose first option is its order
    return _mixed(call, x, options.get("dim", rest[0] if rest else 1))


@handler(nn.Softmax, nn.LogSoftmax)
def softmax(call: Call, x: Labels) -> Labels:
    return _mixed(call, x, call.layer.dim)


def _mixed(call: Call, x: Labels, dim: int) -> Labels:
    call.mix(x, [dim % len(x.shape)])
    return Labels(call.shape, x.ids)


@handler(nn.GLU)
def glu(call: Call, x: Labels) -> Labels:
    one, other = (Labels.of(half) for half in x.entries.chunk(2, call.layer.dim))
    return call.combine(one, other)


# ---- products of matrices


def contracted(call: Call, operands: list[Any], letters: list[str], output: str, step: str = "") -> Labels:
    """A sum of products, in the notation of `torch.einsum`, without repeated letters in one operand.

    What a parameter has along dimensions of its own stays at its place.
    """
    order = output + "".join(dict.fromkeys(letter for of in letters for letter in of if letter not in output))
    sizes: dict[str, int] = {}
    for of, names in zip(operands, letters, strict=True):
        for letter, size in zip(names, of.shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))  # batches are broadcast
    ids, known = None, ()

    def arranged(of: Tensor, names: str) -> Tensor:
        where = [names.index(letter) for letter in order if letter in names]
        return of.permute(where)[tuple(slice(None) if letter in names else None for letter in order)]

    pairs = list(zip(operands, letters, strict=True))
    aligned = [(arranged(of.ids, names), of, names) for of, names in pairs if isinstance(of, Labels)]
    varies = {
        letter
        for entries, *_ in aligned
        for letter, size in zip(order, entries.shape, strict=True)
        if size > 1
    }
    for entries, of, names in aligned:
        if entries.numel() == 1 and not varies & set(names):
            continue
        has = dict(zip(names, of.shape, strict=True))
        present = tuple(has.get(letter, 1) for letter in order)
        ids = entries if ids is None else call.flow.ties.meet(ids, known, entries, present, call.node.name)
        known = tuple(map(max, known, present)) or present
    shape = torch.Size([sizes[letter] for letter in order])
    if ids is None:
        ids = torch.full([1] * len(order), FIXED)
    for of, names in pairs:
        if isinstance(of, Weights):
            moved = {name: arranged(entries.expand(of.shape), names) for name, entries in of.sources.items()}
            call.meet(Weights(next(iter(moved.values())).shape, moved), ids)
    mixed = call.mix(Labels(shape, ids), list(range(len(output), len(order))), step)
    return Labels(shape[: len(output)], mixed.reshape(mixed.shape[: len(output)]))


@handler("einsum")
def einsum(call: Call, equation: str, *operands: Any) -> Labels:
    operands = operands[0] if isinstance(operands[0], tuple | list) else operands
    reads, arrow, output = equation.replace(" ", "").partition("->")
    letters = reads.split(",")
    if not arrow or "." in equation or any(len(set(of)) < len(of) for of in letters):
        raise call.refusal(f"einsum {equation!r} isn't supported")
    return contracted(call, _operands(operands), letters, output)


@handler("matmul", "bmm", "imatmul")
def matmul(call: Call, *operands: Any) -> Labels:
    first, second = _operands(operands)
    if isinstance(second, Weights) and len(second.shape) == 2:
        return convolved(call, first, second, None, 1, True, -1)
    if min(len(first.shape), len(second.shape)) < 2:
        raise call.refusal("products with vectors aren't supported")
    return _product(call, first, second)


def _product(call: Call, first: Labels, second: Labels, step: str = "") -> Labels:
    count = max(len(first.shape), len(second.shape)) - 2
    batch = "abcdefgh"[:count]
    letters = [batch[count - len(of.shape) + 2 :] + end for of, end in ((first, "ij"), (second, "jk"))]
    return contracted(call, [first, second], letters, batch + "ik", step)


def _operands(operands: Any) -> list[Labels | Weights]:
    return [Labels.alike(FIXED, of.shape) if isinstance(of, Tensor) else of for of in operands]


@handler("scaled_dot_product_attention")
def attention(
    call: Call, query: Labels, key: Labels, value: Labels, attn_mask: Any = None, *rest: Any, **options: Any
) -> Labels:
    flipped = Labels(torch.Size([*key.shape[:-2], key.shape[-1], key.shape[-2]]), key.ids.transpose(-1, -2))
    scores = _product(call, query, flipped, "scores")
    if attn_mask is not None:
        scores = call.combine(scores, attn_mask, shape=scores.shape)
    return _product(call, scores, value, "values")


def heads_of(call: Call, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The labels of heads, (count, 1), and of the channels that they write, from those of queries, keys and values.

    Heads are permuted whole; within each, queries with keys, and values.
    """
    query, key, value = rows.chunk(3)
    both = call.flow.ties.join(query, key, call.node.name)
    heads = call.flow.ties.nest(both.reshape(count, -1), [1], call.node.name)
    call.flow.ties.nest(value.reshape(count, -1), [1], call.node.name, heads)
    return heads, value


@handler(nn.MultiheadAttention)
def multihead_attention(call: Call, query: Labels, key: Labels, value: Labels, **options: Any) -> tuple:
    layer, ties, name = call.layer, call.flow.ties, call.node.name
    if not layer._qkv_same_embed_dim or layer.bias_k is not None or options.get("attn_mask") is not None:
        raise call.refusal("attention of this kind isn't supported")
    read = call.along(query, -1)
    for of in (key, value):
        read = ties.join(read, call.along(of, -1), name)
    call.index("in_proj_weight", 1, read)
    rows = call.write("in_proj_weight", 0, 3 * layer.embed_dim)
    call.index(None if layer.in_proj_bias is None else "in_proj_bias", 0, rows)
    heads, values = heads_of(call, rows, layer.num_heads)
    call.index("out_proj.weight", 1, values)
    written = call.write("out_proj.weight", 0, layer.embed_dim)
    call.index(None if layer.out_proj.bias is None else "out_proj.bias", 0, written)
    shape, weights = call.result[0].shape, call.result[1]
    if weights is not None:
        each = weights.ndim == len(shape) + 1  # of each head, and not their mean
        weights = (
            Labels.along(heads.flatten(), -3, weights.shape) if each else Labels.alike(FIXED, weights.shape)
        )
    return Labels.along(written, len(shape) - 1, shape), weights


@handler("shifted_window_attention", "shifted_window_attention_v2")
def window_attention(
    call: Call, input: Labels, qkv_weight: Any, proj_weight: Any, relative_position_bias: Any, window_size: Any,
    num_heads: int, *rest: Any, qkv_bias: Any = None, proj_bias: Any = None, logit_scale: Any = None, **options: Any,
) -> Labels:  # fmt: skip
    """Swin Transformer's, as torchvision calls it."""
    call.index(qkv_weight, 1, call.along(input, -1))
    rows = call.write(qkv_weight, 0, qkv_weight.shape[0])
    call.index(qkv_bias, 0, rows)
    heads, values = heads_of(call, rows, num_heads)
    for of, ids in (
        (relative_position_bias, heads[None, :, :, None]),
        (logit_scale, heads[..., None]),
    ):
        if isinstance(of, Labels):  # a net computes them
            call.flow.ties.join(of.ids, ids, call.node.name)
        elif isinstance(of, Weights):
            call.meet(of, ids)
    call.index(proj_weight, 1, values)
    written = call.write(proj_weight, 0, proj_weight.shape[0])
    call.index(proj_bias, 0, written)
    return Labels.along(written, len(call.shape) - 1, call.shape)


def projected(net: nn.Module, node: fx.Node) -> tuple[fx.Node, Any, Any] | None:
    """Of a self-attention layer."""
    layer, of = net.get_submodule(node.target), [*node.args, *node.kwargs.values()][:3]
    if not layer._qkv_same_embed_dim or any(one is not of[0] for one in of):
        return None
    bias = None if layer.in_proj_bias is None else f"{node.target}.in_proj_bias"
    return of[0], f"{node.target}.in_proj_weight", bias


PROJECTIONS[nn.MultiheadAttention] = projected
PROJECTIONS["shifted_window_attention"] = lambda net, node: (*node.args[:2], node.kwargs.get("qkv_bias"))


@handler("_patch_merging_pad")
def patch_merging(call: Call, x: Labels) -> Labels:
    """Swin Transformer's: the channels of four neighbouring patches, one after another."""
    return Labels.along(call.along(x, -1).repeat(4), len(call.shape) - 1, call.shape)
