"""From a net and the involutions that match it to its flipped self: a GCNN, exactly (section 3, equation (3))."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from relusym.channels.groups import ChannelGroup, has_batch_norm, permute
from relusym.channels.traced import TracedNet
from relusym.evaluation.images import ImageSource
from relusym.merging.aligned import Aligned, distinct
from relusym.merging.repair import repaired, reset_batch_norm
from relusym.nets.tied import TiedNet
from relusym.pixels.transform import transformed
from relusym.symmetry import Symmetry

Permutations = dict[str, Tensor]


def corrected_halfway(aligned: Aligned, images: ImageSource) -> nn.Module:
    """The net halfway with REPAIR of the layers that have a bias; one with batch norm is reset.

    So it is of the net's class: REPAIR would give the other layers a bias, and a net with batch norm more layers.
    """
    halfway = aligned.interpolate(0.5)
    if has_batch_norm(halfway.net):
        return reset_batch_norm(halfway.net, images)
    targets = aligned.targets()
    biased = {name for name in targets if halfway.net.get_submodule(name).bias is not None}
    return repaired(halfway, {name: targets[name] for name in biased}, images)[0]


@torch.no_grad()
def matched_self(
    net: nn.Module | TracedNet, symmetry: Symmetry, groups: list[ChannelGroup], permutations: Permutations
) -> nn.Module:
    """The transformed net, its channels permuted to match: W ↦ P₁τ(W)P₀ᵀ.

    Args:
        net: if it is traced, what belongs to single pixels moves, too (`pixels.transform.transformed`).
    """
    moved = transformed(net, symmetry) if isinstance(net, TracedNet) else symmetry.transform(net)
    moved.load_state_dict(permute(moved.state_dict(), groups, permutations))
    return moved


def _copied(net: nn.Module | TracedNet, copy: nn.Module) -> nn.Module | TracedNet:
    return net.copied(copy) if isinstance(net, TracedNet) else copy


@torch.no_grad()
def project(
    net: nn.Module | TracedNet, symmetry: Symmetry, groups: list[ChannelGroup], permutations: Permutations
) -> nn.Module:
    """The nearest net that satisfies the kernel constraint: the mean over the group, of a flip ½(W + P₁τ(W)P₀ᵀ).

    Args:
        net: as of `matched_self`.
        permutations: with Pⁿ = 1, n the symmetry's order, as of `cyclic.involution` or `cyclic.cyclic`.

    Raises:
        ValueError: they haven't.
    """
    plain = net.net if isinstance(net, TracedNet) else net
    total, moved = deepcopy(plain), plain
    sums = distinct(total.state_dict())
    for _ in range(symmetry.order - 1):
        moved = matched_self(_copied(net, moved), symmetry, groups, permutations)
        state = moved.state_dict()
        for name, tensor in sums.items():
            tensor.add_(state[name])
    back = matched_self(_copied(net, moved), symmetry, groups, permutations).state_dict()
    if any(not torch.equal(tensor, back[name]) for name, tensor in plain.state_dict().items()):
        raise ValueError(f"the permutations aren't of order {symmetry.order}, so that the mean is no GCNN")
    for tensor in sums.values():
        tensor.div_(symmetry.order)
    return total


@torch.no_grad()
def orbits(
    net: nn.Module | TracedNet, symmetry: Symmetry, groups: list[ChannelGroup], permutations: Permutations
) -> dict[str, Tensor]:
    """Which entries of each tensor the constraint makes equal: int64 of its shape, orbits numbered from 0."""
    plain = net.net if isinstance(net, TracedNet) else net
    numbered = deepcopy(plain).double()  # whole numbers up to 2⁵³ are exact
    places = {
        name: torch.arange(tensor.numel(), dtype=torch.float64, device=tensor.device).reshape(tensor.shape)
        for name, tensor in numbered.state_dict().items()
    }
    numbered.load_state_dict(places)
    least, moved = places, numbered
    for _ in range(symmetry.order - 1):
        moved = matched_self(_copied(net, moved), symmetry, groups, permutations)
        state = moved.state_dict()
        least = {name: torch.minimum(first, state[name].double()) for name, first in least.items()}
    return {
        name: torch.unique(first, return_inverse=True)[1].reshape(first.shape)
        for name, first in least.items()
    }


def exact_gcnn(
    net: nn.Module | TracedNet, symmetry: Symmetry, groups: list[ChannelGroup], permutations: Permutations
) -> TiedNet:
    """`net`, made to satisfy the kernel constraint exactly, as a net that can't but satisfy it.

    Args:
        net: an ordinary net, such as the halfway net with REPAIR; as of `matched_self`.
        permutations: as of `project`.
    """
    return TiedNet(project(net, symmetry, groups, permutations), orbits(net, symmetry, groups, permutations))
