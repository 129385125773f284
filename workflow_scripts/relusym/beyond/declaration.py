"""What a measurement beyond the paper declares, and what its options have in common with others'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field

from relusym.record_types import Fields
from relusym.schema import Count, OrNull, Section, Seeds, Text, each_once

if TYPE_CHECKING:
    from relusym.measuring.merge import MergeJob

Values = dict[str, Any]
Pairs = OrNull[
    Annotated[list[Annotated[list[Text], Field(min_length=2, max_length=2)]], AfterValidator(each_once)]
]
OF_PAIRS = "of the scale's `pairs`, those that it is of"


class Selection(Section):
    """Which nets a measurement is of."""

    models: OrNull[Annotated[list[Text], AfterValidator(each_once)]] = Field(
        None, description="the types of single nets"
    )
    seeds: OrNull[Seeds] = Field(None, description="left out: all")


class Options(Selection):
    """What every measurement has."""

    images: OrNull[Count] = Field(
        None, description="training images to merge on; null: as many as the model's tables"
    )


# Options that name those of `models` of which something more is measured.
PARTS_OF_MODELS = "from_scratch", "redundant", "towers"
NOT_IN_SETTINGS = {*Options.model_fields, *PARTS_OF_MODELS, "pairs", "matching", "lie_images"}


@dataclass(frozen=True)
class Measurement:
    """All that the workflow has to know of a measurement.

    Attributes:
        options: its section in the config, below `beyond`; with `pairs`, it may be of two nets.
        body: what its record has, besides the header.
        measure: from the job to the body.
        settings: what its record depends on besides its options and what is upstream, the nets and how they are merged:
            from its section, the first net's model, the settings upstream, and the epochs at which that net is kept.
        snapshots: the epochs at which it reads a net, by its settings.
        flips_alone: whether its nets' symmetry has to be of order 2.
        several: whether it is of as many nets of a type as the largest of its option `counts`.
    """

    options: type[Options]
    body: type[Fields]
    measure: Callable[[MergeJob], Values]
    settings: Callable[[Values, str, Values, list[int]], Values] = lambda *_: {}
    snapshots: Callable[[Values], list[int]] = lambda settings: []
    flips_alone: bool = False
    several: bool = False
