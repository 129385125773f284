"""The flow of pixels through a net: which entries of each tensor belong to which pixel of a feature map.

The handlers below are for operations whose effect on pixels isn't that on channels (`channels.handlers`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from relusym.channels import handlers
from relusym.channels.flow import ENTRYWISE, Call, Flow
from relusym.channels.handlers import BATCH_NORMS, INSTANCE_NORMS
from relusym.channels.labels import FIXED, Labels, Weights, rows_along
from relusym.channels.tracing import REGISTERED, function_name, handler
from relusym.errors import UserError
from relusym.symmetry import Symmetry

NONE = torch.iinfo(torch.int64).min  # pads rows with fewer members than others
CONSTANT = ", with a constant: as a parameter or a persistent buffer, it would be transformed with the net"
MOST = 2**24  # pairs of pixels, as many as between 64×64 tokens that all attend to each other


class PixelRelations:
    """Labels of pixels, and of what is computed from several: a pair, or a set that is summed over.

    A symmetry maps pairs and sets to pairs and sets, member by member: so labels are propagated first, and symmetries
    act on them afterwards.

    Attributes:
        grids: the first label of each map's pixels → the map's height and width; labels are numbered row by row.
        derived: the first of the labels that are made together → the members of each, int64 (labels, members); whether
            these are ordered; and the operation that combines them.
        opened: the first label of what a layer along pixels writes → the labels of the map whose pixels it lies at; as
            long as that is unknown, the written labels themselves, which are fixed.
    """

    def __init__(self) -> None:
        self.count = FIXED + 1
        self.grids: dict[int, tuple[int, int]] = {}
        self.derived: dict[int, tuple[np.ndarray, bool, Hashable]] = {}
        self.opened: dict[int, Tensor] = {}
        self._constants: dict[Hashable, int] = {}

    def fresh(self, count: int) -> Tensor:
        """`count` new labels."""
        self.count += count
        return torch.arange(self.count - count, self.count)

    def pixels(self, height: int, width: int) -> Tensor:
        """The labels of a new map's pixels, int64 (height · width,), row by row."""
        ids = self.fresh(height * width)
        self.grids[int(ids[0])] = height, width
        return ids

    def written(self, count: int, sums: bool = True) -> Tensor | None:
        """Labels of what a layer along pixels writes, which lies at the pixels of the first map that it meets; None if
        it doesn't sum over pixels.
        """
        if not sums:
            return None
        ids = self.fresh(count)
        self.opened[int(ids[0])] = ids
        return ids

    def _lies_at(self, ids: Tensor, others: Tensor) -> bool:
        """Whether `ids`, written along pixels, lie at pixels `others`; if they lie nowhere yet, they do from now on."""
        first = int(ids.flatten()[0])
        known = self.opened.get(first)
        if known is None or ids.shape != others.shape or len(known) != ids.numel():
            return False
        if int(known[0]) == first:
            if len(others.unique()) < others.numel() or bool((others <= FIXED).any()):
                return False
            self.opened[first] = known = others.flatten()
        return torch.equal(known, others.flatten())

    def constant(self, value: Hashable) -> int:
        """The label of a constant, which lies at no pixel."""
        return self._constants.setdefault(value, -1 - len(self._constants))

    def constants(self, values: Tensor, varies: list[int]) -> Tensor:
        """Labels of a constant that meets pixels along some dimensions: a symmetry has to leave it unchanged."""
        dims = [dim for dim in varies if values.shape[dim] > 1]
        others = [dim for dim in range(values.ndim) if dim not in dims]
        _, which = rows_along(values, others).unique(dim=0, return_inverse=True)
        labels = torch.tensor([self.constant(object()) for _ in range(int(which.max()) + 1)])
        return labels[which].reshape([size if dim in dims else 1 for dim, size in enumerate(values.shape)])

    def derive(self, rows: np.ndarray, ordered: bool, where: Hashable) -> Tensor:
        """The label of each row of labels, int64 (rows,): equal for equal rows; for a single member, that member."""
        _, first, which = np.unique(_keys(rows, ordered), return_index=True, return_inverse=True)
        rows = rows[first]
        labels = self.fresh(len(rows)).numpy()
        self.derived[int(labels[0])] = rows, ordered, where
        largest = rows.max(1)
        single = ((rows == largest[:, None]) | (rows == NONE)).all(1)
        return torch.from_numpy(np.where(single, largest, labels)[which.reshape(-1)])

    def join(self, first: Tensor, second: Tensor, where: Hashable = None) -> Tensor:
        """The labels of what is computed from two entries: their pair, or just one if the other is at no pixel."""
        for a, b in ((first, second), (second, first)):
            if torch.equal(a, b) or (b.numel() == 1 and b <= FIXED):
                return torch.broadcast_tensors(a, b)[0] if a.numel() > 1 else a
        for a, b in ((second, first), (first, second)):
            if self._lies_at(a, b):
                return b
        first, second = torch.broadcast_tensors(first, second)
        if first.numel() > MOST:
            raise UserError(f"{where}: it combines more than {MOST:,} pairs of pixels")
        pairs = torch.stack([first.flatten(), second.flatten()], 1)
        labels = self.derive(pairs.numpy(), True, where).reshape(first.shape)
        return torch.where(first == FIXED, second, torch.where(second == FIXED, first, labels))

    def meet(self, first: Tensor, sizes: Any, second: Tensor, others: Any, where: Hashable) -> Tensor:
        return self.join(first, second, where)

    def nest(self, ids: Tensor, dims: list[int], where: Hashable) -> Tensor:
        """The labels, of size 1 along `dims`, of what is computed from all entries along these dimensions."""
        labels = self.derive(rows_along(ids, dims).numpy(), False, where)
        return labels.reshape([1 if dim in dims else size for dim, size in enumerate(ids.shape)])

    def join_along(self, ids: Tensor, dims: list[int], where: Hashable) -> Tensor:
        return self.nest(ids, dims, where) if dims else ids

    def gathered(self, places: Tensor, labels: Tensor, shape: torch.Size, where: Hashable) -> Tensor:
        """Labels of a parameter's entries, which meet pixels at `places`: the set of pixels that each entry meets."""
        met = torch.full([math.prod(shape)], FIXED)
        if len(places):
            entries, row, counts = torch.unique_consecutive(places, return_inverse=True, return_counts=True)
            rows = torch.full([len(entries), int(counts.max())], NONE)
            rows[row, torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]] = labels
            met[entries] = self.derive(rows.numpy(), False, where)
        return met.reshape(shape)

    def distinct(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        return list(pieces)

    def beside(self, pieces: Sequence[Tensor], where: Hashable) -> Tensor | None:
        """Labels of maps concatenated as channels of a new one; None if they are different pixels of one map."""
        starts = np.array(sorted([*self.grids, *self.derived, *self.opened]))
        maps = [
            set(np.searchsorted(starts, piece.unique().numpy(), "right").tolist()) - {0} for piece in pieces
        ]
        for i, j in itertools.combinations(range(len(pieces)), 2):
            if maps[i] & maps[j] and not torch.equal(pieces[i], pieces[j]):
                return None
        return reduce(lambda ids, piece: self.join(ids, piece, where), pieces)

    def mark(self, ids: Tensor, how: Hashable) -> None:
        """Do nothing: pixels aren't set apart by marks."""


def _keys(rows: np.ndarray, ordered: bool) -> np.ndarray:
    """A hash of each row, uint64 (rows,): the sum of its members' hashes by SplitMix64."""
    slots = np.arange(rows.shape[1], dtype=np.uint64) if ordered else np.uint64(0)
    x = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + slots * np.uint64(0xD1B54A32D192ED03)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.where(rows == NONE, np.uint64(0), x ^ (x >> np.uint64(31))).sum(1, dtype=np.uint64)


class PixelFlow(Flow):
    """As `Flow`, but an entry's label is the pixel of the feature map that it lies at. `places`: name in the state dict
    → the labels of that tensor's entries.
    """

    what = "pixels"
    relations_of = PixelRelations
    dropped = ()  # handlers may ignore operands, since the result is checked as a whole (`check_planted`)
    shifted = True  # whether pixels are followed when maps are rolled

    def at_input(self, shape: torch.Size) -> Labels:
        return self.grid(shape)

    def at_output(self, x: Labels) -> None:
        pass

    def unknown(self, call: Any, inputs: Any, reason: UserError) -> Any:
        labelled = [x for x in inputs if isinstance(x, Labels)]
        if not labelled or any(x.varies for x in labelled):
            raise reason
        # what is computed from entries at no pixel is at no pixel
        return tree_map_only(Tensor, lambda x: Labels.alike(FIXED, x.shape), call.result)

    def place(self, name: str, labels: Labels, call: Any) -> None:
        before = self.places.get(name)
        ids = labels.ids if before is None else self.relations.join(before.ids, labels.ids, call.node.name)
        self.places |= dict.fromkeys(self.names_of(name), Labels(labels.shape, ids))

    def place_along(self, name: str, dim: int, labels: Tensor, call: Any) -> None:
        self.place(name, Labels.along(labels, dim, self.tensors[name].shape), call)

    def grid(self, shape: torch.Size) -> Labels:
        """The labels of a new map (B, C, H, W)."""
        if len(shape) != 4 or shape[-2:] == (1, 1):
            return Labels.alike(FIXED, shape)
        return Labels(shape, self.relations.pixels(*shape[-2:]).reshape(1, 1, *shape[-2:]))

    def images(self, symmetry: Symmetry) -> np.ndarray:
        """For every label, the one that τ moves to its place, int64 (labels,). UserError if a map's shape changes, or
        pixels that are combined are moved to pixels that aren't.
        """
        brought = np.arange(self.relations.count)
        grids, derived, opened = self.relations.grids, self.relations.derived, self.relations.opened
        for first in [*grids, *sorted([*derived, *opened])]:
            if first in grids:
                height, width = grids[first]
                where = symmetry.act(torch.arange(height * width).reshape(1, height, width))
                if where.shape[1:] != (height, width):
                    raise UserError(
                        f"symmetry {symmetry.name}: a map of {width}×{height} pixels has to be square"
                    )
                where = where.flatten().numpy()
            else:
                if first in opened:
                    rows, ordered, by = opened[first][:, None].numpy(), True, "a layer along pixels"
                else:
                    rows, ordered, by = derived[first]
                keys, wanted = (_keys(x, ordered) for x in (rows, _brought(rows, brought)))
                order = np.argsort(keys)
                where = order[np.searchsorted(keys, wanted, sorter=order).clip(max=len(keys) - 1)]
                if (wrong := keys[where] != wanted).any():
                    constant = (rows[wrong] < FIXED) & (rows[wrong] > NONE)
                    raise UserError(
                        f"the net combines pixels in a way that doesn't commute with {symmetry.name}, first at {by}"
                        + (CONSTANT if constant.any() else "")
                    )
            brought[first : first + len(where)] = first + where
        return brought

    def order(self, images: np.ndarray, labels: Tensor, name: str) -> Tensor:
        """How entries with these labels are reordered: entry i is the former entry `order[i]`, int64 (n,). UserError if
        they belong to only a part of a map.
        """
        labels = labels.numpy()
        wanted = _brought(labels, images)
        before, after = np.argsort(labels, kind="stable"), np.argsort(wanted, kind="stable")
        if (labels[before] != wanted[after]).any():
            raise UserError(f"{name} belongs to a part of a map, so the net can't be transformed")
        return torch.from_numpy(before[after.argsort()])


class _Unmasked(PixelRelations):
    def constants(self, values: Tensor, varies: list[int]) -> Tensor:
        return torch.full([1] * values.ndim, FIXED)


class UnshiftedFlow(PixelFlow):
    """As `PixelFlow`, but as if maps were neither rolled before they are cut into windows nor masked: for windows that
    are shifted by less than half their size, whose mirror images aren't windows."""

    relations_of = _Unmasked
    shifted = False


def _brought(labels: np.ndarray, images: np.ndarray) -> np.ndarray:
    return np.where(labels > FIXED, images[labels.clip(FIXED)], labels)


# ---- handlers

of_pixels = partial(handler, on="pixels")
UNKNOWN = "its effect on pixels is unknown"


@of_pixels(*(key for key, known in REGISTERED.channels.items() if known in (handlers.conv, handlers.spatial)))
def resized(call: Call, x: Any, *rest: Any, **options: Any) -> Any:
    """A new map whose pixels are computed from neighbourhoods in the former one, or a single number from all pixels."""
    if isinstance(x, Weights) and len(x.shape) == 4:  # a table of positions
        call.meet(x, call.flow.grid(x.shape).ids)
        return call.flow.grid(call.shape)
    if not isinstance(x, Labels):
        raise call.refusal(UNKNOWN)
    if not isinstance(call.result, Tensor):  # the second has the indices of the largest entries
        return tuple(call.flow.grid(part.shape) if i == 0 else Labels.alike(FIXED, part.shape)
                     for i, part in enumerate(call.result))  # fmt: skip
    called = (type(call.layer).__name__ if call.layer is not None else function_name(call.node)).lower()
    if called.startswith("adaptive") and set(call.shape[2:]) == {1}:
        return Labels(call.shape, call.mix(x, [*range(2, len(call.shape))]))
    if len(call.shape) != 4 and not x.varies:  # along channels
        return Labels.alike(FIXED, call.shape)
    if called == "conv1d" and x.varies == [1]:  # tokens are its channels
        if call.layer is not None:
            weight, bias, reads = "weight", "bias", call.layer.in_channels // call.layer.groups
        else:
            weight, bias, reads = rest[0], (*rest, options.get("bias"))[1], rest[0].shape[1]
        if reads == x.shape[1]:
            return along_pixels(call, x, 1, weight, bias)
    if len(call.shape) != 4 or not set(x.varies) <= {1, 2, 3}:
        raise call.refusal(UNKNOWN)
    if 1 in x.varies:  # the pixels of a patch are concatenated as channels
        if not isinstance(call.layer, nn.Conv2d) or call.layer.groups > 1:
            raise call.refusal(UNKNOWN)
        call.index("weight", 1, call.along(x, 1))
    kernel = getattr(call.layer, "weight", options.get("weight", rest[0] if rest else None))
    pointwise = len(getattr(kernel, "shape", ())) == 4 and kernel.shape[2:].numel() == 1
    if pointwise and call.shape[2:] == x.shape[2:] and 1 not in x.varies:
        return Labels(call.shape, x.ids)  # whatever lies along these dimensions, such as pairs of tokens
    if isinstance(kernel, Weights) and kernel.shape[2:].numel() > 1:
        # `Symmetry.transform` moves the kernels of layers
        done = {id(layer.weight) for layer in call.flow.net.modules()
                if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)}  # fmt: skip
        others = {name: entries for name, entries in kernel.sources.items()
                  if id(call.flow.tensors[name]) not in done}  # fmt: skip
        call.meet(
            replace(kernel, sources=others),
            call.relations.pixels(*kernel.shape[2:]).reshape(1, 1, *kernel.shape[2:]),
        )
    return call.flow.grid(call.shape)


