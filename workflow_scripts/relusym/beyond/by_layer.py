"""Which layer's permutation the barrier comes from."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from relusym.beyond import declaration
from relusym.record_types import Barrier, Fields, NotNegative, Similarity
from relusym.schema import Count, OrNull, key


class Options(declaration.Options):
    """Which layer's permutation the barrier comes from."""

    lie_images: OrNull[Count] = key("test images to measure the Lie derivative on, too; null: none", None)


class Body(Fields):
    """Each layer's equivariance error, and the barrier of merging it and all layers before it. `lie_translation` and
    `lie_rotation`: each layer's contribution to the Lie derivative; None if it isn't measured."""

    equivariance_error: Annotated[dict[str, NotNegative], Field(min_length=1)]
    barrier_up_to: Annotated[dict[str, Barrier | None], Field(min_length=1)]
    similarity: dict[str, Similarity]
    lie_translation: dict[str, NotNegative] | None = None
    lie_rotation: dict[str, NotNegative] | None = None


def settings(section: dict, model: str, upstream: dict[str, Any], snapshots: list[int]) -> dict[str, Any]:
    """`lie_images` only if it is set, so that records from before the option existed stay valid."""
    return {"lie_images": section["lie_images"]} if section["lie_images"] else {}


def measure(job: declaration.Job) -> dict[str, Any]:
    """The fields of `Body` for one net."""
    from relusym.channels.traced import as_traced
    from relusym.merging.aligned import align
    from relusym.merging.layers import equivariance_errors
    from relusym.merging.lie_derivative import TRANSFORMATIONS, lie_derivative
    from relusym.merging.partial import prefix_barriers

    (net,), symmetry = job.plain, job.symmetry
    traced = as_traced(net, job.images.shape)
    flipped = traced.copied(symmetry.transform(net))
    aligned = align(traced, flipped, job.images, **job.matched_by, order=symmetry.order)
    errors, _ = equivariance_errors(traced, job.test, symmetry, aligned.groups, aligned.permutations)
    lie = {}
    if count := job.settings.get("lie_images"):
        measured = lie_derivative(traced, job.test, count)
        for name in TRANSFORMATIONS:
            lie[f"lie_{name}"] = {layer: moves[name] for layer, moves in measured.layers.items()}
    matched = {name: ways["matched"] for name, ways in errors.items()}
    barriers = prefix_barriers(aligned, job.images, job.test, job.labels)
    return lie | {"equivariance_error": matched, "similarity": aligned.similarity, "barrier_up_to": barriers}


MEASUREMENT = declaration.Measurement(Options, Body, measure, settings)
