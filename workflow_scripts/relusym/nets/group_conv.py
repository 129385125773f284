"""Group convolutions: layers that satisfy the kernel constraint τ(ψ) = P₁ψP₀ᵀ of equation (3) by construction.

Channels of a regular feature map come in `order` blocks, one an orientation: channel i of block k is channel i of
block 0 as seen by τᵏ. Under τ the blocks move on by one, cyclically.
"""

import torch
from torch import Tensor, nn

from relusym.symmetry import HORIZONTAL_FLIP, Symmetry


class RegularConv2d(nn.Module):
    """3×3 convolution with padding 1 between regular feature maps; orientations share weights and bias.

    Args:
        in_channels, out_channels: channels of the feature maps, all orientations together (else a ValueError).
        symmetry: the group, by its generator.

    Shapes: weight (out_channels / order, in_channels, 3, 3), bias (out_channels / order,).
    """

    lifting = False

    def __init__(self, in_channels: int, out_channels: int, symmetry: Symmetry = HORIZONTAL_FLIP):
        super().__init__()
        order = symmetry.order
        if out_channels % order or (not self.lifting and in_channels % order):
            raise ValueError(f"{in_channels} → {out_channels} channels don't split into {order} orientations")
        self.symmetry = symmetry
        free = nn.Conv2d(in_channels, out_channels // order, 3)  # the usual initial values
        self.weight, self.bias = free.weight, free.bias

    def kernel(self) -> Tensor:
        """The whole kernel ψ, shape (out_channels, in_channels, 3, 3): block k is τᵏ of the stored filters."""
        blocks, psi = [self.weight], self.weight
        for _ in range(self.symmetry.order - 1):
            psi = self.symmetry.act(psi if self.lifting else self._shift(psi, dim=1))
            blocks.append(psi)
        return torch.cat(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H, W)."""
        return torch.conv2d(x, self.kernel(), self.bias.repeat(self.symmetry.order), padding=1)

    def _shift(self, channels: Tensor, dim: int) -> Tensor:
        """P on a regular channel dimension: the orientation blocks move on by one."""
        return channels.roll(channels.shape[dim] // self.symmetry.order, dim)

    @torch.no_grad()
    def check_kernel_constraint(self) -> float:
        """Largest entry of ψ − τ(P₁ψP₀ᵀ), equation (3), for this layer's whole kernel ψ; 0 if all is well."""
        psi = self.kernel()
        moved = self._shift(psi if self.lifting else self._shift(psi, 1), 0)
        return float((self.symmetry.act(moved) - psi).abs().max())

    @torch.no_grad()
    def to_plain(self) -> nn.Conv2d:
        """An ordinary `nn.Conv2d` with the same function."""
        psi = self.kernel()
        plain = nn.Conv2d(psi.shape[1], psi.shape[0], 3, padding=1).to(psi)
        plain.weight.copy_(psi)
        plain.bias.copy_(self.bias.repeat(self.symmetry.order))
        return plain


class LiftingConv2d(RegularConv2d):
    """From an ordinary image (P₀ = I) to a regular feature map: a lifting convolution."""

    lifting = True


class OrientationPool(nn.Module):
    """Mean over the orientations: regular features (B, C, …) → invariant features (B, C / order, …)."""

    def __init__(self, order: int = 2):
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.order, -1)).mean(1)