@of_pixels("pad")
def padded(call: Call, x: Any, pad: Any, *rest: Any, **options: Any) -> Any:
    if isinstance(x, Weights):
        return handlers.pad(call, x, pad, *rest, **options)
    return resized(call, x) if any(pad) else x


@of_pixels("roll")
def rolled(call: Call, x: Any, *rest: Any, **options: Any) -> Any:
    return handlers.moves(call, x, *rest, **options) if call.flow.shifted else x


@of_pixels(nn.Linear, "linear")
def linear(
    call: Call, x: Any, weight: Weights | str = "weight", *rest: Any, reads: int = 1, **options: Any
) -> Labels:
    if isinstance(x, Weights) and len(x.shape) == 4:  # a table of positions, which an inner net reads
        for dim in (1, 2):
            sides = (x.shape[dim] if side == dim else 1 for side in (1, 2))
            call.index(x, dim, call.relations.pixels(*sides))
        return Labels.alike(FIXED, call.shape)
    if isinstance(x, Weights):  # such as learned queries, which are at no pixel
        return Labels.alike(FIXED, call.shape)
    if not isinstance(x, Labels):
        raise call.refusal("it reads positions that are in no state dict, so they can't be moved")
    last = len(x.shape) - 1
    if last not in x.varies:
        return Labels(call.shape, x.ids)
    bias = "bias" if call.layer is not None else rest[0] if rest else options.get("bias")
    return along_pixels(call, x, last, weight, bias, reads)


