"""Two nets whose channels match: what any merge of them starts from, halfway or elsewhere, of all layers or of some."""

from collections import defaultdict
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from relusym.channels.groups import (
    ChannelGroup,
    by_node,
    factors_of,
    has_batch_norm,
    order_of,
    permute,
    rescale,
)
from relusym.channels.traced import TracedNet, as_traced
from relusym.channels.tracing import layer_of
from relusym.errors import UserError
from relusym.evaluation.images import ImageSource, device_of
from relusym.matching import STARTS
from relusym.matching.match import Pair, Search, match
from relusym.merging.identities import CHECK_IMAGES, answers, hold, largest_difference
from relusym.merging.moments import JointMoments, Moments, Statistics, samples, samples_of
from relusym.merging.repair import CORRECTED, block_statistics, channel_dim, repair_points
from relusym.randomness import generator

# Called with a node's name and the outputs of all nets there.
Visit = Callable[[str, list[Tensor]], None]


class Lockstep:
    """Nets of the same graph that advance node by node together, so that no net's activations are ever all held.

    Args:
        nets: traced nets (`channel_groups.trace`) of one architecture.

    Raises:
        UserError: the graphs or the shapes of their tensors differ.
    """

    def __init__(self, nets: list[fx.GraphModule]):
        self.interpreters = [fx.Interpreter(net) for net in nets]
        self.nodes = [list(net.graph.nodes) for net in nets]
        if any(_architecture(net) != _architecture(nets[0]) for net in nets[1:]):
            raise UserError("the nets are of different architecture: only nets of one can be merged")

    def run(self, inputs: list[Tensor], visit: Visit) -> list[Tensor]:
        """The nets' outputs on `inputs`, one each; `visit` sees every node's outputs before any later node runs.

        A visited tensor may be changed by later layers (in-place ReLU), so a visitor takes what it needs at once.
        """
        for interpreter, x in zip(self.interpreters, inputs, strict=True):
            interpreter.env, interpreter.args_iter = {}, iter([x])
        outputs: list[Tensor] = []
        for nodes in zip(*self.nodes, strict=True):
            outputs = []
            for interpreter, node in zip(self.interpreters, nodes, strict=True):
                outputs.append(interpreter.run_node(node))
                interpreter.env[node] = outputs[-1]
                for unused in interpreter.user_to_last_uses.get(node, ()):
                    del interpreter.env[unused]
                if not node.users:
                    del interpreter.env[node]
            visit(nodes[0].name, outputs)
        return outputs


def _architecture(net: fx.GraphModule) -> tuple:
    """What two nets share if each can be permuted to match the other: operations, and shapes of all tensors."""
    nodes = [(node.name, node.op, str(node.target)) for node in net.graph.nodes]
    return nodes, {name: tensor.shape for name, tensor in net.state_dict().items()}


EPSILON = 1e-4  # added to σσ′, so that dead channels correlate with nothing
# Called with a batch's outputs, of either net, and the labels that the batch brings, if it does.
Answered = Callable[[list[Any], Tensor | None], None]
PIECE = 2**23  # entries of a feature map that are added up at once: more would cost memory and gain no time


@dataclass
class PairStatistics:
    """What passes over the images measure of two nets.

    Attributes:
        correlations: group name → Pearson correlations of the first net's channels with the second's, float64 (C, C),
            after ReLU.
        statistics: of either net, statistics of what REPAIR corrects, by the names of `repair.repair_points`.
        deviations: group name → standard deviations of either net's channels, as of `correlations`.
    """

    correlations: dict[str, Tensor]
    statistics: tuple[dict[str, Statistics], dict[str, Statistics]]
    deviations: dict[str, tuple[Tensor, Tensor]]


