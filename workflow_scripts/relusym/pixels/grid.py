"""Grids of positions: which layers of a net meet a size that they can't treat symmetrically (appendix A.2.1).

A layer of stride s that fits its windows from the left leaves some pixels over at the right. Its mirror image fits them
from the right, and so reads other pixels: where any are left over, a net can't be equivariant, whatever its weights.
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from relusym.channels.traced import TracedNet, as_traced
from relusym.channels.tracing import describe, function_name, record
from relusym.errors import UserError
from relusym.evaluation.logits import evaluating, logits_of
from relusym.symmetry import Symmetry, as_symmetry

WINDOWS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d)
PADS = (nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d)
WINDOW_FUNCTIONS = {  # with where kernel, stride, padding and dilation stand among the arguments
    "max_pool2d": {"kernel_size": 1, "stride": 2, "padding": 3, "dilation": 4},
    "avg_pool2d": {"kernel_size": 1, "stride": 2, "padding": 3},
    "lp_pool2d": {"kernel_size": 2, "stride": 3},
    "conv2d": {"weight": 1, "stride": 3, "padding": 4, "dilation": 5},
}
# Of maps with channels last: torchvision's Swin Transformer's, and what others cut into windows after it.
SHIFTED = ("shifted_window_attention", "shifted_window_attention_v2")
PATCHES, ROLL = "_patch_merging_pad", "roll"
SEARCHED = 64  # sizes above the images' that are tried: strides of 32 in all repeat after as many


@dataclass(frozen=True)
class Misfit:
    """A layer that meets a size at which it isn't symmetric.

    Attributes:
        layer: its name.
        stride, size: its stride, and the height or width in pixels that it meets.
        left_over: pixels of its input that are left over at the far end; below 0, by which it reaches beyond.
        pixels: how many of the image's pixels that is.
    """

    layer: str
    stride: int
    size: int
    left_over: int
    pixels: float


@dataclass(frozen=True)
class Grid:
    """How a net's strides meet an image size.

    Attributes:
        size: of the images along the axis that is mirrored, in pixels; of turns, the width.
        misfits: layers that can't be equivariant at this size.
        offset: by how many of the image's pixels the last layer of the transformed net is off in all.
        next_size: the next larger size that all layers meet symmetrically; None: there is none among the next ones.
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
    """How the net's strides meet images of this shape (channels, height, width) under a symmetry.

    Of larger images, nothing is computed but shapes.

    Raises:
        UserError: the net can't be traced, or doesn't take images of this shape.
    """
    traced, symmetry = as_traced(net, image_shape), as_symmetry(symmetry)
    if (symmetry.name, traced.image_shape) not in traced.known:
        traced.known[symmetry.name, traced.image_shape] = _grid(traced, traced.image_shape, symmetry)
    return traced.known[symmetry.name, traced.image_shape]


def _grid(traced: TracedNet, image_shape: tuple[int, int, int], symmetry: Symmetry) -> Grid:
    misfits, offset = _misfits(traced.graph, traced.net, image_shape, symmetry)
    size, (channels, height, width) = image_shape[axes(symmetry)[-1] - 1], image_shape
    next_size, without = None, _without_weights(traced.net) if misfits else None
    for more in range(1, SEARCHED if misfits else 0):
        shape = (channels, height + more, width + more)
        x = torch.empty(2, *shape, device="meta")
        if not _takes(without, x):
            break
        try:
            recorder, _ = record(without, x, traced.handlers)
        except UserError:  # what it does at this size can't be followed
            break
        if not _misfits(recorder.graph, traced.net, shape, symmetry)[0]:
            next_size = size + more
            break
    return Grid(size, misfits, offset, next_size)


def _takes(net: nn.Module, x: Tensor) -> bool:
    """Whether a net takes images of this size, and not of one alone."""
    try:
        with evaluating(net):
            return len(logits_of(net(x))) == len(x)  # `view(-1, channels)` makes images of pixels
    except Exception:  # a net raises what it likes
        return False


def _without_weights(net: nn.Module) -> nn.Module:
    """A copy that computes shapes alone."""
    shapes = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in net.parameters()}
    copied = deepcopy(net, shapes | {id(buffer): buffer.to("meta") for buffer in net.buffers()})
    for layer in copied.modules():
        if type(layer) is nn.Linear:  # to know its shape, torch would load its compiler, slower than a merge
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
        # of each node, how many pixels of the image a position is, and by how many it is off
        places: dict[fx.Node, tuple[float, float]] = {}
        pads: dict[fx.Node, tuple[int, Misfit]] = {}
        for node in graph.nodes:
            before = [places[source] for source in node.all_input_nodes if source in places]
            pixels, off = max(before, key=lambda place: abs(place[1])) if before else (1.0, 0.0)
            sources = [source for source in node.all_input_nodes if len(_shape(source)) == 4]
            size, fits = 0, None
            if (tokens := _tokens(node, axis)) is not None:
                size, fits = _shape(node.args[0])[axis - 1], tokens
                pixels = image_shape[axis - 1] / size
            elif sources and len(_shape(node)) == 4:
                size = _shape(sources[0])[axis]
                fits = _left_over(net, node, axis, size, _shape(node)[axis])
            if fits is not None:
                stride, left_over = fits
                padded = sources[0] if sources and tokens is None else None
                if left_over and misfits and padded in pads and pads[padded] == (left_over, misfits[-1]):
                    misfits.pop()  # what is left over is what was padded
                    places[padded] = pixels, off + left_over * pixels
                    off, left_over = places[padded][1], 0
                if left_over:
                    name = describe(node).removeprefix("layer ").replace("getitem", "slice")
                    misfits.append(Misfit(name, max(1, round(stride)), size, left_over, left_over * pixels))
                    if len(node.users) == 1 and _pads(net, node):
                        pads[node] = -left_over, misfits[-1]
                off += left_over * pixels
                pixels *= 1 if tokens is not None and function_name(node) != PATCHES else stride
            places[node] = pixels, off
        offset = max([offset, *(abs(off) for _, off in places.values())])
    return tuple(dict.fromkeys(misfits)), offset


