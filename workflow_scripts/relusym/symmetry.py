"""Symmetries of images and what they do to convolution kernels (section 2.2 of the paper)."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Symmetry:
    """The generator τ of a cyclic group that acts on the two spatial dimensions of images and of conv kernels.

    Attributes:
        name: what it is called in configs and records.
        order: smallest k with τᵏ = identity.
        act: τ on the last two dimensions (height, width) of any tensor.
    """

    name: str
    order: int
    act: Callable[[Tensor], Tensor]

    def power(self, spatial: Tensor, k: int) -> Tensor:
        """τᵏ applied to the last two dimensions of `spatial`; the shape stays for square ones."""
        for _ in range(k % self.order):
            spatial = self.act(spatial)
        return spatial

    @torch.no_grad()
    def transform(self, net: nn.Module) -> nn.Module:
        """The net Φ̂ whose every conv kernel is transformed: Φ̂(τx) = Φ(x), where the architecture allows it.

        It allows it if all spatial layers commute with τ (no stride-2 layer on an even width, see A.2.1) and no
        linear layer reads a feature map of more than one pixel; `net` itself is left as it is.
        """
        twin = deepcopy(net)
        for module in twin.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(self.act(module.weight))
        return twin


HORIZONTAL_FLIP = Symmetry("horizontal_flip", 2, lambda spatial: spatial.flip(-1))
VERTICAL_FLIP = Symmetry("vertical_flip", 2, lambda spatial: spatial.flip(-2))
QUARTER_TURN = Symmetry("quarter_turn", 4, lambda spatial: spatial.rot90(1, (-2, -1)))
