"""The flow of pixels through a net: which entries of each tensor belong to which pixel of a feature map."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relusym.channels.flow import Flow
from relusym.channels.labels import FIXED, Labels, rows_along
from relusym.errors import UserError
from relusym.symmetry import Symmetry

NONE = torch.iinfo(torch.int64).min  # fills rows of fewer members than others have
MOST = 2**24  # pairs of pixels: those of 64×64 tokens that all attend to each other


class PixelRelations:
    """Labels of pixels, and of what is computed of several: a pair of them, or a set that is summed over.

    A symmetry brings a pair to the pair of what it brings either to, and a set to a set: so labels flow first, and
    symmetries act on them afterwards.

    Attributes:
        grids: the first label of each map's pixels → its height and width; labels are counted row by row.
        derived: the first of the labels that are made together → their members, int64 (labels, members), and whether
            these are in an order.
    """

    def __init__(self) -> None:
        self.count = FIXED + 1
        self.grids: dict[int, tuple[int, int]] = {}
        self.derived: dict[int, tuple[np.ndarray, bool]] = {}
        self._constants: dict[Hashable, int] = {}

    def fresh(self, count: int) -> Tensor:
        """New labels."""
        self.count += count
        return torch.arange(self.count - count, self.count)

    def pixels(self, height: int, width: int) -> Tensor:
        """The labels of a new map's pixels, int64 (height · width,), row by row."""
        ids = self.fresh(height * width)
        self.grids[int(ids[0])] = height, width
        return ids

    def constant(self, value: Hashable) -> int:
        """The label of what is at no pixel, and the same wherever it is."""
        return self._constants.setdefault(value, -1 - len(self._constants))

    def constants(self, values: Tensor, varies: list[int]) -> Tensor:
        """Labels of a constant that meets pixels along some dimensions: a symmetry has to leave it as it is."""
        dims = [dim for dim in varies if values.shape[dim] > 1]
        others = [dim for dim in range(values.ndim) if dim not in dims]
        _, which = rows_along(values, others).unique(dim=0, return_inverse=True)
        labels = torch.tensor([self.constant(object()) for _ in range(int(which.max()) + 1)])
        return labels[which].reshape([size if dim in dims else 1 for dim, size in enumerate(values.shape)])

    def derive(self, rows: np.ndarray, ordered: bool) -> Tensor:
        """The label of each row of labels, int64 (rows,): the same for the same rows; of one member, itself."""
        _, first, which = np.unique(_keys(rows, ordered), return_index=True, return_inverse=True)
        rows = rows[first]
        labels = self.fresh(len(rows)).numpy()
        self.derived[int(labels[0])] = rows, ordered
        largest = rows.max(1)
        single = ((rows == largest[:, None]) | (rows == NONE)).all(1)
        return torch.from_numpy(np.where(single, largest, labels)[which.reshape(-1)])

    def join(self, first: Tensor, second: Tensor, where: Hashable = None) -> Tensor:
        """What is computed of two entries is at the pair of their pixels; of a pixel and what is at none, at it."""
        for a, b in ((first, second), (second, first)):
            if torch.equal(a, b) or (b.numel() == 1 and b <= FIXED):
                return torch.broadcast_tensors(a, b)[0] if a.numel() > 1 else a
        first, second = torch.broadcast_tensors(first, second)
        if first.numel() > MOST:
            raise UserError(f"{where}: it combines more than {MOST:,} pairs of pixels")
        pairs = torch.stack([first.flatten(), second.flatten()], 1)
        labels = self.derive(pairs.numpy(), True).reshape(first.shape)
        return torch.where(first == FIXED, second, torch.where(second == FIXED, first, labels))

    def meet(self, first: Tensor, sizes: Any, second: Tensor, others: Any, where: Hashable) -> Tensor:
        return self.join(first, second, where)

    def nest(self, ids: Tensor, dims: list[int], where: Hashable, heads: Tensor | None = None) -> Tensor:
        """The labels of what is computed of all along these dimensions, which have size 1."""
        labels = self.derive(rows_along(ids, dims).numpy(), False)
        return labels.reshape([1 if dim in dims else size for dim, size in enumerate(ids.shape)])

    def join_along(self, ids: Tensor, dims: list[int], where: Hashable) -> Tensor:
        return self.nest(ids, dims, where) if dims else ids

    def gathered(self, places: Tensor, labels: Tensor, count: int, where: Hashable) -> Tensor:
        """Labels of `count` entries of a parameter, which meet pixels at some places: of all that an entry meets."""
        met = torch.full([count], FIXED)
        if len(places):
            entries, row, counts = torch.unique_consecutive(places, return_inverse=True, return_counts=True)
            rows = torch.full([len(entries), int(counts.max())], NONE)
            rows[row, torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]] = labels
            met[entries] = self.derive(rows.numpy(), False)
        return met

    def distinct(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        return list(pieces)

    def beside(self, pieces: Sequence[Tensor], where: Hashable) -> Tensor | None:
        """Labels of maps beside each other, as channels of a new one; None if they are different pixels of one map."""
        starts = np.array(sorted([*self.grids, *self.derived]))
        maps = [
            set(np.searchsorted(starts, piece.unique().numpy(), "right").tolist()) - {0} for piece in pieces
        ]
        for i, j in itertools.combinations(range(len(pieces)), 2):
            if maps[i] & maps[j] and not torch.equal(pieces[i], pieces[j]):
                return None
        ids = pieces[0]
        for piece in pieces[1:]:
            ids = self.join(ids, piece, where)
        return ids

    def mark(self, ids: Tensor, how: Hashable) -> None:
        """Nothing sets pixels apart."""


def _keys(rows: np.ndarray, ordered: bool) -> np.ndarray:
    """A number for each row, uint64 (rows,): the sum of what SplitMix64 makes of its members."""
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
    relations_of = PixelRelations
    dropped = ()  # a handler says all that counts; what it leaves out is checked in whole (`check_planted`)
    shifted = True  # whether maps are followed where they are rolled

    def at_input(self, shape: torch.Size) -> Labels:
        return self.grid(shape)

    def at_output(self, x: Labels) -> None:
        pass

    def unknown(self, call: Any, inputs: Any, reason: UserError) -> Any:
        raise reason

    def place(self, name: str, labels: Labels, call: Any) -> None:
        before = self.places.get(name)
        ids = labels.ids if before is None else self.relations.join(before.ids, labels.ids, call.node.name)
        self.places[name] = Labels(labels.shape, ids)

    def place_along(self, name: str, dim: int, labels: Tensor, call: Any) -> None:
        self.place(name, Labels.along(labels, dim, self.tensors[name].shape), call)

    def grid(self, shape: torch.Size) -> Labels:
        """The labels of a new map (B, C, H, W)."""
        if len(shape) != 4 or shape[-2:] == (1, 1):
            return Labels.alike(FIXED, shape)
        return Labels(shape, self.relations.pixels(*shape[-2:]).reshape(1, 1, *shape[-2:]))

    def images(self, symmetry: Symmetry) -> np.ndarray:
        """Of every label the one that τ brings to its place, int64 (labels,).

        Raises:
            UserError: a map's shape changes, or pixels that are combined are brought to some that aren't.
        """
        brought = np.arange(self.relations.count)
        grids, derived = self.relations.grids, self.relations.derived
        for first in sorted([*grids, *derived]):
            if first in grids:
                height, width = grids[first]
                where = symmetry.act(torch.arange(height * width).reshape(1, height, width))
                if where.shape[1:] != (height, width):
                    raise UserError(
                        f"symmetry {symmetry.name}: a map of {width}×{height} pixels has to be square"
                    )
                where = where.flatten().numpy()
            else:
                rows, ordered = derived[first]
                keys, wanted = (_keys(x, ordered) for x in (rows, _brought(rows, brought)))
                order = np.argsort(keys)
                where = order[np.searchsorted(keys, wanted, sorter=order).clip(max=len(keys) - 1)]
                if (keys[where] != wanted).any():
                    raise UserError(
                        f"the net combines pixels in a way that doesn't commute with {symmetry.name}"
                    )
            brought[first : first + len(where)] = first + where
        return brought

    def order(self, images: np.ndarray, labels: Tensor, name: str) -> Tensor:
        """How entries with these labels are reordered: entry i is the former entry `order[i]`, int64 (n,).

        Raises:
            UserError: they belong to a part of a map.
        """
        labels = labels.numpy()
        wanted = _brought(labels, images)
        before, after = np.argsort(labels, kind="stable"), np.argsort(wanted, kind="stable")
        if (labels[before] != wanted[after]).any():
            raise UserError(f"{name} belongs to a part of a map, so the net can't be transformed")
        order = np.empty_like(before)
        order[after] = before
        return torch.from_numpy(order)


class _Unmasked(PixelRelations):
    def constants(self, values: Tensor, varies: list[int]) -> Tensor:
        return torch.full([1] * values.ndim, FIXED)


class UnshiftedFlow(PixelFlow):
    """As if maps weren't rolled before they are cut into windows, nor masked then: of windows that are shifted by less
    than half, whose mirror images are no windows."""

    relations_of = _Unmasked
    shifted = False


def _brought(labels: np.ndarray, images: np.ndarray) -> np.ndarray:
    return np.where(labels > FIXED, images[labels.clip(FIXED)], labels)
