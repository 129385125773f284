"""Matchings by name: which channel of one net goes with which channel of another (section 3).

Another matching is a function from `Pair` to `Matching`, and its line in `relusym.matching.MATCHINGS`.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from relusym.channels.groups import ChannelGroup, random_permutations
from relusym.errors import UserError
from relusym.matching import MATCHINGS, STARTS, WITH_FACTORS
from relusym.schema import one_of

State = dict[str, Tensor]
SAME = 1e-9  # objectives that differ by less are of the same permutations, up to rounding


@dataclass(frozen=True)
class Search:
    """What the starts of a matching that searches came to.

    Attributes:
        objectives: start → the objective where its ascent ended, as a share of the most that weights of these norms
            could reach.
    """

    objectives: dict[str, float]

    @property
    def best(self) -> str:
        """The first start that came to the best objective."""
        return max(self.objectives, key=self.objectives.get)

    @property
    def reached(self) -> int:
        """How many starts came to the best objective."""
        return sum(value > self.objectives[self.best] - SAME for value in self.objectives.values())

    def body(self) -> dict[str, Any]:
        """As a field of a record."""
        return {"objective": self.objectives[self.best], "reached": self.reached, "starts": self.objectives}


SILENT = 1e-6  # a channel that correlates with none by more is constant on all images


@dataclass(frozen=True)
class Matching:
    """What goes with what.

    Attributes:
        permutations: group name → int64 (C,): channel i of the first net goes with channel `permutation[i]` of the
            second.
        similarity: group name → mean correlation of the matched channels.
        search: of a matching that searches, what its starts came to.
        factors: group name → float (C,): channel i goes with `factors[i]` times channel `permutation[i]`; of a group
            that isn't here, with that channel as it is.
    """

    permutations: dict[str, Tensor]
    similarity: dict[str, float]
    search: Search | None = None
    factors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """Two nets of one architecture, with all that a matching may go by.

    Attributes:
        states: their state dicts.
        groups: their channel groups, which `channel_groups.permute` takes as well.
        correlations: group name → correlations of the first net's channels with the second's, float64 (C, C).
        generator: for matchings that draw, on the CPU.
        order: of the symmetry, if the second net is the first one transformed by it.
        starts: of a matching that searches, how many it tries.
        deviations: group name → standard deviations of either net's channels, float64 (C,) twice.
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

    def matched_by(self, permutations: dict[str, Tensor], search: Search | None = None) -> Matching:
        """The matching of these permutations, one of each group, int64 (C,)."""
        tables = {name: table.cpu().numpy() for name, table in self.correlations.items()}
        similarity = {
            name: tables[name][range(len(p)), p].mean() for name, p in permutations.items() if name in tables
        }
        tied = {group.name: group.tied for group in self.groups}
        for name in permutations.keys() - similarity:  # it goes with its heads
            behind = [mean for other, mean in similarity.items() if tied[other] == tied[name]]
            similarity[name] = sum(behind) / len(behind)
        return Matching(permutations, {name: float(similarity[name]) for name in permutations}, search)


def activation(pair: Pair) -> Matching:
    """Activation matching (Li et al. 2015): the permutations that maximise the matched channels' correlations."""
    states = [[state] for state in pair.states]
    return pair.matched_by(assigned(pair.groups, without_ties(pair.groups, pair.correlations, *states)))


def signed_activation(pair: Pair) -> Matching:
    """Activation matching up to signs: assignment on |correlation|, and each channel with the sign of its correlation.

    Raises:
        UserError: there are no channels that may be negated.
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
    """Activation matching up to positive scales: a matched channel is brought to the standard deviation of its partner.

    Raises:
        UserError: there are no channels that may be scaled.
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
        dead = torch.minimum(here, there) < SILENT  # has no scale
        factors[name] = torch.where(dead, 1.0, here / there.clamp(min=SILENT))
    return replace(matched, factors=factors)


def without_ties(
    groups: list[ChannelGroup],
    correlations: Mapping[str, Tensor],
    first: Sequence[State],
    second: Sequence[State],
) -> dict[str, Tensor]:
    """The correlations, where channels that correlate with none, as dead ones, differ by what their weights are like.

    So they go with each other in one way, however the nets' channels are numbered.

    Args:
        correlations: group name → of the first nets' channels, net by net, with the second ones', float64.
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
        tensor = state[place.tensor].double()
        index = place.index(group.size, tensor.device).flatten()
        rows = tensor.index_select(place.dim, index).movedim(place.dim, 0).reshape(group.size, -1)
        sums += [(rows**power).sum(1) for power in (1, 2, 3)]
    return torch.stack(sums, 1)


def units(groups: list[ChannelGroup]) -> list[list[ChannelGroup]]:
    """What is matched at a time: a group, or all whose heads are tied."""
    tied: dict[str | int, list[ChannelGroup]] = defaultdict(list)
    for group in groups:
        tied[group.name if group.tied is None else group.tied].append(group)
    return list(tied.values())


def assigned(groups: list[ChannelGroup], tables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The permutations with the largest sums of what two channels are worth that go with each other.

    Args:
        groups: those whose heads are tied to each other all together.
        tables: group name → worth, float (C, C); a group that has none is ordered as the heads that it is tied to.
    """
    tied = defaultdict(list)
    for group in groups:
        if group.heads > 1:
            tied[group.tied].append(group)
    in_heads = {group.name for attention in tied.values() for group in attention}
    permutations = {
        name: torch.from_numpy(_assignment(table.cpu().numpy()))
        for name, table in tables.items()
        if name not in in_heads
    }
    for attention in tied.values():
        permutations |= _by_heads(attention, tables)
    return permutations


def _assignment(table: np.ndarray) -> np.ndarray:
    return linear_sum_assignment(table, maximize=True)[1]


def _by_heads(groups: list[ChannelGroup], tables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Heads are worth what their channels are, assigned as well as they can be."""
    heads = groups[0].heads
    worth, within = np.zeros((heads, heads)), {}
    for group in groups:
        count = group.size // heads
        within[group.name] = np.zeros((heads, heads, count), dtype=np.int64)
        if group.name not in tables:
            continue
        blocks = tables[group.name].cpu().numpy().reshape(heads, count, heads, count).swapaxes(1, 2)
        for pair in np.ndindex(heads, heads):
            columns = within[group.name][pair] = _assignment(blocks[pair])
            worth[pair] += blocks[pair][range(count), columns].sum()
    order = _assignment(worth)
    return {
        name: torch.from_numpy((order[:, None] * columns.shape[2] + columns[range(heads), order]).flatten())
        for name, columns in within.items()
    }


def random(pair: Pair) -> Matching:
    """Permutations drawn uniformly: what a barrier is without any matching at all."""
    return pair.matched_by(random_permutations(pair.groups, pair.generator))


def identity(pair: Pair) -> Matching:
    """No permutation: every channel goes with the one at its own place."""
    return pair.matched_by({group.name: torch.arange(group.size) for group in pair.groups})


def match(name: str, pair: Pair) -> Matching:
    """The pair's matching of this name.

    Raises:
        UserError: there is none of this name.
    """
    known = MATCHINGS | WITH_FACTORS
    if name not in known:
        raise UserError(one_of("matching", name, known))
    return known[name].load()(pair)
