"""A net's equivariance error under small translations and rotations of an image, and each layer's contribution.

The Lie derivative of a net along a transformation T_t is L(f) = d/dt T_t⁻¹ f(T_t x) at t = 0, which is zero if f is
equivariant. By the chain rule, it is the sum over layers of L(fₗ) propagated through all later layers (Gruver, Finzi,
Goldblum and Wilson, "The Lie Derivative for Measuring Learned Equivariance", ICLR 2023; this follows its abstract and
public code, ngruver/lie-deriv). The transformations are continuous; a flip isn't, and has no such derivative.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from relusym.channels.labels import Labels
from relusym.channels.traced import TracedNet, as_traced
from relusym.channels.tracing import layer_of
from relusym.errors import UserError
from relusym.evaluation.images import ImageSource, device_of
from relusym.evaluation.logits import evaluating, logits_of
from relusym.merging.repair import cloned
from relusym.pixels.transform import pixel_flow
from relusym.precision import full_float32
from relusym.randomness import generator
from relusym.symmetry import HORIZONTAL_FLIP

# of the generators: down, right, turn
TRANSFORMATIONS = {"translation": slice(0, 2), "rotation": slice(2, 3)}
PROBES = 32  # random directions in which the probabilities of more classes are measured
HELD = 2**27  # entries of feature maps that are held at once


@dataclass(frozen=True)
class LieDerivative:
    """Root mean squares over images of ‖dp‖, p the net's probabilities, for moving the image by one pixel.

    Translations are averaged over down and right; the rotation moves the middle of the left edge by one pixel.

    Attributes:
        layers: layer → transformation → the contribution of all from it up to the next convolution or linear layer.
        total: transformation → the Lie derivative of the net, the norm of the sum of all contributions.
        images: the number of images.
    """

    layers: dict[str, dict[str, float]]
    total: dict[str, float]
    images: int


def generators(x: Tensor, dims: tuple[int, int], size: tuple[int, int], *, circular: bool = False) -> Tensor:
    """A map's derivatives at t = 0 as bilinear interpolation moves it down and right, and turns it, (3, *x.shape).

    Interpolation has two derivatives at t = 0, one for either direction; this is their mean, half the difference of
    the two neighbours. Beyond its edges, a map continues as its mirror image, as in lie-deriv.

    Args:
        dims: the dimensions of x's height and width.
        size: the image's height and width, to which the map is stretched.
        circular: whether the map continues at its opposite edge instead.
    """
    slopes = []
    for dim in dims:
        slope = (x.roll(-1, dim) - x.roll(1, dim)) / 2
        if not circular:
            for edge in (0, -1):
                slope.select(dim, edge).zero_()
        slopes.append(slope)
    rows, columns = (
        (torch.arange(x.shape[dim], device=x.device) - (x.shape[dim] - 1) / 2).reshape(
            [-1 if other == dim else 1 for other in range(x.ndim)]
        )
        for dim in dims
    )
    turn = (columns * slopes[0] - rows * slopes[1]) * (2 / size[1])
    down, right = (
        slope * (x.shape[dim] / whole) for slope, dim, whole in zip(slopes, dims, size, strict=True)
    )
    return torch.stack([down, right, turn])


@full_float32()
def lie_derivative(
    net: nn.Module | TracedNet, images: ImageSource, most: int = 100, *, circular: bool = False, seed: int = 0
) -> LieDerivative:
    """The Lie derivative of a net's probabilities, and each layer's contribution to it. UserError if a layer's pixels
    aren't known or lie in tokens, or if logits aren't (B, classes).

    Args:
        net: with maps (B, C, H, W) or (B, H, W, C); a vector (B, C) has no position, so a layer that reads pixels one
            by one contributes its whole change.
        most: the largest number of images; the first ones are measured.
        circular: as in `generators`.
        seed: for the directions in which the probabilities of more than `PROBES` classes are measured.
    """
    traced = as_traced(net, images.shape)
    graph, size = traced.module(), images.shape[1:]
    flow = pixel_flow(traced, HORIZONTAL_FLIP)
    if flow.fixed:
        where, why = next(iter(flow.fixed.items()))
        raise UserError(f"no Lie derivative: {where}: {why}")
    dims = {node.name: _dims(node.name, tree_leaves(labels)) for node, labels in flow.labels.items()}

    def rates(node: fx.Node, values: Any) -> list[Tensor | None]:
        """The derivatives, (3, …), of each tensor that a node writes; None for a vector, or a mask."""
        leaves = zip(tree_leaves(values), dims.get(node.name, []), strict=False)
        return [
            generators(x.detach(), where, size, circular=circular)
            if where and x.is_floating_point()
            else None
            for x, where in leaves
        ]

    sums: dict[str, Tensor | float] = defaultdict(float)
    entries = sum(prod(shape[1:]) for node in graph.graph.nodes
                  if isinstance(shape := node.meta.get("shape"), torch.Size))  # fmt: skip
    count, at_once = 0, max(1, HELD // (8 * entries))
    with evaluating(traced.net):
        for batch in images.batches(device_of(traced.net)):
            for x in batch[: most - count].split(at_once):
                for layer, changes in _contributions(graph, x, rates, seed).items():
                    sums[layer] = sums[layer] + changes.square().sum((1, 2))
                count += len(x)
            if count >= most:
                break
    roots = {
        layer: {name: float(squares[which].mean() / count) ** 0.5 for name, which in TRANSFORMATIONS.items()}
        for layer, squares in sums.items()
    }
    total = roots.pop("")
    if not any(roots["input"].values()):  # nothing comes before the first layer
        del roots["input"]
    return LieDerivative(roots, total, count)


def _dims(node: str, labels: list[Any]) -> list[tuple[int, ...]]:
    """The dimensions of each tensor's height and width, by its labels; none for a vector or a map of one pixel."""
    maps = [x.varies if isinstance(x, Labels) and len(x.shape) > 2 else [] for x in labels]
    if any(varies and (len(varies) != 2 or 0 in varies) for varies in maps):
        raise UserError(f"no Lie derivative: at {node}, pixels aren't along a height and a width")
    return [tuple(varies) for varies in maps]


