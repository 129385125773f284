"""A report on one net: how, and where, it encodes a symmetry."""

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relusym import __version__, checkpoint
from relusym.channels.groups import ChannelGroup, by_node
from relusym.channels.traced import TracedNet
from relusym.channels.tracing import Handlers
from relusym.errors import UserError, listed
from relusym.evaluation.images import AnyImages, ImageSource, as_images, device_of
from relusym.evaluation.invariance import Averaged, Ensemble
from relusym.evaluation.logits import evaluating
from relusym.evaluation.metrics import TOP_1, Metric, evaluate
from relusym.matching import WITH_FACTORS
from relusym.merging.aligned import Lockstep
from relusym.merging.layers import Conv, ErrorShares, Layer, convs, equivariance_errors, group_actions, layers
from relusym.merging.lie_derivative import LieDerivative, lie_derivative
from relusym.merging.merge import METRICS, Merge, curve, flip_merge
from relusym.merging.moments import group_output
from relusym.merging.partial import Kept, Partial, Which, partial_merges
from relusym.pixels.grid import Grid, grid
from relusym.symmetry import HORIZONTAL_FLIP, Symmetry, as_symmetry

PLAIN = ("name", "symmetry", "labelled", "images", "matched_images", "partial_images", "image_shape", "inputs",
         "classes", "invariance_error", "baselines", "curve", "notes")  # fields written to JSON unchanged  # fmt: skip
LAYER_IMAGES = 256  # on which activations are compared, layer by layer
SHOWN = 3  # layers whose channels and partners are shown as pictures
SAVE_S = 10  # least time between two saves of an unfinished report on a net with batch norm
SMALLEST = 6  # pixels on a side of a feature map that is worth showing
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Partners:
    """A channel and its partner, on one image.

    Attributes:
        layer, channel, partner: the channel group's name, and the numbers of its two channels.
        correlation: of the two feature maps, the second one transformed back.
        image, moved: the image and the transformed one as the net reads them, scaled to 0…1, float32 (H, W, C).
        here, there: the channel's map on the image, and the partner's on the transformed one, float32 (h, w).
    """

    layer: str
    channel: int
    partner: int
    correlation: float
    image: np.ndarray
    moved: np.ndarray
    here: np.ndarray
    there: np.ndarray


