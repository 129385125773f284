"""A net transformed by a symmetry, including layers with weights for single pixels, which aren't convolutional."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, fx, nn

from relusym.channels.labels import Labels, move_entries
from relusym.channels.traced import LIMIT, TracedNet, as_traced, kept_outputs
from relusym.channels.tracing import describe, relative_difference
from relusym.errors import UserError
from relusym.evaluation.invariance import moved as moved_logits
from relusym.evaluation.logits import logits_of
from relusym.pixels.flow import PixelFlow, UnshiftedFlow
from relusym.pixels.grid import ROLL, grid
from relusym.symmetry import HORIZONTAL_FLIP, Symmetry, as_symmetry


@torch.no_grad()
def transformed(
    net: nn.Module | TracedNet, symmetry: Symmetry, image_shape: tuple[int, ...] | None = None
) -> nn.Module:
    """The net Φ̂ with Φ̂(τx) = τΦ(x), as `Symmetry.transform`, for nets of every kind.

    Besides kernels, it moves weights of single pixels: the inputs of a linear layer that reads a map of several pixels,
    norms after a flatten, position embeddings, tables of relative positions. UserError names an operation whose effect
    on pixels is unknown, or that doesn't commute with τ. `image_shape`: one image's channels, height and width; None:
    (3, 32, 32), or a traced net's.
    """
    traced = as_traced(net, image_shape)
    return _moved(traced, traced.net, symmetry)


def flip(
    net: nn.Module | TracedNet,
    image_shape: tuple[int, ...] | None = None,
    symmetry: Symmetry | str = HORIZONTAL_FLIP,
) -> nn.Module:
    """The flipped net, which computes on flipped images what the net does on images; arguments as in `transformed`.

    Where strides aren't symmetric, it is off by `Grid.offset`, and unchecked if they are symmetric at no size tried.
    UserError as in `transformed`, or if the flipped net is wrong at values drawn at random, in float64.
    """
    traced, symmetry = as_traced(net, image_shape), as_symmetry(symmetry)
    check_planted(traced, symmetry)
    return transformed(traced, symmetry)


def pixel_flow(traced: TracedNet, symmetry: Symmetry) -> PixelFlow:
    """The flow of pixels through a net, ignoring shifts if the symmetry doesn't map shifted windows to windows."""
    misfits = grid(traced, traced.image_shape, symmetry).misfits
    rolled = any(misfit.layer.startswith(ROLL) for misfit in misfits)
    return traced.flow(UnshiftedFlow if rolled else PixelFlow)


def _moved(traced: TracedNet, net: nn.Module, symmetry: Symmetry) -> nn.Module:
    flow = pixel_flow(traced, symmetry)
    images, moved = flow.images(symmetry), symmetry.transform(net)
    state = moved.state_dict()
    before = {name: state[name].clone() for name in flow.places}  # names that share a tensor move it once
    for name, labels in flow.places.items():
        if labels.varies:
            order = flow.order(images, labels.ids.flatten(), name)
            state[name].copy_(move_entries(before[name], labels.varies, order))
    return moved


@torch.no_grad()
def check_planted(traced: TracedNet, symmetry: Symmetry) -> float | None:
    """The relative difference of Φ̂(τx) from τΦ(x) at planted values, in float64; rounding where Φ̂ is right.

    Images have the traced size, or, if strides can't be equivariant there, the next size at which they can. UserError
    if the difference is more than rounding; the first layer where it shows is named. None if unchecked, since there is
    no such size, or the net takes images of one size only.
    """
    if ("planted", symmetry.name) not in traced.known:
        traced.known["planted", symmetry.name] = _check_planted(traced, symmetry)
    return traced.known["planted", symmetry.name]


