"""Nets with matched channels, from which every merge starts, halfway or elsewhere, of all layers or of some."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from relusym.channels.groups import (
    ChannelGroup,
    Permutations,
    by_node,
    factors_of,
    order_of,
    permute,
    rescale,
)
from relusym.channels.traced import TracedNet, as_traced
from relusym.channels.tracing import layer_of, tensor_names
from relusym.errors import UserError, listed
from relusym.evaluation.images import ImageSource, device_of
from relusym.evaluation.logits import check_finite, logits_of
from relusym.matching import MATCHINGS, STARTS
from relusym.matching.cyclic import cyclic
from relusym.matching.match import Pair, Search, match, without_ties
from relusym.matching.universe import universe
from relusym.merging.identities import CHECK_IMAGES, LIMITS, answers, hold, largest_difference
from relusym.merging.moments import EPSILON, JointMoments, Moments, Statistics, group_output, samples
from relusym.merging.repair import CORRECTED, Layers, block_statistics, channel_dim, repair_points
from relusym.randomness import generator
from relusym.schema import one_of

# Called with a node's name and the outputs of all nets there.
Visit = Callable[[str, list[Tensor]], None]


class Lockstep:
    """Nets with the same graph that run node by node together, so that no net's activations are all held at once.
    UserError if the graphs or the shapes of their tensors differ. `nets`: graphs of traced nets (`TracedNet.module`) of
    one architecture.
    """

    def __init__(self, nets: list[fx.GraphModule]):
        self.interpreters = [Layers(net, {}) for net in nets]
        self.nodes = [list(net.graph.nodes) for net in nets]
        if any(_architecture(net) != _architecture(nets[0]) for net in nets[1:]):
            raise UserError("the nets are of different architecture: only nets of the same one can be merged")

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
                interpreter.hold(interpreter.env, node, outputs[-1])
            visit(nodes[0].name, outputs)
        return outputs


def _architecture(net: fx.GraphModule) -> tuple:
    """What two nets share if each can be permuted to match the other: operations, and shapes of all tensors."""
    nodes = [(node.name, node.op, str(node.target)) for node in net.graph.nodes]
    return nodes, {name: tensor.shape for name, tensor in net.state_dict().items()}


# Activations whose standard deviations are smaller are faint: `EPSILON` lowers their correlations by a tenth or more.
FAINT = 0.03
# Called with the outputs of all nets on a batch, and the batch's labels, if it has any.
Answered = Callable[[list[Any], Tensor | None], None]
PIECE = 2**23  # entries of feature maps that are added up at once: more would cost memory and save no time


@dataclass
class PairStatistics:
    """Channel statistics of two nets or more, over all images."""

    # group name → Pearson correlations of the first net's channels with the second's, float64 (C, C), after ReLU; for N
    # nets, of all nets' channels, net by net, with all nets' channels, (NC, NC)
    correlations: dict[str, Tensor]
    statistics: tuple[dict[str, Statistics], ...]  # each net's, by the names of `repair.repair_points`
    # group name → standard deviations of both nets' channels, float64 (C,); for N nets, of all nets' twice, (NC,)
    deviations: dict[str, tuple[Tensor, Tensor]]

    def by_net(self, groups: list[ChannelGroup], count: int | None = None) -> dict[str, Tensor]:
        """Group name → correlations of all N nets, or of the first `count`, float64 (N, C, N, C)."""
        sizes = {group.name: (-1, group.size) for group in groups}
        return {
            name: table.unflatten(1, sizes[name]).unflatten(0, sizes[name])[:count, :, :count]
            for name, table in self.correlations.items()
        }


@torch.no_grad()
def joint_statistics(
    nets: Sequence[nn.Module | TracedNet],
    images: ImageSource,
    groups: list[ChannelGroup],
    answered: Answered | None = None,
    *,
    all_with_all: bool = False,
) -> PairStatistics:
    """Run all nets over `images` in one pass that holds no more than one batch of one layer's activations.

    One pass serves all groups: permuting a layer together with the next layer's inputs leaves all later activations
    unchanged. It also serves REPAIR, except for nets with batch norm: these are matched as trained, in evaluation mode,
    and REPAIR's statistics are taken in training mode, in a separate pass (`block_statistics`). UserError if the nets
    are of different architecture, or their logits of an image aren't finite.

    Args:
        groups: the groups to match; if empty, correlations are left out.
        answered: called with the nets' outputs, in evaluation mode, which saves a separate pass.
        all_with_all: whether each net's channels are correlated with those of all nets, and not only the first net's
            with the second's.
    """
    all_traced = [as_traced(net, images.shape) for net in nets]
    for traced in all_traced:
        traced.net.eval()
    graphs = [traced.module(inside=True) for traced in all_traced]
    lockstep, net = Lockstep(graphs), all_traced[0].net
    device, normed = device_of(net), all_traced[0].has_batch_norm
    matched = by_node(groups)
    points = {} if normed else repair_points(all_traced[0])
    dims = {node: channel_dim(graphs[0].get_submodule(layer)) for node, layer in points.items()}
    joint: dict[str, JointMoments] = defaultdict(JointMoments)
    single: list[dict[str, Moments]] = [defaultdict(Moments) for _ in nets]

    def visit(node: str, outputs: list[Tensor]) -> None:
        if node not in matched and node not in points:
            return
        at_once = max(1, len(outputs[0]) * 2 * PIECE // (outputs[0].numel() * len(outputs)))
        for piece in zip(*(output.split(at_once) for output in outputs), strict=True):
            for group in matched.get(node, ()):
                channels = [samples(group_output(group, output)) for output in piece]
                joint[group.name].add(*([torch.cat(channels, 1)] * 2 if all_with_all else channels))
            if node in points:
                for moments, output in zip(single, piece, strict=True):
                    moments[points[node]].add(samples(output, dims[node]))

    if matched or points or answered:
        count = 0
        for x, labels in images.pairs(device):
            outputs = lockstep.run([x] * len(nets), visit)
            for output in outputs:
                check_finite(logits_of(output), count)
            count += len(x)
            if answered:
                answered(outputs, labels)
    if normed:
        statistics = [block_statistics(net, images) for net in all_traced]
    else:
        statistics = [{name: moments.statistics() for name, moments in sums.items()} for sums in single]
    correlations = {name: moments.correlation() for name, moments in joint.items()}
    deviations = {name: (x.first.statistics().std, x.second.statistics().std) for name, x in joint.items()}
    return PairStatistics(correlations, tuple(statistics), deviations)


def faint_notes(deviations: Mapping[str, tuple[Tensor, Tensor]]) -> list[str]:
    """A line on the groups whose channels are all faint, but not dead; `deviations`: as in `PairStatistics`."""
    largest = {name: float(first.max() * second.max()) for name, (first, second) in deviations.items()}
    faint = [name for name, product in largest.items() if 0 < product < FAINT**2]
    if not faint:
        return []
    return [
        f"correlations, and matchings by them, mean little in {listed(faint, 3)}: activations there vary by less than "
        f"{FAINT:g}, which is little beside the {EPSILON:g} that is added to σσ′; are images normalised as in the "
        "net's training? If so, matching weight doesn't depend on them"
    ]


Targets = dict[str, Statistics]


@torch.no_grad()
def interpolate(first: nn.Module, second: nn.Module, share: float) -> nn.Module:
    """The net at (1 − `share`)θ₁ + `share`·θ₂."""
    net, other = deepcopy(first), second.state_dict()
    for name, tensor in distinct(net.state_dict()).items():
        tensor.mul_(1 - share).add_(other[name], alpha=share)
    return net


def distinct(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The floating-point tensors, which can be averaged, each under one name even if layers share it."""
    return {name: state[name] for name, *_ in tensor_names(state) if state[name].is_floating_point()}


