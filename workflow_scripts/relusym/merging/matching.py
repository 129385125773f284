"""Matchings by name: which channel of one net goes with which channel of another (section 3).

Another matching is a function from `Pair` to `Matching`, and its line in `relusym.merging.MATCHINGS`.
"""

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from relusym.errors import UserError
from relusym.merging import MATCHINGS
from relusym.merging.channel_groups import ChannelGroup
from relusym.registry import one_of


@dataclass(frozen=True)
class Matching:
    """What goes with what.

    Attributes:
        permutations: group name → int64 (C,): channel i of the first net goes with channel `permutation[i]` of the
            second.
        similarity: group name → mean correlation of the matched channels.
    """

    permutations: dict[str, Tensor]
    similarity: dict[str, float]


@dataclass(frozen=True)
class Pair:
    """Two nets of one architecture, with all that a matching may go by.

    Attributes:
        states: their state dicts.
        groups: their channel groups, which `channel_groups.permute` takes as well.
        correlations: group name → correlations of the first net's channels with the second's, float64 (C, C).
        generator: for matchings that draw, on the CPU.
        order: of the symmetry, if the second net is the first one transformed by it.
    """

    states: tuple[dict[str, Tensor], dict[str, Tensor]]
    groups: list[ChannelGroup]
    correlations: dict[str, Tensor]
    generator: torch.Generator
    order: int | None = None

    def matched_by(self, permutations: dict[str, Tensor]) -> Matching:
        """The matching of these permutations, one of each group, int64 (C,)."""
        tables = {name: table.cpu().numpy() for name, table in self.correlations.items()}
        similarity = {name: tables[name][range(len(p)), p].mean() for name, p in permutations.items()}
        return Matching(permutations, {name: float(mean) for name, mean in similarity.items()})


def activation(pair: Pair) -> Matching:
    """Activation matching (Li et al. 2015): the permutations that maximise the matched channels' correlations."""
    assigned = {
        name: linear_sum_assignment(table.cpu().numpy(), maximize=True)[1]
        for name, table in pair.correlations.items()
    }
    return pair.matched_by({name: torch.from_numpy(columns) for name, columns in assigned.items()})


def random(pair: Pair) -> Matching:
    """Permutations drawn uniformly: what a barrier is without any matching at all."""
    return pair.matched_by(
        {group.name: torch.randperm(group.size, generator=pair.generator) for group in pair.groups}
    )


def identity(pair: Pair) -> Matching:
    """No permutation: every channel goes with the one at its own place."""
    return pair.matched_by({group.name: torch.arange(group.size) for group in pair.groups})


def match(name: str, pair: Pair) -> Matching:
    """The pair's matching of this name.

    Raises:
        UserError: there is none of this name.
    """
    if name not in MATCHINGS:
        raise UserError(one_of("matching", name, MATCHINGS))
    return MATCHINGS[name].load()(pair)
