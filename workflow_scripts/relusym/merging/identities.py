"""Identities that hold for any weights: how large their errors may be, and what a larger error means."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from relusym.channels.traced import LIMIT, TracedNet
from relusym.errors import UserError
from relusym.evaluation.images import ImageSource, device_of, pieces
from relusym.evaluation.invariance import moved
from relusym.evaluation.logits import check_finite, logits_of
from relusym.pixels.grid import grid
from relusym.pixels.transform import check_planted, transformed
from relusym.symmetry import Symmetry

SPATIAL = (nn.Conv2d, nn.ConvTranspose2d)
CHECK_IMAGES = 100  # one small batch is enough
# The largest relative difference that rounding explains (1e-6 is usual), and what a larger one means.
LIMITS = {
    "permuted_logits": (1e-3, "permuting channels changed the net's logits, so its channel groups are wrong"),
    "fused_repair": (1e-3, "REPAIR fused into the layers differs from REPAIR applied after them"),
    "flipped_net_on_flipped_images": (
        1e-3,
        "the transformed net on transformed images differs from the net, so a layer that isn't a convolution depends "
        "on positions",
    ),
    "flipped_to_identity": (0.0, "as many transformations as the symmetry's order don't give the net back"),
    "kernel_constraint": (1e-5, "a group convolution's kernel isn't equivariant"),
    "edited_net": (1e-5, "an edit that should preserve the net's function changed it"),
    "folded": (LIMIT, "the folded net differs from the net it was made from"),
}


def hold(checks: dict[str, float], exempt: tuple[str, ...] = ()) -> None:
    """Raises UserError for the first check above its limit, or NaN, except those in `exempt`. `checks`: name in
    `LIMITS` → relative difference.
    """
    for name, value in checks.items():
        limit, meaning = LIMITS[name]
        if name not in exempt and not value <= limit:
            raise UserError(
                f"{name} is {value:.2g}, and rounding explains at most {limit:g}: {meaning}; so no result is given"
            )


def largest_difference(tensor: Tensor, other: Tensor) -> float:
    """The largest absolute difference of two tensors, relative to the largest entry of the first."""
    return float((tensor - other).abs().max() / tensor.abs().max().clamp(min=1e-30))


def answers(net: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """Logits of normalised images, (B, classes, …)."""
    return torch.cat([logits_of(net(piece)) for piece in pieces(x)])


@torch.no_grad()
def check_transformed(
    traced: TracedNet, flipped: nn.Module, symmetry: Symmetry, images: ImageSource
) -> dict[str, float]:
    """Check Φ̂ = `pixels.transformed(net, …)`: Φ̂(τx) = τΦ(x), and `symmetry.order` transformations give Φ back.

    Φ̂(τx) = τΦ(x) is also checked at planted values in float64, at an image size at which the grid is symmetric.
    UserError if a check fails (the first is required only where all strides allow equality, see `grid`), if there is
    nothing to transform, or if the symmetry needs square images.
    """
    net = traced.net
    spatial = any(layer.weight[0, 0].numel() > 1 for layer in net.modules() if isinstance(layer, SPATIAL))
    if not spatial and _alike(net, flipped):
        raise UserError(f"{type(net).__name__} has no spatial layer: nothing to transform by {symmetry.name}")
    x = images.first(CHECK_IMAGES, device_of(net))
    if symmetry.act(x).shape != x.shape:
        height, width = x.shape[-2:]
        raise UserError(f"symmetry {symmetry.name}: images of {width}×{height} pixels have to be square")
    logits, others = answers(traced.module(), x), answers(traced.module(flipped), symmetry.act(x))
    check_finite(logits)
    checks = {"flipped_net_on_flipped_images": largest_difference(moved(logits, symmetry), others)}
    back = flipped
    for _ in range(symmetry.order - 1):
        back = transformed(traced.copied(back), symmetry)
    checks["flipped_to_identity"] = float(not _alike(net, back))
    check_planted(traced, symmetry)
    allowed = grid(traced, images.shape, symmetry).symmetric
    hold(checks, () if allowed else ("flipped_net_on_flipped_images",))
    return checks


def _alike(net: nn.Module, other: nn.Module) -> bool:
    pairs = zip(net.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
