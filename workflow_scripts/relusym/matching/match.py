"""Matchings by name: which channel of one net corresponds to which channel of another (section 3).

To add a matching, write a function from `Pair` to `Matching`, and a line for it in `relusym.matching.MATCHINGS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from relusym.channels.groups import ChannelGroup, Permutations, State, random_permutations, units
from relusym.errors import UserError
from relusym.matching import MATCHINGS, OF_FLIPS, STARTS, WITH_FACTORS
from relusym.schema import one_of

SAME = 1e-9  # objectives that differ by less are equal up to rounding


@dataclass(frozen=True)
class Search:
    """The outcomes of the starts of a matching that searches. `objectives`: start → the objective where its ascent
    ended, as a share of the largest that weights of these norms could reach.
    """

    objectives: dict[str, float]

    @property
    def best(self) -> str:
        """The first start that reached the best objective."""
        return max(self.objectives, key=self.objectives.get)

    @property
    def reached(self) -> int:
        """The number of starts that reached the best objective."""
        return sum(value > self.objectives[self.best] - SAME for value in self.objectives.values())

    def body(self) -> dict[str, Any]:
        """The search as a field of a record."""
        return {"objective": self.objectives[self.best], "reached": self.reached, "starts": self.objectives}


SILENT = 1e-6  # a channel whose correlations are all smaller is constant on all images


@dataclass(frozen=True)
class Matching:
    """The result of matching two nets' channels.

    Attributes:
        permutations: group name → int64 (C,): channel i of the first net is matched to channel `permutation[i]` of the
            second.
        similarity: group name → mean correlation of the matched channels.
        search: the outcomes of its starts, if the matching searches.
        factors: group name → float (C,): channel i is matched to `factors[i]` times channel `permutation[i]`; a group
            that is missing has factors 1.
    """

    permutations: Permutations
    similarity: dict[str, float]
    search: Search | None = None
    factors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """Two nets of one architecture, with all that a matching may use.

    Attributes:
        states: their state dicts.
        groups: their channel groups, as `channels.groups.permute` takes them.
        correlations: group name → correlations of the first net's channels with the second's, float64 (C, C).
        generator: for matchings that draw at random, on the CPU.
        order: of the symmetry, if the second net is the first one transformed by it.
        starts: number of starts of a matching that searches.
        deviations: group name → standard deviations of the first and of the second net's channels, float64 (C,) each.
        admits: which groups' channels may be multiplied by a number (`TracedNet.admits`).
    """

    states: tuple[State, State]
    groups: list[ChannelGroup]
    correlations: dict[str, Tensor]
    generator: torch.Generator
    order: int | None = None
    starts: int = STARTS
    deviations: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    admits: Callable[[float], frozenset[str]] = lambda factor: frozenset()

    def matched_by(self, permutations: Permutations, search: Search | None = None) -> Matching:
        """The matching with these permutations, one for each group, int64 (C,)."""
        tables = {name: table.cpu().numpy() for name, table in self.correlations.items()}
        similarity = {
            name: tables[name][range(len(p)), p].mean() for name, p in permutations.items() if name in tables
        }
        tied = {group.name: group.tied for group in self.groups}
        for name in permutations.keys() - similarity:  # one that no output shows has its heads' mean
            behind = [mean for other, mean in similarity.items() if tied[other] == tied[name]]
            similarity[name] = sum(behind) / len(behind)
        return Matching(permutations, {name: float(similarity[name]) for name in permutations}, search)


def activation(pair: Pair) -> Matching:
    """Activation matching (Li et al. 2015): the permutations that maximise the matched channels' correlations."""
    states = [[state] for state in pair.states]
    return pair.matched_by(assigned(pair.groups, without_ties(pair.groups, pair.correlations, *states)))


def signed_activation(pair: Pair) -> Matching:
    """Activation matching up to signs: assignment by |correlation|, and factors with the correlations' signs. UserError
    if no channels may be negated.
    """
    signed = pair.admits(-1.0)
    if not signed:
        raise UserError(
            "matching signed_activation: negating channels changes what this net computes, so signs can't be matched: "
            "its activations aren't odd, as tanh is, or what reads them isn't, as a max pool"
        )
    tables = {name: table.abs() if name in signed else table for name, table in pair.correlations.items()}
    matched = activation(replace(pair, correlations=tables))
    factors = {}
    for name in signed & pair.correlations.keys():
        permutation = matched.permutations[name]
        correlations = pair.correlations[name].cpu()[range(len(permutation)), permutation]
        factors[name] = torch.where(correlations < -SILENT, -1.0, 1.0).to(correlations)
    return replace(matched, factors=factors)


def scaled_activation(pair: Pair) -> Matching:
    """Activation matching up to positive scales: a matched channel is scaled to the standard deviation of its partner.
    UserError if no channels may be scaled.
    """
    scaled = pair.admits(2.0)
    if not scaled:
        raise UserError(
            "matching scaled_activation: scaling channels changes what this net computes: its activations aren't "
            "positively homogeneous, as ReLU is"
        )
    matched = activation(pair)
    factors = {}
    for name in scaled & pair.deviations.keys():
        here, there = (deviations.cpu() for deviations in pair.deviations[name])
        there = there[matched.permutations[name]]
        dead = torch.minimum(here, there) < SILENT  # a dead channel has no scale
        factors[name] = torch.where(dead, 1.0, here / there.clamp(min=SILENT))
    return replace(matched, factors=factors)


