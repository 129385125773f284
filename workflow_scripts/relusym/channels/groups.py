"""Channel groups: which dimensions of a net's tensors must be permuted together, read from its traced graph."""

from __future__ import annotations

from collections import Counter, defaultdict
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from relusym.channels.flow import Flow
from relusym.channels.handlers import ACTIVATING, ACTIVATIONS, ADDITIONS, BATCH_NORMS
from relusym.channels.labels import Labels
from relusym.channels.partition import Joined, Place
from relusym.channels.tracing import function_name, layer_of
from relusym.errors import UserError

__all__ = ["ChannelGroup", "Place", "by_node", "groups_of", "order_of", "permute", "reordered"]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that one permutation acts on.

    Those of attention lie in heads of equally many, and those of a group norm in its groups, which are called heads
    here, too: the permutation brings each head to the place of a whole head, and within it each channel to any.

    Attributes:
        name: the last layer that writes to the group, such as `conv3`, on a residual stream the last block's; with the
            range of its channels, such as `conv3[:16]`, if those aren't all of the layer's.
        size: number of channels.
        places: every place in the state dict that is indexed by these channels.
        node: the graph node whose output is compared when channels are matched: the group's last activation; empty if
            they show in none, as what belongs to a head.
        nodes: every graph node whose output has these channels and no others, one entry of dimension 1 each.
        outputs: all places in the outputs of graph nodes where these channels are.
        heads: how many heads there are; 1: any permutation will do.
        tied: a number that groups share whose heads are permuted alike, as queries with keys and values.
    """

    name: str
    size: int
    places: tuple[Place, ...]
    node: str
    nodes: tuple[str, ...] = ()
    outputs: tuple[Place, ...] = ()
    heads: int = 1
    tied: int | None = None

    @property
    def matched(self) -> Place:
        """Where in the output of `node` the channels are."""
        return next(place for place in self.outputs if place.tensor == self.node)


def groups_of(flow: Flow) -> list[ChannelGroup]:
    """The channel groups that a net's flow shows, see `channel_groups`."""
    joined = Joined(flow)
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
    # inside a layer, where nothing says how alike two channels are, they stay; but what belongs to a head goes with it
    hidden = [number for number, size in enumerate(joined.sizes)
              if not outputs[number] and size > joined.heads[number]]  # fmt: skip
    staying = {joined.tied[number] for number in hidden} - {None}
    groups, names = {}, Counter()
    for number, size in enumerate(joined.sizes):
        where, heads, tied = outputs[number], joined.heads[number], joined.tied[number]
        if number in hidden or tied in staying:
            continue
        if where:
            node = _compared(flow, where, tied is not None and joined.tied.count(tied) > 1, order)
            _, writer, place = max(written[number], default=(0, node, where[node]))
            layer = writer.target if writer.op == "call_module" else writer.name
            name = str(writer.meta.get("layer", layer)).removeprefix("features.")
            name += _span(place, flow.writers[writer].numel()) if written[number] else ""
            key = order[node], min(where[node].entries or [0])
        else:
            node, name = None, places[number][0].tensor.removeprefix("features.")
            behind = [of for other, known in outputs.items() if joined.tied[other] == tied for of in known]
            key = max(map(order.get, behind)), len(order) + number
        names[name] += 1
        name += f"#{names[name]}" if names[name] > 1 else ""
        whole = tuple(of.name for of, p in where.items() if (p.dim, p.block, p.entries) == (1, 1, None))
        shown = node.name if node else ""
        groups[key] = ChannelGroup(
            name, size, tuple(places[number]), shown, whole, tuple(where.values()), heads, tied
        )
    return [groups[key] for key in sorted(groups)]


