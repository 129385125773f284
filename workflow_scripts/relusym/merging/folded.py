"""An exact GCNN with half of the multiplications, in ordinary layers ("Flopping for FLOPs", arXiv 2502.05169).

Let a layer read swapped channels x₁, x₂ and write swapped channels y₁, y₂; let a be the kernel from x₁ to y₁, and b the
kernel from x₂ to y₁. By the kernel constraint, equation (3), the kernels to y₂ are their mirror images. Number the
kernel's columns by t, let t' be the mirror image of t, and x(t) what column t reads at a position. Then

    y₁ = Σ a(t) x₁(t) + b(t) x₂(t)   and   y₂ = Σ b(t') x₁(t) + a(t') x₂(t), hence
    y₁ ± y₂ = Σ (a(t) ± b(t')) (x₁(t) ± x₂(t')).

Two convolutions replace one: the even one reads k columns of sums of channels and writes half of the channels, the odd
one does the same with differences. Each column becomes a channel, so the kernels are one column wide, and each
convolution has a quarter of the multiplications. For a fixed channel, x₁ = x₂: its columns t and t' are added and
subtracted, which leaves (k + 1)/2 columns to the even and (k - 1)/2 to the odd convolution; only the even convolution
writes fixed channels. Between fixed channels, this saves a third of a 3×3 kernel, and nothing of a 1×1 kernel.

Two other ideas save nothing. One is to compute only y₁, as y₂ is "its mirror image": it is that of y₁ on the mirrored
image, not on this one. The other is to fold the maps themselves, x₁(w) ± x₂(W - 1 - w): this halves them, too,
but mirrored positions are far apart, so a small kernel becomes two, on x(w) and x(W - 1 - w), which save nothing.

All this holds for flips, at any image size, whether or not strides are symmetric there.
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

from relusym.channels.groups import ChannelGroup, Permutations, permute, reordered
from relusym.channels.handlers import ACTIVATIONS, ADDITIONS, layers
from relusym.channels.traced import TracedNet
from relusym.channels.tracing import function_name, layer_of
from relusym.errors import UserError
from relusym.evaluation.logits import logits_of
from relusym.merging.identities import hold, largest_difference
from relusym.pixels.flow import PixelFlow
from relusym.pixels.grid import axes
from relusym.symmetry import Symmetry

# A layer is folded if it saves this many multiplications per position for each channel that it reads or writes, since
# sums and differences take time, too. When measured, folding 3×3 kernels from 128 to 128 channels (288, if all are
# swapped) lost time, and folding those from 128 to 256 (384) saved time.
WORTHWHILE = 320
# In a compiled net, a layer is folded if it keeps at most this share of its multiplications. Convolutions write 16
# channels at once, so the 37 and 27 channels into which 64, 10 of them fixed, are folded take as long as 48 and 32:
# that lost time.
COMPILED_SHARE, AT_ONCE = 0.6, 16
CHANNELWISE = (
    *(layer for layer in ACTIVATIONS if layer is not nn.PReLU),
    *layers("Identity Dropout MaxPool2d AvgPool2d AdaptiveAvgPool2d AdaptiveMaxPool2d"),
)


class Folded(nn.Module):
    """A convolution or linear layer between channels that an involution swaps or fixes, in half the multiplications.

    Attributes:
        even, odd: ordinary layers; `odd` is None if nothing that is read or written is odd.
        read, written: the numbers of channels that are first and second in pairs, and fixed; zeros are left out.
        gather, order: indices that bring channels read into this order, and channels written out of it; None for
            channels already in this order.

    Args:
        layer: a layer that satisfies the kernel constraint; a convolution has one group and zero padding.
        reads, writes: each channel's partner, int64 (C_in,) and (C_out,).
        axis: the dimension of a map that the flip reverses: -1 (columns) or -2 (rows).
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
            at = axis + 2  # in options given for rows and columns
            self.stride, self.dilation, self.padding = (
                side[at] for side in (layer.stride, layer.dilation, layer.padding)
            )
        self.to(layer.weight.device)

    def _layer(
        self, layer: nn.Module, taps: list[Tensor], fixed_taps: list[Tensor], reads: Tensor
    ) -> nn.Module | None:
        """An ordinary layer that reads the taps of the first channel of each pair, then those of fixed channels."""
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
        """The output of the original layer, up to rounding, with channels last in memory.

        Args:
            x: the layer's input, or its parts, as in `read`.
            apart: whether the output's parts are returned, as in `written`.
            write_out: whether padding starts a new pass over memory when compiled, as for an x that is slow to compute.
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
        """What each of the kernel's columns reads of these channels, in the last dimension, at every position."""
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
    """Concatenate parts of the channels, with channels last in memory, which `torch.cat` alone loses when compiled."""
    return torch.cat([part.movedim(dim, -1) for part in parts], -1).movedim(-1, dim)


