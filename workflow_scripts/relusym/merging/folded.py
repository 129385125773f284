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

from collections import Counter
from copy import deepcopy

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from relusym.channels.groups import ChannelGroup, permute, reordered
from relusym.channels.traced import TracedNet
from relusym.channels.tracing import bound, layer_of
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


class Folded(nn.Module):
    """A convolution or linear layer between channels that an involution swaps or fixes, in half the multiplications.

    Attributes:
        even, odd: ordinary layers; `odd` is None if nothing that is read or written is odd.

    Args:
        layer: satisfies the kernel constraint; of a convolution, with groups 1 and zeros for padding.
        reads, writes: which channel each goes with, int64 (C_in,) and (C_out,).
        axis: of a map, -1 columns or -2 rows: which the flip reverses.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, reads: Tensor, writes: Tensor, axis: int):
        super().__init__()
        self.runs: dict[str, tuple[int, int] | None] = {}
        for name, channels in zip(("first", "second", "fixed"), _parts(reads), strict=True):
            self.register_buffer(name, channels, persistent=False)
            run = bool((channels.diff() == 1).all())
            self.runs[name] = (int(channels[0]) if len(channels) else 0, len(channels)) if run else None
        pair, other, alone = _parts(writes)
        order = torch.cat([pair, other, alone]).argsort()
        self.swaps, self.ordered = bool(len(pair)), bool((order.diff() == 1).all())
        self.written = [len(part) for part in (pair, alone) if len(part)]
        self.register_buffer("order", order, persistent=False)
        self.conv, self.axis = isinstance(layer, nn.Conv2d), axis
        self.dim = 1 if self.conv else -1
        taps = layer.weight.detach().split(1, axis) if self.conv else (layer.weight.detach(),)
        self.taps, self.half = len(taps), len(taps) // 2
        even = [torch.cat([(tap[pair] + tap[other]) / 2, tap[alone]]) for tap in taps]
        odd = [(tap[pair] - tap[other]) / 2 for tap in taps]
        self.even = self._layer(layer, even, even[: self.taps - self.half])
        self.odd = self._layer(layer, odd, odd[: self.half])
        if layer.bias is not None:
            self.even.bias = nn.Parameter(layer.bias.detach()[torch.cat([pair, alone])])
        if self.conv:
            at = axis + 2  # of what is given along rows and along columns
            self.stride, self.dilation = layer.stride[at], layer.dilation[at]
            self.padding = (0, 0) * (at == 0) + (layer.padding[at],) * 2
        self.to(layer.weight.device)

    def _layer(self, layer: nn.Module, taps: list[Tensor], of_fixed: list[Tensor]) -> nn.Module | None:
        """An ordinary layer that reads the taps of the first of each two channels, then those of fixed channels."""
        weight = torch.cat([tap[:, self.first] for tap in taps] + [tap[:, self.fixed] for tap in of_fixed], 1)
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

    def forward(self, x: Tensor) -> Tensor:
        """What the layer gives, up to rounding.

        Its channels stay last in memory: `torch.cat` would put them first for an empty part, compiled for a view.
        """
        if self.conv and any(self.padding):
            x = nn.functional.pad(x, self.padding)
        first, second, fixed = (self._columns(x, name) for name in ("first", "second", "fixed"))
        left = first + fixed[: self.half]
        right = second[::-1] + fixed[::-1][: self.half]
        middle = [tap.clone() for tap in fixed[self.half : self.taps - self.half]]
        even = self.even(torch.cat([a + b for a, b in zip(left, right, strict=True)] + middle, self.dim))
        if not self.swaps:
            return even if self.ordered else even.index_select(self.dim, self.order)
        swapped, *alone = even.split(self.written, self.dim)
        if self.odd is None:
            parts = [swapped, swapped, *alone]
        else:
            odd = self.odd(torch.cat([a - b for a, b in zip(left, right, strict=True)], self.dim))
            parts = [swapped + odd, swapped - odd, *(part.clone() for part in alone)]
        y = torch.cat(parts, self.dim)
        return y if self.ordered else y.index_select(self.dim, self.order)

    def _columns(self, x: Tensor, name: str) -> list[Tensor]:
        """What each of the kernel's columns reads of these channels at every place; nothing, if there are none."""
        run = self.runs[name]
        if run and not run[1]:
            return []
        x = x.narrow(self.dim, *run) if run else x.index_select(self.dim, getattr(self, name))
        if not self.conv:
            return [x]
        last = x.shape[self.axis] - self.dilation * (self.taps - 1)  # exclusive, of the first column
        parts = [slice(t * self.dilation, t * self.dilation + last, self.stride) for t in range(self.taps)]
        return [x[..., part] if self.axis == -1 else x[..., part, :] for part in parts]


def _parts(partner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first and the second of each two channels that an involution swaps, and those that it fixes."""
    channels = torch.arange(len(partner))
    first = channels[channels < partner]
    return first, partner[first], channels[channels == partner]


@torch.no_grad()
def folded(
    net: TracedNet,
    symmetry: Symmetry,
    groups: list[ChannelGroup],
    permutations: Permutations,
    worthwhile: float = WORTHWHILE,
) -> nn.Module:
    """The net with its batch norms fused into its convolutions, and layers `Folded` where that is worthwhile.

    Its channels are in another order, swapped ones apart, so that they are read and written without being gathered.
    Depthwise and other grouped convolutions stay as they are, and layers of classes other than PyTorch's own.

    Args:
        net: satisfies the kernel constraint, as of `exact_gcnn(…).to_plain()`; it stays as it is.
        permutations: with P² = 1, that it satisfies it with.
        worthwhile: multiplications that a layer saves for each channel that it reads or writes; 0: fold what saves any.

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
        saved = layer.weight.numel() - sum(
            of.weight.numel() for of in (made.even, made.odd) if of is not None
        )
        if saved > 0 and saved >= worthwhile * sum(layer.weight.shape[:2]):
            wide.set_submodule(name, made)
    hold({"folded": largest_difference(expected, _planted_logits(net, wide))})
    return net.module(wide.to(next(net.net.parameters()).dtype))


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


def _planted_logits(net: TracedNet, wide: nn.Module) -> Tensor:
    """What a copy in float64 says of two random images."""
    planted = net.planted
    return logits_of(bound(planted.graph.graph, wide, planted.constants)(planted.x))


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
    total = 0
    for node in net.graph.nodes:
        layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        parts = (layer.even, layer.odd) if isinstance(layer, Folded) else (layer,)
        if isinstance(layer, Folded | nn.Conv2d | nn.Linear):
            shape = node.meta["shape"]
            places = shape.numel() // (shape[0] * shape[-1 if isinstance(parts[0], nn.Linear) else 1])
            total += places * sum(part.weight.numel() for part in parts if part is not None)
    return total
