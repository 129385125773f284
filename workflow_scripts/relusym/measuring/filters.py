"""Filters of a net and of its permuted flipped net: small arrays beside the record, so that figures need no net."""

import numpy as np
import torch
from torch import nn

from relusym.channels.traced import channel_groups
from relusym.merging.layers import filters_and_matches, kernel_constraint
from relusym.randomness import stream
from relusym.symmetry import Symmetry

DRAWN = 2  # convs, from the first on, whose filters are kept and not only their norms
RGB = 3


def projection_to_rgb(channels: int, seed: int) -> np.ndarray:
    """A random projection matrix (3, channels), the same for all nets of one width."""
    rng = np.random.default_rng(stream(seed, "projection to RGB", channels))
    return rng.standard_normal((RGB, channels)) / np.sqrt(channels)


def filter_arrays(
    net: nn.Module,
    symmetry: Symmetry,
    permutations: dict[str, list[int]],
    image_shape: tuple[int, ...],
    projection_seed: int,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """What `findings.filters.Filters` describes of an ordinary net, and conv name → ‖P₁ᵀτ(ψ)P₀ − ψ‖ / ‖ψ‖ (equation
    (3)).

    Args:
        permutations: group name → list: channel i goes with channel `permutation[i]` of the flipped net.
        image_shape: of one image, (channels, height, width).
        projection_seed: of the projection of input channels to RGB.
    """
    groups = channel_groups(net, image_shape)
    given = {name: torch.tensor(permutation) for name, permutation in permutations.items()}
    group_of = {
        place.tensor.removesuffix(".weight"): group.name
        for group in groups
        for place in group.places
        if place.dim == 0
    }
    arrays, constraint = {}, {}
    for number, (conv, pair) in enumerate(filters_and_matches(net, symmetry, groups, given).items()):
        name = conv.removeprefix("features.")
        constraint[name] = kernel_constraint(*pair)
        psi, matched = (kernel.cpu().numpy() for kernel in pair)
        arrays[f"norm.{name}"] = np.sqrt(np.square(psi, dtype=np.float64).sum((1, 2, 3))).astype(np.float32)
        if number < DRAWN and "." not in name:  # of a ResNet, the stem
            both = np.stack([psi, matched])
            if psi.shape[1] != RGB:
                both = np.einsum("rc,nochw->norhw", projection_to_rgb(psi.shape[1], projection_seed), both)
            arrays[name] = both.astype(np.float16)  # to be looked at
            arrays[f"permutation.{name}"] = np.array(permutations[group_of[conv]], np.int16)
    return arrays, constraint
