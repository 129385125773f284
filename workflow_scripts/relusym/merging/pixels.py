"""A net transformed by a symmetry, also where it isn't convolutional: what reads or weights pixels one by one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relusym.errors import UserError
from relusym.merging.flow import Flow
from relusym.merging.labels import FIXED, Labels, Ties
from relusym.merging.tracing import Handler
from relusym.symmetry import Symmetry

Grid = tuple[int, int]


class PixelTies(Ties):
    """Of pixels, what stays together is joined: a part of a map is moved, and not reordered within."""

    def meet(self, one: Tensor, sizes: Any, other: Tensor, others: Any, where: Hashable) -> Tensor:
        return self.join(one, other, where)

    def nest(self, ids: Tensor, dims: list[int], where: Hashable, heads: Tensor | None = None) -> Tensor:
        return self.join_along(ids, dims, where)


class PixelFlow(Flow):
    """As `Flow`, but labels say at which pixel of its feature map an entry is.

    Attributes:
        grids: the first label of each map's pixels → its height and width; labels are counted row by row.
        patches: the first label of what lies in merged patches → the shape of the map that is made of them.
    """

    what = "pixels"
    kind_of_ties = PixelTies
    handlers: dict[type[nn.Module] | str, Handler] = {}

    def __init__(self, net: nn.Module, image_shape: tuple[int, ...]):
        self.grids: dict[int, Grid] = {}
        self.patches: dict[int, torch.Size] = {}
        super().__init__(net, image_shape)

    def of_image(self, shape: torch.Size) -> Labels:
        return self.grid(shape)

    def of_outputs(self, outputs: list[Labels]) -> None:
        pass

    def grid(self, shape: torch.Size) -> Labels:
        """The labels of a new map (B, C, H, W)."""
        if len(shape) != 4 or shape[-2:] == (1, 1):
            return Labels.alike(FIXED, shape)
        return Labels(shape, self.pixels(*shape[-2:]).reshape(1, 1, *shape[-2:]))

    def pixels(self, height: int, width: int) -> Tensor:
        """The labels of new pixels, int64 (height · width,), row by row."""
        ids = self.ties.fresh(height * width)
        self.grids[int(ids[0])] = height, width
        return ids

    def images(self, symmetry: Symmetry) -> np.ndarray:
        """Of the pixels that an operation combines, by the first of them, where τ brings them; the same to `FIXED`.

        Raises:
            UserError: a map's shape changes, or pixels that are combined are brought to some that aren't.
        """
        roots = self.ties.roots()
        brought = np.arange(len(roots))
        for first, (height, width) in self.grids.items():
            act = symmetry.act(torch.arange(height * width).reshape(1, height, width))
            if act.shape[1:] != (height, width):
                raise UserError(
                    f"symmetry {symmetry.name}: a map of {width}×{height} pixels has to be square"
                )
            brought[first : first + height * width] = first + act.flatten().numpy()
        images = roots[brought]
        if (images != images[roots]).any():
            raise UserError(f"the net combines pixels in a way that doesn't commute with {symmetry.name}")
        return images

    def order(self, images: np.ndarray, labels: Tensor, name: str) -> Tensor:
        """How a tensor's dimension with these labels is reordered: entry i is the former entry `order[i]`, int64 (n,).

        Raises:
            UserError: it belongs to a part of a map, or to pixels that the net has combined.
        """
        roots = self.ties.roots()[labels.numpy()]
        if len(np.unique(roots)) < len(labels.unique()):
            raise UserError(
                f"{name} belongs to pixels that are combined elsewhere, so the net can't be transformed"
            )
        where = {root: np.flatnonzero(roots == root) for root in np.unique(roots)}
        order = torch.arange(len(labels))
        for root, entries in where.items():
            source = where.get(images[root], ())
            if len(source) != len(entries):
                raise UserError(f"{name} belongs to a part of a map, so the net can't be transformed")
            order[torch.from_numpy(entries)] = torch.from_numpy(source)
        return order


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


from relusym.merging import pixel_handlers  # noqa: E402, F401  they register themselves