def along_pixels(call: Call, x: Labels, dim: int, weight: Any, bias: Any, reads: int = 1) -> Labels:
    """A layer that reads pixels along a dimension, and writes new ones if the other dimensions have no pixels."""
    call.index(weight, reads, call.along(x, dim))
    ids = call.mix(x, [dim])
    if len(x.shape) > 2 and x.varies == [dim]:
        written = call.relations.written(call.shape[dim])
        call.index(weight, 1 - reads, written)
        call.index(bias, 0, written)
        ids = call.relations.join(ids, Labels.along(written, dim, call.shape).ids, call.node.name)
    return Labels(call.shape, ids)


@of_pixels("matmul", "bmm", "imatmul")
def matmul(call: Call, first: Any, second: Any) -> Labels:
    if not isinstance(first, Weights) and isinstance(second, Weights) and len(second.shape) == 2:
        return linear(call, first, second, reads=0)
    return handlers.matmul(call, first, second)


@of_pixels(*BATCH_NORMS)
def batch_norm(call: Call, x: Labels) -> Labels:
    if 1 in x.varies:
        handlers.batch_norm(call, x)
    return x


of_pixels("local_response_norm")(handlers.kept)


@of_pixels("unfold", "im2col", nn.Unfold)
def unfolded(call: Call, x: Labels, *rest: Any, **options: Any) -> Labels:
    """Windows of a dimension, or patches as columns: a pixel may be in several of them."""
    if call.node.op == "call_method":
        return handlers.moves(call, x, *rest, **options)
    entries = x.ids[:1].expand(1, *x.shape[1:]).double()
    columns = call.layer(entries) if call.layer is not None else call.node.target(entries, *rest, **options)
    return Labels(call.shape, Labels.of(columns.long()).ids)


