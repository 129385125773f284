"""Labels: the channel that each entry of a tensor belongs to; and which channels have to be permuted alike."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor

FIXED = 0  # the label of what can't be permuted: the image's channels, the logits


@dataclass(frozen=True)
class Labels:
    """The channels, or pixels, of a tensor's entries.

    A label is a channel's number, counted from 1, or `FIXED`, or a negative number, one for each constant that is the
    same in all channels, such as zero padding. Entries that share a label, such as the pixels of a flattened map or the
    channels of one of a convolution's groups, move together.

    Attributes:
        shape: the tensor's.
        ids: int64, with as many dimensions as the tensor, of size 1 where the labels don't vary.
    """

    shape: torch.Size
    ids: Tensor

    @classmethod
    def of(cls, entries: Tensor) -> Labels:
        """Labels from the label of every entry."""
        ids = entries
        for dim, size in enumerate(entries.shape):
            first = ids.narrow(dim, 0, 1) if size else ids
            if ids.stride(dim) == 0 or bool((ids == first).all()):
                ids = first
        return cls(entries.shape, ids)

    @classmethod
    def along(cls, vector: Tensor, dim: int, shape: torch.Size) -> Labels:
        """Labels of a tensor that vary along one dimension."""
        sizes = [1] * len(shape)
        sizes[dim] = -1
        return cls(shape, vector.reshape(sizes))

    @classmethod
    def alike(cls, label: int, shape: torch.Size) -> Labels:
        """The same label for all entries of a tensor."""
        return cls(shape, torch.full([1] * len(shape), label))

    @property
    def entries(self) -> Tensor:
        """The label of every entry."""
        return self.ids.expand(self.shape)

    @property
    def varies(self) -> list[int]:
        """The dimensions along which the labels vary."""
        return [dim for dim, size in enumerate(self.ids.shape) if size > 1]


@dataclass(frozen=True)
class Weights:
    """A tensor computed from parameters or buffers, and possibly constants, but not from the image.

    Attributes:
        shape: the tensor's.
        sources: name in the state dict → the entry of that tensor, counted from 0 in memory order, that each entry is
            computed from, int64, broadcastable to `shape`; -1: from none.
        pooled: names of the tensors that are reduced along some dimensions, as by a mean or a matrix product; `sources`
            has the first entry along these.
        beside: constants that the entries also depend on, broadcastable to `shape`, such as a mask on position biases.
    """

    shape: torch.Size
    sources: dict[str, Tensor]
    pooled: frozenset[str] = frozenset()
    beside: tuple[Tensor, ...] = ()

    @property
    def name(self) -> str:
        """The name of the first source."""
        return next(iter(self.sources))

    def moved(self, function: Callable[[Tensor], Tensor]) -> Weights:
        """The weights after a function has moved their entries."""
        every = [function(x.expand(self.shape)) for x in (*self.sources.values(), *self.beside)]
        ids = [Labels.of(x).ids for x in every]
        sources = dict(zip(self.sources, ids, strict=False))
        return Weights(every[0].shape, sources, self.pooled, tuple(ids[len(sources) :]))


def move_entries(x: Tensor, dims: list[int], order: Tensor) -> Tensor:
    """The tensor reordered along `dims`, which are flattened together: entry i is the former entry `order[i]`."""
    last = [*range(-len(dims), 0)]
    x = x.movedim(dims, last)
    return x.flatten(-len(dims)).index_select(-1, order.to(x.device)).reshape(x.shape).movedim(last, dims)


class UnionFind:
    """A union-find forest of labels: channels are joined when a net's operations need them to be permuted alike.

    Attributes:
        marks: what sets channels apart, besides the tensors that they index → those channels.
        pairs: pairs of labels that were joined.
        nests: channels that stay together, int64 (heads, n), a row for each head, and the label of each head.
        crossed: the operations that combine each of several channels with each of several others, which joins them all.
    """

    def __init__(self) -> None:
        self._parents = [FIXED]
        self.nests: list[tuple[Tensor, Tensor]] = []
        self.crossed: set[Hashable] = set()
        self._constants: dict[float, int] = {}
        self.pairs: list[tuple[int, int]] = []
        self.marks: dict[Hashable, list[Tensor]] = defaultdict(list)

    def fresh(self, count: int) -> Tensor:
        """The labels of `count` new channels."""
        first = len(self._parents)
        self._parents += range(first, first + count)
        return torch.arange(first, first + count)

    def constant(self, value: float) -> int:
        """The label of a constant."""
        return self._constants.setdefault(value, -1 - len(self._constants))

    def constants(self, values: Tensor, varies: list[int]) -> Tensor:
        """The labels of a constant whose entries differ, which fixes all channels that it meets."""
        return torch.full([1] * values.ndim, FIXED)

    def root(self, label: int) -> int:
        """The representative of the channels joined to this one: the first of them, or `FIXED` if any is fixed."""
        parents = self._parents
        while parents[label] != label:
            parents[label] = parents[parents[label]]
            label = parents[label]
        return label

    def roots(self) -> np.ndarray:
        """The representatives of all labels from `FIXED` on, int64 (labels,)."""
        return np.array([self.root(label) for label in range(len(self._parents))])

    def join(self, first: Tensor, second: Tensor, where: Hashable) -> Tensor:
        """Join channels entry by entry; return the labels of both, broadcast.

        A channel that meets a constant is marked with `where`: only channels that meet it there may be exchanged.
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
        """Join channels; return whether any weren't joined yet."""
        roots = {self.root(label) for label in labels}
        for root in roots:
            self._parents[root] = min(roots)
        return len(roots) > 1

    def meet(
        self, first: Tensor, sizes: Sequence[int], second: Tensor, others: Sequence[int], where: Hashable
    ) -> Tensor:
        """As `join`, for tensors of these sizes; but channels that meet a broadcast channel are nested in it."""
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
        if finer and coarser:
            self.crossed.add(where)
        return self.join(first, second, where)

    def nest(self, ids: Tensor, dims: list[int], where: Hashable, heads: Tensor | None = None) -> Tensor:
        """Keep channels along these dimensions together as heads, which are permuted whole, with channels within each.
        `heads`: the heads' labels, with size 1 along `dims`; None: new labels, the same for the same channels.
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
        """The label of each head → the sets of channels that it holds; all fixed heads are under `FIXED`.

        Of heads that overlap, the smaller one's channels are joined, until no channel lies in two; and so are all those
        of nested heads. Such heads are only permuted whole.
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
                        changed |= self._unite(
                            min([channels, *others], key=lambda held: (len(held), min(held)))
                        )
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
        """Labels of pieces to concatenate: those that an earlier piece has are replaced by new ones, joined to them.

        Entries with the same label may hold different values, such as x and relu(x); joined labels keep their order.
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
        """The labels of concatenated tokens, whose channels are joined."""
        return reduce(lambda ids, piece: self.join(ids, piece, where), pieces)

    def written(self, count: int, sums: bool) -> Tensor:
        """The labels along a dimension of a product that only a parameter has: new channels."""
        return self.fresh(count)

    def gathered(self, places: Tensor, labels: Tensor, shape: torch.Size, where: Hashable) -> Tensor:
        """The labels of a parameter's entries, which meet channels at `places`: all that an entry meets are joined.

        Entries that meet none, such as those set to zero, take the labels of others along a dimension if possible.
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
        """Set channels apart from those without this mark."""
        self.marks[how].append(ids.flatten())

    def join_along(self, ids: Tensor, dims: list[int], where: Hashable) -> Tensor:
        """Join all channels along these dimensions; the labels returned have size 1 along them."""
        for dim in dims:
            if ids.shape[dim] > 1:
                joined = self.join(ids.narrow(dim, 0, 1), ids, where)
                ids = joined.max(dim, keepdim=True).values  # any channel's, but a constant's only if all are
        return ids


def rows_along(ids: Tensor, dims: list[int]) -> Tensor:
    """The labels along some dimensions as rows, one for each position along the others, (positions, n)."""
    kept = [dim for dim in range(ids.ndim) if dim not in dims]
    return ids.permute(*kept, *dims).reshape(math.prod(ids.shape[dim] for dim in kept), -1)
