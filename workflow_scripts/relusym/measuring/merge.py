"""The records of merges of trained nets, and of the measurements beyond the paper (relusym/beyond)."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from relusym import checkpoint, nets
from relusym.beyond import MEASUREMENTS
from relusym.channels.traced import TracedNet
from relusym.data import image_set
from relusym.data.image_set import ImageSet
from relusym.errors import UserError
from relusym.evaluation.images import Images
from relusym.evaluation.invariance import invariance_error
from relusym.measuring.loading import (
    JobMeter,
    device_named,
    digest_in_use,
    least_accuracy,
    load_net,
    normalise_of,
    test_images,
    trained_net,
    training_images,
)
from relusym.merging.identities import hold
from relusym.merging.layers import filters_and_matches, kernel_constraint
from relusym.merging.merge import Merge, flip_merge, merge
from relusym.nets.group_conv import RegularConv2d
from relusym.randomness import stream
from relusym.records.files import snapshot_path
from relusym.symmetry import SYMMETRIES, Symmetry
from relusym.whole_files import sha256

Record = dict[str, Any]


DRAWN = 2  # the number of first convs whose filters are stored, rather than only the filters' norms
RGB = 3


def projection_to_rgb(channels: int, seed: int) -> np.ndarray:
    """A random projection matrix (3, channels), the same for all nets of one width."""
    rng = np.random.default_rng(stream(seed, "projection to RGB", channels))
    return rng.standard_normal((RGB, channels)) / np.sqrt(channels)


def filter_arrays(
    traced: TracedNet, symmetry: Symmetry, permutations: dict[str, Tensor], projection_seed: int
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The arrays of an ordinary net that `findings.frames.Filters` describes, and the violation of equation (3), conv
    name → ‖P₁ᵀτ(ψ)P₀ − ψ‖ / ‖ψ‖.

    Args:
        permutations: group name → int64 (C,): channel i is matched to channel `permutation[i]` of the flipped net.
        projection_seed: seed of the projection of input channels to RGB.
    """
    groups = traced.groups
    writes = {place.tensor: group.name for group in groups for place in group.places if place.dim == 0}
    arrays, constraint = {}, {}
    for number, (conv, pair) in enumerate(
        filters_and_matches(traced, symmetry, groups, permutations).items()
    ):
        name = conv.removeprefix("features.")
        constraint[name] = kernel_constraint(*pair)
        psi, matched = (kernel.cpu().numpy() for kernel in pair)
        arrays[f"norm.{name}"] = np.sqrt(np.square(psi, dtype=np.float64).sum((1, 2, 3))).astype(np.float32)
        if number < DRAWN and "." not in name:  # in a ResNet, only the stem
            both = np.stack([psi, matched])
            if psi.shape[1] != RGB:
                both = np.einsum("rc,nochw->norhw", projection_to_rgb(psi.shape[1], projection_seed), both)
            arrays[name] = both.astype(np.float16)  # precise enough for pictures
            arrays[f"permutation.{name}"] = permutations[writes[f"{conv}.weight"]].short().cpu().numpy()
    return arrays, constraint


