"""Cycle-consistent matching of several nets: each is matched to one universe of channels, and so to every other.

After C²M³ (Crisostomi et al., "C²M³: Cycle-Consistent Multi-Model Merging", NeurIPS 2024; from its abstract, figure 1
and public code): Pᵢ maps net i to the universe, so that net i is matched to net j by PⱼᵀPᵢ, and the composition around
any cycle of nets is the identity. C²M³ matches by weights; here, the worth of matching two channels is the correlation
of their activations, so that each channel group is a separate problem.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from relusym.channels.groups import ChannelGroup, Permutations, units
from relusym.matching.match import assigned

GAIN = 1e-9  # a smaller share of the objective is rounding
STEPS = 100  # of Frank-Wolfe, at most


def universe(groups: list[ChannelGroup], correlations: Mapping[str, Tensor]) -> list[Permutations]:
    """The permutations that maximise Σ⟨Pᵢ, Cᵢⱼ Pⱼ⟩ over all pairs of nets, as far as several ascents reach.

    Args:
        correlations: group name → correlations between the channels of all nets, float64 (N, C, N, C).

    Returns:
        for each net: group name → int64 (C,): entry u is the net's channel that is matched to the universe's channel u.
        The universe's channels are in the first net's order.
    """
    permutations: Permutations = {}
    for unit in units(groups):
        permutations |= _Unit(unit, correlations).best()
    count = len(next(iter(permutations.values())))
    return [{name: of_nets[i] for name, of_nets in permutations.items()} for i in range(count)]


class _Unit:
    """One channel group, or all whose heads are tied; permutations are (N, C), by group name."""

    def __init__(self, groups: list[ChannelGroup], correlations: Mapping[str, Tensor]):
        self.groups = groups
        self.tables = {group.name: correlations[group.name].cpu().clone()
                       for group in groups if group.name in correlations}  # fmt: skip
        for table in self.tables.values():
            self.nets = torch.arange(len(table))
            table[self.nets, :, self.nets] = 0

    def best(self) -> Permutations:
        """The best of the ascents from each net as the universe, and from Frank-Wolfe's result between their ends."""
        ends = [self._ascended(self._star(int(k))) for k in self.nets]
        middle = {name: torch.stack([_one_hot(end[name]) for _, end in ends]).mean(0) for name in self.tables}
        ends.append(self._ascended(self._frank_wolfe(middle)))
        most = max(objective for objective, _ in ends)
        return next(end for objective, end in ends if objective >= most - GAIN * abs(most))

    def _assigned(self, worth: Mapping[str, Tensor]) -> Permutations:
        """The best permutations of each net; `worth` is that of matching its channels to the universe's, (N, C, C)."""
        by_net = [
            assigned(self.groups, {name: table[i].T for name, table in worth.items()}) for i in self.nets
        ]
        return {name: torch.stack([permutations[name] for permutations in by_net]) for name in by_net[0]}

    def _star(self, centre: int) -> Permutations:
        """Each net matched to net `centre`."""
        worth = {name: table[:, :, centre].clone() for name, table in self.tables.items()}
        for table in worth.values():
            table[centre].fill_diagonal_(1.0)  # it is matched to itself
        return self._assigned(worth)

    def _towards(self, permutations: Permutations) -> dict[str, Tensor]:
        """Σⱼ Cᵢⱼ Pⱼ for every net i, (N, C, C)."""
        return {
            name: table[:, :, self.nets[:, None], permutations[name]].sum(2)
            for name, table in self.tables.items()
        }

    def _objective(self, permutations: Permutations) -> float:
        worth = self._towards(permutations)
        return sum(float(table.gather(1, permutations[name][:, None]).sum()) for name, table in worth.items())

    def _ascended(self, permutations: Permutations) -> tuple[float, Permutations]:
        """The result of matching net after net to all others, with its objective; the universe in the first's order."""
        objective, permutations = self._objective(permutations), dict(permutations)
        while True:
            for i in self.nets:
                others = {name: table[i][:, self.nets[:, None], permutations[name]].sum(1).T
                          for name, table in self.tables.items()}  # fmt: skip
                for name, best in assigned(self.groups, others).items():
                    permutations[name] = permutations[name].index_put((i,), best)
            before, objective = objective, self._objective(permutations)
            if objective <= before + GAIN * abs(before):
                return objective, {name: p[:, p[0].argsort()] for name, p in permutations.items()}

    def _frank_wolfe(self, soft: dict[str, Tensor]) -> Permutations:
        """Frank-Wolfe from doubly stochastic matrices (N, C, C), with exact line search, and its result rounded."""
        worth = {
            name: torch.einsum("icjd,jdu->icu", table, soft[name]) for name, table in self.tables.items()
        }
        for _ in range(STEPS):
            vertex = self._assigned(worth)
            moves = {name: _one_hot(vertex[name]) - soft[name] for name in soft}
            changes = {name: towards - worth[name] for name, towards in self._towards(vertex).items()}
            slope = sum(float((worth[name] * moves[name]).sum()) for name in soft)
            if slope <= GAIN * sum(float((worth[name] * soft[name]).sum().abs()) for name in soft):
                break
            bend = sum(float((moves[name] * changes[name]).sum()) for name in soft)
            step = 1.0 if bend >= 0 else min(1.0, -slope / bend)
            for name in soft:
                soft[name] = soft[name] + step * moves[name]
                worth[name] = worth[name] + step * changes[name]
        return self._assigned(soft)


def _one_hot(permutations: Tensor) -> Tensor:
    """(N, C) → float64 (N, C, C): 1 where a net's channel is matched to the universe's."""
    return torch.nn.functional.one_hot(permutations, permutations.shape[1]).mT.double()
