"""What PyTorch's layers and functions do to channels: a small handler for each; those of `both` serve pixels, too."""

from __future__ import annotations

import math
import string
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from relusym.channels.flow import ENTRYWISE, Call, padded
from relusym.channels.labels import FIXED, Labels, Weights
from relusym.channels.tracing import PROJECTIONS, function_name, handler, view_of

both = partial(handler, on="both")


def layers(names: str, *sizes: str) -> tuple[type[nn.Module], ...]:
    """PyTorch's layers of these names, with each of these suffixes, such as "2d"."""
    return tuple(getattr(nn, name + size) for name in names.split() for size in sizes or ("",))


SIZES = "1d", "2d", "3d"
ACTIVATIONS = layers(
    "ReLU ReLU6 LeakyReLU RReLU ELU SELU CELU GELU SiLU Mish Hardswish Hardtanh Tanh Softplus PReLU"
)
ADDITIONS = {"add", "iadd", "add_"}
BATCH_NORMS = (*layers("BatchNorm", *SIZES), nn.SyncBatchNorm)
INSTANCE_NORMS = layers("InstanceNorm", *SIZES)
CONVS = layers("Conv", *SIZES)
TRANSPOSED = layers("ConvTranspose", *SIZES)
FUNCTIONS = {
    "activating": """
        relu relu6 leaky_relu elu selu celu gelu silu mish hardswish hardtanh tanh softplus clamp_min prelu""",
    "entrywise": """
        add iadd sub isub subtract rsub mul imul multiply div truediv itruediv true_divide floordiv divide pow ipow
        float_power maximum minimum fmax fmin addcmul addcdiv where lerp atan2 hypot logaddexp xlogy remainder fmod
        mod clamp clip clamp_max exp exp2 expm1 log log1p log2 log10 sqrt rsqrt square abs neg negative sign sgn erf
        erfc sin cos tan asin acos atan sinh cosh asinh acosh sinc reciprocal round floor ceil trunc frac nan_to_num
        heaviside hardshrink softshrink tanhshrink threshold sigmoid hardsigmoid softsign logsigmoid logit
        masked_fill gt lt ge le eq ne greater less logical_and logical_or logical_xor logical_not invert bitwise_and
        bitwise_or and or isnan isinf isfinite fake_quantize_per_tensor_affine complex polar conj angle""",
    "same": """
        dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout stochastic_depth contiguous clone detach to
        type float double half bfloat16 bool int long requires_grad""",
    "moves": """
        view reshape flatten unflatten permute transpose swapaxes movedim moveaxis t unsqueeze squeeze expand expand_as
        view_as reshape_as broadcast_to getattr getitem chunk split split_with_sizes tensor_split unbind narrow select
        index_select gather take_along_dim flip rot90 repeat repeat_interleave tile stack hstack vstack dstack
        pixel_shuffle pixel_unshuffle channel_shuffle diagonal view_of""",
    "reduces": "mean sum amax amin prod var std norm linalg_norm linalg_vector_norm logsumexp",
    "pools": "max_pool avg_pool adaptive_avg_pool adaptive_max_pool",
}
# functions that multiply by a matrix or a kernel, as layers do
PRODUCTS = {"linear", "matmul", "bmm", "mm", "addmm", "einsum", "tensordot", "cdist",
            "conv1d", "conv2d", "conv3d"}  # fmt: skip
STACKS = {"stack", "hstack", "vstack", "dstack"}
NAMES = {kind: names.split() for kind, names in FUNCTIONS.items()}
ACTIVATING = set(NAMES["activating"])

# ---- convolutions and linear layers


def convolved(call: Call, x: Any, weight: Any, bias: Any, groups: int, transposed: bool, dim: int) -> Labels:
    """The channels of a convolution, or of a linear layer along the last dimension."""
    if isinstance(weight, Labels | Tensor):
        return _filtered(call, x, weight, bias, groups, dim)
    shape = call.layer.weight.shape if isinstance(weight, str) else weight.shape
    reads, writes = (0, 1) if transposed else (1, 0)
    if not isinstance(x, Labels):  # such as a table of positions, read by an inner net
        if isinstance(x, Weights):
            call.fix(x)
        x = Labels.alike(FIXED, x.shape)
    pointwise = groups == 1 and all(size == 1 for size in shape[2:])
    if x.varies and dim % len(x.shape) not in x.varies and pointwise:
        call.fix(weight, bias)  # it mixes positions, alike for all channels
        return Labels(call.shape, no_constants(x.ids))
    read = call.along(x, dim)
    if groups == 1:
        written = projected(call, read, weight, bias, shape[writes], reads)
    else:
        written = _grouped(call, read.clamp(min=FIXED).reshape(groups, -1), weight, transposed, dim)
        call.index(bias, 0, written)
    return Labels.along(written, dim, call.shape)


