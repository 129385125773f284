"""REPAIR (Jordan et al. 2023; section 4): give a merged net's channels the average statistics of its endpoints."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from relusym.channels.flow import Flow
from relusym.channels.groups import block_outputs
from relusym.channels.handlers import BATCH_NORMS, CONVS, PRODUCTS, TRANSPOSED
from relusym.channels.labels import FIXED, Labels
from relusym.channels.traced import TracedNet, as_traced
from relusym.channels.tracing import describe, function_name, layer_of
from relusym.errors import UserError, listed
from relusym.evaluation.images import ImageSource, device_of
from relusym.evaluation.logits import logits_of
from relusym.merging.identities import CHECK_IMAGES, answers, hold, largest_difference
from relusym.merging.moments import Moments, Statistics, samples

EPSILON = (
    1e-5  # of the target's variance is added to a variance before a division, so that no scale is above 316
)
# A layer's inputs are held for all images if they take at most `HELD_BYTES`; otherwise they are recomputed from an
# earlier layer's. Its outputs are kept as well, until they are corrected, if both take at most `KEPT_BYTES`; otherwise
# the layer runs again. So does a layer of fewer than `CHEAP` multiply-adds per output, as memory is slower than that.
HELD_BYTES, KEPT_BYTES = 2**30, 2**31
CHEAP = 64
CORRECTED = (*CONVS, *TRANSPOSED, nn.Linear)
SHOWN = 3  # names in a note


def repair_points(traced: TracedNet) -> dict[str, str]:
    """The nodes of a net's graph whose outputs REPAIR corrects → their names in statistics.

    Without batch norm: every convolution and linear layer, by the layer's name, except those that write the logits and
    layers that are called twice. With batch norm: every block's output (`block_outputs`), by the node's name.
    """
    if traced.has_batch_norm:
        return {node.name: node.name for node in block_outputs(traced.module())}
    net, nodes = traced.net, list(traced.graph.nodes)
    state = net.state_dict(keep_vars=True)
    used = Counter(id(state.get(name)) for node in nodes for name in tensors_of(net, node))
    heads = {nodes[-1]}  # the output, and what it reads up to the layers that write it
    for node in reversed(nodes):
        if node in heads and not (isinstance(layer_of(net, node), CORRECTED) or _is_product(node)):
            heads.update(node.all_input_nodes)
    return {
        node.name: str(node.target)
        for node in nodes
        if isinstance(layer := layer_of(net, node), CORRECTED)
        and node not in heads
        and all(used[id(tensor)] <= 1 for tensor in layer.parameters())
    }


def _is_product(node: fx.Node) -> bool:
    """Whether a function multiplies its input by a matrix or a kernel of parameters, as a layer does."""
    beside = any(x.meta.get("varies") and not x.meta.get("image") for x in node.all_input_nodes)
    return beside and function_name(node) in PRODUCTS


def held_by_layers(traced: TracedNet) -> bool:
    """Whether a net's layers can hold REPAIR's corrections: it has no batch norm, and corrected layers have a bias."""
    return not traced.has_batch_norm and all(
        traced.net.get_submodule(name).bias is not None for name in repair_points(traced).values()
    )


def tensors_of(net: nn.Module, node: fx.Node) -> list[str]:
    """The names of the tensors of the state dict that a node reads."""
    if node.op == "get_attr":
        return [str(node.target)]
    layer = layer_of(net, node)
    return [] if layer is None else [f"{node.target}.{key}" for key in layer.state_dict()]


def channel_dim(layer: nn.Module) -> int:
    """The dimension along which a convolution or linear layer writes its channels, as a negative index."""
    return 1 - layer.weight.ndim


@dataclass(frozen=True)
class Rescaling:
    """A scale and a shift of a layer's output channels, float64 (C,), which lie along `dim`, a negative index."""

    scale: Tensor
    shift: Tensor
    dim: int

    @classmethod
    def towards(cls, current: Statistics, target: Statistics, dim: int) -> "Rescaling":
        """The rescaling that takes outputs with statistics `current` to the target ones, however small both are."""
        smallest = torch.finfo(target.std.dtype).tiny  # two dead channels have a scale of 0
        scale = target.std / (current.std**2 + EPSILON * target.std**2).sqrt().clamp(min=smallest)
        return cls(scale, target.mean - scale * current.mean, dim)

    def fuse(self, layer: nn.Module) -> None:
        """Change a layer's weight and bias so that its output is rescaled; a layer without a bias gets one."""
        weight, groups = layer.weight, getattr(layer, "groups", 1)
        if isinstance(layer, TRANSPOSED):  # (in, out / groups, …)
            weight = weight.unflatten(0, (groups, -1)).transpose(1, 2)
            weight = weight * self.scale.reshape(groups, -1, *[1] * (weight.ndim - 2))
            weight = weight.transpose(1, 2).flatten(0, 1)
        else:
            weight = weight * self.scale.reshape(-1, *[1] * (weight.ndim - 1))
        layer.weight.copy_(weight)
        if layer.bias is None:
            layer.bias = nn.Parameter(self.shift.to(layer.weight))
        else:
            layer.bias.copy_(layer.bias * self.scale + self.shift)

    def __call__(self, output: Tensor) -> Tensor:
        """A layer's output, (B, C, H, W) or with its channels along `dim`, rescaled in place."""
        sizes = [-1] + [1] * (-1 - self.dim)
        scale, shift = (x.reshape(sizes).to(output.dtype) for x in (self.scale, self.shift))
        return torch.addcmul(shift, output, scale, out=output)


