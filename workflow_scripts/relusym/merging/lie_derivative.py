"""How far a net is from equivariant under small moves and turns of an image, and which layers that comes from.

The Lie derivative of a net along a transformation T_t is L(f) = d/dt T_t⁻¹ f(T_t x) at t = 0: zero, if f is
equivariant. By the chain rule it is a sum over layers, of each layer's own L(fₗ) taken through all later ones (Gruver,
Finzi, Goldblum and Wilson, "The Lie Derivative for Measuring Learned Equivariance", ICLR 2023; read were its abstract
and public code, ngruver/lie-deriv). These transformations are continuous; a flip isn't, and has no such derivative.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from relusym.channels.labels import Labels
from relusym.channels.traced import TracedNet, as_traced
from relusym.channels.tracing import layer_of
from relusym.errors import UserError
from relusym.evaluation.images import ImageSource, device_of
from relusym.evaluation.logits import evaluating, logits_of
from relusym.pixels.transform import pixel_flow
from relusym.precision import full_float32
from relusym.randomness import generator
from relusym.symmetry import HORIZONTAL_FLIP

TRANSFORMATIONS = {
    "translation": slice(0, 2),
    "rotation": slice(2, 3),
}  # of the generators down, right and turn
PROBES = 32  # directions in which answers of more classes are measured, at random
HELD = 2**27  # entries of feature maps that are held at once


@dataclass(frozen=True)
class LieDerivative:
    """Root mean squares over images of ‖dp‖, p the net's probabilities, for a move of one pixel of the image.

    Moves are down and right, on average; the turn is that which moves the middle of the left edge by one pixel.

    Attributes:
        layers: layer → transformation → what it and all up to the next convolution or linear layer contribute.
        total: transformation → the Lie derivative of the net, the norm of all contributions' sum.
        images: how many.
    """

    layers: dict[str, dict[str, float]]
    total: dict[str, float]
    images: int

    def numbers(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def generators(x: Tensor, dims: tuple[int, int], size: tuple[int, int], *, circular: bool = False) -> Tensor:
    """How fast a map changes at t = 0 that bilinear interpolation moves down, right, and turns, (3, *x.shape).

    Interpolation has two derivatives at t = 0, one for either direction; this is their mean, half the difference of
    the two neighbours. Beyond its edges a map goes on as its mirror image, as in lie-deriv.

    Args:
        dims: of x, those of its height and width.
        size: of the image, to whose pixels the map's are stretched.
        circular: whether it goes on with its other edge instead.
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
    """The Lie derivative of a net's probabilities, and each layer's contribution to it.

    Args:
        net: its maps (B, C, H, W) or (B, H, W, C); a vector (B, C) is of no place, so that a layer that reads pixels
            one by one contributes all that it changes by.
        most: of the images, the first so many.
        circular: as of `generators`.
        seed: of the directions in which answers of more than `PROBES` classes are measured.

    Raises:
        UserError: a layer's pixels aren't known or lie in tokens, it has no derivative, or answers aren't one an image.
    """
    traced = as_traced(net, images.shape)
    graph, size = traced.module(), images.shape[1:]
    flow = pixel_flow(traced, HORIZONTAL_FLIP)
    if flow.fixed:
        where, why = next(iter(flow.fixed.items()))
        raise UserError(f"no Lie derivative: {where}: {why}")
    dims = {node.name: tree_map(_dims(node.name), labels) for node, labels in flow.labels.items()}

    def rates(values: Any, node: fx.Node) -> Any:
        """Of each tensor that a node writes: how fast it changes, (3, …); of a vector, zero."""
        leaves = zip(tree_leaves(values), _leaves(dims.get(node.name)), strict=False)
        return [generators(x, where, size, circular=circular) if where else 0.0 for x, where in leaves]

    squares: dict[str, dict[str, Tensor | float]] = defaultdict(lambda: dict.fromkeys(TRANSFORMATIONS, 0.0))
    count, at_once = 0, max(1, HELD // (8 * sum(_entries(node) for node in graph.graph.nodes)))
    with evaluating(traced.net):
        for batch in images.batches(device_of(traced.net)):
            for x in batch[: most - count].split(at_once):
                for layer, changes in _contributions(graph, x, rates, seed).items():
                    for name, which in TRANSFORMATIONS.items():
                        of_images = changes[which].double().square().sum(2).mean(0)
                        squares[layer][name] += of_images.sum()
                count += len(x)
            if count >= most:
                break
    roots = {
        layer: {name: float(value / count) ** 0.5 for name, value in sums.items()}
        for layer, sums in squares.items()
    }
    total = roots.pop("")
    if not any(roots["input"].values()):  # nothing comes before the first layer
        del roots["input"]
    return LieDerivative(roots, total, count)


def _dims(node: str) -> Callable[[Any], tuple[int, int] | tuple[()]]:
    """Where the height and width of a tensor are, by its labels; nothing of a vector or of a map of one pixel."""

    def dims(labels: Any) -> tuple[int, int] | tuple[()]:
        if not isinstance(labels, Labels) or not labels.varies or len(labels.shape) < 3:
            return ()
        if len(labels.varies) != 2 or 0 in labels.varies:
            raise UserError(f"no Lie derivative: at {node}, pixels aren't along a height and a width")
        return tuple(labels.varies)

    return dims


def _leaves(dims: Any) -> list[tuple[int, ...]]:
    return tree_leaves(
        dims, is_leaf=lambda x: isinstance(x, tuple) and all(isinstance(each, int) for each in x)
    )


def _entries(node: fx.Node) -> int:
    shape = node.meta.get("shape")
    return prod(shape[1:]) if isinstance(shape, torch.Size) else 0


@torch.enable_grad()
def _contributions(
    graph: fx.GraphModule, x: Tensor, rates: Callable[[Any, fx.Node], list[Any]], seed: int
) -> dict[str, Tensor]:
    """Layer → what it contributes to the changes of the probabilities, (3, B, directions); "": all of them."""
    interpreter, known, written, errors = fx.Interpreter(graph), {}, [], []
    interpreter.args_iter = iter([x.detach().requires_grad_()])
    weighted, layers, logits = ["input"], [], None
    for node in graph.graph.nodes:
        if node.op == "output":
            logits = logits_of(fx.map_arg(node.args[0], known.__getitem__))
            break
        its = layer_of(graph, node)
        if its is not None and getattr(its, "weight", None) is not None and its.weight.ndim > 1:
            weighted.append(str(node.target))
        known[node] = _run(interpreter, node, known)
        if node.op in ("placeholder", "get_attr"):
            continue
        parts = tree_leaves(known[node])
        for place, error in enumerate(_errors(interpreter, node, known, rates)):
            if isinstance(error, Tensor) and parts[place].requires_grad:
                written.append(parts[place])
                errors.append(error)
                layers.append(weighted[-1])
    if logits.ndim != 2:
        raise UserError(
            f"no Lie derivative: logits of shape {tuple(logits.shape)}; one answer an image is needed"
        )
    answers = logits.softmax(1)
    directions = torch.eye(answers.shape[1], device=x.device)
    if len(directions) > PROBES:
        draw = torch.randn(PROBES, answers.shape[1], generator=generator(seed, "probes")) / PROBES**0.5
        directions = draw.to(x.device)
    changes = {name: x.new_zeros(3, len(x), len(directions)) for name in ("", *weighted)}
    for k, direction in enumerate(directions):
        slopes = torch.autograd.grad(
            (answers @ direction).sum(), written, retain_graph=True, allow_unused=True
        )
        for name, slope, error in zip(layers, slopes, errors, strict=True):
            if slope is not None:
                for key in (name, ""):
                    changes[key][:, :, k] += (slope * error).flatten(2).sum(2)
    return changes


def _run(interpreter: fx.Interpreter, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    """A node's output; what it reads stays as it is, though it works in place."""
    if node.op == "placeholder":
        return next(interpreter.args_iter)
    read = fx.map_arg((node.args, node.kwargs), known.__getitem__)
    args, kwargs = tree_map(lambda part: part.clone() if isinstance(part, Tensor) else part, read)
    return getattr(interpreter, node.op)(node.target, args, kwargs)


@torch.no_grad()
def _errors(
    interpreter: fx.Interpreter,
    node: fx.Node,
    known: dict[fx.Node, Any],
    rates: Callable[[Any, fx.Node], list[Any]],
) -> list[Tensor | float]:
    """Of each tensor that a node writes, its own L(f) = df·(rate of what it reads) − the rate of what it writes."""
    read = {each: rates(known[each], each) for each in node.all_input_nodes}
    if not any(isinstance(rate, Tensor) for of_node in read.values() for rate in of_node):
        return []
    pushed = [_pushed(interpreter, node, known, read, which) for which in range(3)]
    return [
        torch.stack(tangents) - rate if tangents[0] is not None else 0.0
        for tangents, rate in zip(zip(*pushed, strict=True), rates(known[node], node), strict=False)
    ]


def _pushed(
    interpreter: fx.Interpreter,
    node: fx.Node,
    known: dict[fx.Node, Any],
    read: dict[fx.Node, list[Tensor | float]],
    which: int,
) -> list[Tensor | None]:
    """How fast what a node writes changes if what it reads does so at the rates of one generator."""
    with forward_ad.dual_level():
        dual = dict(known)
        for each, of_node in read.items():
            left = iter(of_node)
            dual[each] = tree_map(lambda part, left=left: _dual(part, next(left, 0.0), which), known[each])
        try:
            return [_tangent(output) for output in tree_leaves(_run(interpreter, node, dual))]
        except (NotImplementedError, RuntimeError) as error:
            raise UserError(f"no Lie derivative: {node.name} has no forward derivative") from error


def _dual(part: Any, rate: Tensor | float, which: int) -> Any:
    if not isinstance(part, Tensor) or not part.is_floating_point():
        return part
    part = part.detach()
    return forward_ad.make_dual(part, rate[which]) if isinstance(rate, Tensor) else part


def _tangent(output: Any) -> Tensor | None:
    if not isinstance(output, Tensor):
        return None
    primal, tangent = forward_ad.unpack_dual(output)
    return torch.zeros_like(primal) if tangent is None else tangent
