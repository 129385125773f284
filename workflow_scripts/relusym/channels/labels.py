"""Which channel every entry of a tensor belongs to, as labels; and which channels have to be permuted alike."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor

FIXED = 0  # the label of what stays at its place: the image's channels, the logits


@dataclass(frozen=True)
class Labels:
    """The channels, or pixels, of a tensor's entries.

    A label is a channel's number from 1 on, `FIXED`, or a negative number, one for each constant that is alike in all
    channels, as zero padding is. A label stands for a whole: entries that share one, as the pixels of a flattened map
    or the channels of one of a convolution's groups, move together.

    Attributes:
        shape: the tensor's.
        ids: int64, as many dimensions, of size 1 where the labels don't vary.
    """

    shape: torch.Size
    ids: Tensor

    @classmethod
    def of(cls, entries: Tensor) -> Labels:
        """Those of a tensor by every entry's label."""
        ids = entries
        for dim, size in enumerate(entries.shape):
            first = ids.narrow(dim, 0, 1) if size else ids
            if ids.stride(dim) == 0 or bool((ids == first).all()):
                ids = first
        return cls(entries.shape, ids)

    @classmethod
    def along(cls, vector: Tensor, dim: int, shape: torch.Size) -> Labels:
        """Those of a tensor whose labels vary along one dimension."""
        sizes = [1] * len(shape)
        sizes[dim] = -1
        return cls(shape, vector.reshape(sizes))

    @classmethod
    def alike(cls, label: int, shape: torch.Size) -> Labels:
        """Those of a tensor with one label."""
        return cls(shape, torch.full([1] * len(shape), label))

    @property
    def entries(self) -> Tensor:
        """Every entry's label."""
        return self.ids.expand(self.shape)

    @property
    def varies(self) -> list[int]:
        """The dimensions along which labels vary."""
        return [dim for dim, size in enumerate(self.ids.shape) if size > 1]


@dataclass(frozen=True)
class Weights:
    """A tensor that is made of parameters or buffers alone, or of them and constants.

    Attributes:
        shape: the tensor's.
        sources: name in the state dict → which of that tensor's entries, counted from 0 in memory's order, each entry
            is made of, int64, broadcastable to `shape`; -1: of none.
        pooled: of which tensors each entry is made of all entries along some dimensions, as a mean or a product of
            matrices is; `sources` has the first of them.
        beside: constants that each entry is made of, too, broadcastable to `shape`, as a mask on position biases.
    """

    shape: torch.Size
    sources: dict[str, Tensor]
    pooled: frozenset[str] = frozenset()
    beside: tuple[Tensor, ...] = ()

    @property
    def name(self) -> str:
        """Of the first of them."""
        return next(iter(self.sources))


def move_entries(x: Tensor, dims: list[int], order: Tensor) -> Tensor:
    """Entries along some dimensions together, in another order: entry i is the former entry `order[i]`."""
    last = [*range(-len(dims), 0)]
    x = x.movedim(dims, last)
    return x.flatten(-len(dims)).index_select(-1, order.to(x.device)).reshape(x.shape).movedim(last, dims)


