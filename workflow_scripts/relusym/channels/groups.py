"""Channel groups: which dimensions of a net's tensors must be permuted together, read from its traced graph."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from relusym.channels.flow import Flow
from relusym.channels.handlers import (
    ACTIVATING,
    ACTIVATIONS,
    ADDITIONS,
    BATCH_NORMS,
    CONVS,
    PRODUCTS,
    TRANSPOSED,
)
from relusym.channels.labels import FIXED, Labels, Weights
from relusym.channels.tracing import function_name, layer_of
from relusym.errors import UserError

State = dict[str, Tensor]  # a net's parameters and buffers by name
Permutations = dict[str, Tensor]  # group name → int64 (C,)
DRAWS = 12  # of permutations; the draw that moves most channels is checked


@dataclass(frozen=True)
class Place:
    """Where channels lie in one dimension of a tensor.

    Attributes:
        tensor: name of a parameter or buffer in the state dict; in `ChannelGroup.outputs`, of a graph node.
        dim: the dimension.
        block: number of entries that each channel spans.
        entries: the entries of the first channel, then of the second, and so on; None: all, in order.
        flat: whether these are entries of dimensions 0 and 1 together: each group of a grouped convolution reads
            channels of its own along dimension 1.
    """

    tensor: str
    dim: int
    block: int = 1
    entries: Sequence[int] | None = None
    flat: bool = False

    def view(self, tensor: Tensor) -> Tensor:
        """The tensor with the entries along `dim`."""
        return tensor.flatten(0, 1)[None] if self.flat else tensor

    def fits(self, tensor: Tensor, size: int) -> bool:
        """Whether a tensor has the entries of `size` channels, and no others unless `entries` says which they are."""
        count = self.view(tensor).shape[self.dim] if tensor.ndim > self.dim else 0
        return count == size * self.block if self.entries is None else count > max(self.entries)

    def index(self, size: int, device: torch.device | str = "cpu") -> Tensor:
        """The entries of each of `size` channels, int64 (size, block)."""
        if self.entries is None:
            return torch.arange(size * self.block, device=device).reshape(size, self.block)
        return torch.tensor(self.entries, device=device).reshape(size, self.block)

    def rows(self, tensor: Tensor, size: int) -> Tensor:
        """The entries of each of `size` channels in a tensor, one row per channel, (size, entries)."""
        tensor = self.view(tensor)
        if self.entries is not None:
            tensor = tensor.index_select(self.dim, self.index(size, tensor.device).flatten())
        return tensor.movedim(self.dim, 0).reshape(size, -1)


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that one permutation acts on.

    The channels of attention lie in heads of equal size, and those of a group norm or a grouped convolution in its
    groups, which are called heads here, too: the permutation moves heads as a whole, and channels within each head.

    Attributes:
        name: the last layer that writes to the group, such as `conv3` (on a residual stream, that of the last block);
            with the range of its channels, such as `conv3[:16]`, unless they are all of the layer's.
        size: number of channels.
        places: every place in the state dict that is indexed by these channels.
        node: the graph node whose output is compared when channels are matched: the group's last activation, of maps if
            there are any; empty if no output has them, as for parameters with one entry per head.
        outputs: every place of these channels in the outputs of graph nodes.
        heads: number of heads; 1: any permutation is allowed.
        tied: a number shared by groups whose heads are permuted alike, such as queries and keys, and values, or what a
            grouped convolution reads and writes.
    """

    name: str
    size: int
    places: tuple[Place, ...]
    node: str
    outputs: tuple[Place, ...] = ()
    heads: int = 1
    tied: int | None = None

    @property
    def matched(self) -> Place:
        """The place of the channels in the output of `node`."""
        return next(place for place in self.outputs if place.tensor == self.node)


