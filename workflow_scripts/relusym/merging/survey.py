"""What matching and REPAIR need of two nets, from one pass over the images, or two of nets with batch norm."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from relusym.channels.groups import ChannelGroup, by_node, has_batch_norm
from relusym.channels.traced import TracedNet, as_traced
from relusym.evaluation.images import ImageSource, device_of
from relusym.merging.batch_norm import block_statistics
from relusym.merging.lockstep import Lockstep
from relusym.merging.moments import JointMoments, Moments, Statistics, samples, samples_of
from relusym.merging.repair import channel_dim, repair_points

EPSILON = 1e-4  # added to σσ′, so that dead channels correlate with nothing
# Called with a batch's outputs, of either net, and the labels that the batch brings, if it does.
Answered = Callable[[list[Any], Tensor | None], None]
PIECE = 2**23  # entries of a feature map that are added up at once: more would cost memory and gain no time


@dataclass
class Survey:
    """What passes over the images say about two nets.

    Attributes:
        correlations: group name → Pearson correlations of the first net's channels with the second's, float64 (C, C),
            after ReLU.
        statistics: of either net, statistics of what REPAIR corrects, by the names of `repair.repair_points`.
    """

    correlations: dict[str, Tensor]
    statistics: tuple[dict[str, Statistics], dict[str, Statistics]]


@torch.no_grad()
def survey(
    first: nn.Module | TracedNet,
    second: nn.Module | TracedNet,
    images: ImageSource,
    groups: list[ChannelGroup],
    answered: Answered | None = None,
) -> Survey:
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
        a, b = ({name: moments.statistics() for name, moments in of.items()} for of in single)
    return Survey({name: moments.correlation(EPSILON) for name, moments in joint.items()}, (a, b))
