"""Which layer's permutation the barrier comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from relusym.beyond import declaration
from relusym.record_types import Barrier, Fields, NotNegative

if TYPE_CHECKING:
    from relusym.measuring.merge import MergeJob


class Options(declaration.Options):
    """Which layer's permutation the barrier comes from."""


class Body(Fields):
    """Each layer's equivariance error, and the barrier if it and all before it are merged."""

    equivariance_error: Annotated[dict[str, NotNegative], Field(min_length=1)]
    barrier_up_to: Annotated[dict[str, Barrier | None], Field(min_length=1)]
    similarity: dict[str, float]


def measure(job: MergeJob) -> dict[str, Any]:
    """The fields of `Body` of one net."""
    from relusym.channels.traced import as_traced
    from relusym.merging.aligned import align
    from relusym.merging.layers import equivariance_errors
    from relusym.merging.partial import prefix_barriers

    (net,), symmetry = job.plain, job.symmetry
    traced = as_traced(net, job.images.shape)
    flipped = traced.copied(symmetry.transform(net))
    aligned = align(traced, flipped, job.images, **job.matched_by, order=symmetry.order)
    errors, _ = equivariance_errors(traced, job.test, symmetry, aligned.groups, aligned.permutations)
    return {
        "equivariance_error": {name: ways["matched"] for name, ways in errors.items()},
        "similarity": aligned.similarity,
        "barrier_up_to": prefix_barriers(aligned, job.images, job.test, job.labels),
    }


MEASUREMENT = declaration.Measurement(Options, Body, measure)