class ChannelPartition:
    """A net's channels divided into groups: joined channels count as one, and interchangeable ones form a group.

    Attributes:
        sizes: of the groups; groups of a single channel are left out.
        heads: number of heads of each group; 1: none.
        tied: for each group with heads, a number shared by groups whose heads are permuted alike; else None.
    """

    def __init__(self, flow: Flow):
        heads = flow.relations.settle()
        self.roots = flow.relations.roots()
        self._places: dict[int, tuple[Tensor, list]] = {}
        alike, self.fresh = np.zeros(len(self.roots), dtype=np.int64), 1
        # the rank of each label among those joined to the same channel: `places` keeps them in this order
        order = np.argsort(self.roots, kind="stable")
        self.within = order.argsort() - np.searchsorted(self.roots[order], self.roots)
        draw = np.random.default_rng(0)
        self._hashes = draw.integers(0, 2**63, (2, int(self.within.max()) + 1), dtype=np.uint64)
        first, second = np.array(flow.relations.pairs, dtype=np.int64).reshape(-1, 2).T
        both = self._hashes[0][self.within[first]] * self._hashes[1][self.within[second]]
        self._refine_by(alike, self.roots[first], both)
        every = [*flow.places.values(), *map(torch.cat, flow.relations.marks.values())]
        # channels are set apart by nodes that only some pass through
        every += [x.ids for x in tree_leaves(list(flow.labels.values())) if isinstance(x, Labels)]
        for labels in {labels.numpy().tobytes(): labels for labels in every}.values():
            self._refine(alike, labels)
        indexing = {
            root for labels in flow.places.values() for root in np.unique(self._roots(labels)).tolist()
        }
        self.head = np.arange(len(self.roots))  # of every channel; the channel itself if it is in none
        for head, sets in heads.items():
            for channels in sets:
                self.head[list(channels)] = head or min(channels)
        staying = self._refine_by_heads(alike, heads)
        members: dict[int, list[int]] = defaultdict(list)
        for root in sorted(indexing - staying, key=lambda root: (self.head[root], root)):
            members[alike[root]].append(root)
        groups = [channels for channels in members.values() if len(channels) > 1]
        self.sizes, self.heads, self.tied = [len(channels) for channels in groups], [], []
        held = {head for head in heads if head != FIXED}
        self.group, self.rank = (np.full(len(self.roots), -1) for _ in range(2))
        for number, channels in enumerate(groups):
            labels = np.unique(self.head[channels])
            several = len(labels) > 1 and held.issuperset(labels.tolist())
            self.heads.append(len(labels) if several else 1)
            self.tied.append(int(labels[0]) if several else None)
            self.group[channels], self.rank[channels] = number, range(len(channels))

    def _roots(self, labels: Tensor) -> np.ndarray:
        return self.roots[labels.flatten().clamp(min=FIXED).numpy()]

    def _refine(self, alike: np.ndarray, labels: Tensor) -> None:
        """Set channels apart by how often each of their labels occurs in `labels`."""
        entries = labels.flatten().clamp(min=FIXED).numpy()
        self._refine_by(alike, self.roots[entries], self._hashes[0][self.within[entries]])

    def _refine_by(self, alike: np.ndarray, channels: np.ndarray, hashes: np.ndarray) -> None:
        """Set channels apart by the sums of their hashes."""
        roots, where = np.unique(channels, return_inverse=True)
        sums = np.zeros(len(roots), dtype=np.uint64)
        np.add.at(sums, where.reshape(-1), hashes)
        _, kinds = np.unique(np.stack([alike[roots].astype(np.uint64), sums]), axis=1, return_inverse=True)
        alike[roots] = self.fresh + kinds.reshape(-1)
        self.fresh += len(roots)

    def _refine_by_heads(self, alike: np.ndarray, heads: dict[int, list[frozenset[int]]]) -> set[int]:
        """Set channels apart by what shares their head; return the heads that stay: fixed ones, and those with several
        equal sets, which can't be told apart in another head.
        """
        staying = {FIXED}
        numbers: dict[Hashable, int] = {}
        kinds = -1
        while kinds < (kinds := len(np.unique(alike))):
            for head, sets in heads.items():
                signs = [tuple(sorted(alike[list(held)])) for held in sets]  # what each set of a head holds
                if len(set(signs)) < len(signs):
                    staying.add(head)
                if head in staying:  # it is like no other
                    signs = [(sign, min(held)) for sign, held in zip(signs, sets, strict=True)]
                whole = (alike[head] if head else 0, *sorted(signs))
                for held, sign in [*zip(sets, signs, strict=True), *([({head}, 0)] if head else [])]:
                    for channel in held:
                        kind = alike[channel], sign, whole
                        alike[channel] = numbers.setdefault(kind, self.fresh + len(numbers))
        return staying

    def places(self, tensor: str, dim: int, labels: Tensor, flat: bool = False) -> list[tuple[int, Place]]:
        """The groups with all their channels along this dimension, equally many entries each; and their places."""
        if id(labels) not in self._places:
            roots, every = self._roots(labels), labels.flatten().numpy()
            groups = self.group[roots]
            # joined channels lie in the order in which they were written
            entries = np.lexsort((every, self.rank[roots], groups))
            places = []
            for run in np.split(entries, np.flatnonzero(np.diff(groups[entries])) + 1):
                group = int(groups[run[0]])
                counts = np.bincount(self.rank[roots[run]]) if group >= 0 else np.zeros(0)
                if group < 0 or len(counts) < self.sizes[group] or (counts != counts[0]).any():
                    continue
                first, where = int(run[0]), tuple(run.tolist())
                if where == tuple(range(first, first + len(run))):
                    where = range(first, first + len(run)) if len(run) < len(roots) else None
                places.append((group, int(counts[0]), where))
            self._places[id(labels)] = labels, places
        return [(group, Place(tensor, dim, block, where, flat))
                for group, block, where in self._places[id(labels)][1]]  # fmt: skip


