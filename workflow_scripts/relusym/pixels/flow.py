"""The flow of pixels through a net: which entries of each tensor belong to which pixel of a feature map."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relusym.channels.flow import Flow
from relusym.channels.labels import FIXED, Labels, Ties
from relusym.errors import UserError
from relusym.symmetry import Symmetry

Grid = tuple[int, int]


class PixelTies(Ties):
    """Of pixels, what stays together is joined: a part of a map is moved, and not reordered within."""

    def meet(self, one: Tensor, sizes: Any, other: Tensor, others: Any, where: Hashable) -> Tensor:
        return self.join(one, other, where)

    def nest(self, ids: Tensor, dims: list[int], where: Hashable, heads: Tensor | None = None) -> Tensor:
        return self.join_along(ids, dims, where)

    def distinct(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        return list(pieces)


class PixelFlow(Flow):
    """As `Flow`, but labels say at which pixel of its feature map an entry is.

    Attributes:
        grids: the first label of each map's pixels → its height and width; labels are counted row by row.
        patches: the first label of what lies in merged patches → the shape of the map that is made of them.
    """

    what = "pixels"
    kind_of_ties = PixelTies
    dropped = ()  # a handler says all that counts; what it leaves out is checked in whole (`check_planted`)

    def __init__(self, *traced: Any):
        self.grids: dict[int, Grid] = {}
        self.patches: dict[int, torch.Size] = {}
        super().__init__(*traced)

    def of_image(self, shape: torch.Size) -> Labels:
        return self.grid(shape)

    def of_outputs(self, outputs: list[Labels]) -> None:
        pass

    def unknown(self, call: Any, known: Any, reason: UserError) -> Any:
        raise reason

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
