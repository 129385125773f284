"""Merging more than two nets: matched to one universe of channels, or a net with all its transformed selves at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relusym.channels.traced import TracedNet, as_traced, net_of
from relusym.channels.tracing import Handlers, unwrapped
from relusym.errors import UserError
from relusym.evaluation.images import AnyImages, as_images
from relusym.evaluation.logits import evaluating
from relusym.evaluation.metrics import Metric, accuracy, evaluate
from relusym.matching import STARTS
from relusym.merging.aligned import align_many, joint_statistics
from relusym.merging.identities import check_transformed
from relusym.merging.merge import (
    METRICS,
    Merge,
    barrier,
    check_alike,
    check_nets,
    corrected,
    ends_scores,
    merge_notes,
    scored,
)
from relusym.pixels.transform import transformed
from relusym.precision import full_float32
from relusym.symmetry import Symmetry, as_symmetry


@torch.no_grad()
@full_float32()
def merge_many(
    nets: Sequence[nn.Module | TracedNet],
    images: AnyImages,
    test_images: AnyImages | None = None,
    test_labels: Tensor | None = None,
    *,
    metrics: Mapping[str, Metric] = METRICS,
    handlers: Handlers | None = None,
) -> Merge:
    """Merge several nets into one: match all to one universe of channels, average, REPAIR (`universe.universe`).

    Arguments and errors as in `merge.merge`; UserError for fewer than two nets, too.

    Returns:
        "halfway", "reset" and "repaired" are the mean of all nets; "pairwise" (with any batch norms reset) and
        "pairwise_repaired" are the mean of nets that are each matched to the first alone. Barriers are relative to the
        mean of all; `permutations` and `aligned` are by net.
    """
    images = as_images(images)
    test = images if test_images is None else as_images(test_images)
    nets = [unwrapped(net) for net in nets]
    if len(nets) < 2:
        raise UserError(f"{len(nets)} nets given; at least two are merged")
    ends = {f"net_{i}": net_of(net) for i, net in enumerate(nets, 1)}
    check_nets(ends, images, test, test_labels, metrics)
    with evaluating(*ends.values()):
        traced = [as_traced(net, images.shape, handlers) for net in nets]
        seen, answered = ends_scores(ends, test, test_labels, metrics)
        answered = answered if test is images else None
        measured = joint_statistics(traced, images, traced[0].groups, answered, all_with_all=True)
        aligned = align_many(traced, images, measured=measured)
        for name, net in zip(ends, aligned.nets, strict=True):
            check_alike(aligned.nets[0], net, ("net_1", name))
        inner, checks = corrected(aligned.mean(), aligned.targets(), images)
        to_first = align_many(traced, images, matching="activation", measured=measured)
        baseline, others = corrected(to_first.mean(), to_first.targets(), images)
        inner |= {
            "pairwise": baseline.get("reset", baseline["halfway"]),
            "pairwise_repaired": baseline["repaired"],
        }
        apart = ~torch.eye(len(nets), dtype=torch.bool)
        return Merge(
            **scored(ends, inner, seen if test is images else {}, test, test_labels, metrics),
            permutations={name: {group: permutation.tolist() for group, permutation in by_group.items()}
                          for name, by_group in zip(ends, aligned.permutations, strict=True)},
            similarity={name: float(table[apart].mean()) for name, table in aligned.similarity.items()},
            checks={name: max(value, others.get(name, value)) for name, value in (aligned.checks | checks).items()},
            aligned=aligned,
            notes=merge_notes(aligned, *aligned.nets),
            traced=aligned.traced,
        )  # fmt: skip


# ---- a net and its transformed selves


@dataclass(frozen=True)
class OrbitMerge:
    """Accuracies and barriers of a net merged with its transformed selves, as fractions of the test images.

    Attributes:
        accuracy: of the net ("net"), the mean over it and all transformed nets ("orbit"), and of two merged nets:
            "pairwise", of the net and its once-transformed self, and "whole", of all; each also with "_no_repair".
        barrier: of the merged nets, equation (4) with the mean over all that are merged; None if all are at zero.
        similarity: group name → mean correlation of channels with their matches in the once-transformed net.
    """

    accuracy: dict[str, float]
    barrier: dict[str, float | None]
    similarity: dict[str, float]


@torch.no_grad()
@full_float32()
def orbit_merge(
    net: nn.Module,
    symmetry: Symmetry | str,
    images: AnyImages,
    test_images: AnyImages,
    labels: Tensor | None,
    *,
    matching: str = "activation",
    starts: int = STARTS,
) -> OrbitMerge:
    """Merge a net with its selves transformed by every power of τ, matched as in `align_many`.

    With "cyclic", the mean of all is exactly a GCNN, before REPAIR. For a symmetry of order 2, "whole" is "pairwise",
    the merge with the flipped self. UserError as in `align_many` and `flip_merge`. `labels`: None as in `merge`.
    """
    images, test, symmetry = as_images(images), as_images(test_images), as_symmetry(symmetry)
    net = unwrapped(net)
    check_nets({"net": net}, images, test, labels, {})
    with evaluating(net):
        copies = [traced := as_traced(net, images.shape)]
        for _ in range(symmetry.order - 1):
            copies.append(traced.copied(transformed(copies[-1], symmetry)))
        check_transformed(traced, copies[1].net, symmetry, images)
        aligned = align_many(copies, images, matching=matching, starts=starts, order=symmetry.order)
        own = evaluate(traced.net, test, labels)
        ends = [own.means()["accuracy"], *(accuracy(end, test, own.labels) for end in aligned.nets[1:])]
        accuracies, barriers = {"net": ends[0], "orbit": sum(ends) / len(ends)}, {}
        measured = {}  # by the number of nets that are merged
        for count in {2, len(ends)}:
            inner, _ = corrected(aligned.mean(count), aligned.targets(count), images)
            nets = {"": inner["repaired"], "_no_repair": inner.get("reset", inner["halfway"])}
            measured[count] = {key: accuracy(merged, test, own.labels) for key, merged in nets.items()}
    for name, count in {"pairwise": 2, "whole": len(ends)}.items():
        for key, value in measured[count].items():
            accuracies[name + key], barriers[name + key] = value, barrier(sum(ends[:count]) / count, value)
    similarity = {name: float(table[0, 1]) for name, table in aligned.similarity.items()}
    return OrbitMerge(accuracies, barriers, similarity)