@dataclass(frozen=True)
class Aligned:
    """Two nets and how their channels match; all but `permutations` is in the first net's order of channels."""

    traced: TracedNet  # the first net
    second: nn.Module
    groups: list[ChannelGroup]
    # group name → int64 (C,): channel i is channel `permutation[i]` of the second net before permuting
    permutations: Permutations
    similarity: dict[str, float]  # group name → mean correlation of the matched channels
    statistics: tuple[Targets, Targets]  # both nets', by the names of `repair.repair_points`
    checks: dict[str, float]  # from `identities`: permuting the second net leaves its logits unchanged
    search: Search | None = None  # for a matching that searches
    # group name → float (C,), by which the second net's channels were multiplied
    factors: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # `faint_notes`

    @property
    def first(self) -> nn.Module:
        """The first net."""
        return self.traced.net

    def interpolate(self, share: float) -> TracedNet:
        """The net at (1 − `share`)θ₁ + `share`·θ₂."""
        return self.traced.copied(interpolate(self.first, self.second, share))

    def targets(self, share: float = 0.5) -> Targets:
        """REPAIR's target statistics for `interpolate(share)`."""
        first, second = self.statistics
        return {name: first[name].towards(second[name], share) for name in first}


def check_shapes(first: nn.Module, second: nn.Module) -> None:
    """Raises UserError if the tensors of two nets' state dicts differ in name or shape."""
    shapes, others = ({key: x.shape for key, x in net.state_dict().items()} for net in (first, second))
    if shapes != others:
        differing = next(key for key in {**shapes, **others} if shapes.get(key) != others.get(key))
        raise UserError(
            f"the nets are of different architecture, as in {differing}: only nets of the same one can be merged"
        )


