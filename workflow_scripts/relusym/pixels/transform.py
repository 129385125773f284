"""A net transformed by a symmetry, also where it isn't convolutional: what reads or weights pixels one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from relusym.channels.labels import Labels
from relusym.errors import UserError
from relusym.pixels.handlers import PixelFlow
from relusym.symmetry import Symmetry


@torch.no_grad()
def transformed(net: nn.Module, symmetry: Symmetry, image_shape: tuple[int, ...]) -> nn.Module:
    """The net Φ̂ with Φ̂(τx) = Φ(x), as `Symmetry.transform`, for nets of every kind.

    Besides kernels, it moves what belongs to single pixels: the inputs of a linear layer that reads a map of several
    pixels, norms after a flatten, position embeddings.

    Args:
        image_shape: one image's channels, height and width.

    Raises:
        UserError: an operation whose effect on pixels is unknown, or that doesn't commute with τ, named.
    """
    flow = PixelFlow(net, image_shape)
    images = flow.images(symmetry)
    moved, state = symmetry.transform(net), dict(net.state_dict())
    for (name, dim), labels in flow.places.items():  # some tensors have pixels along several dimensions
        order = flow.order(images, labels, name).to(state[name].device)
        state[name] = state[name].index_select(dim, order)
    found = moved.state_dict()
    for name in {name for name, _ in flow.places}:
        found[name].copy_(state[name])
    return moved


Action = Callable[[Tensor], Tensor]


def actions(
    net: nn.Module, symmetry: Symmetry, image_shape: tuple[int, ...], nodes: Iterable[str]
) -> dict[str, Action | str]:
    """What τ does to the outputs of graph nodes: it moves pixels, wherever they lie, as among tokens.

    Returns:
        node's name → τ on a batch of its outputs; of one whose pixels can't be moved, or that knows no image,
        why, in a line.
    """
    flow, nodes = PixelFlow(net, image_shape), set(nodes)
    images, seen, found = flow.images(symmetry), set(), {}
    for node, of in flow.labels.items():
        if node.op == "placeholder" or seen.intersection(node.all_input_nodes):
            seen.add(node)
        if node.name not in nodes:
            continue
        if node not in seen or not isinstance(of, Labels):
            found[node.name] = "what they compute doesn't depend on the image"
        elif of.varies == [2, 3] and len(of.shape) == 4:
            found[node.name] = symmetry.act
        elif not of.varies:
            found[node.name] = _stay
        else:
            try:
                order = flow.order(images, of.ids.flatten(), node.name)
            except UserError as error:
                found[node.name] = str(error)
            else:
                found[node.name] = partial(_reorder, of.varies, order)
    return found


def _stay(x: Tensor) -> Tensor:
    return x


def _reorder(dims: list[int], order: Tensor, x: Tensor) -> Tensor:
    """Entries along some dimensions together, in another order."""
    last = x.movedim(dims, [*range(-len(dims), 0)])
    moved = last.flatten(-len(dims)).index_select(-1, order.to(x.device)).reshape(last.shape)
    return moved.movedim([*range(-len(dims), 0)], dims)