def groups_of(flow: Flow) -> list[ChannelGroup]:
    """The channel groups of a net, from its flow; see `channel_groups`."""
    partition = ChannelPartition(flow)
    order = {node: i for i, node in enumerate(flow.module.graph.nodes)}
    places, outputs, written = defaultdict(list), defaultdict(dict), defaultdict(list)
    for (tensor, dim), labels in flow.places.items():
        for group, place in partition.places(tensor, dim, labels, labels.ndim > 1):
            places[group].append(place)
    for node, labels in flow.labels.items():
        if isinstance(labels, Labels) and len(labels.varies) == 1:
            for group, place in partition.places(node.name, labels.varies[0], labels.ids):
                outputs[group][node] = place
    for node, labels in flow.writers.items():
        for group, place in partition.places(node.name, 0, labels):
            written[group].append((order[node], node, place))
    # channels inside a layer, which no output shows for comparison, are fixed; but a head's parameters move with it
    hidden = [number for number, size in enumerate(partition.sizes)
              if not outputs[number] and size > partition.heads[number]]  # fmt: skip
    staying = {partition.tied[number] for number in hidden} - {None}
    groups, names = {}, Counter()
    elsewhere = rewritten_positions(flow).keys()
    for number, size in enumerate(partition.sizes):
        where, heads, tied = outputs[number], partition.heads[number], partition.tied[number]
        if number in hidden or tied in staying:
            continue
        if where:
            here = {node: place for node, place in where.items() if node not in elsewhere} or where
            node = _compared(flow, here, tied is not None and partition.tied.count(tied) > 1, order)
            _, writer, place = max(written[number], default=(0, node, where[node]))
            layer = writer.target if writer.op == "call_module" else writer.name
            name = str(writer.meta.get("layer", layer)).removeprefix("features.")
            name += _span(place, flow.writers[writer].numel()) if written[number] else ""
            key = order[node], min(where[node].entries or [0])
        else:
            node, name = None, places[number][0].tensor.removeprefix("features.")
            behind = [n for other, nodes in outputs.items() if partition.tied[other] == tied for n in nodes]
            key = max(map(order.get, behind)), len(order) + number
        names[name] += 1
        name += f"#{names[name]}" if names[name] > 1 else ""
        groups[key] = ChannelGroup(
            name, size, tuple(places[number]), node.name if node else "", tuple(where.values()), heads, tied
        )
    return [groups[key] for key in sorted(groups)]


