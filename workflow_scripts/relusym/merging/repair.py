"""REPAIR (Jordan et al. 2023; section 4): give a merged net's channels the average statistics of its endpoints."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.optim.swa_utils import update_bn

from relusym.merging.channel_groups import block_outputs, has_batch_norm, is_conv, trace
from relusym.merging.images import Images, device_of
from relusym.merging.moments import Moments, Statistics, samples

EPSILON = 1e-5  # added to a variance before a division, as batch norm does
# A conv runs again once it is corrected, instead of its outputs being kept, if they take more than so many bytes on
# all images, or if it has fewer multiply-adds an output than so many (the first conv: memory is slower than that).
KEPT_BYTES = 2**31
CHEAP = 64


def repair_points(graph: fx.GraphModule) -> dict[str, str]:
    """What REPAIR corrects: graph node → its name in statistics.

    Of a net without batch norm, the output of every convolution, by the layer's name; of one with batch norm, the
    output of every residual block, by the node's name.
    """
    if has_batch_norm(graph):
        return {node.name: node.name for node in block_outputs(graph)}
    return {node.name: str(node.target) for node in graph.graph.nodes if is_conv(graph, node)}


@torch.no_grad()
def reset_batch_norm(net: nn.Module, images: Images) -> nn.Module:
    """A copy of `net` whose batch norms hold the statistics of `images`.

    One pass in training mode: every layer sees the earlier ones already reset. Batches are of equal size up to one
    image, since batch norm counts each batch alike.
    """
    reset = deepcopy(net)
    update_bn(images.batches(device_of(net), even=True), reset)
    return reset.eval()


def _batch_norm_after(graph: fx.GraphModule, node: fx.Node, channels: int) -> tuple[nn.BatchNorm2d, fx.Node]:
    """A batch norm that reads a node's output, and its node; no other node reads what it writes."""
    layer = nn.BatchNorm2d(channels).to(device_of(graph))
    graph.add_submodule(f"{node.name}_repair", layer)
    with graph.graph.inserting_after(node):
        return layer, graph.graph.call_module(f"{node.name}_repair", (node,))


@torch.no_grad()
def block_statistics(net: nn.Module, images: Images, channels: Mapping[str, int]) -> dict[str, Statistics]:
    """Statistics of an endpoint's residual blocks' outputs, as REPAIR takes them of a net with batch norm.

    Its batch norms are reset in the same pass, in training mode: every layer reads activations that are normalised by
    their own batch's statistics, not by the trained ones, and means and variances are averaged over the batches.

    Args:
        net: stays as it is.
        channels: of each node's output, by the node's name.
    """
    graph = trace(deepcopy(net))
    nodes = block_outputs(graph)
    if not nodes:
        return {}
    for node in nodes:
        _batch_norm_after(graph, node, channels[node.name])
    graph.recompile()
    reset = reset_batch_norm(graph, images)
    found = {node.name: reset.get_submodule(f"{node.name}_repair") for node in nodes}
    return {
        name: Statistics(layer.running_mean.double(), layer.running_var.double().sqrt())
        for name, layer in found.items()
    }


@torch.no_grad()
def repair_blocks(net: nn.Module, targets: dict[str, Statistics], images: Images) -> fx.GraphModule:
    """A copy of a net with batch norm, reset, whose residual blocks' outputs have the target statistics.

    A batch norm after each block, with the target's standard deviation as its weight and its mean as its bias, is reset
    with the others in one pass. It stays in the net: a block's output is read by the next block's layers and by
    the addition after them, so a rescaling of it has no one layer to be fused into.

    Args:
        net: the merged net.
        targets: node name, as `repair_points` gives it → statistics.
    """
    graph = trace(deepcopy(net))
    for node in block_outputs(graph):
        target = targets[node.name]
        correction, corrected = _batch_norm_after(graph, node, len(target.mean))
        correction.weight.copy_(target.std)
        correction.bias.copy_(target.mean)
        node.replace_all_uses_with(corrected, delete_user_cb=lambda user, own=corrected: user is not own)
    graph.recompile()
    return reset_batch_norm(graph, images)