def _tokens(node: fx.Node, axis: int) -> tuple[int, int] | None:
    """As `_left_over`, of windows, whose shift is the mirrored one only if it is half a window, and of patches."""
    name = function_name(node)
    if name not in (*SHIFTED, PATCHES, ROLL):
        return None
    size = _shape(node.args[0])[axis - 1]
    if name == PATCHES:
        return 2, -(size % 2)
    if name == ROLL:  # a map (B, H, W, C), seen as (B, H / window, window, W / window, window, C) thereafter
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


def _left_over(net: nn.Module, node: fx.Node, axis: int, size: int, out: int) -> tuple[float, int]:
    """A layer's stride along an axis, and how many positions of its input are left over at the far end."""
    layer = net.get_submodule(node.target) if node.op == "call_module" else None
    name = function_name(node)
    sides = slice(2 * (3 - axis), 2 * (3 - axis) + 2)  # of an axis in what pads
    plain = {"stride": None, "padding": 0, "dilation": 1}
    if isinstance(layer, WINDOWS):
        window = plain | {key: value for key, value in vars(layer).items() if key in (*plain, "kernel_size")}
    elif node.op == "call_function" and name in WINDOW_FUNCTIONS:
        at = WINDOW_FUNCTIONS[name]
        positional = {key: node.args[i] for key, i in at.items() if i < len(node.args)}
        named = {key: node.kwargs[key] for key in at if key in node.kwargs}
        window = plain | positional | named
        if "weight" in window:
            window |= {"kernel_size": _shape(window["weight"])[2:], "stride": window["stride"] or 1}
    elif isinstance(layer, nn.ConvTranspose2d):
        stride = _along(layer.stride, axis)
        return 1 / stride, -_along(layer.output_padding, axis) / stride
    elif name == "getitem" and _channels_last(node.args[1]):
        size, part = _shape(node.args[0])[axis - 1], node.args[1][axis - 1]
        stride = part.indices(size)[2] if isinstance(part, slice) else 1
        return stride, -(
            size % stride
        )  # all of a patch is read, or pixels are combined in a way that is refused
    elif name == "getitem" and len(key := _whole_key(node.args[1])) > axis:
        part = key[axis]
        start, _, stride = part.indices(size) if isinstance(part, slice) else (0, size, 1)
        return stride, size - 1 - (start + (out - 1) * stride) - start
    elif name == "narrow":
        return 1, size - out - 2 * (node.args[2] if len(node.args) > 2 else node.kwargs["start"])
    elif mode := _picks(node, layer):
        shift = int(mode == "nearest-exact")
        picked = (2 * torch.arange(out) + shift) * size // (2 * out)
        off = size - 1 - picked - picked.flip(0)
        return size / out, int(off[off.abs().argmax()])
    elif _pads(net, node) and len(_padding(node) if layer is None else layer.padding) > sides.start:
        before, after = (_padding(node) if layer is None else layer.padding)[sides]
        return 1, before - after
    else:  # adaptive pools and other interpolation are symmetric, the rest moves nothing
        return size / out, 0
    window["stride"] = window["stride"] or window["kernel_size"]
    kernel, stride, dilation = (_along(window[key], axis) for key in ("kernel_size", "stride", "dilation"))
    reach, padding = dilation * (kernel - 1), window["padding"]
    padding = {"same": reach // 2, "valid": 0}[padding] if isinstance(padding, str) else _along(padding, axis)
    return stride, size - 1 + 2 * padding - (out - 1) * stride - reach


def _pads(net: nn.Module, node: fx.Node) -> bool:
    layer = net.get_submodule(node.target) if node.op == "call_module" else None
    return function_name(node) == "pad" or isinstance(layer, PADS)


def _picks(node: fx.Node, layer: nn.Module | None) -> str | None:
    """The mode of an interpolation that picks pixels, which are on one side of the places between them."""
    if isinstance(layer, nn.Upsample):
        mode = layer.mode
    elif function_name(node) == "interpolate":
        mode = node.args[3] if len(node.args) > 3 else node.kwargs.get("mode", "nearest")
    else:
        return None
    return mode if mode.startswith("nearest") else None


def _whole_key(key: Any) -> tuple:
    """An index of a map with what `...` stands for."""
    key = key if isinstance(key, tuple) else (key,)
    if Ellipsis not in key:
        return key
    at = key.index(Ellipsis)
    return (*key[:at], *[slice(None)] * (5 - len(key)), *key[at + 1 :])


def _padding(node: fx.Node) -> tuple[int, ...]:
    return node.args[1] if len(node.args) > 1 else node.kwargs["pad"]


def _along(value: int | tuple[int, int], axis: int) -> int:
    return value[axis - 2] if isinstance(value, tuple | list) else value


def _channels_last(key: Any) -> bool:
    """Whether an index takes every second entry or so of dimensions 1 and 2, and not of 3."""
    steps = [part.step if isinstance(part, slice) else None for part in key] if isinstance(key, tuple) else []
    return len(steps) > 2 and steps[1] not in (None, 1) and all(step in (None, 1) for step in steps[3:])


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta.get("shape", ()))
