"""Merging two nets: match, permute, average, REPAIR, and measure the barrier (sections 3 and 4)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from relusym.channels.groups import has_batch_norm
from relusym.channels.traced import TracedNet, as_traced
from relusym.channels.tracing import Handlers
from relusym.evaluation.barrier import absolute_barrier, barrier
from relusym.evaluation.images import GivenImages, ImageSource, as_images
from relusym.evaluation.logits import check_net, evaluating, logits_of
from relusym.evaluation.metrics import LOSS, TOP_1, Metric, Scores, check_labels, evaluate
from relusym.matching import STARTS
from relusym.matching.match import Search
from relusym.merging.aligned import align, between
from relusym.merging.batch_norm import reset_batch_norm
from relusym.merging.identities import check_transformed
from relusym.merging.repair import repaired
from relusym.pixels.transform import check_planted, transformed
from relusym.precision import full_float32
from relusym.symmetry import HORIZONTAL_FLIP, Symmetry

PAIR, FLIP = ("net_1", "net_2"), ("net", "flipped")  # the endpoints' names in records
METRICS = {"loss": LOSS}  # measured beside the accuracy
RECORDED = ("accuracy", "barrier", "absolute_barrier", "permutations", "similarity", "checks")


@dataclass
class Merge:
    """What merging two nets measured, and the nets.

    Attributes:
        accuracy: of both endpoints ("net_1" and "net_2", or "net" and "flipped"), and of the net halfway between them
            as it is ("halfway"), of nets with batch norm also with its statistics reset ("reset"), and with REPAIR
            ("repaired"), as fractions of the test images.
        barrier, absolute_barrier: of the nets in between; equation (4) (None if both endpoints are at zero), and
            without its denominator.
        permutations: group name → list: channel i of the first net goes with channel `permutation[i]` of the second.
        similarity: group name → mean correlation of the matched channels.
        checks: largest relative differences that should be zero up to rounding.
        search: of a matching that searches, what its starts came to.
        scores: metric → net → mean over the test images, for "accuracy" and all other metrics.
        barriers: metric → net in between → by how much it is worse than its endpoints' mean, in the metric's units.
        labels: what accuracies were measured against, on the CPU.
        notes: what couldn't be checked, and which channels stayed at their places, a line each.
        traced: the first net, with its graph, channel groups and pixel flow.
        nets: the endpoints and the nets in between by the same names, and "permuted", the second endpoint with its
            channels in the first one's order.
    """

    accuracy: dict[str, float]
    barrier: dict[str, float | None]
    absolute_barrier: dict[str, float]
    permutations: dict[str, list[int]]
    similarity: dict[str, float]
    checks: dict[str, float]
    search: Search | None = None
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    barriers: dict[str, dict[str, float]] = field(default_factory=dict)
    labels: Tensor | None = field(default=None, repr=False, compare=False)
    notes: list[str] = field(default_factory=list, repr=False, compare=False)
    traced: TracedNet | None = field(default=None, repr=False, compare=False)
    nets: dict[str, nn.Module] = field(default_factory=dict, repr=False, compare=False)

    def body(self) -> dict:
        """As the fields of a record."""
        searched = {"search": self.search.body()} if self.search else {}
        return {name: getattr(self, name) for name in RECORDED} | searched

    @property
    def note(self) -> str | None:
        """Why there are no barriers, if there are none."""
        if any(value is not None for value in self.barrier.values()):
            return None
        first, second = list(self.accuracy)[:2]
        return f"no barrier: {first} and {second} are right on none of the {len(self.labels)} test images"


def halfway(first: nn.Module, second: nn.Module) -> nn.Module:
    """The net whose every weight is the mean of the two nets' weights, ½(θ₁ + θ₂)."""
    return between(first, second, 0.5)


@torch.no_grad()
@full_float32()
def merge(
    first: nn.Module,
    second: nn.Module,
    images: GivenImages,
    test_images: GivenImages | None = None,
    test_labels: Tensor | None = None,
    *,
    matching: str = "activation",
    starts: int = STARTS,
    seed: int = 0,
    names: tuple[str, str] = PAIR,
    metrics: Mapping[str, Metric] = METRICS,
    order: int | None = None,
    handlers: Handlers | None = None,
) -> Merge:
    """Merge `second`, permuted to match `first`, with `first`.

    REPAIR is that of the architecture: at the outputs of convolutions, or of the residual blocks of nets with batch
    norm. Both nets are left as they are, in the mode that they were in.

    Args:
        first, second: nets of one ordinary architecture (group convs written out by `to_plain`), on one device.
        images: those that channels are matched and REPAIR's statistics taken on: `Images`, or any iterable of
            normalised batches x or (x, y) that can be read several times, such as a DataLoader.
        test_images: what accuracies are measured on; None: `images`.
        test_labels: int64 (N,); None: those that the batches of `test_images` bring, or, if they bring none, the first
            net's own answers, so that accuracies are the shares of images on which nets agree with it.
        matching: its name in `matching.MATCHINGS`.
        starts: of a matching that searches, how many it tries.
        seed: of a matching that draws.
        names: the endpoints' names in `Merge.accuracy`.
        metrics: measured beside the accuracy, by name.
        order: of the symmetry, if `second` is `first` transformed by it.
        handlers: of layers that PyTorch doesn't have, see docs/extending.md.

    Raises:
        UserError: the nets are of different architecture, or one that can't be permuted; the matching is unknown;
            weights aren't finite float32; images or labels are something else; an identity of `identities` is broken.
    """
    images = as_images(images)
    test = images if test_images is None else as_images(test_images)
    check_labels(test_labels, test)
    for name, net in zip(names, (first, second), strict=True):
        check_net(name, net, images)
    with evaluating(first, second):
        traced = (as_traced(net, images.shape, handlers) for net in (first, second))
        return _merge(*traced, images, test, test_labels, matching, starts, seed, names, metrics, order)