@dataclass
class Report:
    """All measurements of one net.

    Attributes:
        name, symmetry: the net's name and the symmetry's.
        labelled: whether accuracies are measured against labels, not against the net's predictions.
        images, matched_images, partial_images: numbers of images on which accuracies were measured, channels matched,
            and partial merges corrected and measured.
        image_shape: (channels, height, width).
        merged: the net's merge with its transformed self.
        invariance_error: mean relative invariance error of the logits.
        grid: how the strides meet the images' size.
        layers, convs, partial: by channel group, by convolution, by layers merged.
        partners: pictures of channels that were matched.
        baselines: what the merged net is compared with, "ensemble" (mean logits of the net and its transformed self)
            and "flips" (of the net on all orientations of an image) → metric → mean over the images.
        curve: as `merge.curve` returns it, from the net to its transformed self; empty if it wasn't asked for.
        lie: the Lie derivative under small translations and rotations; None if it wasn't asked for, or couldn't be
            computed (see `notes`).
        classes: names of the classes, if known.
        inputs: how the images were read, if known.
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
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    curve: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    lie: LieDerivative | None = None
    classes: tuple[str, ...] = ()
    inputs: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def measure(self) -> str:
        """The name of the first metric: accuracy, or agreement with the net itself."""
        return "accuracy" if self.labelled else "agreement"

    def numbers(self) -> dict[str, Any]:
        """Every number, for JSON."""
        merged = self.merged
        return {
            "relusym": __version__,
            **{key: getattr(self, key) for key in PLAIN},
            "accuracy": merged.accuracy["net"],
            "flip_accuracy": merged.accuracy["flipped"],
            "gcnn_barrier": merged.barrier,
            **merged.numbers(labelled=self.labelled),
            "layers": [asdict(layer) for layer in self.layers],
            "convs": [asdict(conv) for conv in self.convs],
            "where_it_fails": [
                {"part": partial.part, "up_to": partial.prefix, "all_but": partial.leave_one_out}
                for partial in self.partial
            ],
            "grid": asdict(self.grid) | {"symmetric": self.grid.symmetric},
            **({"lie_derivative": asdict(self.lie)} if self.lie else {}),
        }


class Unfinished(Kept):
    """Partial merges, kept in a file as they are computed; a report with the same tensors goes on from the file.

    Args:
        how: a text that differs if anything else that they depend on does.
    """

    def __init__(self, path: Path, tensors: Iterable[Tensor], how: str):
        super().__init__()
        self.path, digest = path, hashlib.sha256(f"{__version__} {how}".encode())
        for tensor in tensors:
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        self.digest, self.written = digest.hexdigest(), time.monotonic()
        with suppress(UserError, ValueError, TypeError, KeyError):
            buffers, about = checkpoint.load(path)
            if about["of"] == self.digest:
                self.update({(kind, i): scores for kind, i, scores in about["scores"]})
                self.batches, self.buffers = about["batches"], [buffers[str(i)] for i in range(len(buffers))]

    def __setitem__(self, which: Which, scores: dict[str, float]) -> None:
        super().__setitem__(which, scores)
        self._write()

    def read(self, batches: int, buffers: Sequence[Tensor]) -> None:
        super().read(batches, buffers)
        if time.monotonic() - self.written >= SAVE_S:
            self._write()

    def _write(self) -> None:
        scores = [[*which, values] for which, values in self.items()]
        about = {"of": self.digest, "scores": scores, "batches": self.batches}
        checkpoint.save(self.path, {str(i): buffer for i, buffer in enumerate(self.buffers)}, about)
        self.written = time.monotonic()


def report(
    net: nn.Module,
    images: AnyImages,
    labels: Tensor | None = None,
    *,
    match_images: AnyImages | None = None,
    symmetry: Symmetry | str = HORIZONTAL_FLIP,
    matching: str = "activation",
    metrics: Mapping[str, Metric] = METRICS,
    partial_images: int = 100,
    curve_points: int = 0,
    lie_images: int = 0,
    seed: int = 0,
    name: str | None = None,
    classes: Sequence[str] = (),
    handlers: Handlers | None = None,
    progress: Progress = lambda stage, done: None,
    unfinished: Path | None = None,
) -> Report:
    """Measure how a net encodes a symmetry: as a whole, layer by layer, and where a merge with its flipped self fails.
    UserError as in `flip_merge`, or if the matching is one with factors, by which layers can't be compared.

    Args:
        net: isn't changed.
        images, labels: what the net is measured on, as `test_images` and `test_labels` of `merge`.
        match_images: on which channels are matched and statistics measured; None: `images`.
        metrics: measured beside the accuracy, by name.
        partial_images: how many of the images, a seeded choice, partial merges are corrected and measured on; 0: no
            partial merges.
        matching: its name in `matching.MATCHINGS`.
        curve_points: how many nets on the line from the net to its transformed self are measured; 0: none.
        lie_images: how many of the images, the first ones, the Lie derivative is measured on; 0: none.
        seed: of all random choices.
        classes: their names, if known.
        name: the net's name in the report; None: its class.
        handlers: of layers that PyTorch doesn't have, as in `merge`.
        progress: called with each stage's name and the share of it that is done.
        unfinished: a file that keeps partial merges, so that an interrupted report resumes at its last layer or, for a
            net with batch norm, whose layers are merged side by side, at one of the last batches that statistics were
            measured on. The caller removes the file.
    """
    if matching in WITH_FACTORS:
        raise UserError(f"matching {matching}: not for reports, which compare layers by permutations alone")
    counts = {"partial_images": partial_images, "curve_points": curve_points, "lie_images": lie_images}
    for key, count in counts.items():
        if not isinstance(count, Integral) or count < 0 or (key == "curve_points" and count == 1):
            raise UserError(
                f"{key}: {count} given; allowed is 0 for none, or a whole number (of points, from 2)"
            )
    symmetry, test = as_symmetry(symmetry), as_images(images)
    match = test if match_images is None else as_images(match_images)
    progress("matching and merging", 0)
    how = {"symmetry": symmetry, "matching": matching, "seed": seed, "metrics": metrics, "handlers": handlers}
    merged = flip_merge(net, match, test, labels, **how)
    traced = merged.traced
    progress("baselines", 0)
    both = baselines([traced.net, merged.nets["flipped"]], symmetry, test, merged.labels, metrics)
    line = {}
    if curve_points:
        progress("interpolation", 0)
        line = curve(merged.aligned, match, test, merged.labels, curve_points)
    progress("layer by layer", 0)
    del merged.nets["flipped"]  # the same net as "permuted", in another channel order
    groups = traced.groups
    permutations = {name: torch.tensor(permutation) for name, permutation in merged.permutations.items()}
    sources = ErrorShares(groups)
    errors, invariance = equivariance_errors(
        traced, test, symmetry, groups, permutations, seed=seed, most=LAYER_IMAGES, compared=sources.add
    )
    shares = sources.shares()
    del sources  # it holds two matrices for each layer
    unmeasured = defaultdict(list)  # reason → channel groups
    for group, why in group_actions(traced, symmetry, test.shape, groups)[1].items():
        unmeasured[why].append(group)
    lie, unknown = None, []
    if lie_images:
        progress("Lie derivative", 0)
        try:
            lie = lie_derivative(traced, test, lie_images, seed=seed)
        except UserError as error:
            unknown = [str(error)]
    partial, chosen = [], torch.tensor([])
    if partial_images:
        some, chosen = test.sample(partial_images, seed)
        corrected_on = some if match is test else match.sample(partial_images, seed)[0]
        permuted, chosen_labels = merged.nets["permuted"], merged.labels[chosen]
        kept = None
        if unfinished:
            tensors = [*traced.net.state_dict().values(), *permuted.state_dict().values(), chosen_labels]
            for read in (some, corrected_on):
                tensors += read.batches(torch.device("cpu"))
            scores = {
                metric: {name: f"{value:.3g}" for name, value in values.items()}
                for metric, values in merged.scores.items()
            }
            kept = Unfinished(unfinished, tensors, json.dumps(scores))  # a metric is identified by its values
        partial = partial_merges(
            *(traced, permuted, corrected_on, some, chosen_labels),
            metrics={"accuracy": TOP_1, **metrics},
            progress=lambda done: progress("where it fails", done),
            kept=kept,
        )
    return Report(
        name=name or type(net).__name__,
        symmetry=symmetry.name,
        labelled=labels is not None or next(iter(test.pairs(torch.device("cpu"))))[1] is not None,
        images=len(test),
        matched_images=len(match),
        partial_images=len(chosen),
        image_shape=test.shape,
        merged=merged,
        invariance_error=invariance,
        grid=grid(traced, test.shape, symmetry),
        layers=layers(groups, permutations, merged.similarity, errors, shares),
        convs=convs(traced, symmetry, groups, permutations),
        partial=partial,
        partners=partners(traced, test, symmetry, groups, permutations),
        baselines=both,
        curve=line,
        lie=lie,
        classes=tuple(classes),
        notes=[
            *merged.all_notes,
            *(f"no equivariance error for {listed(names, 3)}: {why}" for why, names in unmeasured.items()),
            *unknown,
        ],
    )


def baselines(
    merged: Sequence[nn.Module],
    symmetry: Symmetry,
    test: ImageSource,
    labels: Tensor,
    metrics: Mapping[str, Metric],
) -> dict[str, dict[str, float]]:
    """Scores of "ensemble", all nets' mean logits, and "flips", the first's over all orientations: → metric → mean."""
    nets: dict[str, nn.Module] = {"ensemble": Ensemble(*merged)}
    if labels.ndim == 1:
        nets["flips"] = Averaged(merged[0], symmetry)
    return {name: evaluate(net, test, labels, metrics).means() for name, net in nets.items()}


@torch.no_grad()
def partners(
    traced: TracedNet,
    images: ImageSource,
    symmetry: Symmetry,
    groups: list[ChannelGroup],
    permutations: Mapping[str, Tensor],
) -> list[Partners]:
    """The channels that their partners mirror best on one image, from a few layers with maps large enough to look at.

    Channels matched to another channel are preferred to those that are their own partners.
    """
    x = images.first(1, device_of(traced.net))
    back = symmetry.inverse(x)
    maps: dict[str, Tensor] = {}
    compared_at = by_node(groups)

    def visit(node: str, outputs: list[Tensor]) -> None:
        for group in compared_at.get(node, ()):
            if (group.matched.dim, group.matched.block) != (1, 1):
                continue  # tokens, and what attention computes, make no picture
            output = group_output(group, outputs[0])
            if output.ndim == 4 and min(output.shape[2:]) >= SMALLEST:
                maps[group.name] = output.float().cpu().clone()

    with evaluating(traced.net):
        Lockstep([traced.module(inside=True)]).run([torch.cat([x, back])], visit)
    mapped = [group for group in groups if group.name in maps]
    places = np.linspace(0, len(mapped) - 1, min(SHOWN, len(mapped))).round().astype(int)
    pairs = []
    for group in (mapped[place] for place in places):
        permutation = torch.as_tensor(permutations[group.name]).cpu()
        here, there = maps[group.name]
        mirrored = symmetry.act(there)[permutation]
        a, b = (m.flatten(1) - m.flatten(1).mean(1, keepdim=True) for m in (here, mirrored))
        correlation = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-12)
        strength = a.norm(dim=1).minimum(b.norm(dim=1))
        swapped = permutation != torch.arange(group.size)
        score = correlation.clamp(min=0) * (strength / strength.max().clamp(min=1e-12)).sqrt() + swapped
        channel = int(score.argmax())
        partner = int(permutation[channel])
        shown = _picture(x[0]), _picture(back[0]), here[channel].numpy(), there[partner].numpy()
        pairs.append(Partners(group.name, channel, partner, float(correlation[channel]), *shown))
    return pairs


def _picture(x: Tensor) -> np.ndarray:
    x = x.float().cpu()
    low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
    return ((x - low) / (high - low).clamp(min=1e-12)).permute(1, 2, 0).numpy()