def _grouped(call: Call, rows: Tensor, weight: Any, transposed: bool, dim: int) -> Tensor:
    """The channels that a grouped convolution writes; a row of channels is read by each group.

    A group's input and output channels are heads, permuted alike; along dimension 1, a kernel has those of its own
    group. If kernels are computed, or the convolution is depthwise, a group's channels move as one.
    """
    relations, where, count = call.relations, call.node.name, call.shape[dim] // len(rows)
    heads = call.is_whole(weight) and (rows.shape[1], count) != (1, 1)
    if heads:
        written = relations.fresh(call.shape[dim]).reshape(len(rows), -1)
        relations.nest(written, [1], where, relations.nest(rows, [1], where))
    else:
        each = relations.join_along(rows, [1], where)
        rows, written = each.expand_as(rows), each.expand(-1, count)
    outer, inner = (rows, written) if transposed else (written, rows)
    call.index(weight, 0, outer.flatten())
    if heads and inner.shape[1] > 1:
        call.index(weight, 1, inner.repeat_interleave(outer.shape[1], 0))
    call.writes(written.flatten())
    return written.flatten()


def projected(call: Call, read: Tensor, weight: Any, bias: Any, count: int, reads: int = 1) -> Tensor:
    """The labels of the channels that a matrix or kernel of parameters writes; it reads along dimension `reads`."""
    call.index(weight, reads, read)
    written = call.write(weight, 1 - reads, count)
    call.index(bias, 0, written)
    return written


def _filtered(call: Call, x: Any, weight: Any, bias: Any, groups: int, dim: int) -> Labels:
    """A convolution with a kernel that is no parameter, such as a fixed blur: the same for each channel, or refused."""
    same = isinstance(weight, Tensor) and bool((weight == weight[:1]).all())
    if not (same and isinstance(x, Labels) and groups == len(weight) == x.shape[dim]) or bias is not None:
        raise call.refusal("its kernel is computed in an unknown way")
    return Labels.along(call.along(x, dim), dim, call.shape)


@handler(*CONVS, *TRANSPOSED, *(name + size for name in ("conv", "conv_transpose") for size in SIZES))
def conv(
    call: Call, input: Any, weight: Any = None, bias: Any = None, *rest: Any, groups: int = 1, **options: Any
) -> Labels:
    if layer := call.layer:
        return convolved(call, input, "weight", "bias", layer.groups, layer.transposed, 1 - layer.weight.ndim)
    groups = rest[3] if len(rest) > 3 else groups  # fourth for conv and conv_transpose alike
    transposed = "transpose" in function_name(call.node)
    return convolved(call, input, weight, bias, groups, transposed, 1 - len(weight.shape))


