"""Weight matching (Ainsworth et al. 2023, algorithm 1): channels are matched by the nets' weights, without images."""

from collections import defaultdict

import torch
from torch import Tensor

from relusym.channels.groups import ChannelGroup, Place, reordered
from relusym.matching.match import Matching, Pair, assigned

MEASURED = "running_mean", "running_var", "num_batches_tracked"  # by batch norm, not learned
GAIN = 1e-9  # a smaller share of the objective is rounding


def weight(pair: Pair) -> Matching:
    """The permutations that maximise Σ⟨W₁, PW₂P′ᵀ⟩ over all weights, as far as coordinate ascent finds them.

    One group, or all whose heads are tied, is matched at a time, exactly, with all others as they are, in an order
    drawn anew for each sweep, until a sweep changes nothing.
    """
    weights = [
        {name: tensor.double() for name, tensor in state.items() if tensor.is_floating_point()}
        for state in pair.states
    ]
    of_tensor: dict[str, list[tuple[ChannelGroup, Place]]] = defaultdict(list)
    for group in pair.groups:
        for place in group.places:
            if not place.tensor.endswith(MEASURED) and place.tensor in weights[0]:
                of_tensor[place.tensor].append((group, place))
    permutations = {group.name: torch.arange(group.size) for group in pair.groups}

    def permuted(tensor: str, by: dict[str, Tensor], but: Place | None = None) -> Tensor:
        """The second net's tensor, its channels in the order of these permutations along all places but one."""
        other = weights[1][tensor]
        for group, place in of_tensor[tensor]:
            if place is not but:
                order = reordered(place, group.size, by[group.name], other.shape[place.dim])
                other = other.index_select(place.dim, order.to(other.device))
        return other

    def products(group: ChannelGroup) -> Tensor:
        """⟨row i of the first net's weights, row j of the second's⟩ over all places of a group, (C, C)."""
        total = torch.zeros(group.size, group.size, dtype=torch.float64)
        for tensor, indexed in of_tensor.items():
            for own, place in indexed:
                if own is group:
                    rows = _rows(weights[0][tensor], place, group.size)
                    total += (rows @ _rows(permuted(tensor, permutations, place), place, group.size).T).cpu()
        return total

    def gained(unit: list[ChannelGroup], after: dict[str, Tensor]) -> tuple[float, float]:
        """What the objective gains, and its size: where a tensor has a group's channels twice, `products` is linear."""
        gain = size = 0.0
        for tensor in dict.fromkeys(place.tensor for group in unit for place in group.places):
            if tensor not in of_tensor:
                continue
            first, before = weights[0][tensor], permuted(tensor, permutations)
            gain += float((first * (permuted(tensor, permutations | after) - before)).sum())
            size += float(first.norm() * before.norm())
        return gain, size

    # groups whose heads are tied to each other
    together: dict[str | int, list[ChannelGroup]] = defaultdict(list)
    for group in pair.groups:
        together[group.name if group.tied is None else group.tied].append(group)
    units, changed = list(together.values()), True
    while changed:
        changed = False
        for i in torch.randperm(len(units), generator=pair.generator).tolist():
            tables = {group.name: products(group) for group in units[i]}
            after = assigned(units[i], tables)
            gain, size = gained(units[i], after)
            if gain > GAIN * size:
                permutations |= after
                changed = True
    return pair.matched_by(permutations)


def _rows(tensor: Tensor, place: Place, size: int) -> Tensor:
    """What each channel has in a tensor, a row a channel, (size, entries)."""
    index = place.index(size, tensor.device).flatten()
    return tensor.index_select(place.dim, index).movedim(place.dim, 0).reshape(size, -1)