def _parts(partner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first and the second channels of the pairs that an involution swaps, and the channels that it fixes."""
    channels = torch.arange(len(partner))
    first = channels[channels < partner]
    return first, partner[first], channels[channels == partner]


class Parts(list[fx.Proxy]):
    """A tensor's channels in parts, as in `Folded.written`; `pooled` if a max pool wrote them."""

    sizes: list[int]
    pooled = False

    def each(self, function: Callable[..., fx.Proxy], *others: list[fx.Proxy]) -> Parts:
        parts = Parts(map(function, self, *others))
        parts.sizes = self.sizes
        return parts


class _Apart(fx.Transformer):
    """A net to be compiled, whose folded layers pass on parts of the channels, through layers that act on each alone.

    Then all operations between two layers' convolutions are one pass over memory, or two with a max pool, so maxima
    are taken once, not for each column that reads them. Joining the parts would write and read them once more.
    """

    def fetch_args_kwargs_from_env(self, node: fx.Node) -> tuple[Any, Any]:
        """The node's arguments, with parts joined."""

        def whole(read: fx.Node) -> Any:
            if isinstance(self.env[read], Parts):
                self.env[read] = joined(self.env[read])  # once, as a reader may change it in place
            return self.env[read]

        return fx.node.map_arg(node.args, whole), fx.node.map_arg(node.kwargs, whole)

    def run_node(self, node: fx.Node) -> Any:
        """The proxy of a node's output, or its parts."""
        parts = self._apart(node)
        return super().run_node(node) if parts is None else parts

    def _apart(self, node: fx.Node) -> Parts | None:
        """A node's output in parts; None if the node reads or writes whole tensors."""
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
        if in_place and len(node.args[0].users) > 1:  # all its readers have to see the change
            return None
        if name in ADDITIONS:
            alike = len(others) == 1 and isinstance(others[0], Parts) and others[0].sizes == first.sizes
            return first.each(operator.add, others[0]) if alike else None
        if others or not isinstance(layer, CHANNELWISE):
            return None
        if in_place:
            layer.inplace = False  # compiled, changing a part in place copies the whole
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
    """`max_pool2d` as the maximum of shifted maps, which compilers fuse with the operations before it."""
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

    The channels are reordered by parts, so that they are read and written without being gathered. Depthwise and other
    grouped convolutions, and layers of classes that aren't PyTorch's, are left as they are. UserError if the symmetry's
    order isn't 2; or if, in float64, the folded net's logits differ from the net's.

    Args:
        net: a net that satisfies the kernel constraint, such as `exact_gcnn(…).to_plain()`; it isn't changed.
        permutations: those of the kernel constraint, with P² = 1.
        compiled: whether the net is meant for `torch.compile`: layers then pass on their channels in parts, see
            `_Apart`, and are folded if they keep at most `COMPILED_SHARE` of their multiplications. Otherwise, they are
            folded if they save `WORTHWHILE`.
        worthwhile: multiplications per channel that a layer has to save instead; 0: fold if it saves any.
    """
    if symmetry.order != 2:
        raise UserError(
            f"symmetry {symmetry.name} is of order {symmetry.order}: nets can only be folded by flips"
        )
    axis = axes(symmetry)[-1] - 4
    wide, planted = deepcopy(net.net).double().eval(), net.planted
    expected = logits_of(planted.holding(wide)(planted.x))
    whole = [group.name for group in groups if group.heads > 1]  # their channels stay in order
    orders = {name: torch.arange(len(partner)) if name in whole else torch.cat(_parts(partner.cpu()))
              for name, partner in permutations.items()}  # fmt: skip
    wide.load_state_dict(permute(wide.state_dict(), groups, orders))
    partners = {name: order.argsort()[permutations[name].cpu()[order]] for name, order in orders.items()}
    _fuse_batch_norms(net, wide)
    calls = Counter(str(node.target) for node in net.graph.nodes if node.op == "call_module")
    read = [str(node.target) for node in net.graph.nodes if node.op == "get_attr"]
    for name in calls:
        layer = wide.get_submodule(name)
        if type(layer) not in (nn.Conv2d, nn.Linear) or any(tensor.startswith(f"{name}.") for tensor in read):
            continue
        pixels = net.flow(PixelFlow).places.get(f"{name}.weight")
        if pixels is not None and len(pixels.varies) > 1:  # pixels move along both dimensions together
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
    adapt = (lambda module: _Apart(module).transform()) if compiled else (lambda module: module)
    logits = logits_of(adapt(planted.holding(wide))(planted.x))
    hold({"folded": largest_difference(expected, logits)})
    return adapt(net.module(wide.to(next(net.net.parameters()).dtype)))


def _partners(
    net: TracedNet,
    symmetry: Symmetry,
    groups: list[ChannelGroup],
    partners: Permutations,
    tensor: str,
    dim: int,
    size: int,
) -> Tensor:
    """Each entry's partner along a dimension under the flip, by its pixel, then by its channel; int64 (size,)."""
    order, flow = torch.arange(size), net.flow(PixelFlow)
    pixels = flow.places.get(tensor)
    if pixels is not None and dim in pixels.varies:
        order = flow.order(flow.images(symmetry), pixels.ids.flatten(), tensor)
    moves = [(place, group.size, partners[group.name]) for group in groups
             for place in group.places if (place.tensor, place.dim) == (tensor, dim)]  # fmt: skip
    return order[reordered(moves, size)]


def fused(net: TracedNet) -> nn.Module:
    """The net with its batch norms fused into its convolutions, against which a folded net is timed."""
    copy = deepcopy(net.net).eval()
    _fuse_batch_norms(net, copy)
    return net.module(copy)


def _fuse_batch_norms(net: TracedNet, copy: nn.Module) -> None:
    """Fuse each batch norm of a copy of a net into the convolution that only it reads, if both are called once."""
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
    """Multiplications per image in convolutions and linear layers of `module`, the net itself or a folded one."""
    total, modules = 0, dict(module.named_modules())
    for node in net.graph.nodes:
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        parts = (layer.even, layer.odd) if isinstance(layer, Folded) else (layer,)
        if isinstance(layer, Folded | nn.Conv2d | nn.Linear):
            shape = node.meta["shape"]
            places = shape.numel() // (shape[0] * shape[-1 if isinstance(parts[0], nn.Linear) else 1])
            total += places * sum(part.weight.numel() for part in parts if part is not None)
    return total
