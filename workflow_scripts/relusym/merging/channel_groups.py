"""Channel groups: which dimensions of a net's tensors must be permuted together, read from its traced graph."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from relusym.merging.flow import Flow, function_name, layer_of, trace
from relusym.merging.handlers import ACTIVATING, ACTIVATIONS, ADDITIONS, BATCH_NORMS
from relusym.merging.labels import FIXED, Labels

__all__ = ["ChannelGroup", "Place", "by_node", "channel_groups", "order_of", "permute", "reordered", "trace"]


@dataclass(frozen=True)
class Place:
    """Where channels lie in one dimension of a tensor.

    Attributes:
        tensor: a parameter's or buffer's name in the state dict; of `ChannelGroup.outputs`, a graph node's.
        dim: the dimension.
        block: how many entries of it each channel spans.
        entries: those of the first channel, of the second and so on; None: all, in their order.
    """

    tensor: str
    dim: int
    block: int = 1
    entries: Sequence[int] | None = None

    def index(self, size: int, device: torch.device | str = "cpu") -> Tensor:
        """The entries of each of `size` channels, int64 (size, block)."""
        every = range(size * self.block) if self.entries is None else self.entries
        return torch.tensor(every, device=device).reshape(size, self.block)


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that one permutation acts on.

    Attributes:
        name: the last layer that writes to the group, such as `conv3`, on a residual stream the last block's; with the
            range of its channels, such as `conv3[:16]`, if those aren't all of the layer's.
        size: number of channels.
        places: every place in the state dict that is indexed by these channels.
        node: the graph node whose output is compared when channels are matched: the group's last activation.
        nodes: every graph node whose output has these channels and no others, one entry of dimension 1 each.
        outputs: all places in the outputs of graph nodes where these channels are.
    """

    name: str
    size: int
    places: tuple[Place, ...]
    node: str
    nodes: tuple[str, ...] = ()
    outputs: tuple[Place, ...] = ()

    @property
    def matched(self) -> Place:
        """Where in the output of `node` the channels are."""
        return next(place for place in self.outputs if place.tensor == self.node)


def channel_groups(net: nn.Module, image_shape: tuple[int, ...] = (3, 32, 32)) -> list[ChannelGroup]:
    """The net's channel groups in the order of their matching nodes; its input and output channels stay fixed.

    VGG11 has 8, ResNet50 has 37. Channels are in one group if every tensor that one of them indexes the other indexes
    as well, and if nothing else tells them apart. `image_shape` is one image's (channels, height, width), for how many
    pixels a flattened feature map has.

    Raises:
        UserError: an operation whose effect on channels is unknown, or a layer that can't be permuted (named).
    """
    flow = Flow(net, image_shape)
    joined = _Joined(flow)
    order = {node: i for i, node in enumerate(flow.module.graph.nodes)}
    places, outputs = defaultdict(list), defaultdict(dict)
    for (tensor, dim), labels in flow.places.items():
        for group, place in joined.places(tensor, dim, labels):
            places[group].append(place)
    for node, of in flow.labels.items():
        if isinstance(of, Labels) and len(of.varies) == 1:
            for group, place in joined.places(node.name, of.varies[0], of.ids):
                outputs[group][node] = place
    written = defaultdict(list)
    for node, labels in flow.writers.items():
        for group, place in joined.places(node.name, 0, labels):
            written[group].append((order[node], node, place))
    groups, names = {}, Counter()
    for number, size in enumerate(joined.sizes):
        where = outputs[number]
        if not where:
            continue  # inside a layer, where nothing says how alike two channels are: they stay
        smallest = min(place.block for place in where.values())
        nodes = [node for node, place in where.items() if place.block == smallest]
        activated = [node for node in nodes if is_activation(flow.module, node)]
        summed = [node for node in nodes if node in flow.writers or function_name(node) in ADDITIONS]
        node = max(activated or summed or nodes, key=order.get)
        _, writer, place = max(written[number], default=(0, node, where[node]))
        name = str(writer.target if writer.op == "call_module" else writer.name).removeprefix("features.")
        name += _span(place, flow.writers[writer].numel()) if written[number] else ""
        names[name] += 1
        name += f"#{names[name]}" if names[name] > 1 else ""
        whole = tuple(of.name for of, p in where.items() if (p.dim, p.block, p.entries) == (1, 1, None))
        found = ChannelGroup(name, size, tuple(places[number]), node.name, whole, tuple(where.values()))
        groups[order[node], min(where[node].entries or [0])] = found
    return [groups[i] for i in sorted(groups)]