def check_matchable(traced: TracedNet) -> None:
    """Raises UserError for a net without channel groups."""
    if not traced.groups:
        raise UserError(
            f"{type(traced.net).__name__} has no layer whose channels can be permuted: there is nothing to match"
        )


def _check_function(first: TracedNet, second: TracedNet, x: Tensor) -> None:
    """Raises UserError if the first net can't hold the second's weights, or computes something else with them."""
    if second.graph is first.graph:  # a copy
        return
    check_shapes(first.net, second.net)
    with_weights = deepcopy(first.net)
    with_weights.load_state_dict(second.net.state_dict())
    logits = [answers(traced.module(net), x) for traced, net in ((second, second.net), (first, with_weights))]
    if not largest_difference(*logits) < LIMITS["permuted_logits"][0]:
        raise UserError(
            "the nets are of different architecture: with the second's weights, the first doesn't compute what the "
            "second does, so an activation, an option or a tensor that isn't in the state dict differs"
        )


def _permuted(
    traced: TracedNet,
    groups: list[ChannelGroup],
    permutations: Permutations,
    factors: dict[str, Tensor],
    x: Tensor,
) -> tuple[nn.Module, float]:
    """A net with its channels permuted and multiplied, and by how much its logits of `x` differ."""
    net = deepcopy(traced.net)
    net.load_state_dict(rescale(permute(net.state_dict(), groups, permutations), groups, factors))
    return net, largest_difference(*(answers(traced.module(each), x) for each in (traced.net, net)))


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
    """Match the channels of `second` to those of `first`; arguments and errors as in `merge.merge`."""
    first, second = (as_traced(net, images.shape) for net in (first, second))
    groups, x = first.groups, images.first(CHECK_IMAGES, device_of(first.net))
    _check_function(first, second, x)
    measured = joint_statistics([first, second], images, groups, answered)
    states = first.net.state_dict(), second.net.state_dict()
    draw, admits = generator(seed, matching), first.admits
    pair = Pair(states, groups, measured.correlations, draw, order, starts, measured.deviations, admits)
    matched = match(matching, pair)
    permutations, factors = matched.permutations, matched.factors
    permuted, difference = _permuted(second, groups, permutations, factors, x)
    hold(checks := {"permuted_logits": difference})
    ordered = in_order(measured.statistics[1], groups, permutations, factors, first)
    statistics, notes = (measured.statistics[0], ordered), faint_notes(measured.deviations)
    similarity, search = matched.similarity, matched.search
    return Aligned(
        first, permuted, groups, permutations, similarity, statistics, checks, search, factors, notes
    )


def in_order(
    statistics: Targets,
    groups: list[ChannelGroup],
    permutations: Permutations,
    factors: dict[str, Tensor],
    traced: TracedNet,
) -> Targets:
    """A net's statistics after its channels are permuted and multiplied."""
    points, ordered = repair_points(traced), {}
    for node in traced.graph.nodes:
        if (name := points.get(node.name)) in statistics:
            layer = layer_of(traced.net, node)
            dim = len(node.meta["shape"]) + channel_dim(layer) if isinstance(layer, CORRECTED) else 1
            size = len(statistics[name].mean)
            order = order_of(node.name, size, groups, permutations, dim)
            ordered[name] = statistics[name].permuted(order)
            if factors:
                ordered[name] = ordered[name].times(factors_of(node.name, size, groups, factors, dim))
    return ordered


# ---- more nets than two

UNIVERSE, CYCLIC = "universe", "cyclic"  # matchings of several nets, besides matching each to the first