class UnionFind:
    """Channels that are joined when a net's operations need them to be permuted alike: a forest of their labels.

    Attributes:
        marks: what sets channels apart, besides the tensors that they index → those channels.
        pairs: labels that were joined with each other.
        nests: channels that stay together, those of a head in a row, int64 (heads, n), and the label of each head.
    """

    def __init__(self) -> None:
        self._parents = [FIXED]
        self.nests: list[tuple[Tensor, Tensor]] = []
        self._constants: dict[float, int] = {}
        self.pairs: list[tuple[int, int]] = []
        self.marks: dict[Hashable, list[Tensor]] = defaultdict(list)

    def fresh(self, count: int) -> Tensor:
        """Labels of so many new channels."""
        first = len(self._parents)
        self._parents += range(first, first + count)
        return torch.arange(first, first + count)

    def constant(self, value: float) -> int:
        """The label of a constant."""
        return self._constants.setdefault(value, -1 - len(self._constants))

    def constants(self, values: Tensor, varies: list[int]) -> Tensor:
        """Labels of a constant that isn't alike everywhere, and so keeps what it meets at its place."""
        return torch.full([1] * values.ndim, FIXED)

    def root(self, label: int) -> int:
        """The channel that stands for all that a channel is joined to: the first of them; `FIXED` if one is fixed."""
        parents = self._parents
        while parents[label] != label:
            parents[label] = parents[parents[label]]
            label = parents[label]
        return label

    def roots(self) -> np.ndarray:
        """Of every label from `FIXED` on, the channel that stands for all that it is joined to."""
        return np.array([self.root(label) for label in range(len(self._parents))])

    def join(self, first: Tensor, second: Tensor, where: Hashable) -> Tensor:
        """Join channels with channels, entry by entry; the labels of both, broadcast.

        A channel that meets a constant is marked with `where`: the constant is the same to all that meet it there.
        """
        first, second = torch.broadcast_tensors(first, second)
        if not torch.equal(first, second):
            for a, b in torch.stack([first.flatten(), second.flatten()]).unique(dim=1).T.tolist():
                if a < 0 or b < 0:
                    self.mark(torch.tensor([max(a, b)]), (where, min(a, b)))
                else:
                    self.pairs.append((a, b))
                    self._unite([a, b])
        return torch.where(first < 0, second, first)

    def _unite(self, labels: Iterable[int]) -> bool:
        """Join channels; whether they weren't yet."""
        roots = {self.root(label) for label in labels}
        for root in roots:
            self._parents[root] = min(roots)
        return len(roots) > 1

    def meet(
        self, first: Tensor, sizes: Sequence[int], second: Tensor, others: Sequence[int], where: Hashable
    ) -> Tensor:
        """As `join`, of tensors of these sizes; but where one is broadcast, what it meets of another stays together."""
        finer, coarser = (
            [dim for dim, size in enumerate(ids.shape) if size > 1 and known[dim] == 1]
            for ids, known in ((second, sizes), (first, others))
        )
        if finer and not coarser and first.numel() > 1:
            self.nest(second, finer, where, first)
            return second
        if coarser and not finer and second.numel() > 1:
            self.nest(first, coarser, where, second)
            return first
        return self.join(first, second, where)

    def nest(self, ids: Tensor, dims: list[int], where: Hashable, heads: Tensor | None = None) -> Tensor:
        """Keep channels together that lie along these dimensions: heads are permuted whole, and channels within each.

        Args:
            heads: their labels, with size 1 along `dims`; None: new ones, the same for the same channels.
        """
        if heads is not None:
            ids = torch.broadcast_tensors(ids, heads)[0]
        sizes = [1 if dim in dims else size for dim, size in enumerate(ids.shape)]
        rows = rows_along(ids, dims)
        if heads is None:
            rows, which = rows.unique(dim=0, return_inverse=True)
            labels = self.fresh(len(rows))
            heads = labels[which].reshape(sizes)
        else:
            labels = heads.expand(sizes).flatten()
        self.nests.append((rows, labels))
        return heads

    def settle(self) -> dict[int, list[frozenset[int]]]:
        """The heads: the label of each → the channels that it holds, in sets; under `FIXED` those of all fixed ones.

        Channels that would lie in two heads, or in heads within heads, are joined: such heads are permuted whole alone.
        """
        changed = True
        while changed:
            changed, head_of, set_of = False, {}, {}
            for rows, heads in self.nests:
                for row, head in zip(rows.tolist(), heads.tolist(), strict=True):
                    channels = frozenset(self.root(max(label, FIXED)) for label in row)
                    if FIXED in channels:
                        changed |= self._unite([head, FIXED])
                        channels -= {FIXED}
                    elif len(channels) == 1 or self.root(head) in channels:
                        changed |= self._unite([head, *channels])
                    if self.root(head) in channels or not channels:
                        continue
                    others = {set_of[channel] for channel in channels if channel in set_of} - {channels}
                    if others:
                        changed |= self._unite(channels.union(*others))
                    set_of |= dict.fromkeys(channels, channels)
                    changed |= self._unite([head, head_of.setdefault(channels, head)])
            for channels, head in head_of.items():
                if (root := self.root(head)) != FIXED and root in set_of:
                    changed |= self._unite([root, *channels, *set_of[root]])
        sets = defaultdict(list)
        for channels, head in head_of.items():
            sets[self.root(head)].append(channels)
        return sets

    def distinct(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        """The labels of pieces that come to lie beside each other: those that an earlier one has get new ones, joined.

        What lies at two entries with one label may differ, as x and relu(x); joined ones keep an order of their own.
        """
        seen: set[int] = set()
        renamed = []
        for piece in pieces:
            labels = piece.unique()
            again = labels[[label > FIXED and label in seen for label in labels.tolist()]]
            seen |= set(labels.tolist())
            if len(again):
                names = torch.arange(int(labels.max()) + 1)
                names[again] = self.fresh(len(again))
                for label in again.tolist():
                    self._unite([label, int(names[label])])
                piece = torch.where(piece > FIXED, names[piece.clamp(min=FIXED)], piece)
            renamed.append(piece)
        return renamed

    def beside(self, pieces: Sequence[Tensor], where: Hashable) -> Tensor | None:
        """Labels of tokens beside each other: their channels are joined."""
        return reduce(lambda ids, piece: self.join(ids, piece, where), pieces)

    def written(self, count: int) -> Tensor | None:
        """Labels along a dimension that a parameter alone has in a product: it stays."""
        return None

    def gathered(self, places: Tensor, labels: Tensor, shape: torch.Size, where: Hashable) -> Tensor:
        """Labels of a parameter's entries, which meet channels at places: an entry's are joined.

        Entries that meet none, as those that are set to zero, have those of others along a dimension, if it can be.
        """
        none = torch.iinfo(labels.dtype).min
        met = torch.full([math.prod(shape)], none)
        met[places] = labels
        self.join(met[places], labels, where)
        met = met.reshape(shape)
        for dim in range(len(shape)) if bool((met == none).any()) else ():
            along = met.amax([other for other in range(len(shape)) if other != dim], keepdim=True)
            if bool(((met == along) | (met == none)).all()):
                met = along.expand(shape)
                break
        return torch.where(met == none, FIXED, met)

    def mark(self, ids: Tensor, how: Hashable) -> None:
        """Set channels apart from those that aren't marked so."""
        self.marks[how].append(ids.flatten())

    def join_along(self, ids: Tensor, dims: list[int], where: Hashable) -> Tensor:
        """Join all channels that lie along these dimensions, which have size 1 in what is returned."""
        for dim in dims:
            if ids.shape[dim] > 1:
                joined = self.join(ids.narrow(dim, 0, 1), ids, where)
                ids = joined.max(dim, keepdim=True).values  # any of them, but a constant only if all are
        return ids


def rows_along(ids: Tensor, dims: list[int]) -> Tensor:
    """Labels along some dimensions as rows, one for each place along the others, (places, n)."""
    kept = [dim for dim in range(ids.ndim) if dim not in dims]
    return ids.permute(*kept, *dims).reshape(math.prod(ids.shape[dim] for dim in kept), -1)