def _compared(flow: Flow, where: dict[fx.Node, Place], attention: bool, order: dict[fx.Node, int]) -> fx.Node:
    """The node whose output says how alike a group's channels are: the last activation, or else sum, or else any."""
    if attention:  # queries go with keys: their layer shows both
        where = {node: place for node, place in where.items() if node in flow.writers} or where
    smallest = min(place.block for place in where.values())
    nodes = [node for node, place in where.items() if place.block == smallest]
    activated = [node for node in nodes if is_activation(flow.module, node)]
    summed = [node for node in nodes if node in flow.writers or function_name(node) in ADDITIONS]
    return max(activated or summed or nodes, key=order.get)


def by_node(groups: list[ChannelGroup]) -> dict[str, list[ChannelGroup]]:
    """The groups by the graph node whose output is compared when their channels are matched."""
    found: dict[str, list[ChannelGroup]] = defaultdict(list)
    for group in groups:
        if group.node:
            found[group.node].append(group)
    return found


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
        UserError: the state dict is another net's, or that of a net before its weights were computed.
    """
    permuted = copy(state)  # with the versions of layers that a state dict keeps beside
    orders: dict[int | None, Tensor] = {}
    for group in groups:
        permutation = permutations[group.name]
        if not torch.equal(permutation.sort().values.cpu(), torch.arange(group.size)):
            raise ValueError(f"group {group.name}: not a bijection on {group.size} channels")
        heads = head_order(permutation.cpu(), group.heads)
        if group.heads > 1 and not torch.equal(
            heads, orders.setdefault(group.tied, heads)[:, :1].expand_as(heads)
        ):
            raise ValueError(
                f"group {group.name}: tears heads apart, or orders them as no other of their attention"
            )
        for place in group.places:
            if place.tensor not in permuted:
                raise UserError(
                    f"the state dict has no {place.tensor}: it isn't that of the net that was traced, which is the "
                    "`net` of its TracedNet, with its weights computed if it is parametrized"
                )
            tensor = permuted[place.tensor]
            order = reordered(place, group.size, permutation, tensor.shape[place.dim])
            permuted[place.tensor] = tensor.index_select(place.dim, order.to(tensor.device))
    return permuted


def head_order(permutation: Tensor, heads: int) -> Tensor:
    """From which head each channel comes, int64 (heads, C / heads)."""
    rows = permutation.reshape(heads, -1)
    return rows // rows.shape[1]


def random_permutations(groups: list[ChannelGroup], generator: torch.Generator) -> dict[str, Tensor]:
    """Random permutations of all groups, uniformly among those that leave the net's function as it is."""
    found, orders = {}, {}
    for group in groups:
        if group.heads == 1:
            found[group.name] = torch.randperm(group.size, generator=generator)
            continue
        if group.tied not in orders:
            orders[group.tied] = torch.randperm(group.heads, generator=generator)
        count = group.size // group.heads
        within = torch.stack([torch.randperm(count, generator=generator) for _ in range(group.heads)])
        found[group.name] = (orders[group.tied][:, None] * count + within).flatten()
    return found


def order_of(
    node: str, size: int, groups: list[ChannelGroup], permutations: dict[str, Tensor], dim: int = 1
) -> Tensor:
    """How `permute` reorders a dimension of a node's output: entry i is the former `order[i]`, int64 (size,)."""
    order = torch.arange(size)
    for group in groups:
        for place in group.outputs:
            if (place.tensor, place.dim) == (node, dim):
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
    layer = layer_of(graph, node)
    layer = (
        getattr(layer, "act", None) if isinstance(layer, BATCH_NORMS) else layer
    )  # as timm's with an activation
    return isinstance(layer, ACTIVATIONS) or function_name(node) in ACTIVATING


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
    return [node if is_activation(graph, node) else user for node in norms
            if is_activation(graph, node) or (user := activated(node))]  # fmt: skip


def _of_feature_maps(addition: fx.Node) -> bool:
    """Whether two tensors are added, and not sizes or a constant."""
    others = {"size", "getattr", "getitem", "dim", "len"}
    return len(addition.args) == 2 and all(
        isinstance(of, fx.Node) and function_name(of) not in others and of.op != "get_attr"
        for of in addition.args
    )