def _compared(flow: Flow, where: dict[fx.Node, Place], attention: bool, order: dict[fx.Node, int]) -> fx.Node:
    """The node whose output is compared to match a group's channels: the last activation, or else sum, or else any; of
    maps, if there are any, and not of vectors, such as gates, which may be the same for all images.
    """
    if attention:  # queries are matched together with keys: their layer's output has both
        where = {node: place for node, place in where.items() if node in flow.writers} or where
    shapes = {node: flow.labels[node].shape for node in where}
    maps = {node: place for node, place in where.items() if shapes[node].numel() > shapes[node][place.dim]}
    where = maps or where
    smallest = min(place.block for place in where.values())
    nodes = [node for node, place in where.items() if place.block == smallest]
    activated = [node for node in nodes if is_activation(flow.module, node)]
    summed = [node for node in nodes if node in flow.writers or function_name(node) in ADDITIONS]
    return max(activated or summed or nodes, key=order.get)


def rewritten_positions(flow: Flow) -> dict[fx.Node, set[fx.Node]]:
    """The nodes at whose positions the image's are no longer, but what layers along positions wrote, as between the two
    such layers of an MLP-Mixer's block → these layers. Two nets' positions there correspond only as their layers do.
    """
    rewritten: dict[fx.Node, set[fx.Node]] = {}
    for node, labels in flow.labels.items():
        if not (isinstance(labels, Labels) and labels.varies):
            continue
        read = [source for source in node.all_input_nodes if isinstance(flow.labels[source], Labels)]
        read = [source for source in read if flow.labels[source].varies]
        if is_along_positions(flow, node):
            rewritten[node] = {node}
        elif read and all(source in rewritten for source in read):
            rewritten[node] = set().union(*(rewritten[source] for source in read))
    return rewritten


def is_along_positions(flow: Flow, node: fx.Node) -> bool:
    """Whether a layer, or a product with parameters, reads and writes positions, alike for all channels."""
    passes = isinstance(labels := flow.labels[node], Labels) and bool(labels.varies)
    product = function_name(node) in PRODUCTS and any(
        isinstance(flow.labels[source], Weights) for source in node.all_input_nodes
    )
    layer = isinstance(layer_of(flow.module, node), (*CONVS, *TRANSPOSED, nn.Linear))
    return passes and (layer or product) and node not in flow.writers


def _span(place: Place, size: int) -> str:
    """Which of a layer's channels these are, such as "[:16,32:]"; empty if all."""
    if place.entries is None:
        return ""
    entries = set(place.entries)
    starts = sorted(i for i in entries if i - 1 not in entries)
    stops = sorted(i + 1 for i in entries if i + 1 not in entries)
    runs = [f"{start or ''}:{stop if stop < size else ''}" for start, stop in zip(starts, stops, strict=True)]
    return f"[{','.join(runs)}]" if len(runs) <= 3 else f"[{len(entries)} of {size}]"


def by_node(groups: list[ChannelGroup]) -> dict[str, list[ChannelGroup]]:
    """The groups by the graph node whose output is compared when their channels are matched."""
    nodes: dict[str, list[ChannelGroup]] = defaultdict(list)
    for group in groups:
        if group.node:
            nodes[group.node].append(group)
    return nodes


