"""Symmetries of images and what they do to convolution kernels (section 2.2 of the paper)."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from operator import methodcaller
from typing import TYPE_CHECKING

from relusym.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Symmetry:
    """The generator τ of a cyclic group that acts on the two spatial dimensions of images and of conv kernels.

    `order`: smallest k with τᵏ = identity; `act`: τ on the last two dimensions (height, width) of any
    tensor; `moved`: a description of the transformed image.
    """

    name: str
    order: int
    act: Callable[[Tensor], Tensor]
    moved: str

    def powers(self, spatial: Tensor) -> Tensor:
        """τ⁰ to τⁿ⁻¹, with n the order, applied to the last two dimensions of `spatial`: (n, *shape).

        UserError if τ changes the shape, as a quarter turn does with non-square images.
        """
        import torch  # here, so that jobs without it start ten times faster

        powers = [spatial]
        for _ in range(self.order - 1):
            powers.append(self.act(powers[-1]))
            if powers[-1].shape != spatial.shape:
                height, width = spatial.shape[-2:]
                raise UserError(f"symmetry {self.name}: images of {width}×{height} pixels have to be square")
        return torch.stack(powers)

    def inverse(self, spatial: Tensor) -> Tensor:
        """τ⁻¹ applied to the last two dimensions of `spatial`."""
        for _ in range(self.order - 1):
            spatial = self.act(spatial)
        return spatial

    def transform(self, net: nn.Module) -> nn.Module:
        """A copy Φ̂ of `net` with every conv kernel transformed: Φ̂(τx) = Φ(x), where the architecture allows it.

        It does if all spatial layers commute with τ (no stride-2 layer on an even width, see A.2.1) and no weight
        belongs to a single pixel (`pixels.transform.transformed` moves those too). UserError if a kernel isn't square
        where τ is a quarter turn, or isn't a parameter.
        """
        import torch

        transformed, done = deepcopy(net), set()
        with torch.no_grad():
            for name, module in transformed.named_modules():
                if not isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                    continue
                if module.weight is not module._parameters.get("weight"):
                    raise UserError(f"layer {name}: its weight is computed, so it can't be transformed")
                if id(module.weight) in done:  # layers may share it
                    continue
                done.add(id(module.weight))
                kernel = self.act(module.weight)
                if kernel.shape != module.weight.shape:
                    raise UserError(f"layer {name}: symmetry {self.name} needs square kernels")
                module.weight.copy_(kernel)
        return transformed


HORIZONTAL_FLIP = Symmetry("horizontal_flip", 2, methodcaller("flip", -1), "flipped left to right")
VERTICAL_FLIP = Symmetry("vertical_flip", 2, methodcaller("flip", -2), "flipped upside down")
QUARTER_TURN = Symmetry("quarter_turn", 4, methodcaller("rot90", 1, (-2, -1)), "turned by 90°")
SYMMETRIES = {symmetry.name: symmetry for symmetry in (HORIZONTAL_FLIP, VERTICAL_FLIP, QUARTER_TURN)}


def as_symmetry(symmetry: Symmetry | str) -> Symmetry:
    """`symmetry` itself, or the symmetry of that name; UserError if there is none."""
    if isinstance(symmetry, Symmetry):
        return symmetry
    if symmetry not in SYMMETRIES:
        raise UserError(f"symmetry: {symmetry!r} given; allowed is one of {', '.join(SYMMETRIES)}")
    return SYMMETRIES[symmetry]
