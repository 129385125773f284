"""Weight matching (Ainsworth et al. 2023, algorithm 1): channels are matched by the nets' weights, without images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from relusym.channels.groups import ChannelGroup, Permutations, State, permute, random_permutations, units
from relusym.matching.match import Matching, Pair, Search, assigned

MEASURED = "running_mean", "running_var", "num_batches_tracked"  # measured by batch norm, not learned
GAIN = 1e-9  # a smaller share of the objective is rounding


def weight(pair: Pair) -> Matching:
    """The permutations that maximise Σ⟨W₁, PW₂P′ᵀ⟩ over all weights, as far as several ascents find them.

    The best of `pair.starts` coordinate ascents: from the identity, from activation matching's permutations where
    there are correlations, from a matching that begins with the weights next to input and output
    (`_Ascents.outside_in`), and from random permutations. All but the first don't depend on how either net's channels
    are numbered.
    """
    ascents = _Ascents(pair)

    def starts() -> Iterator[tuple[str, Permutations]]:
        yield "identity", ascents.identity()
        if any(bool(table.any()) for table in pair.correlations.values()):
            yield "activation", ascents.activation()
        yield "outside_in", ascents.outside_in()
        for number in range(1, pair.starts):
            yield f"random_{number}", random_permutations(pair.groups, pair.generator)

    return ascents.best(islice(starts(), pair.starts))


def weight_identity(pair: Pair) -> Matching:
    """Weight matching as in git-re-basin: one coordinate ascent, from the channels as they are."""
    ascents = _Ascents(pair)
    return ascents.best([("identity", ascents.identity())])


class _Ascents:
    """Coordinate ascents on the weights' inner product, with both nets' channels in `canonical_order`.

    One unit at a time, a single group or all whose heads are tied, is matched exactly while all others are held fixed,
    in an order drawn anew for each sweep, until nothing changes.
    """

    def __init__(self, pair: Pair):
        learned = {name for name, tensor in pair.states[0].items()
                   if tensor.is_floating_point() and not name.endswith(MEASURED)}  # fmt: skip
        self.pair = pair
        self.groups = [
            replace(group, places=tuple(place for place in group.places if place.tensor in learned))
            for group in pair.groups
        ]
        indexed = dict.fromkeys(place.tensor for group in self.groups for place in group.places)
        states = [{name: state[name].double() for name in indexed} for state in pair.states]
        self.orders = [canonical_order(state, self.groups) for state in states]
        self.first, self.second = map(permute, states, (self.groups,) * 2, self.orders)
        self.norm = {name: float(self.first[name].norm() * self.second[name].norm()) for name in indexed}
        self.units = units(self.groups)
        self.tensors = [list(dict.fromkeys(place.tensor for group in unit for place in group.places))
                        for unit in self.units]  # fmt: skip
        # tensor → the units that index it, one for each dimension that is indexed
        self.indexing: dict[str, list[int]] = defaultdict(list)
        for number, unit in enumerate(self.units):
            for group in unit:
                for place in group.places:
                    self.indexing[place.tensor].append(number)
        # whether a unit indexes some tensor twice: the worth of its channels then depends on their permutation
        self.twice = [any(self.indexing[name].count(number) > 1 for name in names)
                      for number, names in enumerate(self.tensors)]  # fmt: skip
        self.rows = {(place.tensor, place.dim, group.name): place.rows(self.first[place.tensor], group.size)
                     for group in self.groups for place in group.places}  # fmt: skip

    def best(self, starts: Iterable[tuple[str, Permutations]]) -> Matching:
        """The matching at the end of the best ascent from these starts."""
        ends = {name: self.ascended(start) for name, start in starts}
        most = sum(self.norm.values()) or 1.0
        search = Search({name: objective / most for name, (_, objective) in ends.items()})
        permutations = {}
        for name, order in ends[search.best][0].items():
            first, second = (orders[name] for orders in self.orders)
            permutations[name] = torch.empty_like(order).index_copy_(0, first, second[order])
        return self.pair.matched_by(permutations, search)

    # ---- starts

    def identity(self) -> Permutations:
        first, second = self.orders
        return {name: second[name].argsort()[order] for name, order in first.items()}

    def activation(self) -> Permutations:
        first, second = self.orders
        tables = {
            name: table.cpu()[first[name]][:, second[name]] for name, table in self.pair.correlations.items()
        }
        return assigned(self.groups, tables)

    def outside_in(self) -> Permutations:
        """Match unit by unit, only by weights whose other channels are fixed or matched already.

        The next unit is the one with the largest share of such weights, so that the evidence near a net's input and
        output isn't drowned by layers whose channels are still in disorder.
        """
        permutations = {group.name: torch.arange(group.size) for group in self.groups}
        state, left = self.second, set(range(len(self.units)))

        def settled(number: int) -> list[str]:
            return [name for name in self.tensors[number] if sum(n in left for n in self.indexing[name]) == 1]

        def share(number: int) -> float:
            known, every = (
                sum(map(self.norm.get, names)) for names in (settled(number), self.tensors[number])
            )
            return known / every if every else 0.0

        while left:
            number = max(sorted(left), key=share)
            order = assigned(self.units[number], self._worth(number, state, settled(number)))
            permutations, state = self._moved(number, order, permutations, state)
            left.remove(number)
        return permutations

    # ---- ascent

    def ascended(self, start: Permutations) -> tuple[Permutations, float]:
        """The permutations where the ascent from a start ends, and their objective."""
        permutations, stale = start, set(range(len(self.units)))
        state = permute(self.second, self.groups, start)
        while stale:
            for number in torch.randperm(len(self.units), generator=self.pair.generator).tolist():
                if number not in stale:
                    continue
                stale.remove(number)
                tensors = self.tensors[number]
                worth = self._worth(number, state, tensors)
                order = assigned(self.units[number], worth)
                if all(torch.equal(p, torch.arange(len(p))) for p in order.values()):
                    continue
                moved = self._moved(number, order, permutations, state)
                if self.twice[number]:
                    gain = self._objective(moved[1], tensors) - self._objective(state, tensors)
                else:
                    gain = sum(float((worth[name].gather(1, p[:, None]).squeeze(1) - worth[name].diagonal()).sum())
                               for name, p in order.items())  # fmt: skip
                if gain > GAIN * sum(map(self.norm.get, tensors)):
                    permutations, state = moved
                    stale |= {
                        n
                        for name in tensors
                        for n in self.indexing[name]
                        if n != number or self.twice[number]
                    }
        return permutations, self._objective(state, self.first)

    def _worth(self, number: int, state: State, tensors: Sequence[str]) -> dict[str, Tensor]:
        """⟨row i of the first net's weights, row j of the second's⟩ over these tensors, group name → (C, C)."""
        tables = {}
        for group in self.units[number]:
            tables[group.name] = torch.zeros(group.size, group.size, dtype=torch.float64)
            for place in group.places:
                if place.tensor in tensors:
                    rows = self.rows[place.tensor, place.dim, group.name]
                    tables[group.name] += (rows @ place.rows(state[place.tensor], group.size).T).cpu()
        return tables

    def _moved(
        self, number: int, order: Permutations, permutations: Permutations, state: State
    ) -> tuple[Permutations, State]:
        """The permutations and the second net after a unit's channels are reordered once more."""
        reordered = permutations | {name: permutations[name][p] for name, p in order.items()}
        return reordered, permute(state, self.units[number], order)

    def _objective(self, state: State, tensors: Iterable[str]) -> float:
        return sum(float(torch.dot(self.first[name].flatten(), state[name].flatten())) for name in tensors)


def canonical_order(state: State, groups: list[ChannelGroup]) -> Permutations:
    """Group name → its channels sorted by their largest and smallest weights, int64 (C,), whatever their numbering.

    Only channels that agree in all of these stay in the order of their numbers. Heads are sorted likewise.
    """
    order = {}
    for unit in units(groups):
        keys = {}
        for group in unit:
            rows = [place.rows(state[place.tensor], group.size) for place in group.places]
            ends = [end for row in rows for end in (row.amax(1).cpu(), row.amin(1).cpu())]
            keys[group.name] = torch.stack(ends or [torch.zeros(group.size)]).unflatten(1, (group.heads, -1))
        heads = _sorted(torch.cat([end for key in keys.values() for end in (key.amax(2), key.amin(2))]))
        for name, key in keys.items():
            within = _sorted(key)
            starts = torch.arange(len(within))[:, None] * within.shape[1]
            order[name] = (starts + within)[heads].flatten()
    return order


def _sorted(keys: Tensor) -> Tensor:
    """The order that sorts the last dimension, by the last key first, int64."""
    return torch.from_numpy(np.lexsort(keys.numpy()))