def _merge(
    first: TracedNet,
    second: TracedNet,
    images: ImageSource,
    test: ImageSource,
    labels: Tensor | None,
    matching: str,
    starts: int,
    seed: int,
    names: tuple[str, str],
    metrics: Mapping[str, Metric],
    order: int | None,
) -> Merge:
    metrics = {"accuracy": TOP_1, **metrics}
    ends = {name: Scores(metrics, check_labels(labels, test)) for name in names}

    def answered(outputs: list[Any], own: Tensor | None) -> None:
        for scores, output in zip(ends.values(), outputs, strict=True):
            own = scores.add(logits_of(output), own)  # the second one's labels are those of the first

    aligned = align(
        *(first, second, images),
        matching=matching,
        starts=starts,
        seed=seed,
        order=order,
        answered=answered if test is images else None,
    )
    permuted, middle = aligned.second, halfway(first.net, aligned.second)
    inner = {"halfway": middle}
    if has_batch_norm(first.net):
        inner["reset"] = reset_batch_norm(middle, images)
    inner["repaired"], of_repair = repaired(first.copied(middle), aligned.targets(), images)
    nets = {**dict(zip(names, (first.net, second.net), strict=True)), **inner}
    by_net = {}
    for name, net in nets.items():
        if name in ends and test is images:  # measured as channels were
            by_net[name], labels = ends[name].means(), ends[name].labels
        else:
            by_net[name], labels = evaluate(net, test, labels, metrics)
    scores = {metric: {name: values[metric] for name, values in by_net.items()} for metric in metrics}
    accuracies = scores["accuracy"]
    of_ends = [accuracies[name] for name in names]
    return Merge(
        accuracy=accuracies,
        barrier={name: barrier(*of_ends, accuracies[name]) if any(of_ends) else None for name in inner},
        absolute_barrier={name: absolute_barrier(*of_ends, accuracies[name]) for name in inner},
        permutations={name: permutation.tolist() for name, permutation in aligned.permutations.items()},
        similarity=aligned.similarity,
        checks=aligned.checks | of_repair,
        search=aligned.search,
        scores=scores,
        barriers={
            metric: {
                name: metrics[metric].absolute_barrier(*(of[end] for end in names), of[name])
                for name in inner
            }
            for metric, of in scores.items()
        },
        labels=labels,
        notes=[f"channels stay at their places at {what}: {why}" for what, why in first.fixed.items()],
        traced=first,
        nets=nets | {"permuted": permuted},
    )


@torch.no_grad()
@full_float32()
def flip_merge(
    net: nn.Module,
    images: GivenImages,
    test_images: GivenImages | None = None,
    test_labels: Tensor | None = None,
    *,
    symmetry: Symmetry = HORIZONTAL_FLIP,
    matching: str = "activation",
    starts: int = STARTS,
    seed: int = 0,
    metrics: Mapping[str, Metric] = METRICS,
    handlers: Handlers | None = None,
) -> Merge:
    """Merge a net with its flipped self (transformed by `symmetry`): the barrier is the GCNN barrier (section 3).

    Two more checks: the flipped net on flipped images against the net, and flipping `symmetry.order` times against the
    identity. The rest as of `merge`.

    Raises:
        UserError: as of `merge`; or the net has nothing to transform, or, where all strides allow it by `grid`, the
            flipped net on flipped images isn't the net.
    """
    images = as_images(images)
    test = images if test_images is None else as_images(test_images)
    check_labels(test_labels, test)
    check_net(FLIP[0], net, images)
    with evaluating(net):
        traced = as_traced(net, images.shape, handlers)
        flipped = transformed(traced, symmetry)
        checks = check_transformed(traced, flipped, symmetry, test)
        merged = _merge(
            traced,
            traced.copied(flipped),
            images,
            test,
            test_labels,
            matching,
            starts,
            seed,
            FLIP,
            metrics,
            symmetry.order,
        )
    merged.checks |= checks
    if check_planted(traced, symmetry) is None:
        what = f"unchecked: that {symmetry.name} transforms the net rightly"
        merged.notes.append(f"{what}, since its strides are symmetric at no size that it takes")
    return merged
