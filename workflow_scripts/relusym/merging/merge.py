"""Merging two nets: match, permute, average, REPAIR, and measure the barrier (sections 3 and 4)."""

from copy import deepcopy
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from relusym.merging.aligned import align
from relusym.merging.barrier import absolute_barrier, accuracy, barrier
from relusym.merging.images import Images, device_of
from relusym.merging.repair import repaired_nets
from relusym.precision import full_float32
from relusym.symmetry import HORIZONTAL_FLIP, Symmetry

PAIR, FLIP = ("net_1", "net_2"), ("net", "flipped")  # the endpoints' names in records
CHECK_IMAGES = 100  # one small batch is enough for the identities that are checked on every merge


@dataclass
class Merge:
    """What merging two nets measured.

    Attributes:
        accuracy: of both endpoints ("net_1" and "net_2", or "net" and "flipped"), and of the net halfway between them
            as it is ("halfway"), of nets with batch norm also with its statistics reset ("reset"), and with REPAIR
            ("repaired"), as fractions of the test images.
        barrier, absolute_barrier: of the nets in between; equation (4) (None if both endpoints are at zero), and
            without its denominator.
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
@full_float32()
def merge(
    first: nn.Module,
    second: nn.Module,
    images: Images,
    test_images: Images,
    test_labels: Tensor,
    *,
    matching: str = "activation",
    seed: int = 0,
    names: tuple[str, str] = PAIR,
    order: int | None = None,
) -> Merge:
    """Merge `second`, permuted to match `first`, with `first`.

    REPAIR is that of the architecture: at the outputs of convolutions, or of the residual blocks of nets with batch
    norm.

    Args:
        first, second: nets of one ordinary architecture (group convs written out by `to_plain`), on one device.
        images: those that channels are matched and REPAIR's statistics taken on.
        test_images, test_labels: what accuracies are measured on; labels int64 (N,).
        matching: its name in `matching.MATCHINGS`.
        seed: of a matching that draws.
        names: the endpoints' names in `Merge.accuracy`.
        order: of the symmetry, if `second` is `first` transformed by it.

    Raises:
        UserError: the nets are of different architecture, or one that can't be permuted; the matching is unknown.
    """
    aligned = align(first, second, images, matching=matching, seed=seed, order=order)
    permuted = aligned.second
    x = test_images.first(CHECK_IMAGES, device_of(first))
    checks = {"permuted_logits": largest_difference(second(x), permuted(x))}
    between = halfway(first, permuted)
    corrected, repair_checks = repaired_nets(between, aligned.targets(), images, x)
    inner = {"halfway": between, **corrected}
    checks |= repair_checks
    nets = {**dict(zip(names, (first, second), strict=True)), **inner}
    scores = {name: accuracy(net, test_images, test_labels) for name, net in nets.items()}
    ends = [scores[name] for name in names]
    return Merge(
        accuracy=scores,
        barrier={name: barrier(*ends, scores[name]) if any(ends) else None for name in inner},
        absolute_barrier={name: absolute_barrier(*ends, scores[name]) for name in inner},
        permutations={name: permutation.tolist() for name, permutation in aligned.permutations.items()},
        similarity=aligned.similarity,
        checks=checks,
    )


@torch.no_grad()
@full_float32()
def flip_merge(
    net: nn.Module,
    images: Images,
    test_images: Images,
    test_labels: Tensor,
    *,
    symmetry: Symmetry = HORIZONTAL_FLIP,
    matching: str = "activation",
    seed: int = 0,
) -> Merge:
    """Merge a net with its flipped self (transformed by `symmetry`): the barrier is the GCNN barrier (section 3).

    Two more checks: the flipped net on flipped images against the net, and flipping `symmetry.order` times against the
    identity. The rest as of `merge`.
    """
    flipped = symmetry.transform(net)
    merged = merge(
        *(net, flipped, images, test_images, test_labels),
        matching=matching,
        seed=seed,
        names=FLIP,
        order=symmetry.order,
    )
    x = test_images.first(CHECK_IMAGES, device_of(net))
    merged.checks["flipped_net_on_flipped_images"] = largest_difference(net(x), flipped(symmetry.act(x)))
    back = flipped
    for _ in range(symmetry.order - 1):
        back = symmetry.transform(back)
    pairs = zip(net.state_dict().values(), back.state_dict().values(), strict=True)
    merged.checks["flipped_to_identity"] = float(not all(torch.equal(a, b) for a, b in pairs))
    return merged
