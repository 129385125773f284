"""An exact GCNN, from a net and the involutions that match it to its flipped self (section 3, equation (3))."""

from collections.abc import Iterator
from copy import deepcopy
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from relusym.channels.groups import ChannelGroup, Permutations, State, permute
from relusym.channels.traced import TracedNet, net_of
from relusym.evaluation.images import ImageSource
from relusym.merging.aligned import Aligned, distinct
from relusym.merging.repair import repaired, reset_batch_norm
from relusym.nets.tied import TiedNet
from relusym.pixels.transform import transformed
from relusym.symmetry import Symmetry


def representations(permutations: Permutations) -> dict[str, dict[str, int]]:
    """Group name → how many channels these involutions fix ("fixed"), and swap ("swapped")."""
    fixed = {name: int((order == torch.arange(len(order))).sum()) for name, order in permutations.items()}
    return {
        name: {"fixed": count, "swapped": len(permutations[name]) - count} for name, count in fixed.items()
    }


def corrected_halfway(aligned: Aligned, images: ImageSource) -> nn.Module:
    """The net halfway with REPAIR of the layers that have a bias or, with batch norm, with its batch norms reset.

    This keeps the architecture: REPAIR would add biases to the other layers, and layers to a net with batch norm.
    """
    halfway = aligned.interpolate(0.5)
    if halfway.has_batch_norm:
        return reset_batch_norm(halfway.net, images)
    targets = {name: target for name, target in aligned.targets().items()
               if halfway.net.get_submodule(name).bias is not None}  # fmt: skip
    return repaired(halfway, targets, images)[0]


@torch.no_grad()
def matched_self(
    net: nn.Module | TracedNet, symmetry: Symmetry, groups: list[ChannelGroup], permutations: Permutations
) -> nn.Module:
    """The transformed net, its channels permuted to match: W ↦ P₁τ(W)P₀ᵀ. `net`: if it is traced, parameters of single
    pixels are moved, too (`pixels.transform.transformed`).
    """
    moved = transformed(net, symmetry) if isinstance(net, TracedNet) else symmetry.transform(net)
    moved.load_state_dict(permute(moved.state_dict(), groups, permutations))
    return moved


def _powers(net: nn.Module | TracedNet, copy: nn.Module, *how: Any) -> Iterator[State]:
    """The states of a copy after applying `matched_self` once, twice, …, without end."""
    while True:
        copy = matched_self(net.copied(copy) if isinstance(net, TracedNet) else copy, *how)
        yield copy.state_dict()


@torch.no_grad()
def project(
    net: nn.Module | TracedNet, symmetry: Symmetry, groups: list[ChannelGroup], permutations: Permutations
) -> nn.Module:
    """The nearest net that satisfies the kernel constraint: the mean over the group, for a flip ½(W + P₁τ(W)P₀ᵀ).
    ValueError if Pⁿ ≠ 1.

    Args:
        net: as in `matched_self`.
        permutations: with Pⁿ = 1, n the symmetry's order, such as those of `cyclic.involution` or `cyclic.cyclic`.
    """
    plain = net_of(net)
    total = deepcopy(plain)
    sums = distinct(total.state_dict())
    powers = _powers(net, plain, symmetry, groups, permutations)
    *others, back = islice(powers, symmetry.order)
    if any(not torch.equal(tensor, back[name]) for name, tensor in plain.state_dict().items()):
        raise ValueError(f"the permutations aren't of order {symmetry.order}, so the mean isn't a GCNN")
    for name, tensor in sums.items():
        for state in others:
            tensor.add_(state[name])
        tensor.div_(symmetry.order)
    return total


@torch.no_grad()
def orbits(
    net: nn.Module | TracedNet, symmetry: Symmetry, groups: list[ChannelGroup], permutations: Permutations
) -> dict[str, Tensor]:
    """Which entries of each tensor the constraint makes equal: int64 of its shape, orbits numbered from 0.

    Args: as in `project`.
    """
    numbered = deepcopy(net_of(net)).double()  # exact up to 2⁵³
    least = {
        name: torch.arange(tensor.numel(), dtype=torch.float64, device=tensor.device).reshape(tensor.shape)
        for name, tensor in numbered.state_dict().items()
    }
    numbered.load_state_dict(least)
    for state in islice(_powers(net, numbered, symmetry, groups, permutations), symmetry.order - 1):
        least = {name: torch.minimum(first, state[name].double()) for name, first in least.items()}
    return {
        name: torch.unique(first, return_inverse=True)[1].reshape(first.shape)
        for name, first in least.items()
    }


def exact_gcnn(
    net: nn.Module | TracedNet, symmetry: Symmetry, groups: list[ChannelGroup], permutations: Permutations
) -> TiedNet:
    """`net` projected onto the kernel constraint, as a net that satisfies it for all values of its parameters.

    Args:
        net: an ordinary net, such as the halfway net with REPAIR; see `matched_self`.
        permutations: as in `project`.
    """
    return TiedNet(project(net, symmetry, groups, permutations), orbits(net, symmetry, groups, permutations))
