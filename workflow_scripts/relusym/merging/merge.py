"""Merging two nets: match, permute, average, REPAIR, and measure the barrier (sections 3 and 4)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from relusym.channels.handlers import BATCH_NORMS
from relusym.channels.traced import TracedNet, as_traced, net_of
from relusym.channels.tracing import Handlers, unwrapped
from relusym.errors import UserError, listed
from relusym.evaluation.images import AnyImages, ImageSource, as_images
from relusym.evaluation.logits import check_net, evaluating, logits_of, others_note
from relusym.evaluation.metrics import (
    LOSS,
    MEASURED,
    TOP_1,
    Metric,
    Scores,
    check_labels,
    check_metrics,
    evaluate,
)
from relusym.matching import STARTS
from relusym.matching.match import Search, check_matching
from relusym.merging.aligned import (
    Aligned,
    AlignedNets,
    Answered,
    Targets,
    align,
    check_matchable,
    check_shapes,
)
from relusym.merging.identities import check_transformed
from relusym.merging.repair import repair_notes, repaired, reset_batch_norm
from relusym.pixels.transform import check_planted, transformed
from relusym.precision import full_float32
from relusym.randomness import generator
from relusym.record_types import FAR_BELOW_ZERO
from relusym.symmetry import HORIZONTAL_FLIP, Symmetry, as_symmetry

PAIR, FLIP = ("net_1", "net_2"), ("net", "flipped")  # the endpoints' names in records
INNER = "halfway", "reset", "repaired", "permuted"  # names of other nets
METRICS = {"loss": LOSS}  # measured besides the accuracy
RECORDED = ("accuracy", "barrier", "absolute_barrier", "permutations", "similarity", "checks")


@dataclass
class Merge:
    """What merging two nets measured, and the nets.

    Attributes:
        accuracy: as fractions of the test images, of the endpoints ("net_1", "net_2" …, or "net" and "flipped") and of
            the net halfway between them: uncorrected ("halfway"), with its batch norms, if any, reset ("reset"), and
            with REPAIR ("repaired").
        barrier: of the merged nets, equation (4); None if both endpoints are at zero.
        permutations: group name → list: channel i of the first net is matched to channel `permutation[i]` of the
            second; for more than two nets, net name → such a dict.
        similarity: group name → mean correlation of the matched channels.
        checks: largest relative differences that should be zero up to rounding.
        search: the results of all starts, for a matching that searches.
        scores: metric → net → mean over the test images, for "accuracy" and all other metrics.
        barriers: metric → merged net → how much worse it is than its endpoints' mean, in the metric's units.
        alike: endpoint that doesn't tell the test images apart → reason; barriers then mean nothing.
        by_class: net → accuracy on the images of each class, None for a class without images.
        labels: the labels that accuracies were measured against, on the CPU.
        aligned: the endpoints with matched channels, for `merge.curve`.
        notes: what couldn't be checked, and which channels couldn't be permuted, a line each.
        traced: the first net, with its graph, channel groups and pixel flow.
        nets: the endpoints and the merged nets by the same names, and "permuted", the second endpoint with its channels
            in the first one's order.
    """

    accuracy: dict[str, float]
    barrier: dict[str, float | None]
    permutations: dict[str, Any]
    similarity: dict[str, float]
    checks: dict[str, float]
    search: Search | None = None
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    barriers: dict[str, dict[str, float]] = field(default_factory=dict)
    alike: dict[str, str] = field(default_factory=dict)
    by_class: dict[str, list[float | None]] = field(default_factory=dict, repr=False)
    labels: Tensor | None = field(default=None, repr=False, compare=False)
    aligned: Aligned | AlignedNets | None = field(default=None, repr=False, compare=False)
    notes: list[str] = field(default_factory=list, repr=False, compare=False)
    traced: TracedNet | None = field(default=None, repr=False, compare=False)
    nets: dict[str, nn.Module] = field(default_factory=dict, repr=False, compare=False)

    @property
    def absolute_barrier(self) -> dict[str, float]:
        """Equation (4) without its denominator, for the merged nets."""
        return self.barriers["accuracy"]

    def body(self) -> dict:
        """The fields of a record."""
        searched = {"search": self.search.body()} if self.search else {}
        return {name: getattr(self, name) for name in RECORDED} | searched

    def numbers(self, *, labelled: bool) -> dict[str, Any]:
        """What reports and the command write as JSON."""
        return {
            "scores": self.scores,
            "absolute_barriers": self.barriers,
            "by_class": self.by_class if labelled else {},
            "permutations": self.permutations,
            "search": self.search.body() if self.search else None,
            "checks": self.checks,
        }

    @property
    def note(self) -> str | None:
        """Why there are no barriers, or why they mean nothing; None if neither."""
        if all(value is None for value in self.barrier.values()):
            ends = " and ".join(name for name in self.accuracy if name not in self.barrier)
            return f"no barrier: {ends} are right on none of the {len(self.labels)} test images"
        for name, why in self.alike.items():
            return f"{name} doesn't tell these images apart: {why}; so its barrier means nothing (random weights?)"
        return None

    @property
    def all_notes(self) -> list[str]:
        """`note`, if there is one, and `notes`."""
        return [*([self.note] if self.note else []), *self.notes]


def barrier(mean: float, halfway: float) -> float | None:
    """Equation (4): the share of the endpoints' mean performance, ½(ζ(θ₁) + ζ(θ₂)), that the halfway net lacks.

    None if the endpoints are at zero.
    """
    return (mean - halfway) / mean if mean else None


@torch.no_grad()
@full_float32()
def merge_weights(
    first: nn.Module, second: nn.Module, image_shape: tuple[int, int, int], seed: int = 0
) -> Aligned:
    """Match two nets by their weights alone, without images; so there is neither REPAIR nor an accuracy. UserError as
    in `merge`.

    Args:
        image_shape: (channels, height, width) of one image.

    Returns:
        the nets aligned, without similarity and statistics; `interpolate(0.5).net` is the net halfway.
    """
    check_how("weight", seed, None)
    try:
        noise = torch.randn(8, *image_shape, generator=generator(seed, "noise"))  # traces the nets
    except (TypeError, RuntimeError) as error:
        raise UserError(f"image_shape: {image_shape} given; allowed is (channels, height, width)") from error
    images = as_images([noise])
    first, second = unwrapped(first), unwrapped(second)
    check_nets(dict(zip(PAIR, (first, second), strict=True)), images, images, None, {})
    with evaluating(first, second):
        check_matchable(traced := as_traced(first, images.shape))
        aligned = align(traced, second, images, matching="weight", seed=seed)
    check_alike(aligned.first, aligned.second, PAIR)
    return replace(aligned, similarity={}, statistics=({}, {}), notes=[])


@torch.no_grad()
@full_float32()
def merge(
    first: nn.Module | TracedNet,
    second: nn.Module | TracedNet,
    images: AnyImages,
    test_images: AnyImages | None = None,
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

    REPAIR corrects the outputs of convolutions and linear layers or, in nets with batch norm, of residual blocks.
    Neither net nor its mode changes. UserError if the nets' architectures differ or can't be permuted, the matching is
    unknown, weights aren't finite float32, images or labels are invalid, or an identity of `identities` fails.

    Args:
        first, second: nets of one ordinary architecture (group convs written out by `to_plain`), on one device.
        images: for matching channels and for REPAIR's statistics: `Images`, or any iterable of normalised batches x or
            (x, y) that can be read several times, such as a DataLoader.
        test_images: for measuring accuracies; None: `images`.
        test_labels: int64 (N,); None: the labels in the batches of `test_images` or, if there are none, the first net's
            predictions, so that accuracies are the shares of images on which nets agree with it.
        matching: a name in `matching.MATCHINGS` or `WITH_FACTORS`; the factors of the latter are in `Merge.aligned`.
        starts: the number of starts of a matching that searches.
        seed: for a matching that draws at random.
        names: the endpoints' names in `Merge.accuracy`.
        metrics: measured besides the accuracy, by name.
        order: the symmetry's order, if `second` is `first` transformed by it.
        handlers: for layers that aren't PyTorch's, see docs/extending.md.
    """
    images = as_images(images)
    test = images if test_images is None else as_images(test_images)
    check_how(matching, seed, order, starts)
    if len({*names, *INNER}) != 2 + len(INNER):
        raise UserError(f"names: {names} given; allowed are two that differ, and none of {', '.join(INNER)}")
    first, second = unwrapped(first), unwrapped(second)
    ends = net_of(first), net_of(second)
    check_nets(dict(zip(names, ends, strict=True)), images, test, test_labels, metrics)
    with evaluating(*ends):
        traced = [as_traced(net, images.shape, handlers) for net in (first, second)]
        how = {"matching": matching, "starts": starts, "seed": seed, "order": order}
        return _merge(*traced, images, test, test_labels, names, metrics, how)


