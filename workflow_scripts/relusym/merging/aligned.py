"""Two nets whose channels match: what any merge of them starts from, halfway or elsewhere, of all layers or of some."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from relusym.channels.groups import ChannelGroup, order_of, permute
from relusym.channels.traced import TracedNet, as_traced
from relusym.channels.tracing import layer_of
from relusym.evaluation.images import ImageSource, device_of
from relusym.matching import STARTS
from relusym.matching.match import Pair, Search, match
from relusym.merging.identities import CHECK_IMAGES, answers, hold, largest_difference
from relusym.merging.moments import Statistics
from relusym.merging.repair import CORRECTED, channel_dim, repair_points
from relusym.merging.survey import Answered, Survey, survey
from relusym.randomness import generator

Targets = dict[str, Statistics]


@torch.no_grad()
def between(first: nn.Module, second: nn.Module, share: float) -> nn.Module:
    """The net at (1 − `share`)θ₁ + `share`·θ₂."""
    net, other = deepcopy(first), second.state_dict()
    for name, tensor in distinct(net.state_dict()).items():
        tensor.mul_(1 - share).add_(other[name], alpha=share)
    return net


def distinct(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of numbers that can be averaged, each under one name, though layers share it."""
    memory = {tensor.data_ptr(): name for name, tensor in reversed(state.items())}
    return {name: tensor for name, tensor in state.items()
            if tensor.is_floating_point() and memory[tensor.data_ptr()] == name}  # fmt: skip


@dataclass(frozen=True)
class Aligned:
    """Two nets and how their channels match.

    Attributes:
        traced: the first net.
        second: the second net, its channels in the first one's order.
        groups: their channel groups.
        permutations: group name → int64 (C,): channel i went with channel `permutation[i]` of the second net as it was.
        similarity: group name → mean correlation of the matched channels.
        statistics: either net's, by the names of `repair.repair_points`, in the first one's order.
        checks: of `identities`, that the second net's logits are what they were.
        search: of a matching that searches, what its starts came to.
    """

    traced: TracedNet
    second: nn.Module
    groups: list[ChannelGroup]
    permutations: dict[str, Tensor]
    similarity: dict[str, float]
    statistics: tuple[Targets, Targets]
    checks: dict[str, float]
    search: Search | None = None

    @property
    def first(self) -> nn.Module:
        """The first net."""
        return self.traced.net

    def between(self, share: float) -> TracedNet:
        """The net at (1 − `share`)θ₁ + `share`·θ₂."""
        return self.traced.copied(between(self.first, self.second, share))

    def targets(self, share: float = 0.5) -> Targets:
        """REPAIR's target statistics of the net at that place."""
        first, second = self.statistics
        return {name: first[name].towards(second[name], share) for name in first}


@torch.no_grad()
def align(
    first: nn.Module | TracedNet,
    second: nn.Module | TracedNet,
    images: ImageSource,
    *,
    matching: str = "activation",
    starts: int = STARTS,
    seed: int = 0,
    order: int | None = None,
    answered: Answered | None = None,
) -> Aligned:
    """Match the channels of `second` to those of `first`; arguments and errors as of `merge.merge` and `survey`."""
    first, second = (as_traced(net, images.shape) for net in (first, second))
    groups = first.groups
    found = survey(first, second, images, groups, answered)
    states = first.net.state_dict(), second.net.state_dict()
    pair = Pair(states, groups, found.correlations, generator(seed, matching), order, starts)
    matched = match(matching, pair)
    permuted = deepcopy(second.net)
    permuted.load_state_dict(permute(states[1], groups, matched.permutations))
    x = images.first(CHECK_IMAGES, device_of(first.net))
    checks = {
        "permuted_logits": largest_difference(
            answers(second.module(), x), answers(second.module(permuted), x)
        )
    }
    hold(checks)
    statistics = found.statistics[0], in_order(found, groups, matched.permutations, first.module())
    return Aligned(
        *(
            first,
            permuted,
            groups,
            matched.permutations,
            matched.similarity,
            statistics,
            checks,
            matched.search,
        )
    )


def in_order(
    found: Survey, groups: list[ChannelGroup], permutations: dict[str, Tensor], graph: fx.GraphModule
) -> Targets:
    """The second net's statistics as they are once its channels are permuted."""
    second, points, ordered = found.statistics[1], repair_points(graph), {}
    for node in graph.graph.nodes:
        if (name := points.get(node.name)) in second:
            layer = layer_of(graph, node)
            dim = len(node.meta["shape"]) + channel_dim(layer) if isinstance(layer, CORRECTED) else 1
            order = order_of(node.name, len(second[name].mean), groups, permutations, dim)
            ordered[name] = second[name].permuted(order)
    return ordered