def by_node(groups: list[ChannelGroup]) -> dict[str, list[ChannelGroup]]:
    """The groups by the graph node whose output is compared when their channels are matched."""
    found: dict[str, list[ChannelGroup]] = defaultdict(list)
    for group in groups:
        found[group.node].append(group)
    return found


class _Joined:
    """What a net's flow says once it has been followed: which channels are one, and which of these are alike.

    Attributes:
        sizes: of the groups, those of a single channel left out.
    """

    def __init__(self, flow: Flow):
        self.roots = flow.ties.roots()
        self._found: dict[int, tuple[Tensor, list]] = {}
        alike, self.fresh = np.zeros(len(self.roots), dtype=np.int64), 1
        for labels in flow.places.values():
            self._refine(alike, labels)
        for marked in flow.ties.marks.values():
            self._refine(alike, torch.cat(marked))
        for of in tree_leaves(list(flow.labels.values())):
            if isinstance(of, Labels):  # what only some pass through tells them apart
                self._refine(alike, of.ids)
        indexing = {
            root for labels in flow.places.values() for root in np.unique(self._roots(labels)).tolist()
        }
        members: dict[int, list[int]] = defaultdict(list)
        for root in sorted(indexing - {FIXED}):
            members[alike[root]].append(root)
        groups = [channels for channels in members.values() if len(channels) > 1]
        self.sizes = [len(channels) for channels in groups]
        self.group, self.rank = (np.full(len(self.roots), -1) for _ in range(2))
        for number, channels in enumerate(groups):
            self.group[channels], self.rank[channels] = number, range(len(channels))

    def _roots(self, labels: Tensor) -> np.ndarray:
        return self.roots[labels.flatten().clamp(min=FIXED).numpy()]

    def _refine(self, alike: np.ndarray, labels: Tensor) -> None:
        """Tell channels apart by how often each is among these labels."""
        roots, counts = np.unique(self._roots(labels), return_counts=True)
        _, kinds = np.unique(np.stack([alike[roots], counts]), axis=1, return_inverse=True)
        alike[roots] = self.fresh + kinds.reshape(-1)
        self.fresh += len(roots)

    def places(self, tensor: str, dim: int, labels: Tensor) -> list[tuple[int, Place]]:
        """Each group that has all its channels along this dimension, with as many entries of each, and where."""
        if id(labels) not in self._found:
            roots, every = self._roots(labels), labels.flatten().numpy()
            groups = self.group[roots]
            # joined channels lie in the order in which they were written
            entries = np.lexsort((every, self.rank[roots], groups))
            found = []
            for run in np.split(entries, np.flatnonzero(np.diff(groups[entries])) + 1):
                group = int(groups[run[0]])
                counts = np.bincount(self.rank[roots[run]]) if group >= 0 else np.zeros(0)
                if group < 0 or len(counts) < self.sizes[group] or (counts != counts[0]).any():
                    continue
                first, where = int(run[0]), tuple(run.tolist())
                if where == tuple(range(first, first + len(run))):
                    where = range(first, first + len(run)) if len(run) < len(roots) else None
                found.append((group, int(counts[0]), where))
            self._found[id(labels)] = labels, found
        return [
            (group, Place(tensor, dim, block, where)) for group, block, where in self._found[id(labels)][1]
        ]