@handler("deform_conv2d")
def deformed(call: Call, input: Labels, weight: Any, offset: Any, mask: Any, bias: Any, *rest: Any) -> Labels:
    """torchvision's; its offsets and its mask have a fixed order, and are shared by all channels that it reads."""
    if offset.shape[1] != 2 * weight.shape[2:].numel():
        raise call.refusal("offsets of several groups of channels aren't supported")
    call.fix(offset, mask)
    return convolved(call, input, weight, bias, input.shape[1] // weight.shape[1], False, -3)


@handler(nn.Linear, "linear")
def linear(call: Call, input: Any, weight: Any = "weight", bias: Any = None) -> Labels:
    return convolved(call, input, weight, bias if call.layer is None else "bias", 1, False, -1)


# ---- norms


def no_constants(ids: Tensor) -> Tensor:
    """The labels after an operation with a weight for each channel, which makes constants differ between channels."""
    return ids.clamp(min=FIXED)


@handler(*BATCH_NORMS, *INSTANCE_NORMS)
def batch_norm(call: Call, x: Labels) -> Labels:
    labels = call.along(x, 1)
    indexed = [key for key, tensor in call.layer.state_dict().items() if tensor.ndim]
    for key in indexed:
        call.index(key, 0, labels)
    return Labels.along(no_constants(labels) if indexed else labels, 1, call.shape)


@handler("batch_norm", "instance_norm")
def batch_norm_function(
    call: Call, input: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None, *rest: Any,
    **options: Any,
) -> Any:  # fmt: skip
    if isinstance(input, Weights):  # weight standardisation
        if any(isinstance(parameter, Labels | Tensor) for parameter in (weight, bias)):
            raise call.refusal("parameters are normalised in an unknown way")
        scale = [parameter.moved(lambda ids: ids.reshape(1, -1, 1))
                 for parameter in (weight, bias) if parameter is not None]  # fmt: skip
        return call.combine(input, *scale)
    labels = call.along(input, 1)
    for weights in (running_mean, running_var, weight, bias):
        call.index(weights, 0, labels)
    return Labels.along(no_constants(labels), 1, call.shape)


@handler(nn.PReLU, "prelu")
def prelu(call: Call, x: Labels, weight: Any = "weight") -> Labels:
    labels = call.along(x, 1)
    if (weight if call.layer is None else call.layer.weight).shape.numel() > 1:
        call.index(weight, 0, labels)
        labels = no_constants(labels)
    return Labels.along(labels, 1, call.shape)


@both(nn.LayerNorm, nn.RMSNorm, "layer_norm", "rms_norm")
def layer_norm(
    call: Call,
    input: Labels,
    normalized_shape: Any = None,
    weight: Any = None,
    bias: Any = None,
    eps: float = 0,
) -> Labels:
    """A norm over the last dimensions, with a weight for each of their entries."""
    if layer := call.layer:
        normalized_shape = layer.normalized_shape
        weight, bias = (key if getattr(layer, key, None) is not None else None for key in ("weight", "bias"))
    call.mix(input, list(range(input.ids.ndim - len(normalized_shape), input.ids.ndim)))
    if isinstance(bias, float):  # rms_norm's eps, since it has no bias
        bias = None
    if weight is None and bias is None:
        return Labels(call.shape, input.ids)
    ids = no_constants(input.ids)
    for weights in (weight, bias):
        if isinstance(weights, str):
            numbers = torch.arange(math.prod(normalized_shape)).reshape(normalized_shape)
            weights = Weights(numbers.shape, {f"{call.node.target}.{weights}": numbers})
        if weights is not None:
            call.meet(weights, ids)
    return Labels(call.shape, ids)


@handler(nn.GroupNorm, "group_norm")
def group_norm(
    call: Call, input: Labels, num_groups: int = 1, weight: Any = None, bias: Any = None, eps: float = 0
) -> Labels:
    """The norm's groups are permuted whole, and channels within each group."""
    if call.layer:
        num_groups, weight, bias = call.layer.num_groups, "weight", "bias"
    labels = call.along(input, 1)
    rows = labels.reshape(num_groups, -1)
    call.mix(Labels(rows.shape, rows), [1])
    for weights in (weight, bias):
        call.index(weights, 0, labels)
    return Labels.along(no_constants(labels), 1, call.shape)


# ---- sums, means and the like


def dims_of(call: Call, x: Any, rest: tuple, options: dict[str, Any], default: Any = None) -> list[int]:
    """The dimensions along which an operation works, from its arguments after the tensor; [] if along all."""
    name = function_name(call.node) or ""
    if name.startswith(("norm", "linalg", "fft")) or name in ("kthvalue", "topk", "diff"):
        rest = rest[1:]  # which follows an order or a number
    dims = options.get("dim", options.get("axis", rest[0] if rest else default))
    dims = [] if dims is None else [dims] if isinstance(dims, int) else dims
    return [dim % len(x.shape) for dim in dims]


@both(*NAMES["reduces"])
def reduction(call: Call, x: Any, *rest: Any, **options: Any) -> Any:
    every = list(range(len(x.shape)))
    dims = dims_of(call, x, rest, options) or every
    kept = every if call.result.ndim == len(x.shape) else [dim for dim in every if dim not in dims]
    if isinstance(x, Weights):
        first = tuple(slice(1) if dim in dims else slice(None) for dim in every)
        return replace(x.moved(lambda ids: ids[first].reshape(call.shape)), pooled=frozenset(x.sources))
    ids = call.mix(x, dims)
    return Labels(call.shape, ids.reshape([ids.shape[dim] for dim in kept]))


@both("softmax", "log_softmax", "normalize", nn.Softmax, nn.LogSoftmax)
def along_a_dimension(call: Call, x: Any, *rest: Any, **options: Any) -> Any:
    """Each entry is computed from itself and from all entries along the dimension, whatever their order."""
    if isinstance(x, Weights):
        return x
    options = options if call.layer is None else vars(call.layer)
    call.mix(x, dims_of(call, x, rest, options, 1))
    return Labels(call.shape, x.ids)


@both("max", "min", "argmax", "argmin", "median", "nanmedian", "mode", "kthvalue", "topk", "sort")
def ranked(call: Call, x: Any, other: Any = None, *rest: Any, **options: Any) -> Any:
    """The largest entry along a dimension, and the like; and its index, which depends on the order of entries."""
    if isinstance(other, Labels | Weights | Tensor):
        return entrywise(call, x, other)
    results = call.result if isinstance(call.result, tuple) else (call.result,)
    rest = () if other is None else (other, *rest)
    dims = dims_of(call, x, rest, options, -1 if len(results) > 1 else None)
    where = function_name(call.node).startswith("arg")
    if (where and not dims) or (isinstance(x, Weights) and len(results) > 1):
        raise call.refusal("it uses the index of an entry")
    if isinstance(x, Weights) or not dims:
        return reduction(call, x, *rest, **options)
    where |= any(function_name(user) == "getitem" and user.args[1] == 1 for user in call.node.users)
    if where and dims[0] in x.varies:
        raise call.refusal("it uses the index of an entry")
    ids = call.mix(x, dims)
    ids = ids if results[0].ndim == len(x.shape) else ids.squeeze(dims[0])
    labels = tuple(Labels(result.shape, ids) for result in results)
    return labels if isinstance(call.result, tuple) else labels[0]


@both(
    "cumsum",
    "cumprod",
    "logcumsumexp",
    "diff",
    *(f"fft_{i}{r}fft{d}" for i in ("", "i") for r in ("", "r") for d in ("", "2")),
)
def in_order(call: Call, x: Labels, *rest: Any, **options: Any) -> Labels:
    """Operations that depend on the order of entries along dimensions."""
    default = (-2, -1) if function_name(call.node).endswith("2") else -1
    dims = dims_of(call, x, rest, options, default)
    if set(dims) & set(x.varies):
        raise call.refusal(f"it depends on the order of what lies along dimension {dims[0]}")
    return Labels(call.shape, x.ids)


@both("cosine_similarity", "pairwise_distance")
def compared(call: Call, x1: Any, x2: Any, dim: int | None = None, *rest: Any, **options: Any) -> Labels:
    letters = "abcdefgh"[: max(len(x1.shape), len(x2.shape))]
    dim = -1 if function_name(call.node) == "pairwise_distance" else 1 if dim is None else dim
    names = [letters[len(letters) - len(x.shape) :] for x in (x1, x2)]
    return contracted(call, _operands([x1, x2]), names, letters.replace(letters[dim], ""))


@both("cdist")
def distances(call: Call, x1: Any, x2: Any, *rest: Any, **options: Any) -> Labels:
    return _product(call, *_operands([x1, x2]), columns="jk")


@both(nn.GLU, "glu")
def glu(call: Call, input: Labels, dim: int = -1) -> Labels:
    dim = dim if call.layer is None else call.layer.dim
    return call.combine(*(Labels.of(half) for half in input.entries.chunk(2, dim)))


# ---- products of matrices, and attention


def contracted(call: Call, operands: list[Any], letters: list[str], output: str, step: str = "") -> Labels:
    """A sum of products, in the notation of `torch.einsum`, without repeated letters in one operand.

    It writes channels along the last dimension that only a parameter has; along others, entries stay at their places.
    """
    order = output + "".join(dict.fromkeys(letter for letter in "".join(letters) if letter not in output))
    sizes: dict[str, int] = {}
    for operand, names in zip(operands, letters, strict=True):
        for letter, size in zip(names, operand.shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))  # batch dimensions are broadcast

    def arranged(entries: Tensor, names: str) -> Tensor:
        where = [names.index(letter) for letter in order if letter in names]
        return entries.permute(where)[tuple(slice(None) if letter in names else None for letter in order)]

    pairs = list(zip(operands, letters, strict=True))
    factors = [replace(x, sources={name: arranged(padded(entries, len(names)), names)
                                   for name, entries in x.sources.items()})
               for x, names in pairs if isinstance(x, Weights)]  # fmt: skip
    if len(factors) == len(pairs):
        for letter in order[len(output) :]:  # units between factors, such as those of a kernel of low rank
            holding = [(x, names.index(letter)) for x, names in pairs if letter in names]
            written = call.relations.written(sizes[letter], False) if len(holding) > 1 else None
            for weights, where in holding if written is not None else ():
                call.index(weights, where, written)
        return _of_weights(call, factors, len(output))
    aligned = [(arranged(x.ids, names), x, names) for x, names in pairs if isinstance(x, Labels)]
    varies = {letter for ids, *_ in aligned for letter, n in zip(order, ids.shape, strict=True) if n > 1}
    ids, known = None, ()
    for entries, x, names in aligned:
        if entries.numel() == 1 and not varies & set(names):
            continue
        has = dict(zip(names, x.shape, strict=True))
        present = tuple(has.get(letter, 1) for letter in order)
        ids = entries if ids is None else call.relations.meet(ids, known, entries, present, call.node.name)
        known = tuple(map(max, known, present)) or present
    if ids is None:
        ids = torch.full([1] * len(order), FIXED)
    for weights in factors:
        call.meet(weights, ids)
    shape = torch.Size([sizes[letter] for letter in order])
    summed = range(len(output), len(order))
    mixed = call.mix(Labels(shape, ids), [*summed], step)
    sums = any(ids.shape[dim] > 1 for dim in summed)
    for dim, letter in reversed([*enumerate(output)]):
        holding = [(x, names.index(letter)) for x, names in pairs if letter in names and sizes[letter] > 1]
        if mixed.numel() > 1 or not holding or not all(isinstance(x, Weights) for x, _ in holding):
            continue
        if (written := call.relations.written(sizes[letter], sums)) is not None:
            for weights, where in holding:
                call.index(weights, where, written)
            call.writes(written)
            written = Labels.along(written, dim, shape).ids
            mixed = call.relations.join(mixed, written, call.node.name) if mixed > FIXED else written
    return Labels(shape[: len(output)], mixed.reshape(mixed.shape[: len(output)]))