def _merge(
    first: TracedNet,
    second: TracedNet,
    images: ImageSource,
    test: ImageSource,
    labels: Tensor | None,
    names: tuple[str, str],
    metrics: Mapping[str, Metric],
    how: dict[str, Any],
) -> Merge:
    """`merge` for nets that are checked already; `how` holds `align`'s options."""
    ends = dict(zip(names, (first.net, second.net), strict=True))
    check_matchable(first)
    seen, answered = ends_scores(ends, test, labels, metrics)
    aligned = align(first, second, images, answered=answered if test is images else None, **how)
    check_alike(aligned.first, aligned.second, names)
    inner, fused = corrected(aligned.interpolate(0.5), aligned.targets(), images)
    merged = Merge(
        **scored(ends, inner, seen if test is images else {}, test, labels, metrics),
        permutations={name: permutation.tolist() for name, permutation in aligned.permutations.items()},
        similarity=aligned.similarity,
        checks=aligned.checks | fused,
        search=aligned.search,
        aligned=aligned,
        notes=merge_notes(aligned, aligned.first, aligned.second),
        traced=first,
    )
    merged.nets["permuted"] = aligned.second
    accuracy = merged.accuracy
    merged.notes += statistics_notes(
        first, accuracy[names[0]], accuracy["repaired"], images, test, merged.labels
    )
    return merged


