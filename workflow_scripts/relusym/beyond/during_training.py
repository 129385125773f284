"""Barrier, invariance error and equivariance errors of a net at several epochs of its training."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from relusym.beyond import declaration
from relusym.record_types import ROUNDING, AbsoluteBarrier, Barrier, Fields, NotNegative, Share, Similarity
from relusym.schema import remark


class Options(declaration.Options):
    """The barrier at the epochs of `training.snapshots`."""


class MeasuredEpoch(Fields):
    epoch: Annotated[int, Field(ge=0)]
    accuracy: Share
    barrier: Barrier | None
    absolute_barrier: AbsoluteBarrier
    invariance_error: NotNegative
    equivariance_error: dict[str, NotNegative]
    similarity: dict[str, Similarity] = {}

    @field_validator("absolute_barrier")
    @classmethod
    def _follows_from_barrier(cls, absolute: float, info: ValidationInfo) -> float:
        barrier = info.data.get("barrier")
        if barrier is None and "barrier" in info.data and info.data.get("accuracy"):
            raise remark("by the accuracy, there is a barrier")
        if isinstance(barrier, float) and "accuracy" in info.data:
            # the mean accuracy of the net and its flipped self, if the latter's is 0 or 1
            means = info.data["accuracy"] / 2, (1 + info.data["accuracy"]) / 2
            low, high = sorted(barrier * mean for mean in means)
            if not low - ROUNDING <= absolute <= high + ROUNDING:
                raise remark(f"by the barrier and the accuracy, it is from {low:.6g} to {high:.6g}")
        return absolute


class Body(Fields):
    settings: dict[str, Any]
    epochs: Annotated[list[MeasuredEpoch], Field(min_length=1), declaration.AsInSettings]


def settings(section: dict, model: str, upstream: dict[str, Any], snapshots: list[int]) -> dict[str, Any]:
    """The epochs at which the net was kept, and the last."""
    last = upstream["trained"][0]["training"]["epochs"]
    return {"epochs": [*sorted(epoch for epoch in snapshots if epoch < last), last]}


def measure(job: declaration.Job) -> dict[str, Any]:
    """The fields of `MeasuredEpoch` at each epoch at which the net was kept, and at the end."""
    from relusym.merging.layers import equivariance_errors
    from relusym.merging.merge import flip_merge

    *kept, _ = job.settings["epochs"]
    epochs, how = [], job.matched_by | {"symmetry": job.symmetry}
    for epoch in job.settings["epochs"]:
        plain = job.as_plain(job.snapshot(epoch)) if epoch in kept else job.plain[0]
        merged = flip_merge(plain, job.images, job.test, job.labels, **how)
        traced, permutations = merged.traced, merged.permutations
        errors, invariance = equivariance_errors(traced, job.test, job.symmetry, traced.groups, permutations)
        measured = {"epoch": epoch, "accuracy": merged.accuracy["net"], "barrier": merged.barrier["repaired"]}
        measured |= {"absolute_barrier": merged.absolute_barrier["repaired"], "invariance_error": invariance}
        matched = {name: ways["matched"] for name, ways in errors.items()}
        epochs.append(measured | {"equivariance_error": matched, "similarity": merged.similarity})
    return {"epochs": epochs}


MEASUREMENT = declaration.Measurement(
    Options, Body, measure, settings, snapshots=lambda settings: settings["epochs"][:-1]
)