@dataclass(frozen=True)
class MergeJob:
    """The inputs of a merge or a measurement; nets and images are loaded at their first use.

    UserError is raised then if a checkpoint is damaged, isn't the one that its train record names, or was made with
    other settings, or if the images are damaged.
    """

    names: list[tuple[str, int]]  # model and seed of each net: one, two, or several of one type
    settings: Record  # as `Settings.flip_merge`, `Settings.pair_merge` or `Settings.measurement` returns them
    checkpoints: list[Path]
    trained: list[Path]  # the nets' train records
    data: Path  # the prepared images
    label: str  # their name in the record
    batch_size: int  # of images in a forward pass
    device: torch.device
    in_use: tuple[str, str] | None = None  # see `digest_in_use`
    beside: Path | None = None  # a flip merge's filters, or the checkpoint of a net that a measurement makes

    @classmethod
    def of(cls, plain: Record) -> Self:
        """The job of plain values, with paths and device as strings, as the workflow's rules pass them."""
        values = plain | {key: [Path(path) for path in plain[key]] for key in ("checkpoints", "trained")}
        values |= {key: Path(plain[key]) if plain[key] else None for key in ("data", "beside")}
        names = [(model, seed) for model, seed in plain["names"]]
        return cls(**values | {"names": names, "device": device_named(plain["device"])})

    @cached_property
    def _loaded(self) -> list[tuple[nn.Module | None, Record]]:
        files = zip(self.checkpoints, self.trained, self.settings["trained"], strict=True)
        return [trained_net(*paths, wanted, self.device) for *paths, wanted in files]

    @property
    def nets(self) -> list[nn.Module]:
        """The nets as trained; None for a net whose status is "absent"."""
        return [net for net, _ in self._loaded]

    @property
    def train_records(self) -> list[Record]:
        return [record for _, record in self._loaded]

    @cached_property
    def plain(self) -> list[nn.Module]:
        """The nets converted to ordinary nets, without group convs."""
        return [self.as_plain(net) for net in self.nets]

    def as_plain(self, net: nn.Module) -> nn.Module:
        return nets.plain(net).to(memory_format=torch.channels_last)

    def snapshot(self, epoch: int) -> nn.Module:
        """The first net as it was after `epoch` epochs; UserError if the file is missing or isn't the one that the
        train record names."""
        path, (model, seed) = snapshot_path(self.checkpoints[0], epoch), self.names[0]
        kept = self.train_records[0]["outputs"].get("snapshots", {})
        if not path.exists() or kept.get(str(epoch)) != sha256(path):
            raise UserError(
                f"{path} isn't the net that the train record of {model}-{seed} names: delete that record, and it is "
                "trained again"
            )
        return load_net(path, self.device)

    @property
    def _data(self) -> Record:
        return self.settings["trained"][0]["data"]

    def _images(self, images: ImageSet) -> Images:
        return Images(images.images, self.batch_size, normalise_of(self._data))

    @cached_property
    def train(self) -> ImageSet:
        """The images that the nets were trained on."""
        return training_images(self.data, self._data, self.label, self.device)

    @cached_property
    def images(self) -> Images:
        """The training images that channels are matched on, and REPAIR's statistics are taken from."""
        return self.choice(self.settings["merging"]["images"])

    def choice(self, count: int | None) -> Images:
        """A seeded subset of `count` training images (None: all); UserError if there are fewer."""
        return self._images(image_set.subset(self.train, count, self._data["seed"]))

    @cached_property
    def _test(self) -> ImageSet:
        return test_images(self.data, self._data, self.label, self.device)

    @cached_property
    def test(self) -> Images:
        """The images that accuracies are measured on."""
        return self._images(self._test)

    @property
    def labels(self) -> Tensor:
        """The labels of `test`, int64 (N,)."""
        return self._test.labels

    @property
    def least_accuracy(self) -> float:
        """`loading.least_accuracy` of the test images."""
        return least_accuracy(self.labels)

    @property
    def symmetry(self) -> Symmetry:
        return SYMMETRIES[self.settings["symmetry"]]

    @property
    def matched_by(self) -> dict[str, Any]:
        """The matching method, as arguments of `merge` and `align`."""
        merging = self.settings["merging"]
        return {key: merging[key] for key in ("matching", "starts") if key in merging}

    def named(self) -> Record:
        """The record's fields for models and seeds."""
        if len(self.names) == 1:
            return dict(zip(("model", "seed"), self.names[0], strict=True))
        if len(self.names) > 2:  # all of one type
            return {"model": self.names[0][0], "seeds": [seed for _, seed in self.names]}
        (first, seed_1), (second, seed_2) = self.names
        return {"model_1": first, "seed_1": seed_1, "model_2": second, "seed_2": seed_2}

    def header(self, kind: str) -> Record:
        """The first fields of the record; its status is "left_out" if that of any net isn't "ok"."""
        left_out = [
            f"{model}-{seed} is {train['status']}"
            for (model, seed), train in zip(self.names, self.train_records, strict=True)
            if train["status"] != "ok"
        ]
        return {
            "kind": kind,
            "status": "left_out" if left_out else "ok",
            "reason": left_out[0] if left_out else None,
            **self.named(),
            "settings": self.settings,
            "inputs": {
                "data": digest_in_use(self.data, self.in_use),
                "source": self.label,
                "checkpoints": [train["outputs"]["checkpoint"] for train in self.train_records],
            },
            "outputs": {},
        }


def merge_record(job: MergeJob) -> Record:
    """Merge one net with its flipped self (Tables 2, 3 and 5), or two nets with each other (Table 4).

    The record of a flip merge includes the net's relative invariance error. UserError as in `MergeJob`, if the images
    aren't those in use, or if an identity that holds for any weights is violated.
    """
    meter, flip, settings = JobMeter(job.device), len(job.names) == 1, job.settings
    record = job.header("flip_merge" if flip else "pair_merge")
    arrays: dict[str, np.ndarray] = {}
    about = {"kind": "filters", **{key: record[key] for key in ("status", "reason")}, **job.named()}
    if record["status"] == "ok":
        # the seed is for matchings that draw random numbers
        name = "--".join(f"{model}-{seed}" for model, seed in job.names)
        how = job.matched_by | {"seed": stream(job.names[0][1], name, "matching")}
        if flip:
            (model, seed), symmetry = job.names[0], job.symmetry
            random = stream(seed, model, "invariance")
            some = image_set.subset(job.train, settings["invariance_images"], random)
            record["invariance_error"] = invariance_error(
                job.nets[0], replace(job.images, pixels=some.images), symmetry
            )
            merged: Merge = flip_merge(*job.plain, job.images, job.test, job.labels, symmetry=symmetry, **how)
            arrays, about["kernel_constraint"] = filter_arrays(
                merged.traced, symmetry, merged.aligned.permutations, settings["projection_seed"]
            )
        else:
            merged = merge(*job.plain, job.images, job.test, job.labels, **how)
        group_convs = [conv for net in job.nets for conv in net.modules() if isinstance(conv, RegularConv2d)]
        violations = (conv.check_kernel_constraint() for conv in group_convs)
        constraint = {"kernel_constraint": max(violations, default=0.0)}
        hold(constraint)
        merged.checks |= constraint
        record |= merged.body()
    if job.beside:
        checkpoint.save_arrays(job.beside, arrays, about)
        record["outputs"]["filters"] = sha256(job.beside)
    return record | meter.fields()


def measure_record(kind: str, job: MergeJob) -> Record:
    """The record of one measurement of `MEASUREMENTS`; errors as in `merge_record`."""
    meter, record = JobMeter(job.device), job.header(kind)
    if record["status"] == "ok":
        body = MEASUREMENTS[kind].measure(job)
        record["outputs"] |= body.pop("outputs", {})
        record |= body
    return record | meter.fields()
