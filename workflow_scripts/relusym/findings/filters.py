"""Filters of a net and of its permuted flipped net, read back from the small arrays beside the records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from relusym import checkpoint
from relusym.errors import UserError
from relusym.findings.lazy import np, pd


@dataclass(frozen=True)
class Filters:
    """What is kept of one net's filters.

    Attributes:
        model, seed: the net.
        status, reason: "ok", or "left_out" with the reason; then there are no arrays.
        drawn: "conv1" (and "conv2" of a VGG11) → float16 (2, c, 3, k, k), RGB filters of the net and, at the same
            places, of its permuted flipped net; conv 2's input channels are projected to RGB.
        permutations: the same names → int16 (c,): channel i goes with channel `permutation[i]` of the flipped net.
        norms: conv name → float32 (c,), Frobenius norm of each whole filter.
        constraint: conv name → by how much τ(ψ) = P₁ψP₀ᵀ (equation (3)) fails, ‖P₁ᵀτ(ψ)P₀ − ψ‖ / ‖ψ‖.
    """

    model: str
    seed: int
    status: str
    reason: str | None
    drawn: dict[str, np.ndarray]
    permutations: dict[str, np.ndarray]
    norms: dict[str, np.ndarray]
    constraint: dict[str, float]


def read_filters(path: str | Path) -> Filters:
    """One net's filters. Raises UserError: the file is missing, truncated or no file of filters."""
    arrays, described = checkpoint.load_arrays(path)
    if described.get("kind") != "filters":
        raise UserError(f"{path} holds no filters: delete it, and it is made again")

    def under(prefix: str) -> dict[str, np.ndarray]:
        return {n.removeprefix(prefix): arrays[n] for n in sorted(arrays) if n.startswith(prefix)}

    return Filters(
        described["model"],
        described["seed"],
        described["status"],
        described["reason"],
        {name: arrays[name] for name in sorted(arrays) if "." not in name},
        under("permutation."),
        under("norm."),
        described.get("kernel_constraint", {}),
    )


def first_kept(nets: Iterable[Filters], model: str) -> Filters:
    """The first net of a type that isn't left out; its first one if all are. UserError if there is no net of the
    type."""
    of_type = [net for net in nets if net.model == model]
    if not of_type:
        raise UserError(f"there are no filters of a net of type {model}: let snakemake merge one")
    return next((net for net in of_type if net.status == "ok"), of_type[0])


def are_zero(norms: np.ndarray, zero: float) -> np.ndarray:
    """Which filters of a layer are zero: their Frobenius norm (of (c,)) is less than `zero` (0..1) of the largest
    there.

    The paper has no definition; it counts by eye what is blank in Figures 5 to 8. The layer's largest filter sets the
    scale, since it doesn't depend on how many others are zero, as a mean would, and sets the colours there, too.
    """
    return norms < zero * norms.max(initial=0)


def count_zero_filters(nets: Iterable[Filters], zero: float) -> pd.DataFrame:
    """One row a net and layer: model, seed, layer, filters, zero_filters, smallest.

    `smallest` is the smallest norm as a share of the layer's largest. Nets that are left out have no row.
    """
    rows = [
        (
            net.model,
            net.seed,
            layer,
            len(norms),
            int(are_zero(norms, zero).sum()),
            float(norms.min() / max(norms.max(), np.finfo(np.float32).tiny)),
        )
        for net in nets
        if net.status == "ok"
        for layer, norms in net.norms.items()
    ]
    return pd.DataFrame(rows, columns=["model", "seed", "layer", "filters", "zero_filters", "smallest"])
