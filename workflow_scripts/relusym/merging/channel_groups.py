"""Channel groups: which tensor dimensions of a net must be permuted together, read from its traced graph."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from relusym.errors import UserError

# What leaves channels where they are and as they are: the output has the channels of the input.
CHANNELWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Dropout, nn.Dropout2d, nn.Identity),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)
CHANNELWISE_FUNCTIONS = {
    *("relu", "relu_", "gelu", "dropout"),
    *("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"),
}
RECTIFIERS, RECTIFYING_FUNCTIONS = (nn.ReLU, nn.ReLU6), {"relu", "relu_"}
BATCH_NORMS = (nn.BatchNorm2d, nn.BatchNorm1d)
ADDITIONS = {"add", "iadd", "add_"}


@dataclass(frozen=True)
class Place:
    """One dimension of one parameter or buffer; each channel spans `block` neighbouring entries of it."""

    tensor: str
    dim: int
    block: int = 1


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that one permutation acts on.

    Attributes:
        name: the last layer that writes to the group, such as `conv3`; on a residual stream, the last block's.
        size: number of channels.
        places: every place in the state dict that is indexed by these channels.
        node: the graph node whose output is compared when channels are matched: the group's last ReLU.
        nodes: every graph node whose output has these channels, one entry of dimension 1 each.
    """

    name: str
    size: int
    places: tuple[Place, ...]
    node: str
    nodes: tuple[str, ...] = ()


@dataclass(eq=False)
class _Space:
    """A channel space while the graph is read: joined with others by additions."""

    size: int
    free: bool = True
    places: list[Place] = field(default_factory=list)
    writers: list[fx.Node] = field(default_factory=list)
    rectified: list[fx.Node] = field(default_factory=list)
    parent: "_Space | None" = None

    def root(self) -> "_Space":
        return self if self.parent is None else self.parent.root()

    def join(self, other: "_Space") -> "_Space":
        """One residual stream of two."""
        a, b = self.root(), other.root()
        if a is not b:
            a.free &= b.free
            a.places += b.places
            a.writers += b.writers
            a.rectified += b.rectified
            b.parent = a
        return a

    def index(self, name: str, layer: nn.Module) -> None:
        """All parameters and buffers of a layer that have one entry a channel in dimension 0 are indexed by these."""
        state = layer.state_dict().items()
        self.root().places += [Place(f"{name}.{key}", 0) for key, tensor in state if tensor.ndim]


def trace(net: nn.Module) -> fx.GraphModule:
    """The net's graph.

    Raises:
        UserError: torch.fx can't trace it (control flow that depends on values).
    """
    try:
        return fx.symbolic_trace(net)
    except Exception as error:  # torch.fx raises many kinds
        raise UserError(f"{type(net).__name__} can't be traced by torch.fx: {error}") from error


def channel_groups(net: nn.Module, image_shape: tuple[int, ...] = (3, 32, 32)) -> list[ChannelGroup]:
    """The net's channel groups in the order of their matching nodes; its input and output channels stay fixed.

    VGG11 has 8, ResNet50 has 37. `image_shape` is one image's (channels, height, width), for how many pixels a
    flattened feature map has.

    Raises:
        UserError: a layer whose effect on channels is unknown (named).
    """
    graph = trace(net)
    with torch.no_grad():
        training = net.training
        net.eval()
        ShapeProp(graph).propagate(next(net.parameters()).new_zeros(1, *image_shape))
        net.train(training)
    spaces: dict[
        fx.Node, tuple[_Space, int]
    ] = {}  # of each output; how many entries of dim 1 a channel spans
    for node in graph.graph.nodes:
        sources = [spaces[source] for source in node.all_input_nodes if source in spaces]
        space, block = sources[0] if sources else (None, 1)
        layer, function = _layer(graph, node), _function(node)
        if node.op == "output":
            for space, _ in sources:
                space.root().free = False
            break
        if node.op == "placeholder":
            space = _Space(_channels(node), free=False)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            space, block = _written(node, layer, space, block), 1
        elif isinstance(layer, BATCH_NORMS):
            space.index(node.target, layer)
        elif isinstance(layer, CHANNELWISE) or function in CHANNELWISE_FUNCTIONS:
            if _rectifies(graph, node):
                space.root().rectified.append(node)
        elif isinstance(layer, nn.Flatten) or function == "flatten":
            block *= _channels(node) // _channels(node.all_input_nodes[0])
        elif function in ADDITIONS and len(sources) == 2:
            space = space.join(sources[1][0])
        else:
            raise UserError(
                f"layer {node.target}: its effect on channels is unknown, so it can't be permuted"
            )
        spaces[node] = space, block

    order, groups = {node: i for i, node in enumerate(graph.graph.nodes)}, {}
    for space in {space.root() for space, _ in spaces.values()}:
        if space.free:
            node = max(space.rectified or space.writers, key=order.get)
            name = str(max(space.writers, key=order.get).target).removeprefix("features.")
            nodes = tuple(n.name for n, (of, block) in spaces.items() if of.root() is space and block == 1)
            groups[order[node]] = ChannelGroup(name, space.size, tuple(space.places), node.name, nodes)
    return [groups[i] for i in sorted(groups)]


