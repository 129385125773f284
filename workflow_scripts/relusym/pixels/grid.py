"""Grids of positions: which layers of a net meet a size that they can't treat symmetrically (appendix A.2.1).

A layer of stride s that fits its windows from the left leaves some pixels over at the right. Its mirror image fits them
from the right, and so reads other pixels: where any are left over, a net can't be equivariant, whatever its weights.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from relusym.channels.traced import TracedNet, as_traced
from relusym.channels.tracing import describe, function_name, layer_of, record
from relusym.errors import UserError
from relusym.evaluation.logits import evaluating, logits_of
from relusym.symmetry import Symmetry, as_symmetry

WINDOWS = (nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d)
PADS = (nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d)
WINDOW_FUNCTIONS = {  # with their arguments in order
    "max_pool2d": "input kernel_size stride padding dilation",
    "max_pool2d_with_indices": "input kernel_size stride padding dilation",
    "avg_pool2d": "input kernel_size stride padding",
    "lp_pool2d": "input norm_type kernel_size stride",
    "conv2d": "input weight bias stride padding dilation",
    "conv_transpose2d": "input weight bias stride padding output_padding",
}
# On maps with channels last: functions of torchvision's Swin Transformer, and the roll before others' windows.
SHIFTED = ("shifted_window_attention", "shifted_window_attention_v2")
JOINS = ("cat", "concat", "concatenate")
PATCHES, ROLL = "_patch_merging_pad", "roll"
SEARCHED = 64  # larger sizes that are tried; with a total stride of 32, the fit repeats after 32


@dataclass(frozen=True)
class Misfit:
    """A layer that meets a size at which it isn't symmetric."""

    layer: str  # its name
    stride: int
    size: int  # the height or width in pixels that it meets
    left_over: float  # pixels of its input left over at the far end; if negative, read beyond the end
    pixels: float  # the same in the image's pixels


@dataclass(frozen=True)
class Grid:
    """How a net's strides fit an image size.

    Attributes:
        size: of the images along the axis that is mirrored, in pixels; for rotations, the width.
        misfits: layers that can't be equivariant at this size.
        offset: by which the transformed net's positions are off at most, in the image's pixels.
        next_size: the next larger size at which all layers are symmetric; None: not among the sizes tried.
    """

    size: int
    misfits: tuple[Misfit, ...]
    offset: float
    next_size: int | None

    @property
    def symmetric(self) -> bool:
        """Whether the strides allow equivariance."""
        return not self.misfits


def axes(symmetry: Symmetry) -> tuple[int, ...]:
    """The dimensions of (B, C, H, W) that a symmetry mirrors: 2 is the height, 3 the width."""
    ramps = {2: torch.arange(2).view(1, 1, 2, 1), 3: torch.arange(2).view(1, 1, 1, 2)}
    return tuple(axis for axis, ramp in ramps.items() if not torch.equal(symmetry.act(ramp), ramp))


@torch.no_grad()
def grid(net: nn.Module | TracedNet, image_shape: tuple[int, int, int], symmetry: Symmetry | str) -> Grid:
    """How the net's strides fit images of this shape (channels, height, width) under a symmetry.

    For larger images, only shapes are computed. UserError if the net can't be traced, or doesn't take images of this
    shape.
    """
    traced, symmetry = as_traced(net, image_shape), as_symmetry(symmetry)
    if ("grid", symmetry.name) not in traced.known:
        traced.known["grid", symmetry.name] = _grid(traced, symmetry)
    return traced.known["grid", symmetry.name]


def _grid(traced: TracedNet, symmetry: Symmetry) -> Grid:
    misfits, offset = _misfits(traced.graph, traced.net, traced.image_shape, symmetry)
    channels, height, width = traced.image_shape
    size = traced.image_shape[axes(symmetry)[-1] - 1]
    next_size, shapes_only = None, _without_weights(traced.net) if misfits else None
    for more in range(1, SEARCHED if misfits else 0):
        shape = (channels, height + more, width + more)
        x = torch.empty(2, *shape, device="meta")
        if not _takes(shapes_only, x):
            break
        try:
            recorder, _ = record(shapes_only, x, traced.handlers)
        except UserError:  # the net can't be recorded at this size
            break
        if not _misfits(recorder.graph, traced.net, shape, symmetry)[0]:
            next_size = size + more
            break
    return Grid(size, misfits, offset, next_size)


def _takes(net: nn.Module, x: Tensor) -> bool:
    """Whether a net accepts images of this size, with logits for each."""
    try:
        with evaluating(net):
            return len(logits_of(net(x))) == len(x)  # `view(-1, channels)` turns pixels into images
    except Exception:  # a net may raise anything
        return False