def without_ties(
    groups: list[ChannelGroup],
    correlations: Mapping[str, Tensor],
    first: Sequence[State],
    second: Sequence[State],
) -> dict[str, Tensor]:
    """The correlations, with ties of channels that correlate with none, such as dead ones, broken by their weights.

    So these are matched in the same way however the nets' channels are numbered.

    Args:
        correlations: group name → correlations of the first nets' channels, net after net, with the second's, float64.
        first, second: the nets' state dicts.
    """
    tables = dict(correlations)
    for group in groups:
        table = tables.get(group.name)
        if table is None:
            continue
        dead = [table.abs().amax(dim) < SILENT for dim in (1, 0)]
        if any(silent.any() for silent in dead):
            here, there = (
                torch.cat([_moments(state, group) for state in states]).to(table)
                for states in (first, second)
            )
            size = torch.stack([here.abs().amax(0), there.abs().amax(0)]).amax(0).clamp(min=1e-30)
            apart = torch.cdist(here / size, there / size, p=1) / max(1, here.shape[1])
            either = dead[0][:, None] | dead[1]
            tables[group.name] = torch.where(either, -SILENT * apart, table)
    return tables


def _moments(state: State, group: ChannelGroup) -> Tensor:
    """Sums of the first three powers of each channel's weights at each place, which no renumbering changes, (C, n)."""
    sums = []
    for place in group.places:
        rows = place.rows(state[place.tensor].double(), group.size)
        sums += [(rows**power).sum(1) for power in (1, 2, 3)]
    return torch.stack(sums, 1)


def assigned(
    groups: list[ChannelGroup],
    tables: Mapping[str, Tensor],
    involution: Callable[[np.ndarray], np.ndarray] | None = None,
) -> dict[str, Tensor]:
    """The permutations that maximise the total worth of the matched channels.

    Two heads are worth as much as the best assignment of their channels.

    Args:
        groups: either all or none of those whose heads are tied to each other.
        tables: group name → worth of matching two channels, float (C, C); a group without a table is ordered as the
            heads that it is tied to.
        involution: the best p with p(p(i)) = i by a table of worths, if the permutations are to be such.
    """
    permutations = {}
    for unit in units([group for group in groups if group.heads > 1 or group.name in tables]):
        heads = unit[0].heads
        worth, within = np.zeros((heads, heads)), {}
        for group in unit:
            count = group.size // heads
            within[group.name] = np.zeros((heads, heads, count), dtype=np.int64)
            if group.name not in tables:
                continue
            blocks = tables[group.name].cpu().numpy().reshape(heads, count, heads, count).swapaxes(1, 2)
            for a, b in np.ndindex(heads, heads):
                if involution is None:
                    columns = _assignment(blocks[a, b])
                elif a < b:  # swapped heads swap their channels
                    columns = _assignment(blocks[a, b] + blocks[b, a].T)
                else:
                    columns = involution(blocks[a, a]) if a == b else within[group.name][b, a].argsort()
                within[group.name][a, b] = columns
                worth[a, b] += blocks[a, b][range(count), columns].sum()
        order = (involution or _assignment)(worth)
        for name, columns in within.items():
            channels = order[:, None] * columns.shape[2] + columns[range(heads), order]
            permutations[name] = torch.from_numpy(channels.flatten())
    return permutations


def _assignment(table: np.ndarray) -> np.ndarray:
    return linear_sum_assignment(table, maximize=True)[1]


def random(pair: Pair) -> Matching:
    """Permutations drawn uniformly, for the barrier without any matching at all."""
    return pair.matched_by(random_permutations(pair.groups, pair.generator))


def identity(pair: Pair) -> Matching:
    """No permutation: every channel is matched to the one at the same place."""
    return pair.matched_by({group.name: torch.arange(group.size) for group in pair.groups})


def check_matching(name: str, order: int | None, starts: int = STARTS) -> None:
    """Raises UserError for an unknown matching, one that isn't for such a pair, or an invalid number of starts; `order`
    and `starts` as in `Pair`.
    """
    if name not in (known := MATCHINGS | WITH_FACTORS):
        raise UserError(one_of("matching", name, known))
    if name in OF_FLIPS and order != 2:
        raise UserError(
            f"matching {name}: only for a net and its transformed self, by a symmetry of order 2 such as a flip"
        )
    if not isinstance(starts, Integral) or starts < 1:
        raise UserError(f"starts: {starts} given; allowed is a whole number, at least 1")


def match(name: str, pair: Pair) -> Matching:
    """The pair's matching of this name. UserError as in `check_matching`."""
    check_matching(name, pair.order, pair.starts)
    return (MATCHINGS | WITH_FACTORS)[name].load()(pair)