@torch.enable_grad()
def _contributions(
    graph: fx.GraphModule, x: Tensor, rates: Callable[[fx.Node, Any], list[Tensor | None]], seed: int
) -> dict[str, Tensor]:
    """Layer → its contribution to the changes of the probabilities, float64 (3, B, directions); "": the sum of all.

    With z the derivative of a map by t and g the gradient of a probability there, a layer's Lie derivative is df·z_read
    − z_written, and its effect on the probability is ⟨g_read, z_read⟩ − ⟨g_written, z_written⟩, where g_read is the
    gradient through this layer alone.
    """
    interpreter = fx.Interpreter(graph)
    known, moving, terms, weighted = {}, {}, [], ["input"]
    for node in graph.graph.nodes:
        if node.op == "output":
            logits = logits_of(fx.map_arg(node.args[0], known.__getitem__))
            break
        layer = layer_of(graph, node)
        if layer is not None and any(parameter.ndim > 1 for parameter in layer.parameters()):
            weighted.append(str(node.target))
        read = {each: tree_map_only(Tensor, lambda part: part.view_as(part), known[each])
                for each in node.all_input_nodes}  # fmt: skip
        if node.op == "placeholder":
            known[node] = x.detach().requires_grad_()
        else:
            copies = cloned(read)  # which the node may change
            args, kwargs = fx.map_arg((node.args, node.kwargs), copies.__getitem__)
            known[node] = getattr(interpreter, node.op)(node.target, args, kwargs)
        moving[node] = rates(node, known[node])
        for sign, tensors in ((1, read), (-1, {node: known[node]} if read else {})):
            for each, values in tensors.items():
                parts = zip(tree_leaves(values), moving[each], strict=False)
                terms += [(weighted[-1], sign, part, rate) for part, rate in parts
                          if rate is not None and part.requires_grad]  # fmt: skip
    if logits.ndim != 2:
        raise UserError(f"no Lie derivative: logits of shape {tuple(logits.shape)}; (B, classes) is needed")
    probabilities = logits.softmax(1)
    directions = torch.eye(probabilities.shape[1])
    if len(directions) > PROBES:
        draw = generator(seed, "probes")
        directions = torch.randn(PROBES, probabilities.shape[1], generator=draw) / PROBES**0.5
    changes = {name: x.new_zeros(3, len(x), len(directions), dtype=torch.float64) for name in ("", *weighted)}
    for k, direction in enumerate(directions.to(x.device)):
        projected, parts = (probabilities @ direction).sum(), [part for *_, part, _ in terms]
        gradients = torch.autograd.grad(projected, parts, retain_graph=True, allow_unused=True)
        for (name, sign, _, rate), gradient in zip(terms, gradients, strict=True):
            if gradient is not None:
                change = sign * (gradient * rate).flatten(2).sum(2, dtype=torch.float64)
                for key in (name, ""):
                    changes[key][:, :, k] += change
    return changes