@dataclass(frozen=True)
class Rescaling:
    """A scale and a shift of a conv's output channels, float64 (C,)."""

    scale: Tensor
    shift: Tensor

    @classmethod
    def between(cls, has: Statistics, target: Statistics) -> "Rescaling":
        """What takes outputs with statistics `has` to the target statistics."""
        scale = target.std / (has.std**2 + EPSILON).sqrt()
        return cls(scale, target.mean - scale * has.mean)

    def fuse(self, conv: nn.Conv2d) -> None:
        """Change the conv's weight and bias so that its output comes out rescaled.

        Raises:
            ValueError: the conv has no bias to take the shift.
        """
        if conv.bias is None:
            raise ValueError("REPAIR can't be fused into a conv without bias")
        conv.weight.copy_(conv.weight * self.scale[:, None, None, None])
        conv.bias.copy_(conv.bias * self.scale + self.shift)

    def __call__(self, output: Tensor) -> Tensor:
        """A conv's output (B, C, H, W), rescaled in place."""
        scale, shift = (x[:, None, None].to(output.dtype) for x in (self.scale, self.shift))
        return torch.addcmul(shift, output, scale, out=output)


class LayerByLayer:
    """A net run layer by layer over a whole set of images, so that a layer can be changed before the next is run.

    Between two layers it holds what later layers need of each image: in VGG11, one feature map.
    """

    def __init__(self, net: nn.Module, images: Images):
        self.graph = trace(net.eval())  # shares its layers with `net`
        self.nodes = list(self.graph.graph.nodes)
        self.interpreter = fx.Interpreter(self.graph)
        self.interpreter.args_iter = images.batches(device_of(net))  # the first node reads one a run
        self.environments: list[dict] = [{} for _ in range(images.count)]
        self.outputs: list[Tensor] = []
        self.done = 0

    def convs(self) -> list[tuple[int, fx.Node]]:
        """Every convolution with its place in the order of nodes."""
        return [(i, node) for i, node in enumerate(self.nodes) if is_conv(self.graph, node)]

    def advance(self, last: int) -> None:
        """Run all nodes that come before the `last`-th and haven't run yet, on every batch."""
        for environment in self.environments:
            self.interpreter.env = environment
            for node in self.nodes[self.done : last]:
                self._hold(environment, node, self.interpreter.run_node(node))
        self.done = last

    def measure(self, node: fx.Node) -> Statistics:
        """Statistics of the output of the node that is next, over all images; kept for `correct` if there is room."""
        moments = Moments()
        weight = self.graph.get_submodule(node.target).weight
        worth_keeping = weight[0].numel() >= CHEAP
        self.outputs.clear()
        for environment in self.environments:
            self.interpreter.env = environment
            output = self.interpreter.run_node(node)
            moments.add(samples(output))
            if worth_keeping and output.nbytes * len(self.environments) <= KEPT_BYTES:
                self.outputs.append(output)
        return moments.statistics()

    def correct(self, node: fx.Node, rescaling: "Rescaling") -> None:
        """Go on from the outputs that `measure` kept, rescaled; without them, the node is left to `advance`."""
        if len(self.outputs) < len(self.environments):
            return
        for environment, output in zip(self.environments, self.outputs, strict=True):
            self._hold(environment, node, rescaling(output))
        self.outputs.clear()
        self.done += 1

    def _hold(self, environment: dict, node: fx.Node, output: Any) -> None:
        """Keep a node's output, and drop what no later node reads."""
        environment[node] = output
        for unused in self.interpreter.user_to_last_uses.get(node, ()):
            del environment[unused]


@torch.no_grad()
def repair(
    net: nn.Module, targets: dict[str, Statistics], images: Images
) -> tuple[nn.Module, dict[str, Rescaling]]:
    """A copy of `net` whose conv outputs have the target statistics, and the rescalings that are fused into it.

    Each conv is measured with all earlier ones already corrected, over all of `images` and not batch by batch, so
    that the targets are met exactly.

    Args:
        net: the merged net; every conv has a bias.
        targets: conv name → statistics, as `Statistics.halfway` of the endpoints gives them.
    """
    repaired = deepcopy(net)
    run, rescalings = LayerByLayer(repaired, images), {}
    for i, node in run.convs():
        run.advance(i)
        rescaling = Rescaling.between(run.measure(node), targets[node.target])
        rescaling.fuse(repaired.get_submodule(node.target))
        run.correct(node, rescaling)
        rescalings[node.target] = rescaling
    return repaired, rescalings


@torch.no_grad()
def unfused(net: nn.Module, rescalings: dict[str, Rescaling], x: Tensor) -> Tensor:
    """Logits of `net` on normalised images `x` with the rescalings applied after its convs instead of fused."""
    hooks = [
        net.get_submodule(name).register_forward_hook(lambda module, args, output, r=rescaling: r(output))
        for name, rescaling in rescalings.items()
    ]
    try:
        return net(x)
    finally:
        for hook in hooks:
            hook.remove()
