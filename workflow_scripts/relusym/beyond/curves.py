"""Accuracy and loss along the line between two nets."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from relusym.beyond import declaration
from relusym.record_types import Fields, NotNegative, Share
from relusym.schema import Count, Number, OrNull, key, refusal, remark


def _odd(points: int) -> int:
    if points % 2 == 0:
        raise refusal("allowed is an odd number")
    return points


class Options(declaration.Options):
    """The accuracy along the line between two nets."""

    pairs: declaration.Pairs = key(f"{declaration.OF_PAIRS}; null: none", None)
    points: Annotated[int, Field(ge=3, le=1001), AfterValidator(_odd), Number] = key(
        "of each curve; odd, so that one is halfway", 21
    )
    repair_images: OrNull[Count] = key("images for REPAIR's statistics; null: as `images`", None)


class Line(Fields):
    accuracy: list[Share]
    loss: list[NotNegative]


class Ways(Fields):
    plain: Line
    repaired: Line


class Body(Fields):
    settings: dict[str, Any]
    curve: Ways

    @field_validator("curve")
    @classmethod
    def _has_its_points(cls, curve: Ways, info: ValidationInfo) -> Ways:
        wanted, lines = info.data.get("settings", {}).get("points"), (curve.plain, curve.repaired)
        numbers = {len(values) for line in lines for values in (line.accuracy, line.loss)}
        if [*numbers] != [wanted] or not wanted % 2 or wanted < 3:
            points = " and ".join(map(str, sorted(numbers)))
            raise remark(
                f"{points} points; allowed are those of the settings, {wanted!r}, an odd number from 3 on"
            )
        first, second = ([(line.accuracy[end], line.loss[end]) for end in (0, -1)] for line in lines)
        if first != second:
            raise remark("allowed are lines with the same endpoints, which are the nets themselves")
        return curve


def measure(job: declaration.Job) -> dict[str, Any]:
    """The curve from a net to its aligned flipped self, or to another net."""
    from relusym.merging.aligned import align
    from relusym.merging.merge import curve

    first, *others = job.plain
    order = None if others else job.symmetry.order
    second = others[0] if others else job.symmetry.transform(first)
    aligned = align(first, second, job.images, **job.matched_by, order=order)
    count = job.settings["repair_images"]
    repaired_on = job.choice(count) if count else job.images
    return {"curve": curve(aligned, repaired_on, job.test, job.labels, job.settings["points"])}


MEASUREMENT = declaration.Measurement(Options, Body, measure)