class Layers(fx.Interpreter):
    """Runs a graph's nodes, with the layers and tensors in `layers` in place of those of the same names."""

    def __init__(self, graph: fx.GraphModule, layers: dict[str, Any]):
        super().__init__(graph)
        self.layers = layers

    def fetch_attr(self, target: str) -> Any:
        """The layer or tensor of this name."""
        return self.layers[target] if target in self.layers else super().fetch_attr(target)

    def hold(self, environment: dict[fx.Node, Any], node: fx.Node, output: Any) -> None:
        """Keep a node's output, and drop what no later node reads."""
        if node.users:
            environment[node] = output
        for unused in self.user_to_last_uses.get(node, ()):
            del environment[unused]

    def go(self, environment: dict[fx.Node, Any], nodes: Iterable[fx.Node]) -> Any:
        """Run consecutive nodes and return the last one's output; changes `environment`, which holds what they and
        later nodes read.
        """
        self.env, output = environment, None
        for node in nodes:
            output = self.run_node(node)
            self.hold(environment, node, output)
        return output


def cloned(environment: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
    """A copy of what nodes read, for layers that work in place."""
    return tree_map_only(Tensor, Tensor.clone, environment)


class LayerByLayer:
    """A net run layer by layer over a whole set of images, so that a layer can be changed before the next is run.

    Between two layers, it holds what later layers read (in VGG11, one feature map per image) if that takes at most
    `HELD_BYTES`; larger maps are held for one batch at a time.
    """

    def __init__(self, net: nn.Module | TracedNet, images: ImageSource):
        traced = as_traced(net, images.shape)
        self.device = device_of(traced.net.eval())
        self.graph = traced.module()  # shares its layers with the net
        self.nodes, self.points, self.images = list(self.graph.graph.nodes), repair_points(traced), images
        self.interpreter = Layers(self.graph, {})
        self.environments: list[dict[fx.Node, Any]] = [{} for _ in range(images.count)]
        self.outputs: list[Tensor] = []
        self.done, self.forked, self.shared = 0, False, False
        self.bytes = self._bytes()

    def _bytes(self) -> list[int]:
        """For each node, the bytes that it takes to hold what this and later nodes read, for all images."""
        environment: dict[fx.Node, Any] = {}
        self.interpreter.args_iter = iter([self.images.first(1, self.device)])
        taken = []
        for node in self.nodes:
            leaves = tree_leaves(list(environment.values()))
            taken.append(len(self.images) * sum(x.nbytes for x in leaves if isinstance(x, Tensor)))
            self.interpreter.go(environment, [node])
        return taken

    def fork(self, layers: dict[str, Any]) -> "LayerByLayer":
        """A run that goes on from here with these layers, by name, in place of the net's, and changes only copies."""
        fork = copy(self)
        fork.interpreter = Layers(self.graph, self.interpreter.layers | layers)
        fork.environments, fork.outputs = list(self.environments), []
        fork.forked = fork.shared = True
        return fork

    def before(self, place: int) -> Iterator[dict[fx.Node, Any]]:
        """What the `place`-th node and later ones read, batch by batch; held, if there is room."""
        room = self.bytes[place] <= HELD_BYTES
        if not self.done:
            self.interpreter.args_iter = self.images.batches(self.device)  # the first node reads one per run
        for number, held in enumerate(self.environments):
            environment = held if room and not self.shared else cloned(held)
            self.interpreter.go(environment, self.nodes[self.done : place])
            if room:
                self.environments[number] = environment
            yield environment
        if room:
            self.done, self.shared = place, False

    def advance(self, place: int) -> None:
        """Run up to the `place`-th node, if there is room to hold what it reads."""
        if self.bytes[place] <= HELD_BYTES:
            deque(self.before(place), 0)

    def logits(self) -> Iterator[Tensor]:
        """The net's logits, batch by batch."""
        for _ in self.before(len(self.nodes) - 1):
            yield logits_of(self.interpreter.run_node(self.nodes[-1]))

    def measure(self, place: int) -> Statistics:
        """Statistics of the `place`-th node's output over all images; keeps outputs for `correct` if there is room."""
        moments, node = Moments(), self.nodes[place]
        layer = self.interpreter.fetch_attr(node.target)
        worth_keeping = layer.weight[0].numel() >= CHEAP and self.bytes[place] <= HELD_BYTES
        self.outputs.clear()
        for _ in self.before(place):
            output = self.interpreter.run_node(node)
            moments.add(samples(output, channel_dim(layer)))
            kept = self.bytes[place] + output.nbytes * len(self.environments)
            if worth_keeping and kept <= KEPT_BYTES:
                self.outputs.append(output)
        return moments.statistics()

    def correct(self, targets: Mapping[str, Statistics], start: int, stop: int) -> dict[str, Rescaling]:
        """Correct the layers from the `start`-th node to before the `stop`-th that have target statistics.

        Outputs that `measure` kept are rescaled; without them, the corrected layer runs again later. Returns layer name
        → the rescaling that is fused into it.
        """
        rescalings = {}
        for place, node in enumerate(self.nodes[start:stop], start):
            if self.points.get(node.name) not in targets:
                continue
            layer = self.interpreter.fetch_attr(node.target)
            if self.forked:
                layer = self.interpreter.layers[node.target] = deepcopy(layer)
            rescaling = Rescaling.towards(self.measure(place), targets[node.target], channel_dim(layer))
            rescaling.fuse(layer)
            if len(self.outputs) == len(self.environments):
                for environment, output in zip(self.environments, self.outputs, strict=True):
                    self.interpreter.hold(environment, node, rescaling(output))
                self.done += 1
            self.outputs.clear()
            rescalings[node.target] = rescaling
        return rescalings


@torch.no_grad()
def repair(
    net: nn.Module | TracedNet, targets: dict[str, Statistics], images: ImageSource
) -> tuple[nn.Module, dict[str, Rescaling]]:
    """A copy of a net whose layers' outputs have the target statistics, and the rescalings that are fused into it.

    Each layer is measured with all earlier ones already corrected, over all of `images` and not batch by batch, so
    the targets are met exactly.

    Args:
        net: the merged net.
        targets: layer name → statistics, such as the endpoints' by `Statistics.towards`.
    """
    traced = as_traced(net, images.shape)
    repaired = deepcopy(traced.net)
    run = LayerByLayer(traced.copied(repaired), images)
    return repaired, run.correct(targets, 0, len(run.nodes))


@torch.no_grad()
def unfused(graph: fx.GraphModule, rescalings: dict[str, Rescaling], x: Tensor) -> Tensor:
    """A net's logits on normalised images `x`, with the rescalings applied after its layers instead of fused."""
    layers = {}
    for name, rescaling in rescalings.items():
        layer = graph.get_submodule(name)
        layers[name] = lambda y, layer=layer, rescaling=rescaling: rescaling(layer(y))
    return answers(Layers(graph, layers).run, x)


@torch.no_grad()
def repaired(
    net: nn.Module | TracedNet, targets: dict[str, Statistics], images: ImageSource
) -> tuple[nn.Module, dict[str, float]]:
    """A merged net with its architecture's REPAIR, and a check of the fusing if REPAIR is fused into its layers.
    UserError if the fused REPAIR differs from REPAIR applied after the layers.

    Args:
        net: the merged net.
        targets: as `repair` and `repair_blocks` take them.
    """
    traced = as_traced(net, images.shape)
    net = traced.net
    if traced.has_batch_norm:
        return repair_blocks(traced, targets, images), {}
    fused, rescalings = repair(traced, targets, images)
    x = images.first(CHECK_IMAGES, device_of(net))
    # both as graphs, which compute in float32 where the net itself may not
    graphs = traced.module(), traced.module(fused)
    checks = {"fused_repair": largest_difference(unfused(graphs[0], rescalings, x), answers(graphs[1], x))}
    hold(checks)
    return fused, checks


# ---- nets with batch norm

NORMS = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d}  # by the number of dimensions