def permute(state: State, groups: list[ChannelGroup], permutations: Permutations) -> State:
    """The state dict with its channels reordered: channel i of a group is the former channel `permutation[i]`.

    W₁ ↦ P₁W₁, Wⱼ ↦ PⱼWⱼPⱼ₋₁ᵀ, W_L ↦ W_LP_L₋₁ᵀ (section 3), which leaves the net's function unchanged. UserError if a
    group's permutation is missing, or isn't a bijection that keeps heads whole; or if the state dict is that of another
    net, or of a parametrized net whose weights haven't been computed.
    """
    permuted = copy(state)  # keeps the versions of layers in the state dict's `_metadata`
    orders: dict[int | None, Tensor] = {}
    moves: dict[tuple[bool, str, int], list[tuple[Place, int, Tensor]]] = defaultdict(list)
    for group in groups:
        permutation = torch.as_tensor(permutations.get(group.name, ()))
        whole = not permutation.is_floating_point()
        if not whole or not torch.equal(permutation.sort().values.cpu(), torch.arange(group.size)):
            raise UserError(f"group {group.name}: its permutation is no bijection on {group.size} channels")
        heads = head_order(permutation.cpu(), group.heads)
        if not torch.equal(heads, orders.setdefault(group.tied, heads)[:, :1].expand_as(heads)):
            raise UserError(
                f"group {group.name}: its permutation tears heads apart, or orders them unlike groups tied to it"
            )
        for place in group.places:
            moves[place.flat, place.tensor, place.dim].append((place, group.size, permutation))
    for (flat, name, dim), moved in sorted(moves.items(), key=lambda each: each[0]):
        whole = permuted.get(name)
        if whole is None or not all(place.fits(whole, size) for place, size, _ in moved):
            wrong = f"has no {name}" if whole is None else f"has {name} of shape {tuple(whole.shape)}"
            raise UserError(
                f"the state dict {wrong}: it isn't that of the net that was traced, which is the `net` of its "
                "TracedNet, with its weights computed if it is parametrized"
            )
        tensor = moved[0][0].view(whole)
        order = reordered(moved, tensor.shape[dim])
        if flat:  # the kernels are at their places already, since dimension 0 comes first
            kernels = torch.arange(len(order)) // whole.shape[1]
            order = kernels * whole.shape[1] + order % whole.shape[1]
        permuted[name] = tensor.index_select(dim, order.to(tensor.device)).reshape(whole.shape)
    return permuted


def rescale(state: State, groups: list[ChannelGroup], factors: dict[str, Tensor]) -> State:
    """The state dict with each group's channels multiplied by its `factors`, float (C,), and what reads them divided.

    The net's function is unchanged if `TracedNet.admits` such factors. Where a batch norm writes the channels, signs
    are applied to the convolution before it, as if the net had been trained so, and magnitudes to the batch norm.
    """
    scaled = copy(state)
    for group in groups:
        if group.name not in factors:
            continue
        normed = any(place.tensor.endswith(".running_var") for place in group.places)
        for place in group.places:
            tensor = scaled[place.tensor]
            factor = factors[group.name].to(tensor)
            layer, _, kind = place.tensor.rpartition(".")
            if place.dim:
                factor = 1 / factor
            elif f"{layer}.running_var" in state:
                if kind != "bias":
                    factor = {"weight": factor.abs(), "running_mean": factor.sign()}.get(kind, factor**0)
            elif normed:
                factor = factor.sign()
            view = place.view(tensor)
            scale = view.new_ones(view.shape[place.dim])
            scale[place.index(group.size, tensor.device)] = factor[:, None]
            view = view * scale.reshape(-1, *[1] * (view.ndim - 1 - place.dim))
            scaled[place.tensor] = view.reshape(tensor.shape)
    return scaled


def units(groups: list[ChannelGroup]) -> list[list[ChannelGroup]]:
    """The groups that are permuted at once: a single one, or all whose heads are tied."""
    tied: dict[str | int, list[ChannelGroup]] = defaultdict(list)
    for group in groups:
        tied[group.name if group.tied is None else group.tied].append(group)
    return list(tied.values())


def head_order(permutation: Tensor, heads: int) -> Tensor:
    """The former head of each channel, int64 (heads, C / heads)."""
    rows = permutation.reshape(heads, -1)
    return rows // rows.shape[1]