def _without_weights(net: nn.Module) -> nn.Module:
    """A copy that computes only shapes."""
    shapes = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in net.parameters()}
    copied = deepcopy(net, shapes | {id(buffer): buffer.to("meta") for buffer in net.buffers()})
    for layer in copied.modules():
        if type(layer) is nn.Linear:  # for its shape, torch would load its compiler, slower than a merge
            layer.forward = partial(_linear, layer.in_features, layer.out_features)
    return copied


def _linear(reads: int, writes: int, x: Tensor) -> Tensor:
    if x.shape[-1] != reads:
        raise ValueError(f"{x.shape[-1]} features in place of {reads}")
    return x.new_empty(*x.shape[:-1], writes)


def _misfits(
    graph: fx.Graph, net: nn.Module, image_shape: tuple[int, ...], symmetry: Symmetry
) -> tuple[tuple[Misfit, ...], float]:
    misfits, offset = [], 0.0
    for axis in axes(symmetry):
        # node → how many of the image's pixels a position spans, and by how many it is off
        places: dict[fx.Node, tuple[float, float]] = {}
        pads: dict[fx.Node, tuple[int, Misfit]] = {}
        for node in graph.nodes:
            before = [places[source] for source in node.all_input_nodes if source in places]
            pixels, off = max(before, key=lambda place: abs(place[1])) if before else (1.0, 0.0)
            called = node
            if function_name(node) == "getitem" and not _shape(pool := node.args[0]):  # a pool with indices
                called = pool if pool.op == "call_module" or function_name(pool) in WINDOW_FUNCTIONS else node
            sources = [source for source in called.all_input_nodes if len(_shape(source)) == 4]
            size, fits = 0, None
            if (tokens := _tokens(node, axis)) is not None:
                size, fits = _shape(node.args[0])[axis - 1], tokens
                pixels = image_shape[axis - 1] / size
            elif sources and len(_shape(node)) == 4:
                size = _shape(sources[0])[axis]
                fits = _left_over(net, called, axis, size, _shape(node)[axis])
            if fits is not None:
                stride, left_over = fits
                padded = sources[0] if sources and tokens is None else None
                if left_over and misfits and padded in pads and pads[padded] == (left_over, misfits[-1]):
                    misfits.pop()  # the pixels left over are those padded
                    places[padded] = pixels, off + left_over * pixels
                    off, left_over = places[padded][1], 0
                if left_over:
                    name = describe(called).removeprefix("layer ").replace("getitem", "slice")
                    misfits.append(Misfit(name, max(1, round(stride)), size, left_over, left_over * pixels))
                    if len(node.users) == 1 and _padding(net, node):
                        pads[node] = -left_over, misfits[-1]
                off += left_over * pixels
                pixels *= 1 if tokens is not None and function_name(node) != PATCHES else stride
            places[node] = pixels, off
        offset = max([offset, *(abs(off) for _, off in places.values())])
    return tuple(dict.fromkeys(misfits)), offset


def _tokens(node: fx.Node, axis: int) -> tuple[int, int] | None:
    """As `_left_over`, for patches, and for windows, whose shift is its own mirror image only if half a window."""
    name = function_name(node)
    if name not in (*SHIFTED, PATCHES, ROLL):
        return None
    size = _shape(node.args[0])[axis - 1]
    if name == PATCHES:
        return 2, -(size % 2)
    if name == ROLL:  # (B, H, W, C), later cut to (B, H / window, window, W / window, window, C)
        users = [user for user in node.users if function_name(user) != "pad"]
        users += [user for pad in node.users if pad not in users for user in pad.users]
        cut = next((_shape(user) for user in users if len(_shape(user)) == 6), None)
        if len(_shape(node)) != 4 or cut is None:
            return None
        shifts = node.args[1] if len(node.args) > 1 else node.kwargs["shifts"]
        window, shift = cut[2 * axis - 2], -_along(shifts, axis)
    else:
        window, shift = node.args[4][axis - 2], node.kwargs["shift_size"][axis - 2]
    left_over = (size - 2 * (shift if size > window else 0)) % window
    return window, left_over if 2 * left_over <= window else left_over - window


