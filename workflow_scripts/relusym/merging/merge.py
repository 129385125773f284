"""Merging two nets: match, permute, average, REPAIR, and measure the barrier (sections 3 and 4)."""

from copy import deepcopy
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from relusym.data.augmentation import Normalise, normalise
from relusym.merging.activation_matching import match, survey
from relusym.merging.barrier import absolute_barrier, accuracy, barrier
from relusym.merging.channel_groups import channel_groups, has_batch_norm, permute, trace
from relusym.merging.repair import repair, repair_blocks, repair_points, reset_batch_norm, unfused
from relusym.symmetry import HORIZONTAL_FLIP, Symmetry

ENDPOINTS = "first", "second"
CHECK_IMAGES = 100  # one small batch is enough for the identities that are checked on every merge


@dataclass
class Merge:
    """What merging two nets measured.

    Attributes:
        accuracy: of both endpoints ("first", "second"), and of the net halfway between them as it is ("halfway"), of
            nets with batch norm also with its statistics reset ("reset"), and with REPAIR ("repaired"), as fractions
            of the test images.
        barrier, absolute_barrier: of the nets in between; equation (4), and without denominator.
        permutations: group name → list: channel i of the first net goes with channel `permutation[i]` of the second.
        similarity: group name → mean correlation of the matched channels.
        checks: largest relative differences that should be zero up to rounding.
    """

    accuracy: dict[str, float]
    barrier: dict[str, float | None]
    absolute_barrier: dict[str, float]
    permutations: dict[str, list[int]]
    similarity: dict[str, float]
    checks: dict[str, float]

    def body(self) -> dict:
        """As the fields of a record."""
        return asdict(self)


@torch.no_grad()
def halfway(first: nn.Module, second: nn.Module) -> nn.Module:
    """The net whose every weight is the mean of the two nets' weights, ½(θ₁ + θ₂)."""
    net = deepcopy(first)
    other = second.state_dict()
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            tensor.add_(other[name]).div_(2)
    return net


def largest_difference(one: Tensor, other: Tensor) -> float:
    """Largest difference of two tensors relative to the largest entry."""
    return float((one - other).abs().max() / one.abs().max().clamp(min=1e-30))


@torch.no_grad()
def merge(
    first: nn.Module,
    second: nn.Module,
    images: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    batch_size: int = 500,
    normalise: Normalise = normalise,
) -> Merge:
    """Merge `second`, permuted to match `first`, with `first`.

    REPAIR is that of the architecture: at the outputs of convolutions, or of the residual blocks of nets with batch
    norm.

    Args:
        first, second: nets of one ordinary architecture (group convs written out by `to_plain`), on one device.
        images: uint8 (N, H, W, 3), those that channels are matched and REPAIR's statistics taken on.
        test_images, test_labels: what accuracies are measured on.
    """
    groups = channel_groups(first, tuple(normalise(images[:1]).shape[1:]))
    found = survey(first, second, images, groups, batch_size, normalise)
    matching = match(found.correlation)
    permuted = deepcopy(second)
    permuted.load_state_dict(permute(second.state_dict(), groups, matching.permutations))
    points = repair_points(trace(first))
    permutation_of = {
        points[node]: matching.permutations[group.name]
        for group in groups
        for node in group.nodes
        if node in points
    }
    goals = {
        point: first_has.halfway(found.statistics[1][point].permuted(permutation_of[point]))
        for point, first_has in found.statistics[0].items()
    }
    x = normalise(test_images[:CHECK_IMAGES].to(next(first.parameters()).device))
    checks = {"permuted_logits": largest_difference(second(x), permuted(x))}
    between = halfway(first, permuted)
    nets = {"first": first, "second": second, "halfway": between}
    if has_batch_norm(first):
        nets["reset"] = reset_batch_norm(between, images, batch_size, normalise)
        nets["repaired"] = repair_blocks(between, goals, images, batch_size, normalise)
    else:
        nets["repaired"], rescalings = repair(between, goals, images, batch_size, normalise)
        checks["fused_repair"] = largest_difference(unfused(between, rescalings, x), nets["repaired"](x))
    scores = {
        name: accuracy(net, test_images, test_labels, batch_size, normalise) for name, net in nets.items()
    }
    ends, inner = (scores["first"], scores["second"]), [name for name in scores if name not in ENDPOINTS]
    return Merge(
        accuracy=scores,
        barrier={name: barrier(*ends, scores[name]) if any(ends) else None for name in inner},
        absolute_barrier={name: absolute_barrier(*ends, scores[name]) for name in inner},
        permutations={name: permutation.tolist() for name, permutation in matching.permutations.items()},
        similarity=matching.similarity,
        checks=checks,
    )


@torch.no_grad()
def flip_merge(
    net: nn.Module,
    images: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    batch_size: int = 500,
    symmetry: Symmetry = HORIZONTAL_FLIP,
    normalise: Normalise = normalise,
) -> Merge:
    """Merge a net with its flipped self: the barrier is the GCNN barrier (section 3).

    Two more checks: the flipped net on flipped images against the net, and flipping twice against the identity.
    """
    flipped = symmetry.transform(net)
    merged = merge(net, flipped, images, test_images, test_labels, batch_size, normalise)
    x = normalise(test_images[:CHECK_IMAGES].to(next(net.parameters()).device))
    merged.checks["flipped_net_on_flipped_images"] = largest_difference(net(x), flipped(symmetry.act(x)))
    back = flipped
    for _ in range(symmetry.order - 1):
        back = symmetry.transform(back)
    pairs = zip(net.state_dict().values(), back.state_dict().values(), strict=True)
    merged.checks["flipped_to_identity"] = float(not all(torch.equal(a, b) for a, b in pairs))
    return merged
