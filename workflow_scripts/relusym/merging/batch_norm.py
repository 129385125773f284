"""REPAIR of nets with batch norm: its reset, and batch norms behind the outputs of blocks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import fx, nn

from relusym.channels.groups import block_outputs
from relusym.channels.handlers import BATCH_NORMS
from relusym.channels.traced import TracedNet, as_traced
from relusym.evaluation.images import ImageSource, device_of
from relusym.merging.moments import Statistics

NORMS = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d}  # by the number of dimensions


def norms_of(net: nn.Module) -> list[nn.Module]:
    """The layers that keep running statistics."""
    return [layer for layer in net.modules()
            if isinstance(layer, BATCH_NORMS) and layer.running_mean is not None]  # fmt: skip


@contextmanager
def resetting(norms: Sequence[nn.Module]) -> Iterator[None]:
    """Within, batch norms are in training mode; afterwards they hold the means of the batches that they read there."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    yield
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


@torch.no_grad()
def reset_batch_norm(net: nn.Module, images: ImageSource) -> nn.Module:
    """A copy of `net` whose batch norms hold the statistics of `images`.

    One pass in training mode: every layer sees the earlier ones already reset. Batches are of equal size up to one
    image, since batch norm counts each batch alike.
    """
    return _reset(deepcopy(net), images)


def _reset(net: nn.Module, images: ImageSource) -> nn.Module:
    """As `reset_batch_norm`, of the net itself."""
    net.eval()  # all but its batch norms: no dropout, no auxiliary outputs
    with resetting(norms_of(net)):
        for x in images.batches(device_of(net), even=True):
            net(x)
    return net


def _batch_norm_after(
    graph: fx.GraphModule, node: fx.Node, shape: Sequence[int]
) -> tuple[nn.Module, fx.Node]:
    """A batch norm that reads a node's output of this shape, and its node; no other node reads what it writes."""
    layer = NORMS[len(shape)](shape[1]).to(next(graph.parameters()))
    graph.add_submodule(f"{node.name}_repair", layer)
    with graph.graph.inserting_after(node):
        return layer, graph.graph.call_module(f"{node.name}_repair", (node,))


@torch.no_grad()
def block_statistics(net: nn.Module | TracedNet, images: ImageSource) -> dict[str, Statistics]:
    """Statistics of an endpoint's blocks' outputs, as REPAIR takes them of a net with batch norm.

    Its batch norms are reset in the same pass, in training mode: every layer reads activations that are normalised by
    their own batch's statistics, not by the trained ones, and means and variances are averaged over the batches.

    Args:
        net: the endpoint; it stays as it is.
    """
    traced = as_traced(net, images.shape)
    graph = traced.module(deepcopy(traced.net))
    shapes = _block_shapes(graph)
    if not shapes:
        return {}
    for node, shape in shapes.items():
        _batch_norm_after(graph, node, shape)
    graph.recompile()
    reset = _reset(graph, images)
    found = {node.name: reset.get_submodule(f"{node.name}_repair") for node in shapes}
    return {
        name: Statistics(layer.running_mean.double(), layer.running_var.double().sqrt())
        for name, layer in found.items()
    }


def _block_shapes(graph: fx.GraphModule) -> dict[fx.Node, Sequence[int]]:
    """The shapes of blocks' outputs; sequences of tokens, whose channels aren't in dimension 1, are left out."""
    shapes = {node: node.meta["shape"] for node in block_outputs(graph)}
    return {node: shape for node, shape in shapes.items() if len(shape) in NORMS}


@torch.no_grad()
def correct_blocks(
    traced: TracedNet, targets: dict[str, Statistics]
) -> tuple[fx.GraphModule, dict[str, str]]:
    """A copy of a net with a batch norm after each block, of which the target's are weight and bias.

    Args:
        traced: a net with batch norm.
        targets: node name, as `repair_points` gives it → statistics.

    Returns:
        The copy, its batch norms not yet reset, and the name of each new one's node → its block's.
    """
    graph, blocks = traced.module(deepcopy(traced.net)), {}
    for node, shape in _block_shapes(graph).items():
        target = targets[node.name]
        correction, corrected = _batch_norm_after(graph, node, shape)
        correction.weight.copy_(target.std)
        correction.bias.copy_(target.mean)
        node.replace_all_uses_with(corrected, delete_user_cb=lambda user, own=corrected: user is not own)
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
    the addition after them, so a rescaling of it has no one layer to be fused into.

    Args:
        net: the merged net.
        targets: as of `correct_blocks`.
    """
    return _reset(correct_blocks(as_traced(net, images.shape), targets)[0], images)