def merge_notes(aligned: Aligned | AlignedNets, *nets: nn.Module) -> list[str]:
    """What a merge of these nets leaves, averages or can't measure well, a line each."""
    traced = aligned.traced
    return fixed_notes(traced) + averaged_notes(*nets) + repair_notes(traced) + aligned.notes


def fixed_notes(traced: TracedNet) -> list[str]:
    """Which of its outputs aren't measured, and which channels can't be permuted, or aren't, a line each."""
    notes = others_note(traced.graph.output_node().args[0])
    notes += [f"channels stay at their places at {what}: {why}" for what, why in traced.fixed.items()]
    for why in dict.fromkeys(traced.staying.values()):
        layers = [name for name, reason in traced.staying.items() if reason == why]
        notes.append(f"channels stay at their places in {listed(layers, 3)}: {why}")
    if traced.idle:
        notes.append(
            f"channels stay at their places in {listed(traced.idle, 3)}: evaluation mode doesn't run it"
        )
    return notes


def averaged_notes(first: nn.Module, *others: nn.Module) -> list[str]:
    """Which buffers, besides batch norms' statistics, differ between nets and are averaged, in a line."""
    known = {name for name, _ in first.named_parameters(remove_duplicate=False)}
    for name, layer in first.named_modules():
        known |= {f"{name}.{key}" for key in layer.state_dict() if isinstance(layer, BATCH_NORMS)}
    states = [net.state_dict() for net in others]
    averaged = [
        name
        for name, x in first.state_dict().items()
        if x.is_floating_point() and name not in known and any(not torch.equal(x, s[name]) for s in states)
    ]
    return [f"averaged as weights are: the buffers {listed(averaged, 3)}"] if averaged else []


@torch.no_grad()
def statistics_notes(
    traced: TracedNet,
    accuracy: float,
    merged: float,
    images: ImageSource,
    test: ImageSource,
    labels: Tensor | None,
) -> list[str]:
    """Whether a merged net, whose batch norms are reset on `images`, is more accurate for that alone, in a line.

    Args:
        accuracy, merged: fractions of `test`, of the net and of the merged net.
    """
    if not (traced.has_batch_norm and _is_far_above(merged, accuracy)):
        return []
    alone = evaluate(reset_batch_norm(traced.net, images), test, labels).means()["accuracy"]
    if not _is_far_above(alone, accuracy):
        return []
    return [
        f"the net's batch norms don't fit these images: reset on them alone, as the merged net's are, the net has an "
        f"accuracy of {alone:.3f}, not {accuracy:.3f} (the merged net: {merged:.3f}), so that barriers mean little; "
        "are images normalised as in its training? If so, reset the net first (relusym.merging.repair.reset_batch_norm)"
    ]