@dataclass(frozen=True)
class AlignedNets:
    """Nets and how their channels match; all but `permutations` is in the first net's order of channels."""

    traced: TracedNet  # the first net
    nets: list[nn.Module]
    groups: list[ChannelGroup]
    permutations: list[Permutations]  # for each net, as in `Aligned`
    similarity: dict[str, Tensor]  # group name → mean correlations of the pairs of nets, float64 (N, N)
    statistics: list[Targets]  # each net's, by the names of `repair.repair_points`
    checks: dict[str, float]  # from `identities`: permuting the nets leaves their logits unchanged
    notes: list[str]  # `faint_notes`

    @torch.no_grad()
    def mean(self, count: int | None = None) -> TracedNet:
        """The net whose every weight is the mean over all nets, or over the first `count`."""
        mean = self.nets[0]
        for number, net in enumerate(self.nets[1:count], 2):
            mean = interpolate(mean, net, 1 / number)
        return self.traced.copied(mean)

    def targets(self, count: int | None = None) -> Targets:
        """REPAIR's target statistics for `mean(count)`."""
        targets = self.statistics[0]
        for number, others in enumerate(self.statistics[1:count], 2):
            targets = {name: target.towards(others[name], 1 / number) for name, target in targets.items()}
        return targets


@torch.no_grad()
def align_many(
    nets: Sequence[nn.Module | TracedNet],
    images: ImageSource,
    *,
    matching: str = UNIVERSE,
    starts: int = STARTS,
    order: int | None = None,
    measured: PairStatistics | None = None,
) -> AlignedNets:
    """Match the channels of several nets. UserError as in `merge.merge` and `cyclic.cyclic`.

    Args:
        matching: "universe", cycle-consistent; "cyclic", for one net transformed by all powers of a symmetry in order;
            or a name in `matching.MATCHINGS`, by which each is matched to the first alone.
        order: the symmetry's order, if the second net is the first transformed by it.
        measured: `joint_statistics` of these nets, or of more that begin with these, if measured already.
    """
    if matching not in (UNIVERSE, CYCLIC, *MATCHINGS):
        raise UserError(one_of("matching", matching, (UNIVERSE, CYCLIC, *MATCHINGS)))
    all_traced = [as_traced(net, images.shape) for net in nets]
    first, count, states = all_traced[0], len(nets), [traced.net.state_dict() for traced in all_traced]
    groups, x = first.groups, images.first(CHECK_IMAGES, device_of(first.net))
    for traced in all_traced[1:]:
        _check_function(first, traced, x)
    check_matchable(first)
    measured = measured or joint_statistics(all_traced, images, groups, all_with_all=True)
    tables = measured.by_net(groups, count)
    if matching == CYCLIC:
        permutations = cyclic(groups, tables)
    elif matching == UNIVERSE:
        flat = {name: table.flatten(2).flatten(0, 1) for name, table in tables.items()}
        flat = without_ties(groups, flat, states, states)
        permutations = universe(
            groups, {name: table.reshape(tables[name].shape) for name, table in flat.items()}
        )
    else:
        permutations = [{group.name: torch.arange(group.size) for group in groups}]
        for i in range(1, count):
            to_first = {name: table[0, :, i] for name, table in tables.items()}
            how = generator(0, matching), order if i == 1 else None, starts
            permutations.append(
                match(matching, Pair((states[0], states[i]), groups, to_first, *how)).permutations
            )
    others = [_permuted(traced, groups, permutation, {}, x)
              for traced, permutation in zip(all_traced[1:], permutations[1:], strict=True)]  # fmt: skip
    aligned = [first.net, *(net for net, _ in others)]
    hold(checks := {"permuted_logits": max(difference for _, difference in others)})
    statistics = [in_order(unordered, groups, permutation, {}, first)
                  for unordered, permutation in zip(measured.statistics, permutations, strict=False)]  # fmt: skip
    similarity = {name: _matched(table, torch.stack([by_group[name] for by_group in permutations]))
                  for name, table in tables.items()}  # fmt: skip
    notes = faint_notes(measured.deviations)
    return AlignedNets(first, aligned, groups, permutations, similarity, statistics, checks, notes)


def _matched(table: Tensor, permutations: Tensor) -> Tensor:
    """Mean correlations of matched channels, (N, C, N, C) and (N, C) → (N, N)."""
    nets = torch.arange(len(permutations))
    here, there = (nets[:, None, None], permutations[:, None]), (nets[None, :, None], permutations[None])
    return table.cpu()[*here, *there].mean(-1)
