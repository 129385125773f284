"""Where a merge fails: nets of which only some layers are merged, and the rest are the first net's own."""

import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from relusym.merging.aligned import Aligned, Targets
from relusym.merging.barrier import accuracy, barrier
from relusym.merging.channel_groups import channel_groups, trace
from relusym.merging.images import ImageSource
from relusym.merging.metrics import MEASURED, Metric, evaluate
from relusym.merging.repair import repair_points, repaired
from relusym.merging.survey import survey
from relusym.precision import full_float32

MOST_PARTS = 24
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d)


@dataclass(frozen=True)
class Part:
    """Layers that are merged together.

    Attributes:
        name: the layer, or the block that holds them.
        tensors: their parameters and buffers, by their names in the state dict.
    """

    name: str
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Partial:
    """Barriers, with REPAIR, of nets of which one part or several are merged.

    Attributes:
        part: its name.
        up_to: metric → absolute barrier when this part and all before it are merged, and none after.
        all_but: metric → absolute barrier when all parts but this one are merged.
    """

    part: str
    up_to: dict[str, float]
    all_but: dict[str, float]


def parts(net: nn.Module, most: int = MOST_PARTS) -> list[Part]:
    """The net's layers in the order in which they run, a norm with the layer before it.

    Of a net with more than `most` layers, whole blocks, by as many parts of their names as give at most `most`.
    """
    layers: list[list[str]] = []  # modules of each
    for node in trace(net).graph.nodes:
        if node.op != "call_module" or not any(True for _ in net.get_submodule(node.target).state_dict()):
            continue
        if layers and isinstance(net.get_submodule(node.target), NORMS):
            layers[-1].append(str(node.target))
        else:
            layers.append([str(node.target)])
    depth = max((layer[0].count(".") + 1 for layer in layers), default=1)
    while len(named := _by_depth(layers, depth)) > most and depth > 1:
        depth -= 1
    state = net.state_dict()
    return [
        Part(name, tuple(key for key in state if key.rpartition(".")[0] in modules))
        for name, modules in named.items()
    ]


def _by_depth(layers: list[list[str]], depth: int) -> dict[str, set[str]]:
    named: dict[str, set[str]] = {}
    for layer in layers:
        named.setdefault(".".join(layer[0].split(".")[:depth]), set()).update(layer)
    return named


class _Partly:
    """A net of which any parts can be merged with another's.

    Args:
        statistics: either net's, by the names of `repair.repair_points`.
        most: parts at most, see `parts`.
    """

    def __init__(self, first: nn.Module, second: nn.Module, statistics: tuple[Targets, Targets], most: int):
        self.first, self.second, self.statistics = first, second, statistics
        self.parts, graph = parts(first, most), trace(first)
        self.points, self.owner = repair_points(graph), _owners(graph, self.parts)

    def merged(self, chosen: set[str], images: ImageSource) -> nn.Module:
        """The first net with the chosen parts merged, and REPAIR on `images`."""
        net, other = deepcopy(self.first).eval(), self.second.state_dict()
        state, (here, there) = net.state_dict(), self.statistics
        for part in self.parts:
            for key in part.tensors if part.name in chosen else ():
                if state[key].is_floating_point():
                    state[key].add_(other[key]).div_(2)
        targets = {
            name: here[name].halfway(there[name]) if self.owner[node] in chosen else here[name]
            for node, name in self.points.items()
            if name in here
        }
        return repaired(net, targets, images)[0]


@torch.no_grad()
@full_float32()
def barriers_up_to(
    aligned: Aligned, images: ImageSource, test_images: ImageSource, labels: Tensor
) -> dict[str, float | None]:
    """By layer, the barrier (with REPAIR) if it and all layers before it are merged, and the rest is the first net's.

    The last layer's is the barrier of the whole merge. Of a net without batch norm.
    """
    ends = [accuracy(net, test_images, labels) for net in (aligned.first, aligned.second)]
    partly, chosen, found = _Partly(aligned.first, aligned.second, aligned.statistics, sys.maxsize), set(), {}
    for part in partly.parts:
        chosen |= {part.name}
        halfway = accuracy(partly.merged(chosen, images), test_images, labels)
        found[part.name] = barrier(*ends, halfway) if any(ends) else None
    return found


@torch.no_grad()
@full_float32()
def partial_merges(
    first: nn.Module,
    second: nn.Module,
    images: ImageSource,
    test: ImageSource,
    labels: Tensor | None,
    *,
    metrics: Mapping[str, Metric] = MEASURED,
    told: Callable[[int, int], None] = lambda done, of: None,
) -> list[Partial]:
    """Barriers of partial merges, each with REPAIR, in the order of the net's layers.

    All are barriers between the same two endpoints, so the last part's `up_to` is that of the whole merge.

    Args:
        first, second: two nets whose channels match, such as `nets["net"]` and `nets["permuted"]` of a flip merge.
        images: those that statistics are taken on.
        test, labels: what the nets are measured on, int64 (N,); None as in `merge`.
        told: how many partial merges are done, and of how many.
    """
    statistics = survey(first, second, images, channel_groups(first, images.shape)).statistics
    partly = _Partly(first, second, statistics, MOST_PARTS)
    end, labels = evaluate(first, test, labels, metrics)
    ends = end, evaluate(second, test, labels, metrics)[0]

    def barriers(chosen: set[str]) -> dict[str, float]:
        scores = evaluate(partly.merged(chosen, images), test, labels, metrics)[0]
        return {
            name: of.absolute_barrier(*(end[name] for end in ends), scores[name])
            for name, of in metrics.items()
        }

    found, order = [], [part.name for part in partly.parts]
    for i, name in enumerate(order):
        up_to = barriers(set(order[: i + 1]))
        found.append(Partial(name, up_to, barriers(set(order) - {name})))
        told(i + 1, len(order))
    return found


def _owners(graph: fx.GraphModule, whole: list[Part]) -> dict[str, str]:
    """Graph node → the part whose layer ran last before it, or is it."""
    part_of = {key.rpartition(".")[0]: part.name for part in whole for key in part.tensors}
    owners, last = {}, whole[0].name if whole else ""
    for node in graph.graph.nodes:
        last = part_of.get(str(node.target), last) if node.op == "call_module" else last
        owners[node.name] = last
    return owners