def random_permutations(groups: list[ChannelGroup], generator: torch.Generator) -> Permutations:
    """Random permutations of all groups, uniform over those that leave the net's function unchanged."""
    permutations, orders = {}, {}
    for group in groups:
        if group.heads == 1:
            permutations[group.name] = torch.randperm(group.size, generator=generator)
            continue
        if group.tied not in orders:
            orders[group.tied] = torch.randperm(group.heads, generator=generator)
        count = group.size // group.heads
        within = torch.stack([torch.randperm(count, generator=generator) for _ in range(group.heads)])
        permutations[group.name] = (orders[group.tied][:, None] * count + within).flatten()
    return permutations


def moving(groups: list[ChannelGroup]) -> Permutations:
    """Of `DRAWS` random permutations, those that leave the fewest channels at their places."""
    draw, permutations = torch.Generator().manual_seed(5), {}
    for unit in units(groups):
        drawn = [random_permutations(unit, draw) for _ in range(DRAWS)]
        permutations |= min(
            drawn, key=lambda ps: sum(int((p == torch.arange(len(p))).sum()) for p in ps.values())
        )
    return permutations


def order_of(
    node: str, size: int, groups: list[ChannelGroup], permutations: Permutations, dim: int
) -> Tensor:
    """How `permute` reorders a dimension of a node's output: entry i is the former `order[i]`, int64 (size,)."""
    moves = [(place, group.size, permutations[group.name]) for group in groups
             for place in group.outputs if (place.tensor, place.dim) == (node, dim)]  # fmt: skip
    return reordered(moves, size)


def factors_of(
    node: str, size: int, groups: list[ChannelGroup], factors: dict[str, Tensor], dim: int
) -> Tensor:
    """The factors by which `rescale` multiplies a dimension of a node's output, float64 (size,)."""
    scale = torch.ones(size, dtype=torch.float64)
    for group in groups:
        for place in group.outputs:
            if group.name in factors and (place.tensor, place.dim) == (node, dim):
                scale[place.index(group.size)] *= factors[group.name].cpu()[:, None]
    return scale


def reordered(moves: Iterable[tuple[Place, int, Tensor]], size: int) -> Tensor:
    """How a dimension of `size` entries is reordered, int64 (size,), if channels are: each move has their place in it,
    their number and their permutation.
    """
    order = torch.arange(size)
    for place, channels, permutation in moves:
        index = place.index(channels)
        order[index.flatten()] = index[permutation.cpu()].flatten()
    return order


def is_activation(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a graph node is an entrywise nonlinearity."""
    layer = layer_of(graph, node)
    if isinstance(layer, BATCH_NORMS):  # such as timm's, which include an activation
        layer = getattr(layer, "act", None)
    return isinstance(layer, ACTIVATIONS) or function_name(node) in ACTIVATING


def block_outputs(graph: fx.GraphModule) -> list[fx.Node]:
    """The outputs of the blocks of a net with batch norm.

    For a residual block, the ReLU that reads its addition, or the addition if no ReLU does. In a net without residual
    blocks, which is made of convolution, batch norm and ReLU, the ReLUs. (The outputs of reset batch norms themselves
    have the mean of the endpoints' statistics already.)
    """

    def activated(node: fx.Node) -> fx.Node | None:
        return next((user for user in node.users if is_activation(graph, user)), None)

    nodes = list(graph.graph.nodes)
    additions = [node for node in nodes if function_name(node) in ADDITIONS and _adds_feature_maps(node)]
    if additions:
        return [activated(node) or node for node in additions]
    norms = [node for node in nodes if isinstance(layer_of(graph, node), BATCH_NORMS)]
    return [node if is_activation(graph, node) else user for node in norms
            if is_activation(graph, node) or (user := activated(node))]  # fmt: skip


def _adds_feature_maps(addition: fx.Node) -> bool:
    """Whether two tensors are added, rather than sizes, a constant or parameters alone."""
    others = {"size", "getattr", "getitem", "dim", "len"}
    return (
        len(addition.args) == 2
        and addition.meta["image"]
        and all(
            isinstance(x, fx.Node) and function_name(x) not in others and x.op != "get_attr"
            for x in addition.args
        )
    )
