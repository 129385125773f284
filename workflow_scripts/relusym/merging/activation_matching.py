"""Activation matching (Li et al. 2015; section 4): which channel of one net does what a channel of another does."""

from collections import defaultdict
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from relusym.data.augmentation import Normalise, normalise
from relusym.merging.channel_groups import ChannelGroup, trace
from relusym.merging.channel_statistics import PairTally, Statistics, Tally, samples
from relusym.merging.lockstep import Lockstep
from relusym.merging.repair import repair_points

EPSILON = 1e-4  # added to σσ′, so that dead channels correlate with nothing
PIECE = 2**23  # entries of a feature map that are added up at once: more would cost memory and gain no time


@dataclass
class Survey:
    """What one pass over the images tells about two nets.

    Attributes:
        correlation: group name → Pearson correlations of the first net's channels with the second's, float64 (C, C),
            after ReLU.
        statistics: of either net, statistics of what REPAIR corrects, by the names of `repair.repair_points`.
    """

    correlation: dict[str, Tensor]
    statistics: tuple[dict[str, Statistics], dict[str, Statistics]]


@torch.no_grad()
def survey(
    first: nn.Module,
    second: nn.Module,
    images: Tensor,
    groups: list[ChannelGroup],
    batch_size: int = 500,
    normalise: Normalise = normalise,
) -> Survey:
    """One pass of both nets over `images`, uint8 (N, H, W, 3), for the matching of all groups and for REPAIR.

    A layer permuted together with the next layer's inputs leaves all later activations as they were, so one pass
    serves all groups; no more than one batch of one layer's activations is held.
    """
    first.eval(), second.eval()
    graphs = [trace(first), trace(second)]
    matched = {group.node: group.name for group in groups}
    points = repair_points(graphs[0])
    pairs: dict[str, PairTally] = defaultdict(PairTally)
    single: tuple[dict[str, Tally], dict[str, Tally]] = (defaultdict(Tally), defaultdict(Tally))

    def visit(node: str, outputs: list[Tensor]) -> None:
        if node not in matched and node not in points:
            return
        at_once = max(1, len(outputs[0]) * PIECE // outputs[0].numel())
        for piece in zip(*(output.split(at_once) for output in outputs), strict=True):
            if node in matched:
                pairs[matched[node]].add(*map(samples, piece))
            if node in points:
                for tally, output in zip(single, piece, strict=True):
                    tally[points[node]].add(samples(output))

    lockstep, device = Lockstep(graphs), next(first.parameters()).device
    for batch in images.split(batch_size):
        x = normalise(batch.to(device))
        lockstep.run([x, x], visit)
    a, b = ({name: tally.statistics() for name, tally in tallies.items()} for tallies in single)
    return Survey({name: pair.correlation(EPSILON) for name, pair in pairs.items()}, (a, b))


@dataclass
class Matching:
    """What matching found.

    Attributes:
        permutations: group name → int64 (C,): channel i of the first net goes with channel `permutation[i]` of the
            second.
        similarity: group name → mean correlation of the matched channels.
    """

    permutations: dict[str, Tensor]
    similarity: dict[str, float]


def match(correlation: dict[str, Tensor]) -> Matching:
    """For each group the assignment that maximises the sum of the matched channels' correlations."""
    matching = Matching({}, {})
    for name, table in correlation.items():
        table = table.cpu().numpy()
        rows, columns = linear_sum_assignment(table, maximize=True)
        matching.permutations[name] = torch.from_numpy(columns)
        matching.similarity[name] = float(table[rows, columns].mean())
    return matching
