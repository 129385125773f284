"""Merging a net with all its transformed selves at once: the mean over a cyclic group of any order."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relusym.barrier import barrier
from relusym.channels.groups import has_batch_norm
from relusym.channels.traced import as_traced
from relusym.evaluation.images import ImageSource
from relusym.evaluation.metrics import accuracy
from relusym.matching import STARTS
from relusym.merging.aligned import align, interpolate
from relusym.merging.repair import repaired, reset_batch_norm
from relusym.precision import full_float32
from relusym.symmetry import Symmetry


@dataclass(frozen=True)
class OrbitMerge:
    """What merging over an orbit measured, as fractions of the test images.

    Attributes:
        accuracy: of the net ("net"), on average of all transformed nets and it ("orbit"), and of the merged nets:
            "pairwise", of the net and its once transformed self, and "whole", of all, each also with "_no_repair".
        barrier: of the merged nets, equation (4) with as many endpoints as there are; None if all are at zero.
        similarity: group name → mean correlation of channels with their matches in the once transformed net.
    """

    accuracy: dict[str, float]
    barrier: dict[str, float | None]
    similarity: dict[str, float]


@torch.no_grad()
@full_float32()
def orbit_merge(
    net: nn.Module,
    symmetry: Symmetry,
    images: ImageSource,
    test_images: ImageSource,
    labels: Tensor,
    *,
    matching: str = "activation",
    starts: int = STARTS,
) -> OrbitMerge:
    """Merge a net with its selves transformed by every power of τ, each aligned with the net.

    Of a symmetry of order 2, "whole" is "pairwise", the merge with the flipped self.
    """
    turned, aligned = net, []
    traced = as_traced(net, images.shape)
    for power in range(1, symmetry.order):
        turned = symmetry.transform(turned)
        order = symmetry.order if power == 1 else None
        aligned.append(
            align(traced, traced.copied(turned), images, matching=matching, starts=starts, order=order)
        )
    first = aligned[0]
    ends = [accuracy(end, test_images, labels) for end in (net, *(pair.second for pair in aligned))]
    accuracies, barriers = {"net": ends[0], "orbit": sum(ends) / len(ends)}, {}
    for name, count in {"pairwise": 1, "whole": len(aligned)}.items():
        if name == "whole" and count == 1:
            copies = {key: value for key, value in accuracies.items() if key.startswith("pairwise")}
            accuracies |= {key.replace("pairwise", name): value for key, value in copies.items()}
            barriers |= {key.replace("pairwise", name): value for key, value in barriers.items()}
            continue
        merged, targets = net, first.statistics[0]
        for nets, pair in enumerate(aligned[:count], 2):  # a mean that runs over the orbit
            merged = interpolate(merged, pair.second, 1 / nets)
            targets = {
                name: target.towards(pair.statistics[1][name], 1 / nets) for name, target in targets.items()
            }
        fixed = repaired(traced.copied(merged), targets, images)[0]
        plain = reset_batch_norm(merged, images) if has_batch_norm(net) else merged
        mean = sum(ends[: count + 1]) / (count + 1)
        for key, candidate in {name: fixed, f"{name}_no_repair": plain}.items():
            accuracies[key] = accuracy(candidate, test_images, labels)
            barriers[key] = barrier(mean, mean, accuracies[key]) if mean else None
    return OrbitMerge(accuracies, barriers, first.similarity)