@of_pixels(*INSTANCE_NORMS, nn.GroupNorm, nn.PReLU, "group_norm", "batch_norm", "instance_norm", "prelu")
def weights_of_channels(call: Call, x: Any, *rest: Any, **options: Any) -> Any:
    if isinstance(x, Weights):  # weight standardisation
        return handlers.batch_norm_function(call, x, *rest, **options)
    if 1 in x.varies:
        raise call.refusal("its weights belong to single pixels in an unknown way")
    return x


@of_pixels(nn.MultiheadAttention)
def multihead_attention(call: Call, query: Any, key: Labels, value: Labels, **options: Any) -> tuple:
    """Attention doesn't depend on the order of its tokens."""
    if isinstance(query, Weights):  # learned queries, which are at no pixel
        query = Labels.alike(FIXED, query.shape)
    if len(query.shape) - 1 in query.varies:
        raise call.refusal(UNKNOWN)
    weights = None if call.result[1] is None else Labels.alike(FIXED, call.result[1].shape)
    return Labels(call.result[0].shape, query.ids), weights


@of_pixels("scaled_dot_product_attention")
def attention(
    call: Call, query: Labels, key: Labels, value: Labels, attn_mask: Any = None, *rest: Any, **options: Any
) -> Labels:
    """Without a mask, as `multihead_attention`; with one, each pair of tokens has a label."""
    if any(rest[1:2]) or options.get("is_causal"):
        raise call.refusal("its tokens have an order")
    if attn_mask is None and all(len(x.shape) - 1 not in x.varies for x in (query, key, value)):
        return Labels(call.shape, query.ids)
    return handlers.attention(call, query, key, value, attn_mask)


ENTRYWISE.add(attention)

# ---- torchvision's Swin Transformer

REGISTERED.pixels["_patch_merging_pad"] = handlers.moves


@of_pixels("shifted_window_attention", "shifted_window_attention_v2")
def windows(call: Call, input: Labels, *rest: Any, **options: Any) -> Labels:
    if len(input.shape) - 1 in input.varies:
        raise call.refusal(UNKNOWN)
    return Labels(call.shape, input.ids)


@of_pixels("_get_relative_position_bias")
def relative_positions(call: Call, table: Any, index: Tensor, window: list[int]) -> Labels:
    """The table has a row for each displacement, numbered as the pixels of a map."""
    if isinstance(table, Weights):
        call.index(table, 0, call.relations.pixels(*(2 * side - 1 for side in window)))
    return Labels.alike(FIXED, call.shape)
