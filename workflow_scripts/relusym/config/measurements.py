"""What is measured beyond the paper (docs/beyond.md), by the names in a scale's section `beyond`, without PyTorch."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from relusym.config.reading import seed_list
from relusym.matching import MATCHINGS
from relusym.registry import Entry
from relusym.schema import Count, Number, OrNull, Positive, Section, Text, among, refusal


def _odd(points: int) -> int:
    if points % 2 == 0:
        raise refusal("allowed is an odd number")
    return points


Pairs = OrNull[list[Annotated[list[Text], Field(min_length=2, max_length=2)]]]
OF_PAIRS = "of the scale's `pairs`, those that it is of"
SELECTION = "models", "pairs", "seeds"


class Selection(Section):
    """Which nets a measurement is of."""

    models: OrNull[list[Text]] = Field(None, description="the types of single nets")
    seeds: OrNull[Annotated[list[int], BeforeValidator(seed_list)]] = Field(None, description="left out: all")


class Matchings(Selection):
    """The target `matchings`: its merges are flip_merge and pair_merge records."""

    pairs: Pairs = Field(None, description=OF_PAIRS)
    matchings: OrNull[Annotated[list[Annotated[str, among(MATCHINGS)]], Field(min_length=1)]] = Field(
        None, description="that are compared; null: the scale's `matchings`"
    )


class Measurement(Selection):
    """Of single nets, under their symmetries."""

    images: OrNull[Count] = Field(
        None, description="training images to merge on; null: as many as the model's tables"
    )


class FineTuning(Section):
    """Of the exact GCNN and of the net itself."""

    epochs: Count = Field(description="of the training images")
    learning_rate: Positive = Field(description="its peak, at the start")


class ExactGCNN(Measurement):
    """A net turned into an exact GCNN, and fine-tuned."""

    matching: Literal["involution"] = Field(
        "involution", description="the only one whose halfway net is a GCNN"
    )
    fine_tuning: FineTuning = Field(FineTuning(epochs=2, learning_rate=0.005), description="of both nets")
    from_scratch: list[Text] = Field(
        [], description="of `models`, those whose mixture is trained from scratch, too"
    )


class Curves(Measurement):
    """The accuracy along the line between two nets."""

    pairs: Pairs = Field(None, description=OF_PAIRS)
    points: Annotated[int, Field(ge=3, le=1001), AfterValidator(_odd), Number] = Field(
        21, description="of each curve; odd, so that one is halfway"
    )
    repair_images: OrNull[Count] = Field(
        None, description="that REPAIR's statistics are taken on; null: as `images`"
    )


class DuringTraining(Measurement):
    """The barrier at the epochs of `training.snapshots`."""


class ByLayer(Measurement):
    """Which layer's permutation the barrier comes from."""


# Each is called with a `measure.Subject` and the job's settings, and gives the body of the record. Its options are
# keys of its section in the config, where `models`, `pairs` and `seeds` say of which nets it is (`Settings.subjects`).
MEASUREMENTS = {
    "exact_gcnn": Entry("relusym.measuring.exact_gcnn:measure", ExactGCNN),
    "symmetries": Entry("relusym.measuring.measure:symmetries", Measurement),
    "curves": Entry("relusym.measuring.measure:curves", Curves),
    "during_training": Entry("relusym.measuring.measure:during_training", DuringTraining),
    "by_layer": Entry("relusym.measuring.measure:by_layer", ByLayer),
}
# Which nets the target `matchings` is of; its merges are flip_merge and pair_merge records.
SECTIONS = {"matchings": Entry("relusym.measuring.merge:merge_record", Matchings), **MEASUREMENTS}
