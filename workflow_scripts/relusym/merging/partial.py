"""Where a merge fails: nets in which only some layers are merged, and the rest are the first net's.

What these nets share is computed once: the merged layers before a part. There, two nets branch off that run this part
as in the first net, and the later parts as in the first net ("prefix" of the parts before) or merged ("leave_one_out"
of this part). Each branch runs by itself, since REPAIR corrects its layers.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from relusym.channels.handlers import BATCH_NORMS
from relusym.channels.traced import TracedNet, as_traced
from relusym.channels.tracing import layer_of, tensor_names
from relusym.evaluation.images import ImageSource, device_of
from relusym.evaluation.logits import evaluating, logits_of
from relusym.evaluation.metrics import MEASURED, Metric, Scores, accuracy, evaluate
from relusym.merging.aligned import Aligned, Targets, distinct, interpolate, joint_statistics
from relusym.merging.merge import barrier
from relusym.merging.repair import (
    LayerByLayer,
    Layers,
    cloned,
    correct_blocks,
    norms_of,
    repair,
    repair_blocks,
    repair_points,
    resetting,
    tensors_of,
)
from relusym.precision import full_float32

MOST_PARTS = 24
Which = tuple[str, int]  # "prefix" or "leave_one_out", and the part's number
Progress = Callable[[float], None]
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d)


@dataclass(frozen=True)
class Part:
    """Layers that are merged together."""

    name: str  # of the layer, or of the block that holds them
    tensors: tuple[str, ...]  # the names of their parameters and buffers in the state dict


@dataclass(frozen=True)
class Partial:
    """Barriers, with REPAIR, of nets in which only some parts are merged.

    Attributes:
        part: the part's name.
        prefix: metric → absolute barrier when this part and all before it are merged, and none after.
        leave_one_out: metric → absolute barrier when all parts but this one are merged.
    """

    part: str
    prefix: dict[str, float]
    leave_one_out: dict[str, float]


def parts(net: nn.Module | TracedNet, most: int = MOST_PARTS) -> list[Part]:
    """The net's layers in the order in which they run, each norm with the layer before it.

    For a net with more than `most` layers, whole blocks, by the longest prefixes of names that give at most `most`.
    """
    layers: list[tuple[str, list[str]]] = []  # names, and tensors
    graph, seen = as_traced(net).module(), set()
    for node in graph.graph.nodes:
        keys = [key for key in tensors_of(graph, node) if key not in seen]
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


def _by_depth(layers: list[tuple[str, list[str]]], depth: int) -> dict[str, list[str]]:
    named: dict[str, list[str]] = {}
    for name, keys in layers:
        named.setdefault(".".join(name.split(".")[:depth]), []).extend(keys)
    return named


class Kept(dict[Which, dict[str, float]]):
    """Scores of partial merges so far, and partly reset batch norms: what an interrupted call resumes from."""

    batches: int = 0  # that the batch norms have read
    buffers: Sequence[Tensor] = ()  # of the batch norms, after these batches

    def read(self, batches: int, buffers: Sequence[Tensor]) -> None:
        """Keep `buffers` as they are after this many batches."""
        self.batches, self.buffers = batches, buffers


class PartialMerges:
    """A net of which any parts can be merged with another net's.

    Args:
        statistics: both nets' statistics, by the names of `repair.repair_points`.
        images: for REPAIR's statistics.
        most: the largest number of parts, see `parts`.
    """

    def __init__(
        self,
        first: TracedNet,
        second: nn.Module,
        statistics: tuple[Targets, Targets],
        images: ImageSource,
        most: int = MOST_PARTS,
    ):
        self.first, self.second, self.images = first, second, images
        self.graph = graph = first.module()
        self.nodes = list(graph.graph.nodes)
        self.parts = parts(first, most)
        numbers = {key: number for number, part in enumerate(self.parts) for key in part.tensors}
        self.part_of: dict[str, int] = {}  # node → the part of the last layer up to this node
        last = 0
        for node in self.nodes:
            last = next((numbers[key] for key in tensors_of(graph, node) if key in numbers), last)
            self.part_of[node.name] = last
        owners = list(self.part_of.values())
        self.starts = [owners.index(number) for number in range(1, len(self.parts))]
        self.points = repair_points(first)
        unmerged, other = statistics
        self.unmerged, self.both = unmerged, {name: unmerged[name].towards(other[name]) for name in unmerged}
        norms = [node.target for node in self.nodes if isinstance(layer_of(graph, node), BATCH_NORMS)]
        # whether no two parts share a tensor, and no batch norm takes statistics of two calls
        self.apart = len(set(norms)) == len(norms) and all(
            len({numbers.get(name) for name in names}) == 1 for names in tensor_names(first.net.state_dict())
        )

    @property
    def halfway(self) -> TracedNet:
        """A new net with all parts merged, without REPAIR."""
        return self.first.copied(interpolate(self.first.net, self.second, 0.5).eval())

    def which(self) -> Iterator[tuple[Which, set[int]]]:
        """All partial merges, and the parts that are merged in each."""
        every = set(range(len(self.parts)))
        for number in sorted(every):
            yield ("leave_one_out", number), every - {number}
            yield ("prefix", number), set(range(number + 1))

    def targets(self, chosen: Collection[int]) -> Targets:
        """REPAIR's target statistics of the net with the chosen parts merged."""
        return {name: (self.both if self.part_of[node] in chosen else self.unmerged)[name]
                for node, name in self.points.items() if name in self.unmerged}  # fmt: skip

    def merged(self, chosen: Collection[int]) -> nn.Module:
        """The first net with the chosen parts merged, and REPAIR, for any net and without sharing computation."""
        net, other = deepcopy(self.first.net).eval(), self.second.state_dict()
        state = distinct(net.state_dict())
        for number in chosen:
            for key in self.parts[number].tensors:
                if key in state:
                    state[key].add_(other[key]).div_(2)
        how = repair_blocks if self.first.has_batch_norm else lambda *merge: repair(*merge)[0]
        return how(self.first.copied(net), self.targets(chosen), self.images)

    def unmerged_layers(self, chosen: Collection[int]) -> dict[str, Any]:
        """The first net's layers and tensors in all but the chosen parts, by name."""
        fetch = fx.Interpreter(self.graph).fetch_attr
        return {str(node.target): fetch(node.target) for node in self.nodes
                if node.op in ("call_module", "get_attr") and self.part_of[node.name] not in chosen}  # fmt: skip

    def run(
        self, test: ImageSource, wanted: Callable[[Which], bool]
    ) -> Iterator[tuple[Which, Iterator[Tensor]]]:
        """The logits of all wanted nets, batch by batch.

        For nets without batch norm that are corrected and measured on the same images, the pass that corrects layers
        also gives the logits.
        """
        if self.first.has_batch_norm or not self.apart:
            for which, chosen in self.which():
                if wanted(which):
                    net = self.merged(chosen)
                    yield which, (logits_of(net(x)) for x in test.batches(device_of(net)))
            return
        halfway = self.halfway
        trunk = LayerByLayer(halfway, self.images)
        reader = trunk if test is self.images else LayerByLayer(halfway, test)
        end, every = len(self.nodes) - 1, range(len(self.parts))

        def branch(start: int, chosen: Collection[int]) -> Iterator[Tensor]:
            corrected = trunk.fork(self.unmerged_layers(chosen))
            corrected.correct(self.targets(chosen), start, end)
            return (corrected if reader is trunk else reader.fork(corrected.interpreter.layers)).logits()

        for number, (start, stop) in enumerate(pairwise([0, *self.starts, end])):
            if wanted(("leave_one_out", number)):
                yield ("leave_one_out", number), branch(start, [part for part in every if part != number])
            trunk.correct(self.targets(every), start, stop)
            for run in {trunk, reader}:
                run.advance(stop)
            if wanted(("prefix", number)):
                yield ("prefix", number), branch(stop, range(number + 1))


