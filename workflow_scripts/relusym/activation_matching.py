"""Activation matching (Li et al. 2015; section 4): which channel of one net does what a channel of another does."""

from collections import defaultdict
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from relusym.augmentation import normalise
from relusym.channel_groups import ChannelGroup, trace
from relusym.channel_statistics import PairTally, Statistics, Tally, samples
from relusym.lockstep import Lockstep

EPSILON = 1e-4  # added to σσ′, so that dead channels correlate with nothing


@dataclass
class Survey:
    """What one pass over the images tells about two nets.

    Attributes:
        correlation: group name → Pearson correlations of the first net's channels with the second's, float64 (C, C),
            after ReLU.
        statistics: of either net, conv name → statistics of its outputs before ReLU.
    """

    correlation: dict[str, Tensor]
    statistics: tuple[dict[str, Statistics], dict[str, Statistics]]


@torch.no_grad()
def survey(
    first: nn.Module, second: nn.Module, images: Tensor, groups: list[ChannelGroup], batch_size: int = 500
) -> Survey:
    """One pass of both nets over `images`, uint8 (N, H, W, 3), for the matching of all groups and for REPAIR.

    A layer permuted together with the next layer's inputs leaves all later activations as they were, so one pass
    serves all groups; no more than one batch of one layer's activations is held.
    """
    first.eval(), second.eval()
    graphs = [trace(first), trace(second)]
    matched = {group.node: group.name for group in groups}
    convs = {node.name: str(node.target) for node in graphs[0].graph.nodes if is_conv(graphs[0], node)}
    pairs: dict[str, PairTally] = defaultdict(PairTally)
    single: tuple[dict[str, Tally], dict[str, Tally]] = (defaultdict(Tally), defaultdict(Tally))

    def visit(node: str, outputs: list[Tensor]) -> None:
        if node in matched:
            pairs[matched[node]].add(*map(samples, outputs))
        if node in convs:
            for tally, output in zip(single, outputs, strict=True):
                tally[convs[node]].add(samples(output))

    lockstep = Lockstep(graphs)
    for batch in images.split(batch_size):
        x = normalise(batch)
        lockstep.run([x, x], visit)
    a, b = ({name: tally.statistics() for name, tally in tallies.items()} for tallies in single)
    return Survey({name: pair.correlation(EPSILON) for name, pair in pairs.items()}, (a, b))


def is_conv(graph: torch.fx.GraphModule, node: torch.fx.Node) -> bool:
    """Whether a graph's node is a convolution layer."""
    return node.op == "call_module" and isinstance(graph.get_submodule(node.target), nn.Conv2d)


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