@torch.no_grad()
def pair_statistics(
    first: nn.Module | TracedNet,
    second: nn.Module | TracedNet,
    images: ImageSource,
    groups: list[ChannelGroup],
    answered: Answered | None = None,
) -> PairStatistics:
    """One pass of both nets over `images`; no more than one batch of one layer's activations is held.

    One pass serves all groups: a layer permuted together with the next layer's inputs leaves all later activations as
    they were. It also serves REPAIR, but for nets with batch norm: those are matched as trained, in evaluation mode,
    and their statistics taken in training mode, in a pass of its own (`block_statistics`).

    Args:
        groups: those to match; none leaves correlations out.
        answered: sees the nets' outputs, in evaluation mode, without a pass of their own.

    Raises:
        UserError: the nets are of different architecture.
    """
    first, second = (as_traced(net, images.shape) for net in (first, second))
    nets = first.net.eval(), second.net.eval()
    graphs = [traced.module(inside=True) for traced in (first, second)]
    lockstep, device = Lockstep(graphs), device_of(first.net)
    matched = by_node(groups)
    points = {} if has_batch_norm(nets[0]) else repair_points(graphs[0])
    dims = {node: channel_dim(graphs[0].get_submodule(layer)) for node, layer in points.items()}
    joint: dict[str, JointMoments] = defaultdict(JointMoments)
    single: tuple[dict[str, Moments], dict[str, Moments]] = (defaultdict(Moments), defaultdict(Moments))

    def visit(node: str, outputs: list[Tensor]) -> None:
        if node not in matched and node not in points:
            return
        at_once = max(1, len(outputs[0]) * PIECE // outputs[0].numel())
        for piece in zip(*(output.split(at_once) for output in outputs), strict=True):
            for group in matched.get(node, ()):
                joint[group.name].add(*(samples_of(output, group.matched, group.size) for output in piece))
            if node in points:
                for moments, output in zip(single, piece, strict=True):
                    moments[points[node]].add(samples(output, dims[node]))

    if matched or points or answered:
        for x, labels in images.pairs(device):
            outputs = lockstep.run([x, x], visit)
            if answered:
                answered(outputs, labels)
    if has_batch_norm(nets[0]):
        a, b = (block_statistics(net, images) for net in (first, second))
    else:
        a, b = ({name: moments.statistics() for name, moments in sums.items()} for sums in single)
    return PairStatistics(
        {name: moments.correlation(EPSILON) for name, moments in joint.items()},
        (a, b),
        {name: (x.first.statistics().std, x.second.statistics().std) for name, x in joint.items()},
    )


Targets = dict[str, Statistics]


@torch.no_grad()
def interpolate(first: nn.Module, second: nn.Module, share: float) -> nn.Module:
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
        factors: group name → float (C,), by which the second net's channels were multiplied, in the first one's order.
    """

    traced: TracedNet
    second: nn.Module
    groups: list[ChannelGroup]
    permutations: dict[str, Tensor]
    similarity: dict[str, float]
    statistics: tuple[Targets, Targets]
    checks: dict[str, float]
    search: Search | None = None
    factors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def first(self) -> nn.Module:
        """The first net."""
        return self.traced.net

    def interpolate(self, share: float) -> TracedNet:
        """The net at (1 − `share`)θ₁ + `share`·θ₂."""
        return self.traced.copied(interpolate(self.first, self.second, share))

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
    """Match the channels of `second` to those of `first`; arguments and errors as of `merge.merge`."""
    first, second = (as_traced(net, images.shape) for net in (first, second))
    groups = first.groups
    measured = pair_statistics(first, second, images, groups, answered)
    states = first.net.state_dict(), second.net.state_dict()
    draw, admits = generator(seed, matching), first.admits
    pair = Pair(states, groups, measured.correlations, draw, order, starts, measured.deviations, admits)
    matched = match(matching, pair)
    permutations, factors, permuted = matched.permutations, matched.factors, deepcopy(second.net)
    permuted.load_state_dict(rescale(permute(states[1], groups, permutations), groups, factors))
    x = images.first(CHECK_IMAGES, device_of(first.net))
    logits = [answers(second.module(net), x) for net in (second.net, permuted)]
    checks = {"permuted_logits": largest_difference(*logits)}
    hold(checks)
    ordered = _in_order(measured.statistics[1], groups, permutations, factors, first.module())
    statistics = measured.statistics[0], ordered
    similarity, search = matched.similarity, matched.search
    return Aligned(first, permuted, groups, permutations, similarity, statistics, checks, search, factors)


def _in_order(
    second: Targets,
    groups: list[ChannelGroup],
    permutations: dict[str, Tensor],
    factors: dict[str, Tensor],
    graph: fx.GraphModule,
) -> Targets:
    """The second net's statistics as they are once its channels are permuted and multiplied."""
    points, ordered = repair_points(graph), {}
    for node in graph.graph.nodes:
        if (name := points.get(node.name)) in second:
            layer = layer_of(graph, node)
            dim = len(node.meta["shape"]) + channel_dim(layer) if isinstance(layer, CORRECTED) else 1
            size = len(second[name].mean)
            order = order_of(node.name, size, groups, permutations, dim)
            ordered[name] = second[name].permuted(order)
            if factors:
                ordered[name] = ordered[name].times(factors_of(node.name, size, groups, factors, dim))
    return ordered
