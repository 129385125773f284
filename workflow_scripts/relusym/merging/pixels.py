"""A net transformed by a symmetry, also where it isn't convolutional: what reads or weights pixels one by one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relusym.errors import UserError
from relusym.merging.flow import Call, Flow
from relusym.merging.handlers import BATCH_NORMS, INSTANCE_NORMS, layers, mixing, moves
from relusym.merging.labels import FIXED, Labels, Ties, Weights
from relusym.merging.tracing import HANDLERS, Handler
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
    """

    what = "pixels"
    kind_of_ties = PixelTies
    handlers: dict[type[nn.Module] | str, Handler] = {}

    def __init__(self, net: nn.Module, image_shape: tuple[int, ...]):
        self.grids: dict[int, Grid] = {}
        super().__init__(net, image_shape)

    def of_image(self, shape: torch.Size) -> Labels:
        return self.grid(shape)

    def of_outputs(self, outputs: list[Labels]) -> None:
        pass

    def grid(self, shape: torch.Size) -> Labels:
        """The labels of a new map (B, C, H, W)."""
        if len(shape) != 4 or shape[-2:] == (1, 1):
            return Labels.alike(FIXED, shape)
        ids = self.ties.fresh(shape[-2] * shape[-1])
        self.grids[int(ids[0])] = tuple(shape[-2:])
        return Labels(shape, ids.reshape(1, 1, *shape[-2:]))

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
            UserError: it belongs to a part of a map.
        """
        roots = self.ties.roots()[labels.numpy()]
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
    moved, state = deepcopy(symmetry.transform(net)), net.state_dict()
    found = moved.state_dict()
    for (name, dim), labels in flow.places.items():
        order = flow.order(images, labels, name).to(state[name].device)
        found[name].copy_(state[name].index_select(dim, order))
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
            found[node.name] = "doesn't depend on the image"
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


def of_pixels(*operations: type[nn.Module] | str) -> Any:
    """Register what operations do to pixels, as `flow.handler` does for channels."""

    def register(function: Handler) -> Handler:
        PixelFlow.handlers.update(dict.fromkeys(operations, function))
        return function

    return register


ALIKE = (moves.pointwise, moves.entrywise, moves.moves, moves.cat, mixing.reduction)
ALIKE += (
    mixing.along_a_dimension,
    mixing.softmax,
    mixing.glu,
    mixing.einsum,
    mixing.matmul,
    mixing.attention,
)
ALIKE += (layers.layer_norm, layers.layer_norm_function)
PixelFlow.handlers |= {key: found for key, found in HANDLERS.items() if found in ALIKE}


@of_pixels(*(key for key, found in HANDLERS.items() if found in (layers.conv, moves.spatial)), "pad")
def resized(call: Call, x: Labels, *rest: Any, **options: Any) -> Labels:
    """A map of another size, whose pixels come from neighbourhoods of the former one's."""
    if len(call.shape) != 4 or not set(x.varies) <= {2, 3}:
        raise call.refusal("its effect on pixels is unknown")
    return call.flow.grid(call.shape)


@of_pixels(nn.Linear, "linear")
def linear(call: Call, x: Labels, weight: Weights | str = "weight", *rest: Any, **options: Any) -> Labels:
    last = len(x.shape) - 1
    if last not in x.varies:
        return Labels(call.shape, x.ids)
    call.index(weight, 1, call.along(x, last))
    return Labels.alike(FIXED, call.shape)


@of_pixels(*BATCH_NORMS)
def batch_norm(call: Call, x: Labels) -> Labels:
    if 1 in x.varies:
        for key, tensor in call.layer.state_dict().items():
            if tensor.ndim:
                call.index(key, 0, call.along(x, 1))
    return x


@of_pixels(*INSTANCE_NORMS, nn.GroupNorm, nn.PReLU, "group_norm", "batch_norm", "prelu")
def weights_of_channels(call: Call, x: Labels, *rest: Any, **options: Any) -> Labels:
    if 1 in x.varies:
        raise call.refusal("it has weights of single pixels in a way that isn't known")
    return x


@of_pixels(nn.MultiheadAttention)
def multihead_attention(call: Call, query: Labels, key: Labels, value: Labels, **options: Any) -> tuple:
    """Attention asks for no order of its tokens."""
    if len(query.shape) - 1 in query.varies:
        raise call.refusal("its effect on pixels is unknown")
    weights = None if call.result[1] is None else Labels.alike(FIXED, call.result[1].shape)
    return Labels(call.result[0].shape, query.ids), weights


@of_pixels("scaled_dot_product_attention")
def attention(
    call: Call, query: Labels, key: Labels, value: Labels, attn_mask: Any = None, *rest: Any, **o: Any
) -> Labels:
    """As `multihead_attention`; keys and values lie at the same pixels."""
    if attn_mask is not None or any(len(of.shape) - 1 in of.varies for of in (query, key, value)):
        raise call.refusal("its effect on pixels is unknown")
    call.flow.ties.join(key.ids, value.ids, call.node.name)
    return Labels(call.shape, query.ids)