def _of_weights(call: Call, factors: list[Weights], kept: int) -> Weights:
    """A product of parameters, such as of two low-rank matrices: entries along summed dimensions stay in place."""
    sources: dict[str, Tensor] = {}
    pooled: set[str] = set()
    for weights in factors:
        for name, entries in weights.sources.items():
            if name in sources:
                raise call.refusal(f"{name} is used in several ways")
            first = entries[(slice(None),) * kept + (slice(1),) * (entries.ndim - kept)]
            sources[name] = first.reshape(entries.shape[:kept])
            pooled |= {name} if first.shape != entries.shape or name in weights.pooled else set()
    return Weights(call.shape, sources, frozenset(pooled))


@both("einsum")
def einsum(call: Call, equation: str, *operands: Any) -> Labels:
    operands = operands[0] if isinstance(operands[0], tuple | list) else operands
    reads, arrow, output = equation.replace(" ", "").partition("->")
    letters = reads.split(",")
    if not arrow:
        once = [letter for letter in sorted(set(reads) - {",", "."}) if reads.count(letter) == 1]
        output = "..." * ("..." in reads) + "".join(once)
    spare = [letter for letter in string.ascii_letters if letter not in equation]
    most = 0
    for i, (names, x) in enumerate(zip(letters, operands, strict=True)):
        if "..." in names:
            count = len(x.shape) - len(names) + 3
            letters[i], most = names.replace("...", "".join(spare[:count][::-1])), max(most, count)
    output = output.replace("...", "".join(spare[:most][::-1]))
    if any(len(set(names)) < len(names) for names in letters):
        raise call.refusal(f"einsum {equation!r} isn't supported")
    return contracted(call, _operands(operands), letters, output)