def norms_of(net: nn.Module) -> list[nn.Module]:
    """The layers that keep running statistics."""
    return [layer for layer in net.modules()
            if isinstance(layer, BATCH_NORMS) and layer.running_mean is not None]  # fmt: skip


@contextmanager
def resetting(norms: Sequence[nn.Module]) -> Iterator[None]:
    """A context with batch norms in training mode; afterwards they hold the means over the batches read in it.

    Those that read none, as in a branch that only training runs, stay as they are.

    Raises:
        UserError: a batch norm reads a single number per channel.
    """
    before = [(norm.momentum, [buffer.clone() for buffer in norm.buffers()]) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "a batch norm reads a batch of one image, with one number per channel, which have no variance: give more "
            "images, or larger batches"
        ) from error
    for norm, (momentum, buffers) in zip(norms, before, strict=True):
        norm.momentum = momentum
        norm.eval()
        if not norm.num_batches_tracked:
            for buffer, value in zip(norm.buffers(), buffers, strict=True):
                buffer.copy_(value)


@torch.no_grad()
def reset_batch_norm(net: nn.Module, images: ImageSource) -> nn.Module:
    """A copy of `net` whose batch norms hold the statistics of `images`.

    One pass in training mode: every layer sees the earlier ones already reset. Batch sizes differ by at most
    one image, since batch norm weights all batches alike.
    """
    return _reset(deepcopy(net), images)