def _check_planted(traced: TracedNet, symmetry: Symmetry) -> float | None:
    planted = traced.planted
    fits = grid(traced, traced.image_shape, symmetry)
    x = planted.x
    if not fits.symmetric:
        if fits.next_size is None or pixel_flow(traced, symmetry).places:
            return None
        more = fits.next_size - fits.size
        x = torch.nn.functional.pad(x, (0, more, 0, more), mode="replicate")
    moved = _moved(traced, planted.net, symmetry)
    nets = planted.net, moved
    if x is planted.x:  # else the nets themselves, since a graph may hold the traced size
        nets = planted.graph, planted.holding(moved)
    try:
        here, there = (logits_of(net(view)) for net, view in zip(nets, (x, symmetry.act(x)), strict=True))
    except RuntimeError:  # the net doesn't take that size
        return None
    if len(here) != len(x):  # pixels became images
        return None
    difference = relative_difference(moved_logits(here, symmetry), there)
    if not difference < LIMIT:
        where = (
            f"; it shows first at {_first_difference(traced, nets[1], symmetry)}" if x is planted.x else ""
        )
        raise UserError(
            f"{type(traced.net).__name__}: transformed by {symmetry.name}, it isn't the net on transformed images, so "
            f"some layer depends on positions{where}"
        )
    return difference


def _first_difference(traced: TracedNet, moved: fx.GraphModule, symmetry: Symmetry) -> str:
    nodes = traced.planted.graph.graph.nodes
    known = _actions(traced, symmetry, {node.name for node in nodes})
    for name in _wrong(traced, moved, symmetry, known):
        return describe(next(node for node in nodes if node.name == name))
    return "its output"


Action = Callable[[Tensor], Tensor]


def _wrong(
    traced: TracedNet, moved: fx.GraphModule, symmetry: Symmetry, known: dict[str, Action | str]
) -> list[str]:
    """The nodes at which τ acts otherwise at planted values, in the net's order."""
    planted = traced.planted
    here = kept_outputs(planted.graph, planted.x, known.__contains__)
    there = kept_outputs(moved, symmetry.act(planted.x), known.__contains__)
    return [name for name, act in known.items()
            if callable(act) and not relative_difference(act(here[name]), there[name]) < LIMIT]  # fmt: skip


@torch.no_grad()
def actions(traced: TracedNet, symmetry: Symmetry, nodes: Iterable[str]) -> dict[str, Action | str]:
    """The action of τ on the outputs of graph nodes: it moves pixels, wherever they lie, such as among tokens. Where
    strides are symmetric, it is checked at planted values.

    Returns:
        node's name → τ on a batch of its outputs; or the reason, in a line, why the node's pixels can't be moved or it
        doesn't depend on the image.
    """
    key = "actions", symmetry.name, frozenset(nodes)
    if key not in traced.known:
        traced.known[key] = known = _actions(traced, symmetry, key[-1])
        if grid(traced, traced.image_shape, symmetry).symmetric:
            planted = traced.planted
            moved = planted.holding(_moved(traced, planted.net, symmetry))
            known |= dict.fromkeys(
                _wrong(traced, moved, symmetry, known), "their pixels move in an unknown way"
            )
    return traced.known[key]


def _actions(traced: TracedNet, symmetry: Symmetry, nodes: set[str]) -> dict[str, Action | str]:
    flow = pixel_flow(traced, symmetry)
    images, known = flow.images(symmetry), {}
    for node, labels in flow.labels.items():
        if node.name not in nodes:
            continue
        if not node.meta.get("image") or not isinstance(labels, Labels):
            known[node.name] = "what they compute doesn't depend on the image"
        elif 0 in labels.varies:
            known[node.name] = "windows of an image lie along the batch dimension"
        else:
            try:
                known[node.name] = _action(flow, images, labels, symmetry, node.name)
            except UserError as error:
                known[node.name] = str(error)
    return known


def _action(flow: PixelFlow, images: object, labels: Labels, symmetry: Symmetry, name: str) -> Action:
    if not labels.varies:
        return lambda x: x
    order = flow.order(images, labels.ids.flatten(), name)
    if labels.varies == [2, 3] and len(labels.shape) == 4:
        in_space = symmetry.act(torch.arange(len(order)).reshape(labels.ids.shape))
        if torch.equal(in_space.flatten(), order):
            return symmetry.act
    return partial(move_entries, dims=labels.varies, order=order)
