"""How closely each layer of a net follows a symmetry: its filters, its channels' partners, its activations."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from relusym.channels.groups import ChannelGroup, by_node, random_permutations
from relusym.channels.traced import TracedNet, as_traced, net_of
from relusym.evaluation.images import ImageSource, device_of, pieces
from relusym.evaluation.invariance import moved, relative_invariance_error
from relusym.evaluation.logits import evaluating, logits_of
from relusym.matching.match import assigned
from relusym.merging.aligned import Lockstep
from relusym.merging.exact_gcnn import matched_self
from relusym.merging.moments import cross_product, group_output, portions, samples
from relusym.permutations import channel_orders
from relusym.pixels.transform import Action, actions
from relusym.precision import full_float32
from relusym.randomness import generator
from relusym.symmetry import Symmetry

ZERO_FILTER = 0.1  # a filter whose norm is below this share of the largest in its layer counts as zero
WAYS = ("matched", "identity", "random")  # to permute channels
SHARES = ("swap", "linear", "rest")  # of a layer's error
# Called with a channel group's name, the index of a batch's first image, and the group's channels on the batch and,
# moved back, on the transformed batch, (B, C, …) each.
Compared = Callable[[str, int, Tensor, Tensor], None]
SETS = ("fit", "fit", "choose", "measure")  # the uses of every four images
RIDGES = (1e-6, 1e-4, 1e-2, 1.0)  # relative to the mean eigenvalue
MOST_CHANNELS = 2048  # no linear map is fitted to larger layers
EXACT = 1e-5  # smaller relative squared errors are rounding in float32


@dataclass(frozen=True)
class Conv:
    """One convolution."""

    name: str
    group: str | None  # the channel group that it writes to; None if it writes the net's output
    filters: int
    zero_filters: int  # how many of them are zero
    kernel_constraint: float  # error in equation (3), ‖P₁ᵀτ(ψ)P₀ − ψ‖ / ‖ψ‖: 0 in a GCNN, √2 if unrelated


@dataclass(frozen=True)
class Layer:
    """One channel group, named after the last layer that writes to it.

    Attributes:
        name: the group's name.
        channels: the number of channels.
        correlation: mean correlation of the matched channels.
        equivariance: ‖Pφ(x) − τφ(τ⁻¹x)‖ / ‖φ(x)‖ over all images, for each way to choose P: "matched", "identity",
            "random"; None where it wasn't measured. 0 is equivariant, √2 is unrelated.
        shares: of the error without permutation, what a permutation removes ("swap"), what only another linear map
            removes ("linear"), and what remains ("rest"), see `ErrorShares`; None where it wasn't measured.
        fixed, swapped, longer: numbers of channels in cycles of length one, two and more of the permutation.
    """

    name: str
    channels: int
    correlation: float
    equivariance: dict[str, float | None]
    shares: dict[str, float | None]
    fixed: int
    swapped: int
    longer: int


@torch.no_grad()
def filters_and_matches(
    net: nn.Module | TracedNet,
    symmetry: Symmetry,
    groups: list[ChannelGroup],
    permutations: dict[str, Tensor],
) -> dict[str, tuple[Tensor, Tensor]]:
    """Every conv's kernel ψ and, at the same places, its counterpart P₁ᵀτ(ψ)P₀ in the transformed and permuted net.

    Args:
        net: an ordinary net (group convs written out by `to_plain`); traced, if convolutions read pixels as channels.
        groups: its channel groups.
        permutations: group name → int64 (C,): channel i is matched to channel `permutation[i]` of the transformed net.

    Returns:
        conv name, such as `features.conv2` or `layer1.0.conv1` → two tensors (c_out, c_in, k, k) on the net's device,
        or (c, 1, k, k) for a depthwise conv.
    """
    matched = matched_self(net, symmetry, groups, permutations).state_dict()
    convs = {name: layer for name, layer in net_of(net).named_modules() if isinstance(layer, nn.Conv2d)}
    return {
        name: (conv.weight.detach().contiguous(), matched[f"{name}.weight"].contiguous())
        for name, conv in convs.items()
    }


def kernel_constraint(kernel: Tensor, match: Tensor) -> float:
    """The relative error of equation (3) for one conv of `filters_and_matches`: ‖P₁ᵀτ(ψ)P₀ − ψ‖ / ‖ψ‖."""
    psi, matched = kernel.cpu().numpy(), match.cpu().numpy()
    return float(np.linalg.norm(matched - psi) / np.linalg.norm(psi))


def convs(
    net: nn.Module | TracedNet,
    symmetry: Symmetry,
    groups: list[ChannelGroup],
    permutations: Mapping[str, Tensor],
) -> list[Conv]:
    """Every convolution of a net, as in `filters_and_matches`, in the net's order, and its relative error in the kernel
    constraint. `permutations`: group name → int64 (C,), from a flip merge.
    """
    writes = {place.tensor: group.name for group in groups for place in group.places if place.dim == 0}
    measured = []
    for name, (kernel, match) in filters_and_matches(net, symmetry, groups, dict(permutations)).items():
        norms = kernel.double().flatten(1).norm(dim=1)
        zero = int((norms < ZERO_FILTER * norms.max()).sum())
        constraint = kernel_constraint(kernel, match) if norms.any() else 0.0
        measured.append(Conv(name, writes.get(f"{name}.weight"), len(norms), zero, constraint))
    return measured


def layers(
    groups: list[ChannelGroup],
    permutations: Mapping[str, Tensor],
    correlation: Mapping[str, float],
    equivariance: Mapping[str, Mapping[str, float]],
    shares: Mapping[str, Mapping[str, float]],
) -> list[Layer]:
    """The channel groups, in the net's order, with all their measurements.

    Args:
        permutations, correlation: from a flip merge, by group name.
        equivariance: as `equivariance_errors` returns it.
        shares: as `ErrorShares.shares` returns it.
    """
    measured = []
    for group in groups:
        orders = channel_orders(np.asarray(permutations[group.name]))
        fixed, swapped = (int((orders == order).sum()) for order in (1, 2))
        errors = {way: equivariance.get(group.name, {}).get(way) for way in WAYS}
        parts = {share: shares.get(group.name, {}).get(share) for share in SHARES}
        orbits = fixed, swapped, group.size - fixed - swapped
        measured.append(Layer(group.name, group.size, correlation[group.name], errors, parts, *orbits))
    return measured


def group_actions(
    net: nn.Module | TracedNet, symmetry: Symmetry, image_shape: tuple[int, ...], groups: list[ChannelGroup]
) -> tuple[dict[str, Action], dict[str, str]]:
    """How τ acts on the activations of each channel group, by name; and, where this is unknown, the reason."""
    by_output = actions(as_traced(net, image_shape), symmetry, {group.node for group in groups})
    moves = {
        group.name: by_output[group.node] if group.node else "they are numbers of heads, and no activations"
        for group in groups
    }
    unknown = {name: what for name, what in moves.items() if isinstance(what, str)}
    return {name: what for name, what in moves.items() if name not in unknown}, unknown


@dataclass
class Products:
    """Sums over samples of a layer's channels a and, on transformed images, b: Σbaᵀ and Σbbᵀ, (C, C), and Σ‖a‖²."""

    cross: Tensor | float = 0.0
    gram: Tensor | float = 0.0
    square: Tensor | float = 0.0

    def add(self, here: Tensor, there: Tensor) -> None:
        """Add the samples of a group's channels, see `Compared`."""
        for a, b in portions(samples(here), samples(there)):
            self.cross, self.gram = self.cross + cross_product(b, a), self.gram + cross_product(b, b)
            self.square = self.square + a.square().sum(dtype=torch.float64)

    def error(self, linear: Tensor) -> float:
        """Σ‖a − Mᵀb‖² / Σ‖a‖² for a linear map M, (C, C)."""
        explained = (linear * (2 * self.cross - self.gram @ linear)).sum()
        return float(1 - explained / self.square.clamp(min=1e-30))


