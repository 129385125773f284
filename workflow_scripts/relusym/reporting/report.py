"""A report on one net: how, and where, it encodes a symmetry."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from relusym import __version__
from relusym.channels.groups import ChannelGroup
from relusym.channels.traced import TracedNet
from relusym.channels.tracing import Handlers
from relusym.errors import listed
from relusym.evaluation.images import GivenImages, ImageSource, as_images
from relusym.evaluation.metrics import TOP_1, Metric
from relusym.merging.layers import Conv, Layer, convs, equivariance_errors, group_actions, layers
from relusym.merging.merge import METRICS, Merge, flip_merge
from relusym.merging.partial import Partial, partial_merges
from relusym.pixels.grid import Grid, grid
from relusym.reporting.partners import Partners, partners
from relusym.symmetry import HORIZONTAL_FLIP, Symmetry

LAYER_IMAGES = 256  # that activations are compared on, layer by layer
Told = Callable[[str, float], None]


@dataclass
class Report:
    """All that is measured of one net.

    Attributes:
        name: what the net is called.
        symmetry: its name.
        labelled: whether accuracies are against labels, and not against the net's own answers.
        images, matched_images, partial_images: how many the accuracies were measured on, the channels matched on, and
            the partial merges made and measured on.
        image_shape: (channels, height, width).
        merged: the net's merge with its transformed self.
        invariance_error: mean relative invariance error of the logits.
        grid: how the strides meet the images' size.
        layers, convs, partial: by channel group, by convolution, by layers merged.
        partners: pictures of channels that were matched.
    """

    name: str
    symmetry: str
    labelled: bool
    images: int
    matched_images: int
    partial_images: int
    image_shape: tuple[int, int, int]
    merged: Merge
    invariance_error: float
    grid: Grid
    layers: list[Layer]
    convs: list[Conv]
    partial: list[Partial]
    partners: list[Partners] = field(default_factory=list, repr=False)
    notes: list[str] = field(default_factory=list)

    @property
    def measure(self) -> str:
        """What the first metric is called: accuracy, or agreement with the net itself."""
        return "accuracy" if self.labelled else "agreement"

    def numbers(self) -> dict[str, Any]:
        """Every number, for JSON."""
        merged = self.merged
        return {
            "relusym": __version__,
            **{
                key: getattr(self, key)
                for key in ("name", "symmetry", "labelled", "images", "matched_images")
            },
            **{key: getattr(self, key) for key in ("partial_images", "image_shape")},
            "accuracy": merged.accuracy["net"],
            "flip_accuracy": merged.accuracy["flipped"],
            "invariance_error": self.invariance_error,
            "gcnn_barrier": merged.barrier,
            "scores": merged.scores,
            "absolute_barriers": merged.barriers,
            "layers": [asdict(layer) for layer in self.layers],
            "convs": [asdict(conv) for conv in self.convs],
            "where_it_fails": [asdict(partial) for partial in self.partial],
            "grid": asdict(self.grid) | {"symmetric": self.grid.symmetric},
            "permutations": merged.permutations,
            "checks": merged.checks,
            "notes": self.notes,
        }


def report(
    net: nn.Module,
    images: GivenImages,
    labels: Tensor | None = None,
    *,
    match_images: GivenImages | None = None,
    symmetry: Symmetry = HORIZONTAL_FLIP,
    metrics: Mapping[str, Metric] = METRICS,
    partial_images: int = 100,
    seed: int = 0,
    name: str | None = None,
    handlers: Handlers | None = None,
    told: Told = lambda stage, done: None,
) -> Report:
    """Measure how a net encodes a symmetry: as a whole, layer by layer, and where a merge with its flipped self fails.

    Args:
        net: stays as it is.
        images, labels: what it is measured on, as `test_images` and `test_labels` of `merge`.
        match_images: those that channels are matched and statistics taken on; None: `images`.
        metrics: measured beside the accuracy, by name.
        partial_images: how many of the images the partial merges are made with and measured on, a seeded choice; 0
            leaves them out.
        seed: of all random choices.
        name: what the report calls the net; None: its class.
        handlers: of layers that PyTorch doesn't have, as of `merge`.
        told: called with each stage's name and the share of it that is done.

    Raises:
        UserError: as of `flip_merge`.
    """
    test = as_images(images)
    match = test if match_images is None else as_images(match_images)
    told("matching and merging", 0)
    merged = flip_merge(
        net, match, test, labels, symmetry=symmetry, seed=seed, metrics=metrics, handlers=handlers
    )
    told("layer by layer", 0)
    traced = merged.traced
    del merged.nets["flipped"]  # it is the permuted one, in another order
    groups = traced.groups
    permutations = {name: torch.tensor(permutation) for name, permutation in merged.permutations.items()}
    errors, invariance = equivariance_errors(
        traced, test, symmetry, groups, permutations, seed=seed, most=LAYER_IMAGES
    )
    without = [group for group in groups if group.name not in errors]
    partial = []
    some, chosen = test.sample(partial_images, seed) if partial_images else (None, torch.tensor([]))
    if some is not None:
        partial = partial_merges(
            *(
                traced,
                merged.nets["permuted"],
                match.sample(partial_images, seed)[0],
                some,
                merged.labels[chosen],
            ),
            metrics={"accuracy": TOP_1, **metrics},
            told=lambda done: told("where it fails", done),
        )
    return Report(
        name=name or type(net).__name__,
        symmetry=symmetry.name,
        labelled=_has_labels(labels, test),
        images=len(test),
        matched_images=len(match),
        partial_images=len(chosen),
        image_shape=test.shape,
        merged=merged,
        invariance_error=invariance,
        grid=grid(traced, test.shape, symmetry),
        layers=layers(groups, permutations, merged.similarity, errors),
        convs=convs(traced.net, symmetry, groups, permutations),
        partial=partial,
        partners=partners(traced, test, symmetry, groups, permutations),
        notes=[
            *([merged.note] if merged.note else []),
            *merged.notes,
            *_unmeasured(traced, symmetry, test.shape, without),
        ],
    )


def _unmeasured(
    net: TracedNet, symmetry: Symmetry, image_shape: tuple[int, ...], groups: list[ChannelGroup]
) -> list[str]:
    """Why groups have no equivariance error, in one line a reason."""
    named = defaultdict(list)
    for name, reason in group_actions(net, symmetry, image_shape, groups)[1].items() if groups else ():
        named[reason].append(name)
    return [f"no equivariance error of {listed(names, 3)}: {reason}" for reason, names in named.items()]


def _has_labels(labels: Any, test: ImageSource) -> bool:
    return labels is not None or next(iter(test.pairs(torch.device("cpu"))))[1] is not None
