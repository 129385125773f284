"""Which channels a net's operations have joined, and which are alike: from labels to channel groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from relusym.channels.flow import Flow
from relusym.channels.labels import FIXED, Labels


@dataclass(frozen=True)
class Place:
    """Where channels lie in one dimension of a tensor.

    Attributes:
        tensor: a parameter's or buffer's name in the state dict; of `ChannelGroup.outputs`, a graph node's.
        dim: the dimension.
        block: how many entries of it each channel spans.
        entries: those of the first channel, of the second and so on; None: all, in their order.
    """

    tensor: str
    dim: int
    block: int = 1
    entries: Sequence[int] | None = None

    def index(self, size: int, device: torch.device | str = "cpu") -> Tensor:
        """The entries of each of `size` channels, int64 (size, block)."""
        if self.entries is None:
            return torch.arange(size * self.block, device=device).reshape(size, self.block)
        return torch.tensor(self.entries, device=device).reshape(size, self.block)


class Joined:
    """What a net's flow says once it has been followed: which channels are one, and which of these are alike.

    Attributes:
        sizes: of the groups, those of a single channel left out.
        heads: how many heads each group has; 1: none.
        tied: of groups with heads, a number that those share whose heads are permuted alike.
    """

    def __init__(self, flow: Flow):
        heads = flow.ties.settle()
        self.roots = flow.ties.roots()
        self._found: dict[int, tuple[Tensor, list]] = {}
        self._kinds: dict[Hashable, int] = {}
        alike, self.fresh = np.zeros(len(self.roots), dtype=np.int64), 1
        # of the labels of a channel, how many are below: `places` keeps them in this order
        order = np.argsort(self.roots, kind="stable")
        starts = np.searchsorted(self.roots[order], self.roots)
        self.within = np.empty_like(order)
        self.within[order] = np.arange(len(order))
        self.within -= starts
        draw = np.random.default_rng(0)
        self._hashes = draw.integers(0, 2**63, (2, int(self.within.max()) + 1), dtype=np.uint64)
        one, other = np.array(flow.ties.pairs, dtype=np.int64).reshape(-1, 2).T
        both = self._hashes[0][self.within[one]] * self._hashes[1][self.within[other]]
        self._refine_by(alike, self.roots[one], both)
        for labels in flow.places.values():
            self._refine(alike, labels)
        for marked in flow.ties.marks.values():
            self._refine(alike, torch.cat(marked))
        for of in tree_leaves(list(flow.labels.values())):
            if isinstance(of, Labels):  # what only some pass through tells them apart
                self._refine(alike, of.ids)
        indexing = {
            root for labels in flow.places.values() for root in np.unique(self._roots(labels)).tolist()
        }
        self.head = np.arange(len(self.roots))  # of every channel; its own, if it is in none
        for head, sets in heads.items():
            for channels in sets:
                self.head[list(channels)] = head or min(channels)
        apart = self._refine_by_heads(alike, heads)
        members: dict[int, list[int]] = defaultdict(list)
        for root in sorted(indexing - apart - {FIXED}, key=lambda root: (self.head[root], root)):
            members[alike[root]].append(root)
        groups = [channels for channels in members.values() if len(channels) > 1]
        self.sizes, self.heads, self.tied = [len(channels) for channels in groups], [], []
        held = {head for head in heads if head != FIXED}
        for channels in groups:
            of = np.unique(self.head[channels])
            several = len(of) > 1 and held.issuperset(of.tolist())
            self.heads.append(len(of) if several else 1)
            self.tied.append(int(of[0]) if several else None)
        self.group, self.rank = (np.full(len(self.roots), -1) for _ in range(2))
        for number, channels in enumerate(groups):
            self.group[channels], self.rank[channels] = number, range(len(channels))

    def _roots(self, labels: Tensor) -> np.ndarray:
        return self.roots[labels.flatten().clamp(min=FIXED).numpy()]

    def _refine(self, alike: np.ndarray, labels: Tensor) -> None:
        """Tell channels apart by how often each of their labels is among these."""
        entries = labels.flatten().clamp(min=FIXED).numpy()
        self._refine_by(alike, self.roots[entries], self._hashes[0][self.within[entries]])

    def _refine_by(self, alike: np.ndarray, channels: np.ndarray, hashes: np.ndarray) -> None:
        """Tell channels apart by the sums of numbers that stand for what they have."""
        roots, where = np.unique(channels, return_inverse=True)
        sums = np.zeros(len(roots), dtype=np.uint64)
        np.add.at(sums, where.reshape(-1), hashes)
        _, kinds = np.unique(np.stack([alike[roots].astype(np.uint64), sums]), axis=1, return_inverse=True)
        alike[roots] = self.fresh + kinds.reshape(-1)
        self.fresh += len(roots)

    def _refine_by_heads(self, alike: np.ndarray, heads: dict[int, list[frozenset[int]]]) -> set[int]:
        """Tell channels apart by what lies in a head with them; those of heads that hold several sets alike stay."""
        apart: set[int] = set()
        kinds = -1
        while kinds < (kinds := len(np.unique(alike))):
            for head, sets in heads.items():
                # of the sets of a head, what they hold; fixed heads are alike to none
                signed = [(tuple(sorted(alike[list(of)])), min(of) if head == FIXED else 0) for of in sets]
                if head != FIXED and len(set(signed)) < len(signed):
                    apart |= {head}.union(*sets)
                whole = (alike[head] if head else 0, *sorted(signed))
                for of, sign in [*zip(sets, signed, strict=True), *([({head}, 0)] if head else [])]:
                    for channel in of:
                        alike[channel] = self._numbered(alike[channel], sign, whole)
        return apart

    def _numbered(self, *what: Hashable) -> int:
        """One number for each kind of channels."""
        if what not in self._kinds:
            self._kinds[what] = self.fresh
            self.fresh += 1
        return self._kinds[what]

    def places(self, tensor: str, dim: int, labels: Tensor) -> list[tuple[int, Place]]:
        """Each group that has all its channels along this dimension, with as many entries of each, and where."""
        if id(labels) not in self._found:
            roots, every = self._roots(labels), labels.flatten().numpy()
            groups = self.group[roots]
            # joined channels lie in the order in which they were written
            entries = np.lexsort((every, self.rank[roots], groups))
            found = []
            for run in np.split(entries, np.flatnonzero(np.diff(groups[entries])) + 1):
                group = int(groups[run[0]])
                counts = np.bincount(self.rank[roots[run]]) if group >= 0 else np.zeros(0)
                if group < 0 or len(counts) < self.sizes[group] or (counts != counts[0]).any():
                    continue
                first, where = int(run[0]), tuple(run.tolist())
                if where == tuple(range(first, first + len(run))):
                    where = range(first, first + len(run)) if len(run) < len(roots) else None
                found.append((group, int(counts[0]), where))
            self._found[id(labels)] = labels, found
        return [
            (group, Place(tensor, dim, block, where)) for group, block, where in self._found[id(labels)][1]
        ]
