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
    "relu",
    "relu_",
    "max_pool2d",
    "avg_pool2d",
    "adaptive_avg_pool2d",
    "dropout",
    "gelu",
}
ADDITIONS = {"add", "iadd", "add_"}
RECTIFIERS = (nn.ReLU, nn.ReLU6)


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


@dataclass
class _Space:
    """A channel space while the graph is read: merged with others as additions join them."""

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

    VGG11 has 8, ResNet50 has 37. `image_shape` is one image's (channels, height, width): it tells how many pixels a
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
    modules = dict(graph.named_modules())
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    spaces: dict[
        fx.Node, tuple[_Space, int]
    ] = {}  # of each tensor: its channels, entries a channel spans in dim 1
    roots: list[_Space] = []

    def new(size: int, **given) -> _Space:
        roots.append(_Space(size, **given))
        return roots[-1]

    def parameters(node: fx.Node, space: _Space) -> None:
        """All parameters and buffers of a layer that has one entry a channel, dim 0."""
        for name, tensor in modules[node.target].state_dict().items():
            if tensor.ndim:
                space.root().places.append(Place(f"{node.target}.{name}", 0))

    for node in graph.graph.nodes:
        if node.op == "output":
            for source in node.all_input_nodes:
                spaces[source][0].root().free = False
            continue
        sources = [source for source in node.all_input_nodes if source in spaces]
        if node.op == "placeholder":
            spaces[node] = new(_shape(node)[1], free=False), 1
            continue
        space, block = spaces[sources[0]] if sources else (None, 1)
        module = modules.get(node.target) if node.op == "call_module" else None
        function = getattr(node.target, "__name__", node.target)
        called = node.op in ("call_function", "call_method")
        if isinstance(module, nn.Conv2d | nn.Linear):
            grouped = isinstance(module, nn.Conv2d) and module.groups > 1
            if grouped and not module.groups == module.in_channels == module.out_channels:
                raise UserError(
                    f"layer {node.target}: grouped convolutions that aren't depthwise aren't supported"
                )
            if grouped:
                written = space.root()
            else:
                written = new(module.weight.shape[0])
                space.root().places.append(Place(f"{node.target}.weight", 1, block))
            parameters(node, written)
            written.writers.append(node)
            spaces[node] = written, 1
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            parameters(node, space)
            spaces[node] = space, block
        elif isinstance(module, CHANNELWISE) or (called and function in CHANNELWISE_FUNCTIONS):
            spaces[node] = space, block
            if isinstance(module, RECTIFIERS) or function in ("relu", "relu_"):
                space.root().rectified.append(node)
        elif isinstance(module, nn.Flatten) or (called and function == "flatten"):
            spaces[node] = space, block * _shape(node)[1] // _shape(sources[0])[1]
        elif called and function in ADDITIONS and len(sources) == 2:
            spaces[node] = space.join(spaces[sources[1]][0]), block
        else:
            raise UserError(
                f"layer {node.target}: its effect on channels is unknown, so it can't be permuted"
            )

    groups = []
    for space in roots:
        if space.parent is None and space.free:
            node = max(space.rectified or space.writers, key=order.get)
            name = str(max(space.writers, key=order.get).target).removeprefix("features.")
            nodes = tuple(n.name for n, (of, block) in spaces.items() if of.root() is space and block == 1)
            group = ChannelGroup(name, space.size, tuple(space.places), node.name, nodes)
            groups.append((order[node], group))
    return [group for _, group in sorted(groups, key=lambda pair: pair[0])]


def is_conv(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a graph's node is a convolution layer."""
    return node.op == "call_module" and isinstance(graph.get_submodule(node.target), nn.Conv2d)


def has_batch_norm(net: nn.Module) -> bool:
    """Whether any layer keeps running statistics of its channels."""
    return any(isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) for module in net.modules())


def block_outputs(graph: fx.GraphModule) -> list[fx.Node]:
    """The outputs of a net's residual blocks: the ReLU that reads an addition, or the addition if no ReLU does."""
    modules = dict(graph.named_modules())

    def rectifies(node: fx.Node) -> bool:
        return isinstance(modules.get(node.target), RECTIFIERS) or _function(node) in ("relu", "relu_")

    additions = [node for node in graph.graph.nodes if _function(node) in ADDITIONS]
    return [next(filter(rectifies, node.users), node) for node in additions]


def _function(node: fx.Node) -> str | None:
    """The name of the function or method that a node calls."""
    called = node.op in ("call_function", "call_method")
    return getattr(node.target, "__name__", node.target) if called else None


def _shape(node: fx.Node) -> torch.Size:
    return node.meta["tensor_meta"].shape


def permute(
    state: dict[str, Tensor], groups: list[ChannelGroup], permutations: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The state dict with its channels reordered: channel i of a group is the former channel `permutation[i]`.

    W₁ ↦ P₁W₁, Wⱼ ↦ PⱼWⱼPⱼ₋₁ᵀ, W_L ↦ W_LP_L₋₁ᵀ (section 3); the net's function stays.

    Raises:
        ValueError: a permutation that is no bijection on its group.
    """
    permuted = dict(state)
    for group in groups:
        permutation = permutations[group.name].to(next(iter(state.values())).device)
        if not torch.equal(permutation.sort().values, torch.arange(group.size, device=permutation.device)):
            raise ValueError(f"group {group.name}: not a bijection on {group.size} channels")
        for place in group.places:
            index = permutation
            if place.block > 1:
                index = (permutation[:, None] * place.block + torch.arange(place.block)).flatten()
            permuted[place.tensor] = permuted[place.tensor].index_select(place.dim, index)
    return permuted