def _reset(net: nn.Module, images: ImageSource) -> nn.Module:
    """`reset_batch_norm` of the net itself, in place."""
    net.eval()  # all but its batch norms: no dropout, no auxiliary outputs
    with resetting(norms_of(net)):
        for x in images.batches(device_of(net), even=True):
            net(x)
    return net


def _batch_norm_after(
    graph: fx.GraphModule, node: fx.Node, shape: Sequence[int]
) -> tuple[nn.Module, fx.Node]:
    """Add a batch norm that reads a node's output of this shape; returns it and its node, which no node reads yet."""
    layer = NORMS[len(shape)](shape[1]).to(next(graph.parameters()))
    graph.add_submodule(f"{node.name}_repair", layer)
    with graph.graph.inserting_after(node):
        return layer, graph.graph.call_module(f"{node.name}_repair", (node,))


@torch.no_grad()
def block_statistics(net: nn.Module | TracedNet, images: ImageSource) -> dict[str, Statistics]:
    """Statistics of the block outputs of an endpoint with batch norm, as REPAIR needs them.

    They are measured in training mode, on a copy: every layer reads activations normalised by their batch's statistics,
    not by the trained ones, and means and variances are averaged over the batches. `net`: the endpoint; it isn't
    changed.
    """
    traced = as_traced(net, images.shape)
    graph = traced.module(deepcopy(traced.net))
    norms = {node.name: _batch_norm_after(graph, node, shape)[0]
             for node, shape in _block_shapes(traced, graph).items()}  # fmt: skip
    if norms:
        graph.recompile()
        _reset(graph, images)
    return {
        name: Statistics(layer.running_mean.double(), layer.running_var.double().sqrt())
        for name, layer in norms.items()
    }


