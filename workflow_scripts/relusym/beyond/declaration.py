"""What a measurement beyond the paper declares, and the options that measurements share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import AfterValidator, Field, ValidationInfo

from relusym.record_types import Fields
from relusym.schema import Count, OrNull, Section, Seeds, Text, each_once, key, remark

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from relusym.data.image_set import ImageSet
    from relusym.evaluation.images import Images
    from relusym.symmetry import Symmetry

Values = dict[str, Any]
Pair = Annotated[list[Text], Field(min_length=2, max_length=2)]
Pairs = OrNull[Annotated[list[Pair], AfterValidator(each_once)]]
Parts = Annotated[list[Text], AfterValidator(each_once)]
OF_PAIRS = "which of the scale's `pairs`"


class Selection(Section):
    """Which nets are measured."""

    models: OrNull[Parts] = key("which types of nets; null: none", None)
    seeds: OrNull[Seeds] = key("null: all", None)


class Options(Selection):
    """The options of every measurement that merges."""

    images: OrNull[Count] = key("training images to merge on; null: as many as for the model's tables", None)


# Options that list those of `models` for which more is measured.
PARTS_OF_MODELS = "from_scratch", "redundant", "towers"
NOT_IN_SETTINGS = {*Options.model_fields, *PARTS_OF_MODELS, "pairs", "matching", "lie_images"}


def _as_in_settings(measured: dict | list, info: ValidationInfo) -> dict | list:
    wanted = info.data.get("settings", {}).get(info.field_name)
    if wanted != [getattr(each, "epoch", each) for each in measured]:
        raise remark(f"allowed are those of the settings, {wanted!r}")
    return measured


# A record's field whose entries are those of the field of the same name in its `settings`, a field before it, in order
AsInSettings = AfterValidator(_as_in_settings)


class Job(Protocol):
    """What a measurement reads, loaded at first use; see `measuring.merge.MergeJob`, which implements it."""

    names: list[tuple[str, int]]
    settings: Values
    device: torch.device
    beside: Path | None
    nets: list[nn.Module]
    plain: list[nn.Module]
    train: ImageSet
    images: Images
    test: Images
    labels: Tensor
    least_accuracy: float
    symmetry: Symmetry
    matched_by: Values

    def as_plain(self, net: nn.Module) -> nn.Module: ...

    def snapshot(self, epoch: int) -> nn.Module: ...

    def choice(self, count: int | None) -> Images: ...


@dataclass(frozen=True)
class Measurement:
    """All that the workflow has to know about a measurement."""

    options: type[Selection]  # its section in the config, below `beyond`; with `pairs`, it may be of two nets
    body: type[Fields]  # the record's fields besides the header
    measure: Callable[[Job], Values]  # returns the body
    # what the record depends on besides the options and the upstream settings (nets, and how they are merged), from the
    # section, the first net's model, the upstream settings, and the epochs at which that net is kept
    settings: Callable[[Values, str, Values, list[int]], Values] = lambda *_: {}
    snapshots: Callable[[Values], list[int]] = lambda settings: []  # the epochs at which it reads a net
    flips_alone: bool = False  # whether its nets' symmetry has to be of order 2
    several: bool = False  # whether it is of several nets of a type, as many as the largest of its `counts`
