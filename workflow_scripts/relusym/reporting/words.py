"""The wording of a report: its verdict, its warnings, its numbers."""

import math
from collections.abc import Mapping
from typing import Any

from relusym.evaluation.metrics import FEW
from relusym.pixels.grid import Grid
from relusym.reporting.report import Report
from relusym.symmetry import SYMMETRIES

NETS = {
    "net": "the net",
    "flipped": "its flipped self",
    "net_1": "the first net",
    "net_2": "the second net",
    "halfway": "halfway, as it is",
    "reset": "halfway, batch norms reset",
    "repaired": "halfway, with REPAIR",
    "ensemble": "both nets' mean logits",
    "flips": "mean logits over orientations",
}
MANY = NETS | {  # for more than two nets
    "halfway": "the mean of all, as it is",
    "reset": "the mean of all, batch norms reset",
    "repaired": "the mean of all, with REPAIR",
    "pairwise": "each matched to the first alone",
    "pairwise_repaired": "each to the first, with REPAIR",
    "ensemble": "all nets' mean logits",
}
DEGREES = (  # upper bounds of the GCNN barrier, and what a barrier below each means
    (0.01, "it merges as a group-equivariant CNN does"),
    (0.1, "it is close to a group-equivariant CNN"),
    (0.3, "it partly resembles a group-equivariant CNN"),
    (float("inf"), "its layers are far from those of a group-equivariant CNN"),
)


EQUIVARIANT = 0.1  # the largest error of a layer that is called equivariant; a GCNN's is rounding, about 1e-6


def number(value: float | None) -> str:
    """A number as text: four decimals, fewer if it is large, an exponent if it is very small; a dash for None."""
    if value is None:
        return "–"
    if value and abs(value) < 5e-4:
        return f"{value:.1e}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.4g}"


def finite(numbers: Any) -> Any:
    """Numbers for JSON, with null in place of NaN and infinity."""
    if isinstance(numbers, Mapping):
        return {key: finite(value) for key, value in numbers.items()}
    if isinstance(numbers, list | tuple):
        return [finite(value) for value in numbers]
    return None if isinstance(numbers, float) and not math.isfinite(numbers) else numbers


def barrier_text(value: float | None) -> str:
    """A barrier as a percentage; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f}%"


def curve_rows(curve: Mapping[str, Mapping[str, list[float]]]) -> list[list[float]]:
    """A row for each point on the line between two nets: its share of the way, and all values measured there."""
    columns = [values for metrics in curve.values() for values in metrics.values()]
    points = [*zip(*columns, strict=True)]
    return [[i / (len(points) - 1), *point] for i, point in enumerate(points)]


def verdict(report: Report) -> str:
    """One sentence: the accuracy that the net's merge with its transformed self keeps, and what that means."""
    accuracy, barrier = report.merged.accuracy, report.merged.barrier["repaired"]
    moved = SYMMETRIES[report.symmetry].moved
    kept = (
        f"{report.name} merged halfway with itself {moved}, channels permuted to match: {report.measure} "
        f"{accuracy['repaired']:.4f} with REPAIR, of the net's {accuracy['net']:.4f}"
    )
    for why in report.merged.alike.values():
        return (
            f"{report.name} doesn't tell these images apart: {why}; so nothing can be said about its symmetry (random "
            "weights?): no verdict."
        )
    if barrier is None:
        return f"{kept}; {report.merged.note}."
    if report.images < FEW:
        return f"{kept}: no verdict from {report.images} of {FEW} images that are needed at least."
    if barrier < 0:
        alone = f"its flipped self alone has {accuracy['flipped']:.4f}"
        return f"{kept}; {alone}, so the net halfway beats the mean of the two."
    degree = next(meaning for most, meaning in DEGREES if barrier < most)
    return f"{kept}, a GCNN barrier of {barrier_text(barrier)}: {degree}{_by_layer(report, barrier)}."


def _by_layer(report: Report, barrier: float) -> str:
    """Whether the layers agree with the lowest barrier, since accuracy alone can survive a merge on an easy task."""
    errors = [error for layer in report.layers if (error := layer.equivariance["matched"]) is not None]
    if barrier >= DEGREES[0][0] or not errors:
        return ""
    if max(errors) < EQUIVARIANT:
        return ", and encodes the symmetry layer by layer"
    return f", though its layers aren't equivariant (errors up to {max(errors):.2f}; such a CNN's are 0)"


def warnings(report: Report) -> list[str]:
    """What prevents equivariance, and the report's notes, except the one that the verdict says."""
    notes = [note for note in report.notes if note != report.merged.note]
    return [*grid_warning(report.grid, report.name), *notes]


def grid_warning(grid: Grid, name: str) -> list[str]:
    """A line on the strides that can't treat their input's size symmetrically, and the next size that would do."""
    if grid.symmetric:
        return []
    meet: dict[tuple[int, int], list[str]] = {}
    for misfit in grid.misfits:
        meet.setdefault((misfit.stride, misfit.size), []).append(misfit.layer)
    met = "; ".join(
        f"{' and '.join(layers)} of stride {stride} meet{'s' * (len(layers) == 1)} {size} pixels"
        for (stride, size), layers in meet.items()
    )
    return [
        f"At {grid.size} pixels {name} can't be equivariant, whatever its weights: {met}. Its flipped self is off by "
        f"{grid.offset:g} pixels in all. {_next_size(grid)}"
    ]


def grid_text(grid: Grid) -> str:
    """The page's explanation of the grid."""
    if grid.symmetric:
        return f"At {grid.size} pixels every stride meets a size that it can treat symmetrically."
    return (
        "A layer whose windows don't fit symmetrically leaves out pixels on one side. The flipped layer leaves them "
        "out on the other side, and so reads different pixels. Over all layers, this adds up: the flipped net sees "
        f"the image shifted by {grid.offset:g} pixels. {_next_size(grid)}"
    )


def _next_size(grid: Grid) -> str:
    if grid.next_size is None:
        return "No larger size was found at which it could be equivariant."
    return f"{grid.next_size} is the next size at which it could be equivariant."