class _Stretch(Layers):
    """Consecutive nodes of a graph, each with the merged net's layer or the first net's; batch norms are copied.

    Args:
        net, merged: two nets with the same graph.
        nodes: nodes of `net`'s graph.
        is_merged: whether a node reads the merged net's tensors.
    """

    def __init__(
        self,
        net: fx.GraphModule,
        merged: fx.GraphModule,
        nodes: list[fx.Node],
        is_merged: Callable[[fx.Node], bool],
    ):
        super().__init__(net, {})
        self.nodes, self.args_iter = nodes, iter(())
        self.norms: list[nn.Module] = []
        fetch = {net: super().fetch_attr, merged: fx.Interpreter(merged).fetch_attr}
        for node in nodes:
            if node.op not in ("call_module", "get_attr"):
                continue
            layer = fetch[merged if is_merged(node) else net](node.target)
            if node.op == "call_module" and norms_of(layer):
                layer = deepcopy(layer)
                self.norms += norms_of(layer)
            self.layers[str(node.target)] = layer
        # convolutions whose output only a batch norm reads, which is fused into them in evaluation mode
        self.fused = {}
        for node, reader in pairwise(nodes):
            plain = self._is_plain(node, nn.Conv2d) and self._is_plain(reader, nn.BatchNorm2d)
            if plain and list(node.users) == [reader] and norms_of(self._layer(reader)):
                self.fused[node] = reader

    def _is_plain(self, node: fx.Node, kind: type[nn.Module]) -> bool:
        """Whether a node calls a layer of exactly this class, without hooks."""
        layer = self._layer(node)
        return type(layer) is kind and not (layer._forward_hooks or layer._forward_pre_hooks)

    def _layer(self, node: fx.Node) -> Any:
        return self.layers.get(str(node.target)) if node.op == "call_module" else None

    def run_node(self, n: fx.Node) -> Any:
        norm = self._layer(self.fused.get(n, n))
        if not isinstance(norm, nn.BatchNorm2d) or norm.training:
            return super().run_node(n)
        if n in self.fused:
            (x,), layer = self.fetch_args_kwargs_from_env(n)[0], self._layer(n)
            how = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            return layer._conv_forward(x, *fuse_conv_bn_weights(layer.weight, layer.bias, *how))
        return self.env[n.args[0]] if n.args[0] in self.fused else super().run_node(n)

    def run_all(self, env: dict[fx.Node, Any]) -> Any:
        """Run all nodes, as `Layers.go`."""
        output = self.go(env, self.nodes)
        self.env = {}  # holds nothing after this
        return output


