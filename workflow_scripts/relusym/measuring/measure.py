"""From trained nets to the record of a measurement beyond the paper."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from relusym import nets
from relusym.channels.groups import ChannelGroup
from relusym.channels.traced import TracedNet, as_traced
from relusym.config.measurements import MEASUREMENTS
from relusym.data.image_set import ImageSet, subset
from relusym.errors import UserError
from relusym.evaluation.images import Images
from relusym.evaluation.invariance import invariance_error
from relusym.measuring.costs import Costs
from relusym.measuring.loading import load_net
from relusym.measuring.merge import header, load_merged, matched_by, operands
from relusym.merging.aligned import align
from relusym.merging.layers import equivariance_errors
from relusym.merging.merge import curve, flip_merge
from relusym.merging.orbit import orbit_merge
from relusym.merging.partial import prefix_barriers
from relusym.records.files import snapshot_path
from relusym.symmetry import SYMMETRIES, Symmetry
from relusym.whole_files import sha256

Record = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """What a measurement is made on.

    Attributes:
        names: model and seed of each net, one or two.
        nets: as they were trained; `plain` the same as ordinary nets.
        trained: their train records.
        checkpoints: their files.
        train: the images that they were trained on.
        images: those of them to merge on.
        test, labels: what accuracies are measured on, int64 (N,).
        to: where a net that the measurement makes is kept.
    """

    names: list[tuple[str, int]]
    nets: list[nn.Module]
    trained: list[Record]
    checkpoints: list[Path]
    train: ImageSet
    images: Images
    test: Images
    labels: Tensor
    to: Path

    @property
    def plain(self) -> list[nn.Module]:
        return [nets.plain(net).to(memory_format=torch.channels_last) for net in self.nets]

    def some(self, count: int | None) -> Images:
        """A seeded choice of so many of the images that it was trained on; None: those to merge on.

        Raises:
            UserError: there are fewer.
        """
        if count is None:
            return self.images
        seed = self.trained[0]["settings"]["data"]["seed"]
        return replace(self.images, pixels=subset(self.train, count, seed).images)


def measure_record(
    kind: str,
    names: list[tuple[str, int]],
    settings: Record,
    checkpoints: list[Path],
    trained: list[Path],
    data: Path,
    label: str,
    *,
    batch_size: int,
    device: torch.device,
    to: Path,
    in_use: tuple[str, str] | None = None,
) -> Record:
    """Make one measurement of `MEASUREMENTS` on one net or two; arguments and errors as of `merge.merge_record`.

    Args:
        settings: as `Settings.measurement` gives them.
        to: where a net that the measurement makes is kept.
    """
    costs, loaded = Costs(device), load_merged(checkpoints, trained, settings, device)
    record = header(kind, names, settings, loaded, data, label, in_use)
    if record["status"] == "ok":
        train, images, test, labels = operands(settings, data, label, batch_size, device)
        subject = Subject(
            names=names,
            nets=[net for net, _ in loaded],
            trained=[train for _, train in loaded],
            checkpoints=checkpoints,
            train=train,
            images=images,
            test=test,
            labels=labels,
            to=to,
        )
        body = MEASUREMENTS[kind].load()(subject, settings)
        record["outputs"] |= body.pop("outputs", {})
        record |= body
    return record | costs.fields()


def _symmetry(settings: Record) -> Symmetry:
    return SYMMETRIES[settings["symmetry"]]


def symmetries(subject: Subject, settings: Record) -> Record:
    """Of each symmetry: `OrbitMerge`, and the invariance error over the test images."""
    (net,), found = subject.plain, {}
    for name in settings["symmetries"]:
        symmetry = SYMMETRIES[name]
        merged = orbit_merge(
            *(net, symmetry, subject.images, subject.test, subject.labels),
            **matched_by(settings),
        )
        error = invariance_error(subject.nets[0], subject.test, symmetry)
        found[name] = {"order": symmetry.order, "invariance_error": error, **asdict(merged)}
    return {"symmetries": found}


def curves(subject: Subject, settings: Record) -> Record:
    """Accuracy and loss from a net to its aligned flipped self, or to another net."""
    first, order = subject.plain[0], None
    if len(subject.nets) == 1:
        symmetry = _symmetry(settings)
        second, order = symmetry.transform(first), symmetry.order
    else:
        second = subject.plain[1]
    aligned = align(first, second, subject.images, **matched_by(settings), order=order)
    some = subject.some(settings["repair_images"])
    return {"curve": curve(aligned, some, subject.test, subject.labels, settings["points"])}


def during_training(subject: Subject, settings: Record) -> Record:
    """Barrier, invariance error and equivariance errors at the epochs that the net was kept at, and the end."""
    symmetry, device = _symmetry(settings), subject.images.pixels.device
    kept = subject.trained[0]["outputs"].get("snapshots", {})
    found = []
    for epoch in settings["epochs"]:
        net = subject.nets[0]
        if epoch < settings["trained"][0]["training"]["epochs"]:
            path = snapshot_path(subject.checkpoints[0], epoch)
            if not path.exists() or kept.get(str(epoch)) != sha256(path):
                raise UserError(
                    f"{path} isn't the net that the train record of {subject.names[0][0]}-{subject.names[0][1]} names: "
                    "delete that record, and it is trained again"
                )
            net = load_net(path, device)[0]
        plain = nets.plain(net).to(memory_format=torch.channels_last)
        merged = flip_merge(
            *(plain, subject.images, subject.test, subject.labels),
            symmetry=symmetry,
            **matched_by(settings),
        )
        errors, invariance = _errors(
            *(merged.traced, subject.test, symmetry),
            *(merged.traced.groups, merged.permutations),
        )
        found.append(
            {
                "epoch": epoch,
                "accuracy": merged.accuracy["net"],
                "barrier": merged.barrier["repaired"],
                "absolute_barrier": merged.absolute_barrier["repaired"],
                "invariance_error": invariance,
                "equivariance_error": errors,
                "similarity": merged.similarity,
            }
        )
    return {"epochs": found}


def _errors(
    net: TracedNet, test: Images, symmetry: Symmetry, groups: list[ChannelGroup], permutations: dict
) -> tuple[dict[str, float], float]:
    """Each layer's equivariance error, its channels as they were matched, and the net's invariance error."""
    errors, invariance = equivariance_errors(net, test, symmetry, groups, permutations)
    return {name: ways["matched"] for name, ways in errors.items()}, invariance


def by_layer(subject: Subject, settings: Record) -> Record:
    """Each layer's equivariance error, and the barrier if it and all before it are merged."""
    (net,), symmetry = subject.plain, _symmetry(settings)
    traced = as_traced(net, subject.images.shape)
    aligned = align(
        *(traced, traced.copied(symmetry.transform(net)), subject.images),
        **matched_by(settings),
        order=symmetry.order,
    )
    errors, _ = _errors(traced, subject.test, symmetry, aligned.groups, aligned.permutations)
    return {
        "equivariance_error": errors,
        "similarity": aligned.similarity,
        "barrier_up_to": prefix_barriers(aligned, subject.images, subject.test, subject.labels),
    }
