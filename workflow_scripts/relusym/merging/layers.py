"""What each layer of a net knows of a symmetry: its filters, its channels' partners, its activations."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from relusym.channels.groups import ChannelGroup, by_node, random_permutations
from relusym.channels.traced import TracedNet, as_traced
from relusym.evaluation.images import ImageSource, device_of, pieces
from relusym.evaluation.invariance import moved, relative_invariance_error
from relusym.evaluation.logits import evaluating, logits_of
from relusym.merging.kernel_constraint import filters_and_matches, kernel_constraint
from relusym.merging.lockstep import Lockstep
from relusym.permutations import channel_orders
from relusym.pixels.transform import Action, actions
from relusym.precision import full_float32
from relusym.randomness import generator
from relusym.symmetry import Symmetry

ZERO_FILTER = 0.1  # a filter whose norm is below this share of the largest in its layer counts as zero
WAYS = ("matched", "identity", "random")  # to permute channels


@dataclass(frozen=True)
class Conv:
    """One convolution.

    Attributes:
        name: the layer's.
        group: the channel group that it writes to; None: it writes the net's output.
        filters, zero_filters: how many it has, and how many of these are zero.
        kernel_constraint: by how much equation (3) fails, ‖P₁ᵀτ(ψ)P₀ − ψ‖ / ‖ψ‖: 0 is a GCNN, √2 unrelated filters.
    """

    name: str
    group: str | None
    filters: int
    zero_filters: int
    kernel_constraint: float


@dataclass(frozen=True)
class Layer:
    """One channel group, by the layer that writes it last.

    Attributes:
        name: the group's.
        channels: how many.
        correlation: mean correlation of the matched channels.
        equivariance: ‖Pφ(x) − τφ(τ⁻¹x)‖ / ‖φ(x)‖ over images together, by the way P permutes: "matched", "identity",
            "random"; None where it wasn't measured. 0 is equivariant, √2 is unrelated.
        fixed, swapped, longer: channels that are their own partner, that swap with one other, and that lie on longer
            cycles of the permutation.
    """

    name: str
    channels: int
    correlation: float
    equivariance: dict[str, float | None]
    fixed: int
    swapped: int
    longer: int


def convs(
    net: nn.Module, symmetry: Symmetry, groups: list[ChannelGroup], permutations: Mapping[str, Tensor]
) -> list[Conv]:
    """Every convolution of a net and how far it is from satisfying the kernel constraint, in the net's order.

    Args:
        permutations: group name → int64 (C,), those of a flip merge.
    """
    writes = {place.tensor: group.name for group in groups for place in group.places if place.dim == 0}
    found = []
    for name, (kernel, match) in filters_and_matches(net, symmetry, groups, dict(permutations)).items():
        norms = kernel.double().flatten(1).norm(dim=1)
        found.append(
            Conv(
                name,
                writes.get(f"{name}.weight"),
                len(norms),
                int((norms < ZERO_FILTER * norms.max()).sum()),
                kernel_constraint(kernel, match) if norms.any() else 0.0,
            )
        )
    return found


def layers(
    groups: list[ChannelGroup],
    permutations: Mapping[str, Tensor],
    correlation: Mapping[str, float],
    equivariance: Mapping[str, Mapping[str, float]],
) -> list[Layer]:
    """The channel groups with all that was measured of them, in the net's order.

    Args:
        permutations, correlation: of a flip merge, by the groups' names.
        equivariance: as `equivariance_errors` gives it.
    """
    found = []
    for group in groups:
        orders = channel_orders(np.asarray(permutations[group.name]))
        fixed, swapped = (int((orders == order).sum()) for order in (1, 2))
        errors = equivariance.get(group.name, {})
        found.append(
            Layer(
                group.name,
                group.size,
                correlation[group.name],
                {way: errors.get(way) for way in WAYS},
                fixed,
                swapped,
                group.size - fixed - swapped,
            )
        )
    return found


def group_output(group: ChannelGroup, output: Tensor) -> Tensor:
    """A group's channels of its node's output, wherever they lie: (B, C, …), of tokens (B, C, T)."""
    place = group.matched
    output = output.movedim(place.dim, 1)
    if place.entries is None and place.block == 1:
        return output
    chosen = output[:, place.index(group.size, output.device).flatten()]
    return chosen if place.block == 1 else chosen.unflatten(1, (group.size, place.block))


def group_actions(
    net: nn.Module | TracedNet, symmetry: Symmetry, image_shape: tuple[int, ...], groups: list[ChannelGroup]
) -> tuple[dict[str, Action], dict[str, str]]:
    """What τ does to the activations of channel groups, by name; and of those where it isn't known, why."""
    of_nodes = actions(as_traced(net, image_shape), symmetry, {group.node for group in groups})
    found = {
        group.name: of_nodes[group.node] if group.node else "they are numbers of heads, and no activations"
        for group in groups
    }
    unknown = {name: what for name, what in found.items() if isinstance(what, str)}
    return {name: what for name, what in found.items() if name not in unknown}, unknown


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
) -> tuple[dict[str, dict[str, float]], float]:
    """How far each channel group is from equivariant with matched, no and random permutations, in one pass.

    It is the net itself that is run, on images and on transformed ones, so that strides that can't be equivariant at
    this size count as well.

    Args:
        permutations: group name → int64 (C,): channel i goes with channel `permutation[i]` of the transformed net.
        seed: of the random permutations.
        most: images that layers are measured on; None: all.

    Returns:
        group → way → ‖Pφ(x) − τφ(τ⁻¹x)‖ / ‖φ(x)‖, of the groups of which `group_actions` knows what τ does. And the
        mean relative invariance error of the logits, over all images.
    """
    traced = as_traced(net, images.shape)
    net = traced.net
    device = device_of(net)
    partners = {
        group.name: {
            "matched": torch.as_tensor(permutations[group.name]).to(device),
            "identity": None,
            "random": random_permutations([group], generator(seed, "random", group.name))[group.name].to(
                device
            ),
        }
        for group in groups
    }
    squares: dict[str, dict[str, Tensor]] = defaultdict(
        lambda: defaultdict(lambda: torch.zeros((), device=device))
    )
    acting, _ = group_actions(traced, symmetry, images.shape, groups)
    of_node = by_node([group for group in groups if group.name in acting])
    invariance, count = torch.zeros((), dtype=torch.float64, device=device), 0

    def visit(node: str, outputs: list[Tensor]) -> None:
        for group in of_node.get(node, ()) if count < most else ():
            here, there = outputs[0].chunk(2)
            here, there = (group_output(group, of) for of in (here, acting[group.name](there)))
            sums = squares[group.name]
            sums["whole"] += here.square().sum()
            for way, permutation in partners[group.name].items():
                other = there if permutation is None else there.index_select(1, permutation)
                sums[way] += (here - other).square_().sum()

    with evaluating(net):
        run, most = Lockstep([traced.module(inside=True)]), len(images) if most is None else most
        for x in images.batches(device):
            for piece in pieces(x, views=2):
                back = piece
                for _ in range(symmetry.order - 1):
                    back = symmetry.act(back)
                here, there = logits_of(run.run([torch.cat([piece, back])], visit)[0]).double().chunk(2)
                there = moved(there, symmetry)
                invariance += relative_invariance_error(here.flatten(1), there.flatten(1)).sum()
            count += len(x)
    errors = {
        name: {way: float((sums[way] / sums["whole"].clamp(min=1e-30)).sqrt()) for way in WAYS}
        for name, sums in squares.items()
    }
    return errors, float(invariance / count)