class _Branches:
    """All partial merges of a net with batch norm, each with its own batch norms. `norms`: all batch norms."""

    def __init__(self, nets: PartialMerges):
        every = range(len(nets.parts))
        net, blocks = correct_blocks(nets.first, nets.targets(()))
        merged, _ = correct_blocks(nets.halfway, nets.targets(every))
        part_of = nets.part_of | {name: nets.part_of[block] for name, block in blocks.items()}
        nodes = list(net.graph.nodes)
        owners = [part_of[node.name] for node in nodes]
        edges = [1, *(owners.index(number) for number in every[1:]), len(nodes) - 1]
        self.norms: list[nn.Module] = []
        self.input = nodes[0]

        def stretch(nodes: list[fx.Node], is_merged: Callable[[int], bool]) -> _Stretch:
            made = _Stretch(net, merged, nodes, lambda node: is_merged(part_of[node.name]))
            self.norms += made.norms
            return made

        parts = [nodes[start:stop] for start, stop in pairwise(edges)]
        rests = [nodes[start:] for start in edges[1:]]
        self.merged = [stretch(part, lambda part, k=k: part <= k) for k, part in enumerate(parts)]
        self.kept = [stretch(part, lambda part, k=k: part < k) for k, part in enumerate(parts)]
        self.prefix = [stretch(rest, lambda part, k=k: part < k) for k, rest in enumerate(rests)]
        self.leave_one_out = [stretch(rest, lambda part, k=k: part != k) for k, rest in enumerate(rests)]

    def run(self, x: Tensor) -> Iterator[tuple[Which, Any]]:
        """Every net's output on a batch."""
        env, last = {self.input: x}, len(self.merged) - 1
        for k in range(last + 1):
            kept = cloned(env)
            self.kept[k].run_all(kept)
            if k:
                yield ("prefix", k - 1), self.prefix[k].run_all(cloned(kept))
            yield ("leave_one_out", k), self.leave_one_out[k].run_all(kept)
            self.merged[k].run_all(env)
        yield ("prefix", last), self.leave_one_out[last].run_all(env)  # only the output node is left


