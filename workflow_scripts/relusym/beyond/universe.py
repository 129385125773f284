"""Several nets of a type merged into one, matched to one universe of channels or each to the first."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from relusym.beyond import declaration
from relusym.record_types import ROUNDING, Barrier, Fields, Share, Similarity, check_barrier
from relusym.schema import Number, key, refusal, remark

MERGED = "universe", "universe_no_repair", "pairwise", "pairwise_no_repair"


def _ascending(counts: list[int]) -> list[int]:
    if counts != sorted({*counts}):
        raise refusal("allowed are ascending numbers, each once")
    return counts


class Options(declaration.Options):
    """Several nets of a type merged into one: those of each of `seeds` and of the seeds that follow it, cyclically."""

    counts: Annotated[
        list[Annotated[int, Field(ge=3, le=32), Number]], Field(min_length=1), AfterValidator(_ascending)
    ] = key("how many nets are merged", [3])


class Merged(Fields):
    """For one count: the nets' `mean` accuracy, that of their mean logits (`ensemble`), and the merged nets."""

    mean: Share
    ensemble: Share
    accuracy: dict[str, Share]
    barrier: dict[str, Barrier | None]

    @field_validator("barrier")
    @classmethod
    def _follows_from_accuracies(cls, barriers: dict, info: ValidationInfo) -> dict:
        mean, accuracy = info.data.get("mean"), info.data.get("accuracy")
        if mean is not None and accuracy is not None:
            if {*accuracy} != {*MERGED} or {*barriers} != {*MERGED}:
                raise remark(f"allowed are those of {', '.join(MERGED)}")
            for name, value in barriers.items():
                check_barrier(name, value, mean, accuracy[name])
        return barriers


class Body(Fields):
    """Measurements of as many nets as the largest count, and of each count of them.

    `accuracy`: each net's. `cycles`: the share of channels that return to themselves by the pairwise matchings from the
    first net to the second, the third and back; in a universe, all do. `similarity`: by channel group, the mean
    correlation of matched channels over all pairs of nets, in a universe.
    """

    settings: dict[str, Any]
    accuracy: list[Share]
    merged: dict[str, Merged]
    cycles: Share
    similarity: dict[str, Similarity]

    @field_validator("merged")
    @classmethod
    def _are_all_there(cls, merged: dict[str, Merged], info: ValidationInfo) -> dict[str, Merged]:
        counts = info.data.get("settings", {}).get("counts")
        if not isinstance(counts, list) or {*map(str, counts)} != {*merged}:
            raise remark(f"allowed are the counts of the settings, {counts!r}")
        accuracy = info.data.get("accuracy", [])
        for count in counts if accuracy else ():
            if (
                len(accuracy) < count
                or abs(merged[str(count)].mean - sum(accuracy[:count]) / count) > ROUNDING
            ):
                raise remark(f"of the accuracies, {count} nets have another mean")
        return merged


def measure(job: declaration.Job) -> dict[str, Any]:
    """The fields of `Body`; channels are correlated in one pass, for all counts together."""
    import torch

    from relusym.channels.traced import as_traced
    from relusym.evaluation.invariance import Ensemble
    from relusym.evaluation.metrics import accuracy as accuracy_of
    from relusym.matching.match import assigned
    from relusym.merging.aligned import UNIVERSE, align_many, joint_statistics
    from relusym.merging.merge import barrier, corrected

    traced = [as_traced(net, job.images.shape) for net in job.plain]
    measured = joint_statistics(traced, job.images, traced[0].groups, all_with_all=True)
    accuracies = [accuracy_of(net, job.test, job.labels) for net in job.plain]
    merged, similarity = {}, {}
    for count in job.settings["counts"]:
        nets, mean = traced[:count], sum(accuracies[:count]) / count
        scores = {}
        for name, matching in {"universe": UNIVERSE, "pairwise": job.matched_by["matching"]}.items():
            aligned = align_many(
                nets, job.images, **job.matched_by | {"matching": matching}, measured=measured
            )
            inner, _ = corrected(aligned.mean(), aligned.targets(), job.images)
            scores[name] = accuracy_of(inner["repaired"], job.test, job.labels)
            plain = inner.get("reset", inner["halfway"])
            scores[f"{name}_no_repair"] = accuracy_of(plain, job.test, job.labels)
            if matching == UNIVERSE:
                apart = ~torch.eye(count, dtype=torch.bool)
                similarity = {
                    group: float(table[apart].mean()) for group, table in aligned.similarity.items()
                }
        ensemble = accuracy_of(Ensemble(*job.plain[:count]), job.test, job.labels)
        barriers = {name: barrier(mean, value) for name, value in scores.items()}
        merged[str(count)] = {"mean": mean, "ensemble": ensemble, "accuracy": scores, "barrier": barriers}
    tables, there = measured.by_net(traced[0].groups), {}
    for here, other in ((0, 1), (1, 2), (2, 0)):
        pair = assigned(traced[0].groups, {name: table[here, :, other] for name, table in tables.items()})
        there = {name: order[there.get(name, slice(None))] for name, order in pair.items()}
    back = torch.cat([permutation == torch.arange(len(permutation)) for permutation in there.values()])
    cycles = float(back.double().mean())
    return {"accuracy": accuracies, "merged": merged, "cycles": cycles, "similarity": similarity}


MEASUREMENT = declaration.Measurement(Options, Body, measure, several=True)
