"""Where a merge fails: nets of which only some layers are merged, and the rest are the first net's own."""

import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, MutableMapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from relusym.channels.groups import has_batch_norm
from relusym.channels.handlers import BATCH_NORMS
from relusym.channels.traced import TracedNet, as_traced
from relusym.channels.tracing import layer_of
from relusym.evaluation.barrier import accuracy, barrier
from relusym.evaluation.images import ImageSource, device_of
from relusym.evaluation.logits import logits_of
from relusym.evaluation.metrics import MEASURED, Metric, Scores, evaluate
from relusym.merging.aligned import Aligned, Targets, distinct
from relusym.merging.batch_norm import correct_blocks, repair_blocks, resetting
from relusym.merging.branches import Branches, Which
from relusym.merging.repair import correct, repair_points
from relusym.merging.survey import survey
from relusym.precision import full_float32

MOST_PARTS = 24
Told = Callable[[float], None]
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


def parts(
    net: nn.Module | TracedNet, most: int = MOST_PARTS, image_shape: tuple[int, ...] | None = None
) -> list[Part]:
    """The net's layers in the order in which they run, a norm with the layer before it.

    Of a net with more than `most` layers, whole blocks, by as many parts of their names as give at most `most`.
    """
    layers: list[tuple[str, list[str]]] = []  # each one's name and tensors
    graph, seen = as_traced(net, image_shape).module(), set()
    for node in graph.graph.nodes:
        keys = [key for key in _tensors(graph, node) if key not in seen]
        if not keys:
            continue
        seen |= set(keys)
        if layers and isinstance(layer_of(graph, node), NORMS):
            layers[-1][1].extend(keys)
        else:
            name = str(node.target)
            layers.append((name if node.op == "call_module" else name.rpartition(".")[0] or name, keys))
    depth = max((name.count(".") + 1 for name, _ in layers), default=1)
    while len(named := _by_depth(layers, depth)) > most and depth > 1:
        depth -= 1
    return [Part(name, tuple(keys)) for name, keys in named.items()]


def _tensors(graph: fx.GraphModule, node: fx.Node) -> list[str]:
    """What a node reads of the state dict."""
    if node.op == "get_attr":
        return [str(node.target)]
    layer = layer_of(graph, node)
    return [] if layer is None else [f"{node.target}.{key}" for key in layer.state_dict()]


def _by_depth(layers: list[tuple[str, list[str]]], depth: int) -> dict[str, list[str]]:
    named: dict[str, list[str]] = {}
    for name, keys in layers:
        named.setdefault(".".join(name.split(".")[:depth]), []).extend(keys)
    return named


class _Partly:
    """A net of which any parts can be merged with another's.

    Args:
        statistics: either net's, by the names of `repair.repair_points`.
        images: those that REPAIR's statistics are taken on.
        most: parts at most, see `parts`.
    """

    def __init__(
        self,
        first: TracedNet,
        second: nn.Module,
        statistics: tuple[Targets, Targets],
        images: ImageSource,
        most: int = MOST_PARTS,
    ):
        self.traced, self.second, self.statistics, self.images = first, second, statistics, images
        graph = first.module()
        self.parts = parts(first, most)
        self.points, self.owner = repair_points(graph), _owners(graph, self.parts)
        norms = [node.target for node in graph.graph.nodes if isinstance(layer_of(graph, node), BATCH_NORMS)]
        self.norms_twice = len(set(norms)) < len(norms)  # then its statistics are of both calls

    def merged(self, chosen: set[str]) -> nn.Module:
        """The first net with the chosen parts merged, and REPAIR."""
        traced, targets = self._plain(chosen)
        if has_batch_norm(traced.net):
            return repair_blocks(traced, targets, self.images)
        correct(traced, targets, self.images)
        return traced.net

    def _plain(self, chosen: set[str]) -> tuple[TracedNet, Targets]:
        """The first net with the chosen parts merged, and its target statistics."""
        net, other = deepcopy(self.traced.net).eval(), self.second.state_dict()
        state, (here, there) = distinct(net.state_dict()), self.statistics
        for part in self.parts:
            for key in part.tensors if part.name in chosen else ():
                if key in state:
                    state[key].add_(other[key]).div_(2)
        targets = {
            name: here[name].towards(there[name]) if self.owner[node] in chosen else here[name]
            for node, name in self.points.items()
            if name in here
        }
        return self.traced.copied(net), targets

    def branches(self) -> Branches:
        """All partial merges of a net with batch norm, not yet reset."""
        order = [part.name for part in self.parts]
        (own, blocks), (merged, _) = (correct_blocks(*self._plain(chosen)) for chosen in (set(), set(order)))
        owner = {name: order.index(part) for name, part in self.owner.items()}
        return Branches(own, merged, owner | {name: owner[block] for name, block in blocks.items()})