def _block_shapes(traced: TracedNet, graph: fx.GraphModule) -> dict[fx.Node, Sequence[int]]:
    """The shapes of block outputs, except those of tokens or maps whose channels aren't in dimension 1."""
    varies = {node.name: labels.varies for node, labels in traced.flow(Flow).labels.items()
              if isinstance(labels, Labels)}  # fmt: skip
    shapes = {node: node.meta["shape"] for node in block_outputs(graph)}
    return {node: shape for node, shape in shapes.items()
            if len(shape) in NORMS and (1 in varies[node.name] or not varies[node.name])}  # fmt: skip


def repair_notes(traced: TracedNet) -> list[str]:
    """What REPAIR doesn't correct, in a line; none if it corrects all layers, or blocks, whose channels are matched."""
    graph, flow = traced.module(), traced.flow(Flow)
    if traced.has_batch_norm:
        blocks, corrected = block_outputs(graph), _block_shapes(traced, graph)
        if not blocks:
            return [
                "REPAIR only resets batch norms: the net has no sum of maps, and no activation after a batch norm"
            ]
        left, why = [node for node in blocks if node not in corrected], "channels there aren't in dimension 1"
    else:
        matched = {node.name for node, labels in flow.writers.items()
                   if any(flow.relations.root(label) != FIXED for label in labels.tolist())}  # fmt: skip
        left = [node for node in graph.graph.nodes if node.name in matched - repair_points(traced).keys()]
        why = "it corrects convolutions and linear layers that are called once"
    names = dict.fromkeys(describe(node).removeprefix("layer ") for node in left)
    return [f"REPAIR doesn't correct {listed([*names], SHOWN)}: {why}"] if left else []


@torch.no_grad()
def correct_blocks(
    traced: TracedNet, targets: dict[str, Statistics]
) -> tuple[fx.GraphModule, dict[str, str]]:
    """A copy of a net with a batch norm after each block, whose weight and bias are the target statistics.

    Args:
        traced: a net with batch norm.
        targets: node name, as `repair_points` gives it → statistics.

    Returns:
        The copy, its batch norms not yet reset, and each new node's name → its block's node's name.
    """
    graph, blocks = traced.module(deepcopy(traced.net)), {}
    for node, shape in _block_shapes(traced, graph).items():
        target = targets[node.name]
        correction, corrected = _batch_norm_after(graph, node, shape)
        correction.weight.copy_(target.std)
        correction.bias.copy_(target.mean)
        node.replace_all_uses_with(
            corrected, delete_user_cb=lambda user, itself=corrected: user is not itself
        )
        blocks[corrected.name] = node.name
    graph.recompile()
    return graph.eval(), blocks


@torch.no_grad()
def repair_blocks(
    net: nn.Module | TracedNet, targets: dict[str, Statistics], images: ImageSource
) -> fx.GraphModule:
    """A copy of a net with batch norm, reset, whose blocks' outputs have the target statistics.

    A batch norm after each block, with the target's standard deviation as its weight and its mean as its bias, is reset
    with the others in one pass. It stays in the net: a block's output is read by the next block's layers and by
    the addition after them, so its rescaling can't be fused into a single layer.

    Args:
        net: the merged net.
        targets: as in `correct_blocks`.
    """
    return _reset(correct_blocks(as_traced(net, images.shape), targets)[0], images)
