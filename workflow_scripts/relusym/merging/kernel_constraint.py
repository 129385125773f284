"""The kernel constraint of equation (3), τ(ψ) = P₁ψP₀ᵀ: how far a net's kernels are from satisfying it."""

import numpy as np
import torch
from torch import Tensor, nn

from relusym.channels.groups import ChannelGroup, permute
from relusym.symmetry import Symmetry


@torch.no_grad()
def filters_and_matches(
    net: nn.Module, symmetry: Symmetry, groups: list[ChannelGroup], permutations: dict[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Every conv's kernel ψ and, at the same places, its counterpart P₁ᵀτ(ψ)P₀ in the transformed and permuted net.

    Args:
        net: an ordinary net (group convs written out by `to_plain`).
        groups: its channel groups.
        permutations: group name → int64 (C,): channel i goes with channel `permutation[i]` of the transformed net.

    Returns:
        conv name, such as `features.conv2` or `layer1.0.conv1` → two tensors (c_out, c_in, k, k) on the net's device;
        of a depthwise conv (c, 1, k, k).
    """
    matched = permute(symmetry.transform(net).state_dict(), groups, permutations)
    convs = {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)}
    return {
        name: (conv.weight.detach().contiguous(), matched[f"{name}.weight"].contiguous())
        for name, conv in convs.items()
    }


def kernel_constraint(kernel: Tensor, match: Tensor) -> float:
    """By how much equation (3) fails for one conv of `filters_and_matches`: ‖P₁ᵀτ(ψ)P₀ − ψ‖ / ‖ψ‖."""
    psi, matched = kernel.cpu().numpy(), match.cpu().numpy()
    return float(np.linalg.norm(matched - psi) / np.linalg.norm(psi))