def _is_far_above(accuracy: float, other: float) -> bool:
    return (barrier(other, accuracy) or 0.0) < FAR_BELOW_ZERO


def ends_scores(
    ends: Mapping[str, nn.Module], test: ImageSource, labels: Tensor | None, metrics: Mapping[str, Metric]
) -> tuple[dict[str, Scores], Answered]:
    """The endpoints' scores, and the function that adds logits to them in the pass that matches channels."""
    scores = {name: Scores(metrics, check_labels(labels, test)) for name in ends}

    def answered(outputs: list[Any], labels: Tensor | None) -> None:
        for each, output in zip(scores.values(), outputs, strict=True):
            labels = each.add(logits_of(output), labels)  # the first net's labels serve all

    return scores, answered


def corrected(
    merged: TracedNet, targets: Targets, images: ImageSource
) -> tuple[dict[str, nn.Module], dict[str, float]]:
    """A merged net uncorrected ("halfway"), with its batch norms, if any, "reset", and "repaired"; and checks."""
    inner = {"halfway": merged.net}
    if merged.has_batch_norm:
        inner["reset"] = reset_batch_norm(merged.net, images)
    inner["repaired"], checks = repaired(merged, targets, images)
    return inner, checks


def scored(
    ends: Mapping[str, nn.Module],
    inner: Mapping[str, nn.Module],
    seen: Mapping[str, Scores],
    test: ImageSource,
    labels: Tensor | None,
    metrics: Mapping[str, Metric],
) -> dict[str, Any]:
    """The fields of `Merge` that evaluating the nets gives; `seen` holds the endpoints' scores, if measured already."""
    metrics, nets = {"accuracy": TOP_1, **metrics}, {**ends, **inner}
    by_net, by_class, alike = {}, {}, {}
    for name, net in nets.items():
        answers = seen[name] if name in seen else evaluate(net, test, labels, metrics)
        by_net[name], by_class[name], labels = answers.means(), answers.by_class, answers.labels
        if name in ends and (why := answers.alike):
            alike[name] = why
    scores = {metric: {name: values[metric] for name, values in by_net.items()} for metric in metrics}
    means = {metric: sum(values[end] for end in ends) / len(ends) for metric, values in scores.items()}
    accuracy, mean = scores["accuracy"], means["accuracy"]
    return {
        "accuracy": accuracy,
        "barrier": {name: barrier(mean, accuracy[name]) for name in inner},
        "scores": scores,
        "barriers": {
            metric: {name: metrics[metric].absolute_barrier(means[metric], values[name]) for name in inner}
            for metric, values in scores.items()
        },
        "alike": alike,
        "by_class": by_class,
        "labels": labels,
        "nets": nets,
    }


def check_nets(
    ends: Mapping[str, nn.Module],
    images: ImageSource,
    test: ImageSource,
    labels: Tensor | None,
    metrics: Mapping[str, Metric],
) -> None:
    """Raises UserError for nets that can't be run or differ in architecture; for labels or metrics that don't fit."""
    logits = [check_net(name, net, images) for name, net in ends.items()]
    if test.shape != images.shape:
        logits = [check_net(name, net, test) for name, net in ends.items()]
    first, *others = ends.values()
    for other in others:
        check_shapes(first, other)
    check_metrics(logits[0], labels, test, metrics)


def check_how(matching: str, seed: int, order: int | None, starts: int = STARTS) -> None:
    """Raises UserError for an unknown matching, an invalid seed or number of starts, before any work."""
    check_matching(matching, order, starts)
    if not isinstance(seed, Integral) or not 0 <= seed < 2**63:
        raise UserError(f"seed: {seed} given; allowed is a whole number from 0 to 2^63 - 1")