def _span(place: Place, size: int) -> str:
    """Which of a layer's channels these are, such as "[:16,32:]"; empty if all."""
    if place.entries is None:
        return ""
    entries = set(place.entries)
    starts = sorted(i for i in entries if i - 1 not in entries)
    stops = sorted(i + 1 for i in entries if i + 1 not in entries)
    runs = [f"{start or ''}:{stop if stop < size else ''}" for start, stop in zip(starts, stops, strict=True)]
    return f"[{','.join(runs)}]" if len(runs) <= 3 else f"[{len(entries)} of {size}]"


def permute(
    state: dict[str, Tensor], groups: list[ChannelGroup], permutations: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The state dict with its channels reordered: channel i of a group is the former channel `permutation[i]`.

    W₁ ↦ P₁W₁, Wⱼ ↦ PⱼWⱼPⱼ₋₁ᵀ, W_L ↦ W_LP_L₋₁ᵀ (section 3); the net's function stays.

    Raises:
        ValueError: a permutation that is no bijection on its group.
    """
    permuted = copy(state)  # with the versions of layers that a state dict keeps beside
    for group in groups:
        permutation = permutations[group.name]
        if not torch.equal(permutation.sort().values.cpu(), torch.arange(group.size)):
            raise ValueError(f"group {group.name}: not a bijection on {group.size} channels")
        for place in group.places:
            tensor = permuted[place.tensor]
            order = reordered(place, group.size, permutation, tensor.shape[place.dim])
            permuted[place.tensor] = tensor.index_select(place.dim, order.to(tensor.device))
    return permuted


def order_of(node: str, size: int, groups: list[ChannelGroup], permutations: dict[str, Tensor]) -> Tensor:
    """How `permute` reorders the output of a graph node: channel i is the former channel `order[i]`, int64 (size,)."""
    order = torch.arange(size)
    for group in groups:
        for place in group.outputs:
            if place.tensor == node:
                order = order[reordered(place, group.size, permutations[group.name], size)]
    return order


def reordered(place: Place, channels: int, permutation: Tensor, size: int) -> Tensor:
    """How a dimension of `size` entries is reordered if its `channels` at `place` are, int64 (size,)."""
    index, order = place.index(channels), torch.arange(size)
    order[index.flatten()] = index[permutation.cpu()].flatten()
    return order


def is_conv(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a graph's node is a convolution layer."""
    return isinstance(layer_of(graph, node), nn.Conv2d)


def is_activation(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a graph's node is a nonlinearity that acts on every entry alone."""
    return isinstance(layer_of(graph, node), ACTIVATIONS) or function_name(node) in ACTIVATING


def has_batch_norm(net: nn.Module) -> bool:
    """Whether any layer keeps running statistics of its channels."""
    return any(isinstance(layer, BATCH_NORMS) for layer in net.modules())


def block_outputs(graph: fx.GraphModule) -> list[fx.Node]:
    """The outputs of the blocks of a net with batch norm.

    Of residual ones, the ReLU that reads an addition, or the addition if no ReLU does. A net without residual blocks
    is made of convolution, batch norm and ReLU: the ReLUs. (What batch norms write themselves has, once they are reset,
    the mean of the endpoints' statistics as it is.)
    """

    def activated(node: fx.Node) -> fx.Node | None:
        return next((user for user in node.users if is_activation(graph, user)), None)

    nodes = list(graph.graph.nodes)
    additions = [node for node in nodes if function_name(node) in ADDITIONS and _of_feature_maps(node)]
    if additions:
        return [activated(node) or node for node in additions]
    norms = [node for node in nodes if isinstance(layer_of(graph, node), BATCH_NORMS)]
    return [user for node in norms if (user := activated(node))]


def _of_feature_maps(addition: fx.Node) -> bool:
    """Whether two tensors are added, and not sizes or a constant."""
    others = {"size", "getattr", "getitem", "dim", "len"}
    return len(addition.args) == 2 and all(
        isinstance(of, fx.Node) and function_name(of) not in others and of.op != "get_attr"
        for of in addition.args
    )
