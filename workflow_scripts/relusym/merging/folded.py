"""An exact GCNN with half of the multiplications, in ordinary layers ("Flopping for FLOPs", arXiv 2502.05169).

Let a layer read swapped channels x₁, x₂ and write swapped y₁, y₂; let a be the kernel from x₁ to y₁ and b that from x₂
to y₁. By the kernel constraint, equation (3), those to y₂ are their mirror images, so that, with the kernel's columns
numbered by t, t' the mirror image of t, and x(t) what column t reads at a place,

    y₁ = Σ a(t) x₁(t) + b(t) x₂(t)   and   y₂ = Σ b(t') x₁(t) + a(t') x₂(t), hence
    y₁ ± y₂ = Σ (a(t) ± b(t')) (x₁(t) ± x₂(t')).

Two convolutions take the place of one: the even one reads k columns of sums of channels and writes half of the
channels, the odd one does so of differences. Each column is a channel of its own, so their kernels are one column wide,
and each has a quarter of the multiplications. A fixed channel is x₁ = x₂: its columns t and t' are added and
subtracted, which leaves (k + 1)/2 columns to the even and (k - 1)/2 to the odd convolution; fixed channels that are
written are even alone. Between fixed channels, 3×3 kernels so save a third, and 1×1 kernels nothing.

What does not save anything: to compute y₁ alone since y₂ is "its mirror image". It is that of y₁ on the mirrored image,
not on this one. Nor to fold the maps themselves, x₁(w) ± x₂(W - 1 - w): that halves them as well, but mirrored places
are far apart, so a small kernel becomes two, x(w) and x(W - 1 - w), and as many multiplications as before.

All this is of a flip; nothing depends on the images' size, nor on whether strides are symmetric at it.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from relusym.channels.groups import ChannelGroup, permute, reordered
from relusym.channels.handlers import ACTIVATIONS, ADDITIONS, layers
from relusym.channels.traced import TracedNet
from relusym.channels.tracing import bound, function_name, layer_of
from relusym.errors import UserError
from relusym.evaluation.logits import logits_of
from relusym.merging.exact_gcnn import Permutations
from relusym.merging.identities import hold, largest_difference
from relusym.pixels.flow import PixelFlow
from relusym.pixels.grid import axes
from relusym.symmetry import Symmetry

# Multiplications that a layer has to save at each place for a channel that it reads or writes, to be folded: sums and
# differences take time, too. Of 3×3 kernels, those from 128 to 128 channels (288, if all are swapped) lost time where
# it was measured, and those from 128 to 256 (384) won.
WORTHWHILE = 320
# Share of its multiplications that a layer may keep to be folded in a compiled net. Convolutions write 16 channels at
# once, so those of 37 and 27, of 64 channels of which 10 are fixed, take as long as those of 48 and 32: that lost time.
COMPILED_SHARE, AT_ONCE = 0.6, 16
CHANNELWISE = (
    *(layer for layer in ACTIVATIONS if layer is not nn.PReLU),
    *layers("Identity Dropout MaxPool2d AvgPool2d AdaptiveAvgPool2d AdaptiveMaxPool2d"),
)


class Folded(nn.Module):
    """A convolution or linear layer between channels that an involution swaps or fixes, in half the multiplications.

    Attributes:
        even, odd: ordinary layers; `odd` is None if nothing that is read or written is odd.
        read, written: how many channels are the first of two, the second, and fixed; parts without any are left out.
        gather, order: where those read stand, and those written belong, if they aren't in that order; else None.

    Args:
        layer: satisfies the kernel constraint; of a convolution, with groups 1 and zeros for padding.
        reads, writes: which channel each goes with, int64 (C_in,) and (C_out,).
        axis: of a map, -1 columns or -2 rows: which the flip reverses.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, reads: Tensor, writes: Tensor, axis: int):
        super().__init__()
        self.read, self.written = (
            [len(part) for part in _parts(partner) if len(part)] for partner in (reads, writes)
        )
        orders = {"gather": torch.cat(_parts(reads)), "order": torch.cat(_parts(writes)).argsort()}
        for name, order in orders.items():
            in_order = bool((order.diff() == 1).all())
            self.register_buffer(name, None if in_order else order, persistent=False)
        pair, other, alone = _parts(writes)
        self.conv, self.axis = isinstance(layer, nn.Conv2d), axis
        self.dim = 1 if self.conv else -1
        taps = layer.weight.detach().split(1, axis) if self.conv else (layer.weight.detach(),)
        self.taps, self.half = len(taps), len(taps) // 2
        even = [torch.cat([(tap[pair] + tap[other]) / 2, tap[alone]]) for tap in taps]
        odd = [(tap[pair] - tap[other]) / 2 for tap in taps]
        self.even = self._layer(layer, even, even[: self.taps - self.half], reads)
        self.odd = self._layer(layer, odd, odd[: self.half], reads)
        if layer.bias is not None:
            self.even.bias = nn.Parameter(layer.bias.detach()[torch.cat([pair, alone])])
        if self.conv:
            at = axis + 2  # of what is given along rows and along columns
            self.stride, self.dilation, self.padding = (
                side[at] for side in (layer.stride, layer.dilation, layer.padding)
            )
        self.to(layer.weight.device)

    def _layer(
        self, layer: nn.Module, taps: list[Tensor], fixed_taps: list[Tensor], reads: Tensor
    ) -> nn.Module | None:
        """An ordinary layer that reads the taps of the first of each two channels, then those of fixed channels."""
        first, _, fixed = _parts(reads)
        weight = torch.cat([tap[:, first] for tap in taps] + [tap[:, fixed] for tap in fixed_taps], 1)
        if not weight.numel():
            return None
        writes, reads, *kernel = weight.shape
        if self.conv:
            across = [list(side) for side in (layer.stride, layer.padding, layer.dilation)]
            for side, idle in zip(across, (1, 0, 1), strict=True):
                side[self.axis] = idle
            made = nn.Conv2d(reads, writes, kernel, *across, bias=False, device="meta")
            weight = weight.contiguous(memory_format=torch.channels_last)
        else:
            made = nn.Linear(reads, writes, bias=False, device="meta")
        made.weight = nn.Parameter(weight)
        return made

    def forward(
        self, x: Tensor | list[Tensor], apart: bool = False, write_out: bool = False
    ) -> Tensor | list[Tensor]:
        """What the layer gives, up to rounding; its channels are last in memory.

        Args:
            x: the layer's input, or its parts, as of `read`.
            apart: whether its parts are returned, as of `written`.
            write_out: whether padding starts a new pass over memory, compiled: where x takes long to compute.
        """
        if isinstance(x, Tensor):
            x = x if self.gather is None else x.index_select(self.dim, self.gather)
            x = x.split(self.read, self.dim)
        parts = [self._columns(part.movedim(self.dim, -1), write_out) for part in x]
        first, second = parts[:2] if len(parts) > 1 else ([], [])
        fixed = parts[-1] if len(parts) != 2 else []
        left = first + fixed[: self.half]
        right = second[::-1] + fixed[::-1][: self.half]
        middle = fixed[self.half : self.taps - self.half]
        even = self._read(self.even, [a + b for a, b in zip(left, right, strict=True)] + middle)
        if len(self.written) == 1:
            parts = [even]
        else:
            swapped, *alone = even.split(self.written[1:], self.dim)
            if self.odd is None:
                parts = [swapped, swapped, *alone]
            else:
                odd = self._read(self.odd, [a - b for a, b in zip(left, right, strict=True)])
                parts = [swapped + odd, swapped - odd, *alone]
        if apart:
            return parts
        y = joined(parts, self.dim)
        return y if self.order is None else y.index_select(self.dim, self.order)

    def _read(self, layer: nn.Module, columns: list[Tensor]) -> Tensor:
        return layer(torch.cat(columns, -1).movedim(-1, self.dim))

    def _columns(self, part: Tensor, write_out: bool) -> list[Tensor]:
        """What each of the kernel's columns reads of these channels, which are last, at every place."""
        if not self.conv:
            return [part]
        dim = self.axis - 1
        if self.padding:
            if write_out:
                shape = list(part.shape)
                shape[dim] = self.padding
                part = torch.cat([part.new_zeros(shape), part, part.new_zeros(shape)], dim)
            else:
                part = nn.functional.pad(part, [0, 0] * (-1 - dim) + [self.padding] * 2)
        last = part.shape[dim] - self.dilation * (self.taps - 1)  # exclusive, of the first column
        columns = [slice(t * self.dilation, t * self.dilation + last, self.stride) for t in range(self.taps)]
        return [part[..., column, :] if dim == -2 else part[..., column, :, :] for column in columns]