@torch.no_grad()
@full_float32()
def barriers_up_to(
    aligned: Aligned, images: ImageSource, test_images: ImageSource, labels: Tensor
) -> dict[str, float | None]:
    """By layer, the barrier (with REPAIR) if it and all layers before it are merged, and the rest is the first net's.

    The last layer's is the barrier of the whole merge. Of a net without batch norm.
    """
    ends = [accuracy(net, test_images, labels) for net in (aligned.first, aligned.second)]
    partly = _Partly(aligned.traced, aligned.second, aligned.statistics, images, sys.maxsize)
    chosen, found = set(), {}
    for part in partly.parts:
        chosen |= {part.name}
        halfway = accuracy(partly.merged(chosen), test_images, labels)
        found[part.name] = barrier(*ends, halfway) if any(ends) else None
    return found


@torch.no_grad()
@full_float32()
def partial_merges(
    first: nn.Module | TracedNet,
    second: nn.Module,
    images: ImageSource,
    test: ImageSource,
    labels: Tensor | None,
    *,
    metrics: Mapping[str, Metric] = MEASURED,
    told: Told = lambda done: None,
    kept: MutableMapping[Which, dict[str, float]] | None = None,
) -> list[Partial]:
    """Barriers of partial merges, each with REPAIR, in the order of the net's layers.

    All are barriers between the same two endpoints, so the last part's `up_to` is that of the whole merge.

    Args:
        first, second: two nets whose channels match, such as `nets["net"]` and `nets["permuted"]` of a flip merge.
        images: those that statistics are taken on.
        test, labels: what the nets are measured on, int64 (N,); None as in `merge`.
        told: called with the share that is done.
    """
    traced = as_traced(first, images.shape)
    statistics = survey(traced, traced.copied(second), images, []).statistics
    partly = _Partly(traced, second, statistics, images)
    first = traced.net
    end, labels = evaluate(first, test, labels, metrics)
    ends = end, evaluate(second, test, labels, metrics)[0]
    order = [part.name for part in partly.parts]
    together = has_batch_norm(first) and not partly.norms_twice
    if together:
        scores = _side_by_side(partly, test, labels, metrics, told)
    else:
        scores = _one_by_one(partly, test, labels, metrics, told, {} if kept is None else kept)
    barriers = {
        which: {
            name: of.absolute_barrier(*(end[name] for end in ends), found[name])
            for name, of in metrics.items()
        }
        for which, found in scores.items()
    }
    return [Partial(name, barriers["up_to", i], barriers["all_but", i]) for i, name in enumerate(order)]


Scored = Mapping[Which, dict[str, float]]


def _side_by_side(
    partly: _Partly, test: ImageSource, labels: Tensor, metrics: Mapping[str, Metric], told: Told
) -> Scored:
    """The scores of all partial merges of a net with batch norm."""
    device, branches, images = device_of(partly.traced.net), partly.branches(), partly.images
    whole, done = len(images) + len(test), 0
    with resetting(branches.norms):
        for x in images.batches(device, even=True):
            for _ in branches.run(x):
                pass
            done += len(x)
            told(done / whole)
    scores: dict[Which, Scores] = defaultdict(lambda: Scores(metrics, labels))
    for x, _ in test.pairs(device):
        for which, output in branches.run(x):
            scores[which].add(logits_of(output))
        done += len(x)
        told(done / whole)
    return {which: of.means() for which, of in scores.items()}


def _one_by_one(
    partly: _Partly,
    test: ImageSource,
    labels: Tensor,
    metrics: Mapping[str, Metric],
    told: Told,
    found: MutableMapping[Which, dict[str, float]],
) -> Scored:
    """The scores of all partial merges of any net."""
    order = [part.name for part in partly.parts]
    for i, name in enumerate(order):
        for kind, chosen in (("up_to", set(order[: i + 1])), ("all_but", set(order) - {name})):
            if (kind, i) not in found:
                found[kind, i] = evaluate(partly.merged(chosen), test, labels, metrics)[0]
        told((i + 1) / len(order))
    return found


def _owners(graph: fx.GraphModule, whole: list[Part]) -> dict[str, str]:
    """Graph node → the part whose layer ran last before it, or is it."""
    part_of = {key: part.name for part in whole for key in part.tensors}
    owners, last = {}, whole[0].name if whole else ""
    for node in graph.graph.nodes:
        last = next((part_of[key] for key in _tensors(graph, node) if key in part_of), last)
        owners[node.name] = last
    return owners
