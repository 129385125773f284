"""The flow of pixels through a net: which entries of each tensor belong to which pixel of a feature map."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relusym.channels.flow import Flow
from relusym.channels.labels import FIXED, Labels
from relusym.errors import UserError
from relusym.symmetry import Symmetry

Grid = tuple[int, int]
NONE = torch.iinfo(torch.int64).min  # fills rows of fewer members than others have
MOST = 2**24  # pairs of pixels: those of 64×64 tokens that all attend to each other


class PixelRelations:
    """Labels of pixels, and of what is computed of several: a pair of them, or a set that is summed over.

    A symmetry brings a pair to the pair of what it brings either to, and a set to a set, so that nothing has to be
    known of it while labels flow.

    Attributes:
        grids: the first label of each map's pixels → its height and width; labels are counted row by row.
        derived: the first of the labels that are given at once → their members, int64 (labels, members), and whether
            these are in an order.
    """

    def __init__(self) -> None:
        self.count = FIXED + 1
        self.grids: dict[int, Grid] = {}
        self.derived: dict[int, tuple[np.ndarray, bool]] = {}
        self._constants: dict[Hashable, int] = {}

    def fresh(self, count: int) -> Tensor:
        """New labels."""
        self.count += count
        return torch.arange(self.count - count, self.count)

    def constant(self, value: Hashable) -> int:
        """The label of what is at no pixel, and the same wherever it is."""
        return self._constants.setdefault(value, -1 - len(self._constants))

    def constants(self, values: Tensor, varies: list[int]) -> Tensor:
        """Labels of a constant that meets what varies along some dimensions: it has to be the same at pixels and at
        those that they are brought to."""
        dims = [dim for dim in varies if values.shape[dim] > 1]
        rows = values.movedim(dims, [*range(len(dims))]).flatten(0, max(len(dims) - 1, 0))
        _, which = rows.reshape(len(rows) if dims else 1, -1).unique(dim=0, return_inverse=True)
        labels = torch.tensor([self.constant(object()) for _ in range(int(which.max()) + 1)])
        return labels[which].reshape([n if dim in dims else 1 for dim, n in enumerate(values.shape)])

    def derive(self, rows: np.ndarray, ordered: bool) -> Tensor:
        """The label of each row of labels, int64 (rows,): the same for the same rows; of one member alone, its own."""
        keys = _keys(rows, ordered)
        _, first, which = np.unique(keys, return_index=True, return_inverse=True)
        rows = rows[first]
        labels = self.fresh(len(rows)).numpy()
        self.derived[int(labels[0])] = rows, ordered
        most = rows.max(1)
        alone = ((rows == most[:, None]) | (rows == NONE)).all(1)
        return torch.from_numpy(np.where(alone, most, labels)[which.reshape(-1)])

    def join(self, one: Tensor, other: Tensor, where: Hashable = None) -> Tensor:
        """What is computed of two entries is at the pair of their pixels; at a pixel and the same everywhere, at it."""
        for a, b in ((one, other), (other, one)):
            if torch.equal(a, b) or (b.numel() == 1 and b <= FIXED):
                return torch.broadcast_tensors(a, b)[0] if a.numel() > 1 else a
        one, other = torch.broadcast_tensors(one, other)
        if one.numel() > MOST:
            raise UserError(f"{where}: it combines more than {MOST:,} pairs of pixels")
        pairs = np.stack([one.reshape(-1).numpy(), other.reshape(-1).numpy()], 1)
        labels = self.derive(pairs, True).reshape(one.shape)
        return torch.where(one == FIXED, other, torch.where(other == FIXED, one, labels))

    def meet(self, one: Tensor, sizes: Any, other: Tensor, others: Any, where: Hashable) -> Tensor:
        return self.join(one, other, where)

    def nest(self, ids: Tensor, dims: list[int], where: Hashable, heads: Tensor | None = None) -> Tensor:
        """The labels of what is computed of all along these dimensions, which have size 1."""
        sizes = [1 if dim in dims else size for dim, size in enumerate(ids.shape)]
        kept = [dim for dim in range(ids.ndim) if dim not in dims]
        rows = ids.permute(*kept, *dims).flatten(len(kept)).reshape(np.prod(sizes), -1)
        return self.derive(rows.numpy(), False).reshape(sizes)

    def join_along(self, ids: Tensor, dims: list[int], where: Hashable) -> Tensor:
        return self.nest(ids, dims, where) if dims else ids

    def gathered(self, places: Tensor, labels: Tensor, count: int, where: Hashable) -> Tensor:
        """Of `count` entries of a parameter, each with a label at some places, the label of all that it meets."""
        met = torch.full([count], FIXED)
        if len(places):
            at, row, counts = torch.unique_consecutive(places, return_inverse=True, return_counts=True)
            rows = torch.full([len(at), int(counts.max())], NONE)
            rows[row, torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]] = labels
            met[at] = self.derive(rows.numpy(), False)
        return met

    def distinct(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        return list(pieces)

    def beside(self, pieces: Sequence[Tensor], where: Hashable) -> Tensor | None:
        """Labels of maps beside each other, as channels of one; None if they are of different pixels of one map."""
        starts = np.array(sorted([*self.grids, *self.derived]))
        maps = [
            set(np.searchsorted(starts, piece.unique().numpy(), "right").tolist()) - {0} for piece in pieces
        ]
        ids = pieces[0]
        for i, piece in enumerate(pieces):
            if any(maps[i] & maps[j] and not torch.equal(piece, pieces[j]) for j in range(i)):
                return None
            ids = self.join(ids, piece, where)
        return ids

    def mark(self, ids: Tensor, how: Hashable) -> None:
        """Nothing sets pixels apart."""


def _keys(rows: np.ndarray, ordered: bool) -> np.ndarray:
    """A number for each row, uint64 (rows,): sums of what SplitMix64 makes of the members."""
    slots = np.arange(rows.shape[1], dtype=np.uint64) if ordered else np.uint64(0)
    x = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + slots * np.uint64(0xD1B54A32D192ED03)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.where(rows == NONE, np.uint64(0), x ^ (x >> np.uint64(31))).sum(1, dtype=np.uint64)


class PixelFlow(Flow):
    """As `Flow`, but labels say at which pixel of its feature map an entry is.

    Attributes:
        places: name in the state dict → the labels of that tensor's entries.
    """

    what = "pixels"
    kind_of_ties = PixelRelations
    dropped = ()  # a handler says all that counts; what it leaves out is checked in whole (`check_planted`)

    def of_image(self, shape: torch.Size) -> Labels:
        return self.grid(shape)

    def of_outputs(self, outputs: list[Labels]) -> None:
        pass

    def unknown(self, call: Any, known: Any, reason: UserError) -> Any:
        raise reason

    def place(self, name: str, labels: Labels, call: Any) -> None:
        before = self.places.get(name)
        ids = labels.ids if before is None else self.ties.join(before.ids, labels.ids, call.node.name)
        self.places[name] = Labels(labels.shape, ids)

    def place_along(self, name: str, dim: int, labels: Tensor, call: Any) -> None:
        self.place(name, Labels.along(labels, dim, self.tensors[name].shape), call)

    def grid(self, shape: torch.Size) -> Labels:
        """The labels of a new map (B, C, H, W)."""
        if len(shape) != 4 or shape[-2:] == (1, 1):
            return Labels.alike(FIXED, shape)
        return Labels(shape, self.pixels(*shape[-2:]).reshape(1, 1, *shape[-2:]))

    def pixels(self, height: int, width: int) -> Tensor:
        """The labels of new pixels, int64 (height · width,), row by row."""
        ids = self.ties.fresh(height * width)
        self.ties.grids[int(ids[0])] = height, width
        return ids

    def images(self, symmetry: Symmetry) -> np.ndarray:
        """Of every label the one that τ brings to its place, int64 (labels,).

        Raises:
            UserError: a map's shape changes, or pixels that are combined are brought to some that aren't.
        """
        brought = np.arange(self.ties.count)
        for first, of in sorted((self.ties.grids | self.ties.derived).items()):
            if first in self.ties.grids:
                height, width = of
                act = symmetry.act(torch.arange(height * width).reshape(1, height, width))
                if act.shape[1:] != (height, width):
                    raise UserError(
                        f"symmetry {symmetry.name}: a map of {width}×{height} pixels has to be square"
                    )
                brought[first : first + height * width] = first + act.flatten().numpy()
                continue
            rows, ordered = of
            keys = _keys(rows, ordered)
            wanted = _keys(np.where(rows > FIXED, brought[rows.clip(FIXED)], rows), ordered)
            order = np.argsort(keys)
            where = order[np.searchsorted(keys, wanted, sorter=order).clip(max=len(keys) - 1)]
            if (keys[where] != wanted).any():
                raise UserError(f"the net combines pixels in a way that doesn't commute with {symmetry.name}")
            brought[first : first + len(rows)] = first + where
        return brought

    def order(self, images: np.ndarray, labels: Tensor, name: str) -> Tensor:
        """How entries with these labels are reordered: entry i is the former entry `order[i]`, int64 (n,).

        Raises:
            UserError: they belong to a part of a map.
        """
        labels = labels.numpy()
        wanted = np.where(labels > FIXED, images[labels.clip(FIXED)], labels)
        here, there = np.argsort(labels, kind="stable"), np.argsort(wanted, kind="stable")
        if (labels[here] != wanted[there]).any():
            raise UserError(f"{name} belongs to a part of a map, so the net can't be transformed")
        order = np.empty_like(here)
        order[there] = here
        return torch.from_numpy(order)