def check_alike(first: nn.Module, second: nn.Module, names: tuple[str, str]) -> None:
    """Raises UserError if the nets' integer tensors, scalar counts apart, differ."""
    others = second.state_dict()
    for key, tensor in first.state_dict().items():
        if tensor.ndim and not tensor.is_floating_point() and not torch.equal(tensor, others[key]):
            raise UserError(
                f"{key} ({tensor.dtype}) differs between {names[0]} and {names[1]} with matched channels, and whole "
                "numbers can't be averaged"
            )


@torch.no_grad()
@full_float32()
def flip_merge(
    net: nn.Module,
    images: AnyImages,
    test_images: AnyImages | None = None,
    test_labels: Tensor | None = None,
    *,
    symmetry: Symmetry | str = HORIZONTAL_FLIP,
    matching: str = "activation",
    starts: int = STARTS,
    seed: int = 0,
    metrics: Mapping[str, Metric] = METRICS,
    handlers: Handlers | None = None,
) -> Merge:
    """Merge a net with its flipped self (transformed by `symmetry`): the barrier is the GCNN barrier (section 3).

    Two more checks: the flipped net on flipped images against the net, and flipping `symmetry.order` times against the
    identity. The rest as in `merge`. UserError as in `merge`, if the net has nothing to transform, or if the flipped
    net on flipped images differs from the net, although all strides allow equality (`grid`).
    """
    images = as_images(images)
    test = images if test_images is None else as_images(test_images)
    symmetry = as_symmetry(symmetry)
    check_how(matching, seed, symmetry.order, starts)
    net = unwrapped(net)
    check_nets({FLIP[0]: net}, images, test, test_labels, metrics)
    with evaluating(net):
        traced = as_traced(net, images.shape, handlers)
        flipped = transformed(traced, symmetry)
        checks = check_transformed(traced, flipped, symmetry, test)
        how = {"matching": matching, "starts": starts, "seed": seed, "order": symmetry.order}
        merged = _merge(traced, traced.copied(flipped), images, test, test_labels, FLIP, metrics, how)
    merged.checks |= checks
    merged.notes += unchecked_notes(traced, symmetry)
    return merged


def unchecked_notes(traced: TracedNet, symmetry: Symmetry) -> list[str]:
    """Why the transformed net couldn't be checked, in a line; none if it was checked."""
    if check_planted(traced, symmetry) is not None:
        return []
    why = "the net can't be run at a size at which its strides are symmetric"
    return [f"not checked whether {symmetry.name} transforms the net correctly, since {why}"]


@torch.no_grad()
@full_float32()
def curve(
    aligned: Aligned, images: AnyImages, test_images: AnyImages, labels: Tensor | None, points: int
) -> dict[str, dict[str, list[float]]]:
    """Accuracy and loss at evenly spaced points from one net to the other. UserError for fewer than two points.

    Args:
        images: for REPAIR's statistics; the target statistics at a point are interpolated as its weights are.
        test_images, labels: what accuracy and loss are measured on; labels int64 (N,), None as in `merge`.
        points: the number of points, endpoints included.

    Returns:
        "plain" and "repaired" → "accuracy" and "loss" → one number per point. The endpoints are the nets themselves.
    """
    if not isinstance(points, Integral) or points < 2:
        raise UserError(f"points: {points} given; allowed is a whole number, at least 2 (both endpoints)")
    if not isinstance(aligned, Aligned):
        raise UserError("curve: for two nets with matched channels, as in the `aligned` of a merge of two")
    images, test = as_images(images), as_images(test_images)
    rows = []
    for i in range(points):
        share = i / (points - 1)
        traced = aligned.interpolate(share)
        scores = evaluate(traced.net, test, labels, MEASURED)
        labels = scores.labels  # if there are none, the first net's predictions
        plain = fixed = scores.means()
        if 0 < i < points - 1:
            net = repaired(traced, aligned.targets(share), images)[0]
            fixed = evaluate(net, test, labels, MEASURED).means()
        rows.append({"plain": plain, "repaired": fixed})
    return {way: {metric: [row[way][metric] for row in rows] for metric in ("accuracy", "loss")}
            for way in ("plain", "repaired")}  # fmt: skip