@handler("matmul", "bmm", "imatmul")
def matmul(call: Call, *operands: Any) -> Labels:
    first, second = _operands(operands)
    if isinstance(first, Labels) and isinstance(second, Weights) and len(second.shape) == 2:
        return convolved(call, first, second, None, 1, True, -1)
    if len(first.shape) < 2:
        raise call.refusal("products that begin with a vector aren't supported")
    if len(second.shape) == 1:
        places = "abcdefgh"[: len(first.shape) - 1]
        return contracted(call, [first, second], [f"{places}k", "k"], places)
    return _product(call, first, second)


def _product(call: Call, first: Labels, second: Any, step: str = "", columns: str = "kj") -> Labels:
    """A matrix product along the last two dimensions."""
    count = max(len(first.shape), len(second.shape)) - 2
    batch = "abcdefgh"[:count]
    letters = [batch[count - len(x.shape) + 2 :] + end for x, end in ((first, "ik"), (second, columns))]
    return contracted(call, [first, second], letters, batch + "ij", step)


@both("addmm", "baddbmm")
def added_product(call: Call, input: Any, first: Any, second: Any, **options: Any) -> Any:
    return call.combine(call.flow.handlers["matmul"](call, first, second), input)


@both("tensordot")
def tensor_product(call: Call, a: Any, b: Any, dims: Any = 2, **options: Any) -> Labels:
    first, second = ([*range(-dims, 0)], [*range(dims)]) if isinstance(dims, int) else dims
    letters = [list(string.ascii_lowercase[: len(a.shape)]), list(string.ascii_uppercase[: len(b.shape)])]
    for i, j in zip(first, second, strict=True):
        letters[1][j] = letters[0][i]
    output = sorted({*letters[0]} ^ {*letters[1]}, key="".join(letters[0] + letters[1]).index)
    return contracted(call, _operands([a, b]), ["".join(names) for names in letters], "".join(output))


def _operands(operands: Any) -> list[Labels | Weights]:
    return [Labels.alike(FIXED, x.shape) if isinstance(x, Tensor) else x for x in operands]


@handler("scaled_dot_product_attention")
def attention(
    call: Call, query: Labels, key: Labels, value: Labels, attn_mask: Any = None, *rest: Any, **options: Any
) -> Labels:
    scores = _product(call, query, key, "scores", "jk")
    if attn_mask is not None:
        scores = call.combine(scores, attn_mask, shape=scores.shape)
    return _product(call, scores, value, "values")