def joined(parts: list[Tensor], dim: int = 1) -> Tensor:
    """Parts of the channels together; in memory they are last, as `torch.cat` alone wouldn't have them, compiled."""
    return torch.cat([part.movedim(dim, -1) for part in parts], -1).movedim(-1, dim)


def _parts(partner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first and the second of each two channels that an involution swaps, and those that it fixes."""
    channels = torch.arange(len(partner))
    first = channels[channels < partner]
    return first, partner[first], channels[channels == partner]


class Parts(list[fx.Proxy]):
    """A tensor's channels in parts, as of `Folded.written`; `pooled` as a max pool gave them."""

    sizes: list[int]
    pooled = False

    def each(self, function: Callable[..., fx.Proxy], *others: list[fx.Proxy]) -> Parts:
        parts = Parts(map(function, self, *others))
        parts.sizes = self.sizes
        return parts


class _Apart(fx.Transformer):
    """A net to be compiled, whose folded layers hand on parts of the channels, through what acts on each alone.

    So what is between two layers' convolutions is one pass over memory, and two where maps are pooled: the largest of
    several is taken once, not for each column that reads it. Parts that are joined would be written and read once more.
    """

    def fetch_args_kwargs_from_env(self, node: fx.Node) -> tuple[Any, Any]:
        """With parts joined."""

        def whole(read: fx.Node) -> Any:
            if isinstance(self.env[read], Parts):
                self.env[read] = joined(self.env[read])  # for all that read it, as it may be changed in place
            return self.env[read]

        return fx.node.map_arg(node.args, whole), fx.node.map_arg(node.kwargs, whole)

    def run_node(self, node: fx.Node) -> Any:
        """The proxy of what a node gives, or the parts."""
        parts = self._apart(node)
        return super().run_node(node) if parts is None else parts

    def _apart(self, node: fx.Node) -> Parts | None:
        """What a node gives, in parts; None where it takes or gives the whole."""
        target = node.target
        layer = self.fetch_attr(target) if node.op == "call_module" else None
        read = [self.env[arg] if isinstance(arg, fx.Node) else arg for arg in node.args]
        if isinstance(layer, Folded) and len(read) == 1 and layer.conv:
            fits = isinstance(read[0], Parts) and layer.gather is None and read[0].sizes == layer.read
            apart = layer.order is None and len(layer.written) > 1
            (x,) = (list(read[0]),) if fits else self.fetch_args_kwargs_from_env(node)[0]
            how = {"apart": apart, "write_out": fits and read[0].pooled}
            made = self.tracer.create_proxy("call_module", target, (x,), how)
            if not apart:
                return made
            parts = Parts(made[place] for place in range(len(layer.written)))
            parts.sizes = layer.written
            return parts
        if not read or not isinstance(read[0], Parts) or node.kwargs:
            return None
        first, *others = read
        name = function_name(node)
        in_place = name in ("iadd", "add_") or getattr(layer, "inplace", False)
        if in_place and len(node.args[0].users) > 1:  # so that others read what was changed
            return None
        if name in ADDITIONS:
            alike = len(others) == 1 and isinstance(others[0], Parts) and others[0].sizes == first.sizes
            return first.each(operator.add, others[0]) if alike else None
        if others or not isinstance(layer, CHANNELWISE):
            return None
        if in_place:
            layer.inplace = False  # of a part, compiled, a copy of all
        how = tuple(getattr(layer, option, None) for option in ("kernel_size", "stride", "padding"))
        pools = type(layer) is nn.MaxPool2d and (layer.dilation, layer.ceil_mode) == (1, False)
        if pools and {*map(type, how)} == {int}:
            call = partial(self.tracer.create_proxy, "call_function", largest)
        else:
            how, call = (), partial(self.tracer.create_proxy, "call_module", target)
        parts = first.each(lambda part: call((part, *how), {}))
        parts.pooled = isinstance(layer, nn.MaxPool2d) or (first.pooled and isinstance(layer, nn.Identity))
        return parts


def largest(x: Tensor, size: int, stride: int, padding: int) -> Tensor:
    """`max_pool2d` as largest entries of shifted maps, which compilers take together with what is done before it."""
    x = nn.functional.pad(x, [padding] * 4, value=float("-inf")) if padding else x
    for dim in (-2, -1):
        last = x.shape[dim] - size + 1
        shifted = [x.movedim(dim, -1)[..., start : start + last : stride] for start in range(size)]
        x = reduce(torch.maximum, shifted).movedim(-1, dim)
    return x


@torch.no_grad()
def folded(
    net: TracedNet,
    symmetry: Symmetry,
    groups: list[ChannelGroup],
    permutations: Permutations,
    compiled: bool = False,
    worthwhile: float | None = None,
) -> nn.Module:
    """The net with its batch norms fused into its convolutions, and layers `Folded` where that is worthwhile.

    Its channels are in another order, swapped ones apart, so that they are read and written without being gathered.
    Depthwise and other grouped convolutions stay as they are, and layers of classes other than PyTorch's own.

    Args:
        net: satisfies the kernel constraint, as of `exact_gcnn(…).to_plain()`; it stays as it is.
        permutations: with P² = 1, that it satisfies it with.
        compiled: whether it is meant for `torch.compile`: then layers hand on their channels in parts, see `_Apart`,
            and are folded if they keep at most `COMPILED_SHARE` of their multiplications, else if they save
            `WORTHWHILE`.
        worthwhile: multiplications for each channel that a layer has to save instead; 0: fold whatever saves any.

    Raises:
        UserError: the symmetry is of another order than 2; in float64 the folded net isn't the net.
    """
    if symmetry.order != 2:
        raise UserError(
            f"symmetry {symmetry.name} is of order {symmetry.order}: nets are folded by flips alone"
        )
    axis = axes(symmetry)[-1] - 4
    wide = deepcopy(net.net).double().eval()
    expected = _planted_logits(net, wide)
    orders = {name: torch.cat(_parts(partner.cpu())) for name, partner in permutations.items()}
    wide.load_state_dict(permute(wide.state_dict(), groups, orders))
    partners = {name: order.argsort()[permutations[name].cpu()[order]] for name, order in orders.items()}
    _fuse_batch_norms(net, wide)
    calls = Counter(str(node.target) for node in net.graph.nodes if node.op == "call_module")
    read = [str(node.target) for node in net.graph.nodes if node.op == "get_attr"]
    for name in calls:
        layer = wide.get_submodule(name)
        if type(layer) not in (nn.Conv2d, nn.Linear) or any(of.startswith(f"{name}.") for of in read):
            continue
        pixels = net.flow(PixelFlow).places.get(f"{name}.weight")
        if pixels is not None and len(pixels.varies) > 1:  # no two involutions, but one of all entries
            continue
        if isinstance(layer, nn.Conv2d) and (
            layer.groups > 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str)
        ):
            continue
        writes, reads = (
            _partners(net, symmetry, groups, partners, f"{name}.weight", dim, layer.weight.shape[dim])
            for dim in range(2)
        )
        made = Folded(layer, reads, writes, axis)
        weights = [part.weight for part in (made.even, made.odd) if part is not None]
        every, kept = layer.weight.numel(), sum(weight.numel() for weight in weights)
        if compiled and worthwhile is None:
            counted = sum(-(-len(weight) // AT_ONCE) * AT_ONCE * weight[0].numel() for weight in weights)
            saves = counted <= COMPILED_SHARE * every
        else:
            least = WORTHWHILE if worthwhile is None else worthwhile
            saves = every - kept >= max(1, least * sum(layer.weight.shape[:2]))
        if saves:
            wide.set_submodule(name, made)
    order = (lambda module: _Apart(module).transform()) if compiled else (lambda module: module)
    hold({"folded": largest_difference(expected, _planted_logits(net, wide, order))})
    return order(net.module(wide.to(next(net.net.parameters()).dtype)))


def _partners(
    net: TracedNet,
    symmetry: Symmetry,
    groups: list[ChannelGroup],
    partners: Permutations,
    tensor: str,
    dim: int,
    size: int,
) -> Tensor:
    """Which entry of a dimension each goes with under the flip: by its pixel, then by its channel; int64 (size,)."""
    order, flow = torch.arange(size), net.flow(PixelFlow)
    pixels = flow.places.get(tensor)
    if pixels is not None and dim in pixels.varies:
        order = flow.order(flow.images(symmetry), pixels.ids.flatten(), tensor)
    for group in groups:
        for place in group.places:
            if (place.tensor, place.dim) == (tensor, dim):
                order = order[reordered(place, group.size, partners[group.name], size)]
    return order


def _planted_logits(
    net: TracedNet, wide: nn.Module, order: Callable[[fx.GraphModule], fx.GraphModule] = lambda module: module
) -> Tensor:
    """What a copy in float64 answers to two random images, its operations in another order."""
    planted = net.planted
    return logits_of(order(bound(planted.graph.graph, wide, planted.constants))(planted.x))


def fused(net: TracedNet) -> nn.Module:
    """The net with its batch norms fused into its convolutions, what a folded one is to be timed against."""
    copy = deepcopy(net.net).eval()
    _fuse_batch_norms(net, copy)
    return net.module(copy)


def _fuse_batch_norms(net: TracedNet, copy: nn.Module) -> None:
    """Fuse, in a copy of a net, each batch norm into the convolution that it alone reads, if both are called once."""
    graph = net.module(copy)
    calls = Counter(node.target for node in graph.graph.nodes if node.op == "call_module")
    for node in graph.graph.nodes:
        norm, before = layer_of(graph, node), node.args[0] if node.args else None
        if type(norm) is not nn.BatchNorm2d or not isinstance(before, fx.Node) or len(before.users) > 1:
            continue
        conv = layer_of(graph, before)
        if type(conv) is nn.Conv2d and calls[node.target] == calls[before.target] == 1:
            copy.set_submodule(str(before.target), fuse_conv_bn_eval(conv, norm))
            copy.set_submodule(str(node.target), nn.Identity())


def multiplications(net: TracedNet, module: nn.Module) -> int:
    """Of convolutions and linear layers, an image: of the net itself, or of the folded one, `module`."""
    total, modules = 0, dict(module.named_modules())
    for node in net.graph.nodes:
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        parts = (layer.even, layer.odd) if isinstance(layer, Folded) else (layer,)
        if isinstance(layer, Folded | nn.Conv2d | nn.Linear):
            shape = node.meta["shape"]
            places = shape.numel() // (shape[0] * shape[-1 if isinstance(parts[0], nn.Linear) else 1])
            total += places * sum(part.weight.numel() for part in parts if part is not None)
    return total