class ErrorShares:
    """The sources of the layers' errors: permuted channels, another basis of the channels, or no symmetry at all.

    A layer φ is equivariant if φ(x) = ρ·τφ(τ⁻¹x) with a linear map ρ of its channels: the identity if each channel is
    invariant, a permutation if channels swap, as in a GCNN, or any other. A map M has the error ‖φ(x) − M·τφ(τ⁻¹x)‖² /
    ‖φ(x)‖²: e₁ for the identity, e₂ for a permutation, e₃ for a linear map. The shares of e₁ are "swap",
    (e₁ − e₂) / e₁, "linear", (e₂ − e₃) / e₁, and "rest", e₃ / e₁; they add up to 1. Maps are fitted by least squares on
    half of the images: the identity and the permutation up to a factor, and the linear map as the permutation plus a
    ridge regression, whose penalty is chosen on a quarter of the images. Errors are measured on the last quarter, so a
    share can be slightly below 0. Few images don't suffice to fit a map of many channels, which makes "rest" larger.
    SEIS (Lin, Farrahi and Cai, arXiv:2602.04054) asks the same of subspaces of activations, by a different measure.
    """

    def __init__(self, groups: list[ChannelGroup]):
        self.groups = [group for group in groups if group.size <= MOST_CHANNELS]
        self.products = {group.name: {name: Products() for name in SETS} for group in self.groups}

    def add(self, name: str, first: int, here: Tensor, there: Tensor) -> None:
        """Add a group's channels, see `Compared`."""
        for use, sums in self.products.get(name, {}).items():
            chosen = [i for i in range(len(here)) if SETS[(first + i) % len(SETS)] == use]
            if chosen:
                sums.add(here[chosen], there[chosen])

    def shares(self) -> dict[str, dict[str, float]]:
        """Group → name of the share → share, for groups that were seen on four images and have an error."""
        seen = {name: sums for name, sums in self.products.items()
                if all(isinstance(use.cross, Tensor) and float(use.square) for use in sums.values())}  # fmt: skip
        groups = [group for group in self.groups if group.name in seen]
        best = assigned(groups, {name: sums["fit"].cross.T for name, sums in seen.items()})
        shares = {name: _shares(sums, best[name]) for name, sums in seen.items()}
        return {name: parts for name, parts in shares.items() if parts}


