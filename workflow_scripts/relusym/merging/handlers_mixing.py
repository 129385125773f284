"""What mixes channels: group norms, sums and means over them, products of matrices and attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from relusym.merging.flow import Call, handler
from relusym.merging.handlers import no_constants
from relusym.merging.labels import FIXED, Labels


def grouped(call: Call, x: Labels, groups: int, weights: list[Any]) -> Labels:
    """Group norm: the groups are permuted whole, or each one's channels, whichever leaves more permutations."""
    labels = call.along(x, 1)
    of_groups = labels.reshape(groups, -1)
    if groups > 1 and groups < of_groups.shape[1]:
        for i, channels in enumerate(of_groups):
            call.flow.ties.mark(channels, (call.node.name, i))
    elif groups > 1:
        labels = call.flow.ties.join_along(of_groups, [1], call.node.name).expand_as(of_groups).flatten()
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
def reduction(call: Call, x: Labels, *rest: Any, **options: Any) -> Labels:
    dims = options.get("dim", rest[-1 if call.node.target in ("norm",) else 0] if rest else None)
    if call.node.target is torch.linalg.vector_norm or "norm" in str(call.node.target):
        dims = options.get("dim", rest[1] if len(rest) > 1 else None)
    every = list(range(len(x.shape)))
    dims = every if dims is None else [dims] if isinstance(dims, int) else list(dims)
    dims = [dim % len(x.shape) for dim in dims] or every
    ids = call.mix(x, dims)
    if call.result.ndim < ids.ndim:
        ids = ids.reshape([size for dim, size in enumerate(ids.shape) if dim not in dims])
    return Labels(call.shape, ids)


@handler("softmax", "log_softmax", "normalize")
def along_a_dimension(call: Call, x: Labels, *rest: Any, **options: Any) -> Labels:
    return _mixed(call, x, options.get("dim", rest[-1 if len(rest) == 1 else -1] if rest else 1))


@handler(nn.Softmax, nn.LogSoftmax)
def softmax(call: Call, x: Labels) -> Labels:
    return _mixed(call, x, call.layer.dim)


def _mixed(call: Call, x: Labels, dim: int) -> Labels:
    joined = call.mix(x, [dim % len(x.shape)])
    ids = x.ids if joined.numel() == 1 else call.flow.ties.join(x.ids, joined, call.node.name)
    return Labels(call.shape, ids)


@handler(nn.GLU)
def glu(call: Call, x: Labels) -> Labels:
    one, other = (Labels.of(half) for half in x.entries.chunk(2, call.layer.dim))
    return call.combine(one, other)


# ---- products of matrices


def contracted(call: Call, operands: list[Labels], letters: list[str], output: str, step: str = "") -> Labels:
    """A sum of products, in the notation of `torch.einsum`, without repeated letters in one operand."""
    order = output + "".join(dict.fromkeys(letter for of in letters for letter in of if letter not in output))
    sizes = {letter: size for of, names in zip(operands, letters, strict=True)
             for letter, size in zip(names, of.shape, strict=True)}  # fmt: skip
    ids = None
    aligned = []
    for of, names in zip(operands, letters, strict=True):
        where = [names.index(letter) for letter in order if letter in names]
        index = [slice(None) if letter in names else None for letter in order]
        aligned.append((of.ids.permute(where)[tuple(index)], names))
    varies = {
        letter
        for entries, _ in aligned
        for letter, size in zip(order, entries.shape, strict=True)
        if size > 1
    }
    for entries, names in aligned:
        if entries.numel() == 1 and not varies & set(names):
            continue
        ids = entries if ids is None else call.flow.ties.join(ids, entries, call.node.name)
    shape = torch.Size([sizes[letter] for letter in order])
    if ids is None:
        return Labels.alike(FIXED, shape[: len(output)])
    mixed = call.mix(Labels(shape, ids), list(range(len(output), len(order))), step)
    return Labels(shape[: len(output)], mixed.reshape(mixed.shape[: len(output)]))


@handler("einsum")
def einsum(call: Call, equation: str, *operands: Any) -> Labels:
    operands = operands[0] if isinstance(operands[0], tuple | list) else operands
    reads, arrow, output = equation.replace(" ", "").partition("->")
    letters = reads.split(",")
    if not arrow or "." in equation or any(len(set(of)) < len(of) for of in letters):
        raise call.refusal(f"einsum {equation!r} isn't supported")
    return contracted(call, _all_labels(call, operands), letters, output)


@handler("matmul", "bmm", "imatmul")
def matmul(call: Call, *operands: Any) -> Labels:
    first, second = _all_labels(call, operands)
    if min(len(first.shape), len(second.shape)) < 2:
        raise call.refusal("products with vectors aren't supported")
    return _product(call, first, second)


def _product(call: Call, first: Labels, second: Labels, step: str = "") -> Labels:
    count = max(len(first.shape), len(second.shape)) - 2
    batch = "abcdefgh"[:count]
    letters = [batch[count - len(of.shape) + 2 :] + end for of, end in ((first, "ij"), (second, "jk"))]
    return contracted(call, [first, second], letters, batch + "ik", step)


def _all_labels(call: Call, operands: Any) -> list[Labels]:
    for of in operands:
        if not isinstance(of, Labels):
            raise call.refusal("products with parameters aren't supported")
    return list(operands)


@handler("scaled_dot_product_attention")
def attention(
    call: Call, query: Labels, key: Labels, value: Labels, attn_mask: Any = None, *rest: Any, **o: Any
) -> Labels:
    if isinstance(attn_mask, Labels):
        raise call.refusal("attention with a mask that depends on the image isn't supported")
    flipped = Labels(key.shape[:-2] + (key.shape[-1], key.shape[-2]), key.ids.transpose(-1, -2))
    return _product(call, _product(call, query, flipped, "scores"), value, "values")


@handler(nn.MultiheadAttention)
def multihead_attention(call: Call, query: Labels, key: Labels, value: Labels, **options: Any) -> tuple:
    """Heads stay at their places; what is read and written is permuted."""
    layer = call.layer
    if not layer._qkv_same_embed_dim or layer.bias_k is not None or options.get("attn_mask") is not None:
        raise call.refusal("attention of this kind isn't supported")
    read = call.along(query, -1)
    call.index("in_proj_weight", 1, read)
    written = call.write("out_proj.weight", 0, layer.embed_dim)
    call.index("out_proj.bias" if layer.out_proj.bias is not None else None, 0, written)
    shape = call.result[0].shape
    weights = None if call.result[1] is None else Labels.alike(FIXED, call.result[1].shape)
    return Labels.along(written, len(shape) - 1, shape), weights


@handler("shifted_window_attention", "shifted_window_attention_v2")
def window_attention(
    call: Call, input: Labels, qkv_weight: Any, proj_weight: Any, *rest: Any, **options: Any
) -> Labels:
    """Swin Transformer's, as torchvision calls it: heads stay at their places; what is read and written is permuted."""
    call.index(qkv_weight, 1, call.along(input, -1))
    written = call.write(proj_weight, 0, proj_weight.shape[0])
    call.index(options.get("proj_bias"), 0, written)
    return Labels.along(written, len(call.shape) - 1, call.shape)
