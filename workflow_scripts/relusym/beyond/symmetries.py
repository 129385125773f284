"""Barrier and invariance error of one net under each symmetry of the plane's pixels."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from relusym.beyond import declaration
from relusym.record_types import Barrier, Fields, NotNegative, Share, Shares, Similarity, check_barrier
from relusym.schema import remark
from relusym.symmetry import SYMMETRIES


class Options(declaration.Options):
    """Single nets under their symmetries."""


class OrbitAccuracy(Shares):
    net: Share
    orbit: Share
    pairwise: Share
    pairwise_no_repair: Share
    whole: Share
    whole_no_repair: Share


class OrbitBarrier(Fields):
    pairwise: Barrier | None
    pairwise_no_repair: Barrier | None
    whole: Barrier | None
    whole_no_repair: Barrier | None


class OrbitMerge(Fields):
    order: Annotated[int, Field(ge=2)]
    invariance_error: NotNegative
    accuracy: OrbitAccuracy
    barrier: OrbitBarrier
    similarity: dict[str, Similarity]

    @field_validator("barrier")
    @classmethod
    def _follows_from_accuracies(cls, barrier: OrbitBarrier, info: ValidationInfo) -> OrbitBarrier:
        if "accuracy" in info.data and "order" in info.data:
            accuracy = info.data["accuracy"]
            # the record of a larger orbit lacks the accuracy of the once-transformed net, a pairwise endpoint
            whole = [name for name in OrbitBarrier.model_fields if name.startswith("whole")]
            for name in whole if info.data["order"] > 2 else OrbitBarrier.model_fields:
                check_barrier(name, getattr(barrier, name), accuracy.orbit, getattr(accuracy, name))
        return barrier


class Body(Fields):
    settings: dict[str, Any]
    symmetries: Annotated[dict[str, OrbitMerge], declaration.AsInSettings]

    @field_validator("symmetries")
    @classmethod
    def _are_of_their_orders(cls, symmetries: dict[str, OrbitMerge]) -> dict[str, OrbitMerge]:
        for name, merge in symmetries.items():
            if merge.order != (order := SYMMETRIES[name].order):
                raise remark(f"allowed is the order {order} of the {name}")
        return symmetries


def settings(section: dict, model: str, upstream: dict[str, Any], snapshots: list[int]) -> dict[str, Any]:
    """All symmetries for a net that was trained for none; otherwise only the net's symmetry."""
    training = upstream["trained"][0]["training"]
    trained_for_none = not training["augmentation"] and training["invariance_from"] is None
    return {"symmetries": [*SYMMETRIES] if trained_for_none else [upstream["symmetry"]]}


def measure(job: declaration.Job) -> dict[str, Any]:
    """For each symmetry, the fields of `OrbitMerge`, with the invariance error over the test images."""
    from relusym.evaluation.invariance import invariance_error
    from relusym.merging.many import orbit_merge

    merges = {}
    for name in job.settings["symmetries"]:
        symmetry = SYMMETRIES[name]
        merged = orbit_merge(job.plain[0], symmetry, job.images, job.test, job.labels, **job.matched_by)
        error = invariance_error(job.nets[0], job.test, symmetry)
        merges[name] = {"order": symmetry.order, "invariance_error": error, **asdict(merged)}
    return {"symmetries": merges}


MEASUREMENT = declaration.Measurement(Options, Body, measure, settings)