def _shares(sums: Mapping[str, Products], permutation: Tensor) -> dict[str, float] | None:
    fit, choose, measure = sums["fit"], sums["choose"], sums["measure"]
    identity = torch.eye(len(permutation), dtype=torch.float64, device=fit.gram.device)
    size = fit.gram.trace().clamp(min=1e-30)
    same, permuted = (
        m * ((m * fit.cross).sum() / size) for m in (identity, identity[:, permutation.to(identity.device)])
    )
    values, vectors = torch.linalg.eigh(fit.gram)
    remainder = vectors.T @ (fit.cross - fit.gram @ permuted)
    maps = [permuted]
    for ridge in RIDGES:
        damped = values.clamp(min=0) + ridge * values.mean().clamp(min=1e-30)
        maps.append(permuted + vectors @ (remainder / damped[:, None]))
    first, second, third = (measure.error(m) for m in (same, permuted, min(maps, key=choose.error)))
    if first < EXACT:
        return None
    return dict(zip(SHARES, ((first - second) / first, (second - third) / first, third / first), strict=True))


@torch.no_grad()
@full_float32()
def equivariance_errors(
    net: nn.Module | TracedNet,
    images: ImageSource,
    symmetry: Symmetry,
    groups: list[ChannelGroup],
    permutations: Mapping[str, Tensor],
    *,
    seed: int = 0,
    most: int | None = None,
    compared: Compared = lambda name, first, here, there: None,
) -> tuple[dict[str, dict[str, float]], float]:
    """Each channel group's equivariance error with matched, no and random permutations, in one pass.

    The net itself runs on both images and transformed images, so the errors include those of strides that can't be
    equivariant at this image size.

    Args:
        permutations: group name → int64 (C,): channel i is matched to channel `permutation[i]` of the transformed net.
        seed: for the random permutations.
        most: layers are measured on this many images, the first ones; None: all.
        compared: called with everything that is compared, such as `ErrorShares.add`.

    Returns:
        group → way → ‖Pφ(x) − τφ(τ⁻¹x)‖ / ‖φ(x)‖, for groups on which the action of τ is known
        (`group_actions`); and the mean relative invariance error of the logits, over all images.
    """
    traced = as_traced(net, images.shape)
    net = traced.net
    device = device_of(net)
    partners = {}
    for group in groups:
        drawn = random_permutations([group], generator(seed, "random", group.name))[group.name]
        matched = torch.as_tensor(permutations[group.name])
        partners[group.name] = {"matched": matched.to(device), "identity": None, "random": drawn.to(device)}
    squares = {group.name: defaultdict(lambda: torch.zeros((), device=device)) for group in groups}
    acting, _ = group_actions(traced, symmetry, images.shape, groups)
    compared_at = by_node([group for group in groups if group.name in acting])
    invariance, count = torch.zeros((), dtype=torch.float64, device=device), 0

    def visit(node: str, outputs: list[Tensor]) -> None:
        for group in compared_at.get(node, ()) if count < most else ():
            here, there = (half[: most - count] for half in outputs[0].chunk(2))
            here, there = (group_output(group, output) for output in (here, acting[group.name](there)))
            compared(group.name, count, here, there)
            sums = squares[group.name]
            sums["whole"] += here.square().sum()
            for way, permutation in partners[group.name].items():
                other = there if permutation is None else there.index_select(1, permutation)
                sums[way] += (here - other).square_().sum()

    with evaluating(net):
        run, most = Lockstep([traced.module(inside=True)]), len(images) if most is None else most
        for x in images.batches(device):
            for piece in pieces(x, views=2):
                both = torch.cat([piece, symmetry.inverse(piece)])
                here, there = logits_of(run.run([both], visit)[0]).double().chunk(2)
                there = moved(there, symmetry)
                invariance += relative_invariance_error(here.flatten(1), there.flatten(1)).sum()
                count += len(piece)
    errors = {
        name: {way: float((sums[way] / sums["whole"].clamp(min=1e-30)).sqrt()) for way in WAYS}
        for name, sums in squares.items()
        if sums
    }
    return errors, float(invariance / count)