def _written(node: fx.Node, layer: nn.Conv2d | nn.Linear, read: _Space, block: int) -> _Space:
    """The channels that a layer writes: new ones, or, if it is depthwise, those that it reads."""
    written, groups = read.root(), getattr(layer, "groups", 1)
    if groups == 1:
        written = _Space(layer.weight.shape[0])
        read.root().places.append(Place(f"{node.target}.weight", 1, block))
    elif not groups == layer.in_channels == layer.out_channels:
        raise UserError(f"layer {node.target}: grouped convolutions that aren't depthwise aren't supported")
    written.index(node.target, layer)
    written.writers.append(node)
    return written


def is_conv(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a graph's node is a convolution layer."""
    return isinstance(_layer(graph, node), nn.Conv2d)


def has_batch_norm(net: nn.Module) -> bool:
    """Whether any layer keeps running statistics of its channels."""
    return any(isinstance(layer, BATCH_NORMS) for layer in net.modules())


def block_outputs(graph: fx.GraphModule) -> list[fx.Node]:
    """The outputs of a net's residual blocks: the ReLU that reads an addition, or the addition if no ReLU does."""
    additions = [node for node in graph.graph.nodes if _function(node) in ADDITIONS]
    return [next((user for user in node.users if _rectifies(graph, user)), node) for node in additions]


def _layer(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The layer that a node calls."""
    return graph.get_submodule(node.target) if node.op == "call_module" else None


def _function(node: fx.Node) -> str | None:
    """The name of the function or method that a node calls."""
    called = node.op in ("call_function", "call_method")
    return getattr(node.target, "__name__", node.target) if called else None


def _rectifies(graph: fx.GraphModule, node: fx.Node) -> bool:
    return isinstance(_layer(graph, node), RECTIFIERS) or _function(node) in RECTIFYING_FUNCTIONS


def _channels(node: fx.Node) -> int:
    """Entries of dimension 1 of a node's output."""
    return node.meta["tensor_meta"].shape[1]


def permute(
    state: dict[str, Tensor], groups: list[ChannelGroup], permutations: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The state dict with its channels reordered: channel i of a group is the former channel `permutation[i]`.

    W₁ ↦ P₁W₁, Wⱼ ↦ PⱼWⱼPⱼ₋₁ᵀ, W_L ↦ W_LP_L₋₁ᵀ (section 3); the net's function stays.

    Raises:
        ValueError: a permutation that is no bijection on its group.
    """
    permuted, device = dict(state), next(iter(state.values())).device
    for group in groups:
        permutation = permutations[group.name].to(device)
        if not torch.equal(permutation.sort().values, torch.arange(group.size, device=device)):
            raise ValueError(f"group {group.name}: not a bijection on {group.size} channels")
        for place in group.places:
            entries = permutation[:, None] * place.block + torch.arange(place.block, device=device)
            permuted[place.tensor] = permuted[place.tensor].index_select(place.dim, entries.flatten())
    return permuted