def heads_of(call: Call, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The labels of heads, (count, 1), and of the channels that they write, from those of queries, keys and values.

    Heads are permuted whole; within each, queries as keys are, and values by themselves.
    """
    query, key, value = rows.chunk(3)
    matched = call.relations.join(query, key, call.node.name)
    heads = call.relations.nest(matched.reshape(count, -1), [1], call.node.name)
    call.relations.nest(value.reshape(count, -1), [1], call.node.name, heads)
    return heads, value


@handler(nn.MultiheadAttention)
def multihead_attention(call: Call, query: Any, key: Labels, value: Labels, **options: Any) -> tuple:
    layer = call.layer
    if isinstance(query, Weights):  # learned queries
        labels = call.along(key, -1)
        call.index(query, len(query.shape) - 1, labels)
        query = Labels.along(labels, -1, query.shape)
    if not layer._qkv_same_embed_dim or layer.bias_k is not None or options.get("attn_mask") is not None:
        raise call.refusal("attention of this kind isn't supported")
    read = call.along(query, -1)
    for x in (key, value):
        read = call.relations.join(read, call.along(x, -1), call.node.name)
    rows = projected(call, read, "in_proj_weight", "in_proj_bias", 3 * layer.embed_dim)
    heads, values = heads_of(call, rows, layer.num_heads)
    written = projected(call, values, "out_proj.weight", "out_proj.bias", layer.embed_dim)
    shape, weights = call.result[0].shape, call.result[1]
    if weights is not None:
        each = weights.ndim == len(shape) + 1  # for each head, not averaged over heads
        labels = heads.flatten() if each else torch.tensor(FIXED)
        weights = Labels.along(labels, -3, weights.shape)
    return Labels.along(written, -1, shape), weights


@handler("shifted_window_attention", "shifted_window_attention_v2")
def window_attention(
    call: Call, input: Labels, qkv_weight: Any, proj_weight: Any, relative_position_bias: Any, window_size: Any,
    num_heads: int, *rest: Any, qkv_bias: Any = None, proj_bias: Any = None, logit_scale: Any = None, **options: Any,
) -> Labels:  # fmt: skip
    """The attention of torchvision's Swin Transformer."""
    rows = projected(call, call.along(input, -1), qkv_weight, qkv_bias, qkv_weight.shape[0])
    heads, values = heads_of(call, rows, num_heads)
    for x, ids in ((relative_position_bias, heads[None, :, :, None]), (logit_scale, heads[..., None])):
        if isinstance(x, Labels):  # a net computes them
            call.relations.join(x.ids, ids, call.node.name)
        elif isinstance(x, Weights):
            call.meet(x, ids)
    written = projected(call, values, proj_weight, proj_bias, proj_weight.shape[0])
    return Labels.along(written, -1, call.shape)


def _projected(net: nn.Module, node: fx.Node) -> tuple[fx.Node, Any, Any] | None:
    layer, (x, *others) = net.get_submodule(node.target), [*node.args, *node.kwargs.values()][:3]
    if not layer._qkv_same_embed_dim or any(other is not x for other in others):  # not self-attention
        return None
    bias = None if layer.in_proj_bias is None else f"{node.target}.in_proj_bias"
    return x, f"{node.target}.in_proj_weight", bias


PROJECTIONS[nn.MultiheadAttention] = _projected
PROJECTIONS["shifted_window_attention"] = lambda net, node: (*node.args[:2], node.kwargs.get("qkv_bias"))


@handler("_patch_merging_pad")
def patch_merging(call: Call, x: Labels) -> Labels:
    """Patch merging in Swin Transformer: the channels of four neighbouring patches, concatenated."""
    return Labels.along(call.along(x, -1).repeat(4), -1, call.shape)


# ---- entry by entry


@both(
    *(activation for activation in ACTIVATIONS if activation is not nn.PReLU),
    *layers("Sigmoid Hardsigmoid Softsign LogSigmoid Tanhshrink Hardshrink Softshrink Threshold Identity"),
    *layers("Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout"),
)
@both(*NAMES["same"])
def kept(call: Call, x: Any, *rest: Any, **options: Any) -> Any:
    return x


@both(*(ACTIVATING - {"prelu"}), *NAMES["entrywise"])
def entrywise(call: Call, *operands: Any, **named: Any) -> Any:
    """An entrywise function of tensors, which are broadcast."""
    tensors = [x for x in (*operands, *named.values()) if isinstance(x, Labels | Weights | Tensor)]
    if len(tensors) == 1 and tensors[0].shape == call.shape:
        return tensors[0]
    return call.combine(*tensors)


# ---- moved without being changed


@handler("_get_relative_position_bias", "roll")
@both(*NAMES["moves"], nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)
def moves(call: Call, *operands: Any, **options: Any) -> Any:
    """Operations that move entries are applied to the labels themselves."""
    x, *rest = operands
    joined = function_name(call.node) in STACKS
    if isinstance(x, tuple | list) and not joined:
        return x[rest[0]]  # an item of a tuple of tensors
    for beside in tree_leaves((rest, options)):
        if isinstance(beside, Labels) or (isinstance(x, Tensor) and isinstance(beside, Weights)):
            raise call.refusal("which entries it takes depends on the image or on parameters")
        if isinstance(beside, Weights):
            raise call.refusal(f"which entries it takes depends on {beside.name}, a tensor of floats")
    if isinstance(x, Weights) and isinstance(call.result, Tensor):
        return x.moved(lambda ids: _moved(call, ids, *rest, **options))
    if isinstance(x, Weights):
        return tuple(x.moved(lambda ids, i=i: _moved(call, ids, *rest, **options)[i])
                     for i in range(len(call.result)))  # fmt: skip
    if joined and any(isinstance(piece, Weights) for piece in x):
        if call.node.target is not torch.stack or any(isinstance(piece, Labels) for piece in x):
            raise call.refusal("its effect on parameters is unknown")
        dim = options.get("dim", rest[0] if rest else 0)
        pieces = [piece.unsqueeze(dim) if isinstance(piece, Tensor)
                  else piece.moved(lambda ids: ids.unsqueeze(dim)) for piece in x]  # fmt: skip
        return _weights_beside(call, pieces, dim % call.result.ndim)
    if joined:
        operands = call.relations.distinct([constant(call, piece).entries for piece in x]), *rest
    operands, options = tree_map(lambda x: x.entries if isinstance(x, Labels) else x, (operands, options))
    moved = _moved(call, *operands, **options)
    return Labels.of(moved) if isinstance(moved, Tensor) else tuple(map(Labels.of, moved))


def _moved(call: Call, x: Any, *rest: Any, **options: Any) -> Any:
    if call.layer is not None:
        return call.layer(x)
    if call.node.op == "call_method":
        return getattr(x, call.node.target.replace("view", "reshape"))(*rest, **options)
    return call.node.target(x, *rest, **options)


ENTRYWISE.update((kept, entrywise, moves, attention))


@both("set_item")
def assigned(call: Call, x: Any, index: Any, value: Any) -> Any:
    """Assignment to some entries; if a mask selects them, any entry may be the old one or the new one."""
    if any(isinstance(part, Labels) for part in tree_leaves(index)):
        if not isinstance(index, Labels) or index.shape != x.shape:
            raise call.refusal("which entries it assigns to is unknown")
        return call.combine(x, index, value)
    return _put(call, x, lambda x: x[index], value)


@both("set_view")
def assigned_to_view(call: Call, x: Any, value: Any, *view: Any, **kwargs: Any) -> Any:
    """A tensor after a view of it was changed in place."""
    return _put(call, x, lambda x: view_of(x, *view, **kwargs), value)


@both("index_copy", "index_fill", "scatter")
def assigned_by_index(call: Call, x: Any, dim: int, index: Any, value: Any) -> Any:
    if not isinstance(index, Tensor):
        raise call.refusal("which entries it assigns to is unknown")
    part_of = Tensor.gather if function_name(call.node).startswith("scatter") else Tensor.index_select
    return _put(call, x, lambda x: part_of(x, dim, index), value)


def _put(call: Call, x: Any, part_of: Callable[[Tensor], Tensor], value: Any) -> Any:
    value = torch.tensor(float(value)) if isinstance(value, int | float) else value
    if isinstance(x, Weights) and isinstance(value, Weights | Tensor):
        return _weights_in_another(call, x, part_of, value)
    entries = constant(call, x).entries.clone(memory_format=torch.contiguous_format)
    where = part_of(torch.arange(entries.numel()).view(entries.shape))
    part = entries.view(-1)[where]
    labels = constant(call, value).entries.expand(part.shape)
    if isinstance(value, Weights):
        call.meet(value, Labels.of(part).ids)
        labels = part
    entries.view(-1)[where] = torch.iinfo(entries.dtype).min
    rest, labels = call.relations.distinct([entries, labels])
    rest = rest.clone(memory_format=torch.contiguous_format)
    rest.view(-1)[where] = labels
    return Labels.of(rest)


def _weights_in_another(
    call: Call, x: Weights, part_of: Callable[[Tensor], Tensor], value: Weights | Tensor
) -> Weights:
    others = value.sources if isinstance(value, Weights) else {}
    if x.pooled or (others and value.pooled) or x.beside or (others and value.beside):
        raise call.refusal("it joins tensors that are computed from parameters")
    sources = {}
    where = part_of(torch.arange(x.shape.numel()).view(x.shape))
    apart = torch.zeros(x.shape)
    apart.view(-1)[where] = 1
    within = len(x.shape) > 3 and set(Labels.of(apart).varies) <= {*range(2, len(x.shape))}  # in kernels
    for name in {**x.sources, **others}:
        entries, part = (known.get(name, torch.tensor(-1)) for known in (x.sources, others))
        sources[name] = entries.expand(x.shape).clone(memory_format=torch.contiguous_format)
        sources[name].view(-1)[where] = part.expand(where.shape)
    return Weights(x.shape, sources, beside=() if within else (apart,))


@both("cat", "concat", "concatenate")
def cat(call: Call, tensors: Any, dim: int = 0, **options: Any) -> Any:
    dim = options.get("axis", dim) % call.result.ndim
    labelled = [x for x in tensors if isinstance(x, Labels)]
    if not labelled:
        return _weights_beside(call, tensors, dim)
    varies = {other for x in labelled for other in x.varies}
    tokens = varies and dim not in varies
    ids = call.relations.beside([x.ids for x in labelled], call.node.name) if tokens else None
    if ids is None:
        pieces = [_written(call, x, dim) if varies == {dim} else constant(call, x) for x in tensors]
        return Labels.of(torch.cat(call.relations.distinct([x.entries for x in pieces]), dim))
    for x in tensors:
        if isinstance(x, Weights):
            call.meet(x, ids)
        elif isinstance(x, Tensor):
            ids = call.relations.join(ids, call.constant(x, sorted(varies)).ids, call.node.name)
    return Labels(call.shape, ids)


def _written(call: Call, x: Any, dim: int) -> Labels:
    """As `constant`, but parameters beside channels, such as learned maps, are channels themselves."""
    several = isinstance(x, Weights) and x.shape[dim] > 1
    if not several or (written := call.relations.written(x.shape[dim], False)) is None:
        return constant(call, x)
    labels = Labels.along(written, dim, x.shape)
    call.meet(x, labels.ids)
    return labels


def _weights_beside(call: Call, tensors: Any, dim: int) -> Weights:
    """Parameters and constants, concatenated: where one lies, the others have no entries."""
    parameters = [(i, x) for i, x in enumerate(tensors) if isinstance(x, Weights)]
    if any(x.pooled or x.beside for _, x in parameters):
        raise call.refusal("it joins tensors that are computed from parameters")
    sources = {name: [torch.full(x.shape, -1) for x in tensors] for _, x in parameters for name in x.sources}
    for i, x in parameters:
        for name, entries in x.sources.items():
            sources[name][i] = entries.expand(x.shape)
    return Weights(call.shape, {name: torch.cat(parts, dim) for name, parts in sources.items()})


def constant(call: Call, x: Any) -> Labels:
    """The labels of a tensor to be concatenated; weights, and constants whose entries differ, are fixed."""
    if isinstance(x, Labels):
        return x
    return call.constant(x) if isinstance(x, Tensor) else Labels.alike(FIXED, x.shape)


@handler("pad")
def pad(call: Call, x: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Any:
    """Constants added beside channels get a label for themselves; beside pixels they belong to the channel."""
    if isinstance(x, Weights) and mode == "constant" and not x.pooled:
        return x.moved(lambda ids: F.pad(ids, pad, value=-1))  # such as a 1×1 kernel, added to a larger one
    if not isinstance(x, Labels):
        raise call.refusal("its effect on parameters or constants is unknown")
    pads = {x.ids.ndim - 1 - i // 2: tuple(pad[i : i + 2]) for i in range(0, len(pad), 2)}
    ids = x.ids
    for dim in x.varies:
        before, after = pads.get(dim, (0, 0))
        if (before or after) and mode != "constant":
            raise call.refusal(f"channels are padded by {mode}")
        if before < 0 or after < 0:
            ids = ids.narrow(dim, max(0, -before), ids.shape[dim] - max(0, -before) - max(0, -after))
        label = call.relations.constant(float(value or 0))
        sizes = [(*ids.shape[:dim], max(0, count), *ids.shape[dim + 1 :]) for count in (before, after)]
        ids = torch.cat([ids.new_full(sizes[0], label), ids, ids.new_full(sizes[1], label)], dim)
    return Labels(call.shape, ids)


# ---- position by position


@handler(
    *layers(
        "MaxPool AvgPool AdaptiveAvgPool AdaptiveMaxPool ZeroPad ConstantPad ReflectionPad ReplicationPad",
        *SIZES,
    ),
    *layers("LPPool1d LPPool2d Upsample UpsamplingNearest2d UpsamplingBilinear2d"),
    *(name + size for name in NAMES["pools"] for size in SIZES),
    *(f"{name}{size}_with_indices" for name in ("max_pool", "adaptive_max_pool") for size in SIZES),
    *("lp_pool2d", "interpolate", "upsample", "boolean_dispatch"),
)
def spatial(call: Call, x: Any, *rest: Any, **options: Any) -> Any:
    if isinstance(x, Weights):  # a table of positions, resized
        labels = call.relations.fresh(x.shape[1])
        call.index(x, 1, labels)
    else:
        labels = call.along(x, 1)
    # a second result has the indices of the largest entries
    return tree_map(lambda part: Labels.along(labels, 1, part.shape), call.result)


@handler("grid_sample")
def sampled(call: Call, input: Labels, grid: Any, *rest: Any, **options: Any) -> Labels:
    call.fix(grid)
    return Labels.along(call.along(input, 1), 1, call.shape)


@both("embedding")
def looked_up(call: Call, input: Any, weight: Any, *rest: Any, **options: Any) -> Weights:
    """Rows of a table, such as position embeddings."""
    if not (isinstance(input, Tensor) and isinstance(weight, Weights)):
        raise call.refusal("a table indexed by the image's values isn't supported")
    return weight.moved(lambda ids: ids[input])


@handler("unfold", "im2col", nn.Unfold)
def unfolded(call: Call, x: Labels, *rest: Any, **options: Any) -> Labels:
    """Patches as columns, each with all pixels of a patch, channel after channel; or windows of a dimension."""
    if call.node.op == "call_method":
        return moves(call, x, *rest, **options)
    labels = call.along(x, -3)
    return Labels.along(labels.repeat_interleave(call.shape[-2] // len(labels)), -2, call.shape)


@handler("fold", "col2im", nn.Fold)
def folded(call: Call, x: Labels, *rest: Any, **options: Any) -> Labels:
    """Patches summed into a map again."""
    rows = call.along(x, -2).reshape(call.shape[-3], -1)
    return Labels.along(call.relations.join_along(rows, [1], call.node.name).flatten(), -3, call.shape)