def _left_over(net: nn.Module, node: fx.Node, axis: int, size: int, out: int) -> tuple[float, float]:
    """A layer's stride along an axis, and how many positions of its input are left over at the far end."""
    layer, name = layer_of(net, node), function_name(node)
    window: dict[str, Any] = {"stride": None, "padding": 0, "dilation": 1, "output_padding": 0}
    if isinstance(layer, WINDOWS):
        window |= vars(layer)
    elif name in WINDOW_FUNCTIONS:
        window |= dict(zip(WINDOW_FUNCTIONS[name].split(), node.args, strict=False)) | node.kwargs
        if "weight" in window:
            window |= {"kernel_size": _shape(window["weight"])[2:], "stride": window["stride"] or 1}
    elif name == "getitem" and _channels_last(node.args[1]):
        size, part = _shape(node.args[0])[axis - 1], node.args[1][axis - 1]
        stride = part.indices(size)[2] if isinstance(part, slice) else 1
        # slices that together read whole patches; otherwise the pixels are refused elsewhere
        return stride, -(size % stride)
    elif name in ("getitem", "narrow", "interpolate", "upsample") or isinstance(layer, nn.Upsample):
        read = _read_places(node, layer, axis)
        if read is None:
            return 1, size - out
        off = (-read - read.flip(0)).round(decimals=6)
        left_over = 0.0 if _mirrored(node, axis) else float(off[off.abs().argmax()])
        stride = float(read[:2].diff().sum()) if name in ("getitem", "narrow") else 0
        return stride or size / out, int(left_over) if left_over.is_integer() else left_over
    elif sides := _padding(net, node)[6 - 2 * axis : 8 - 2 * axis]:
        return 1, sides[0] - sides[1]
    else:  # adaptive pools are symmetric, and nothing else moves positions
        return size / out, 0
    window["stride"] = window["stride"] or window["kernel_size"]
    kernel, stride, dilation = (_along(window[key], axis) for key in ("kernel_size", "stride", "dilation"))
    if window.get("transposed", name == "conv_transpose2d"):
        return 1 / stride, -_along(window["output_padding"], axis) / stride
    reach, padding = dilation * (kernel - 1), window["padding"]
    padding = {"same": reach // 2, "valid": 0}[padding] if isinstance(padding, str) else _along(padding, axis)
    return stride, size - 1 + 2 * padding - (out - 1) * stride - reach


def _padding(net: nn.Module, node: fx.Node) -> tuple[int, ...]:
    """The padding before and after the last dimension, then the one before it; () for an operation that doesn't pad."""
    layer = layer_of(net, node)
    if function_name(node) == "pad":
        return node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
    return layer.padding if isinstance(layer, PADS) else ()


def _read_places(node: fx.Node, layer: nn.Module | None, axis: int) -> Tensor | None:
    """The positions on an axis, from the map's middle, of the entries that an operation without weights returns.

    float64 (size of the output,); None: they depend on other tensors.
    """
    source = next(source for source in node.all_input_nodes if len(_shape(source)) == 4)
    if function_name(node) != "getitem" and len(node.all_input_nodes) > 1:
        return None
    size = _shape(source)[axis]
    sizes = [size if dim == axis else 1 for dim in range(4)]
    places = (torch.arange(size).double() - (size - 1) / 2).reshape(sizes).expand(_shape(source))
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda x: places if x is source else None)
    call = layer or (node.target if callable(node.target) else getattr(Tensor, node.target))
    read = call(*args, **kwargs)
    return read.movedim(axis, 0).flatten(1)[:, 0] if read.shape == _shape(node) else None


def _mirrored(node: fx.Node, axis: int) -> bool:
    """Whether a slice's mirror image is another slice of the map, both read by one concatenation, as of patches."""
    if [function_name(reader) in JOINS for reader in node.users] != [True]:
        return False
    source, (joined,) = node.all_input_nodes[0], node.users
    slices = [
        x for x in joined.all_input_nodes if function_name(x) == "getitem" and x.all_input_nodes == [source]
    ]
    if node not in slices:  # what it reads depends on other tensors
        return False
    shape = _shape(source)
    x = torch.arange(math.prod(shape[1:])).reshape(1, *shape[1:]).expand(shape)
    image = x.flip(axis)[node.args[1]].flip(axis)
    return any(torch.equal(x[other.args[1]], image) for other in slices)


def _along(value: int | Sequence[int], axis: int) -> int:
    """An option's value for an axis; a single one, also in a tuple or list, is for both."""
    return value[(axis - 2) % len(value)] if isinstance(value, tuple | list) else value


def _channels_last(key: Any) -> bool:
    """Whether an index has a step along dimension 1, as of a map's height, and none from dimension 3 on."""
    steps = [part.step if isinstance(part, slice) else None for part in key] if isinstance(key, tuple) else []
    return len(steps) > 2 and steps[1] not in (None, 1) and all(step in (None, 1) for step in steps[3:])


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta.get("shape", ()))