@torch.no_grad()
@full_float32()
def prefix_barriers(
    aligned: Aligned, images: ImageSource, test_images: ImageSource, labels: Tensor
) -> dict[str, float | None]:
    """For each layer, the barrier (with REPAIR) of merging it and all layers before it, and none after.

    The last layer's is the barrier of the whole merge. With batch norm this is slow: no computation is shared.
    """
    mean = sum(accuracy(net, test_images, labels) for net in (aligned.first, aligned.second)) / 2
    nets = PartialMerges(aligned.traced, aligned.second, aligned.statistics, images, sys.maxsize)
    scores = Kept()
    _one_by_one(nets, test_images, lambda: Scores({}, labels), scores, kinds={"prefix"})
    accuracies = (scores["prefix", number]["accuracy"] for number in range(len(nets.parts)))
    return {part.name: barrier(mean, value) for part, value in zip(nets.parts, accuracies, strict=True)}


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
    progress: Progress = lambda done: None,
    kept: Kept | None = None,
) -> list[Partial]:
    """Barriers of partial merges, each with REPAIR, in the order of the net's layers.

    All barriers are relative to the same two endpoints, so the last part's `prefix` is that of the whole merge.

    Args:
        first, second: two nets whose channels match, such as `nets["net"]` and `nets["permuted"]` of a flip merge.
        images: for REPAIR's statistics; without batch norm, it is faster if this is `test` itself.
        test, labels: what the nets are measured on; labels int64 (N,), None as in `merge`.
        progress: called with the share of the work that is done.
        kept: the state of an interrupted call, from which this one resumes and which it keeps up to date.
    """
    traced = as_traced(first, images.shape)
    statistics = joint_statistics([traced, traced.copied(second)], images, []).statistics
    nets = PartialMerges(traced, second, statistics, images)
    end = evaluate(traced.net, test, labels, metrics)
    labels = end.labels
    other = evaluate(second, test, labels, metrics).means()
    ends = {name: (mean + other[name]) / 2 for name, mean in end.means().items()}
    scores = Kept() if kept is None else kept
    compute = _side_by_side if traced.has_batch_norm and nets.apart else _one_by_one
    compute(nets, test, lambda: Scores(metrics, labels), scores, progress)
    barriers = {
        which: {name: metric.absolute_barrier(ends[name], means[name]) for name, metric in metrics.items()}
        for which, means in scores.items()
    }
    return [
        Partial(part.name, barriers["prefix", number], barriers["leave_one_out", number])
        for number, part in enumerate(nets.parts)
    ]


def _side_by_side(
    nets: PartialMerges, test: ImageSource, new: Callable[[], Scores], kept: Kept, progress: Progress
) -> None:
    """Add the scores of all partial merges of a net with batch norm to `kept`; all nets read each batch together."""
    device, branches, images = device_of(nets.first.net), _Branches(nets), nets.images
    buffers = [buffer for norm in branches.norms for buffer in norm.buffers()]
    scores: dict[Which, Scores] = defaultdict(new)
    whole, done = len(images) + len(test), 0
    with resetting(branches.norms):
        for buffer, value in zip(buffers, kept.buffers, strict=kept.batches > 0):
            buffer.copy_(value)
        for batch, x in enumerate(images.batches(device, even=True), 1):
            if batch > kept.batches:
                for _ in branches.run(x):
                    pass
                kept.read(batch, buffers)
            done += len(x)
            progress(done / whole)
    for x in test.batches(device):
        for which, output in branches.run(x):
            scores[which].add(logits_of(output))
        done += len(x)
        progress(done / whole)
    kept |= {which: sums.means() for which, sums in scores.items()}


def _one_by_one(
    nets: PartialMerges,
    test: ImageSource,
    new: Callable[[], Scores],
    kept: Kept,
    progress: Progress = lambda done: None,
    kinds: Collection[str] = ("prefix", "leave_one_out"),
) -> None:
    """Add the scores of partial merges to `kept`, net by net; scores in `kept` aren't computed again."""
    total = len(kinds) * len(nets.parts)
    with evaluating(nets.first.net):
        for which, logits in nets.run(test, lambda which: which[0] in kinds and which not in kept):
            scores = new()
            for batch in logits:
                scores.add(batch)
            kept[which] = scores.means()
            progress(len(kept) / total)
