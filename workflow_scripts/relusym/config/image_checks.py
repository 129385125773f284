"""Whether what the config asks of images goes with those there are: how many, and how large."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relusym import nets
from relusym.config.keys import Keys
from relusym.data.extent import Extent
from relusym.errors import UserError

if TYPE_CHECKING:
    from relusym.config.settings import Settings


def check_images(settings: Settings, model: str | None, extent: Extent) -> None:
    """Check all that is done with the images of a model; None: with the scale's own in Figure 3.

    Raises:
        UserError: more images are asked for than there are, or they are of a size that the net can't take.
    """
    label = settings.label(model)
    if model is None:
        scale, how = f"scales.{settings.scale}", settings.flipped_training()
        have = _at_most(f"{scale}.data.train_images", how["data"]["train_images"], extent.train, label)
        _at_most("flipped_training.batch_size", how["training"]["batch_size"], have, label)
        sides = _fitting(f"{scale}.image_size", how["data"].get("size"), extent.sides, "vgg11", label)
        _check_padding(f"{scale}.training.crop_padding", how["training"]["crop_padding"], sides)
        return
    given, recipe = settings.models[model].given, settings.models[model].recipe
    key = Keys(settings.config, settings.models[model])
    have = _at_most(key("data", "train_images"), given["data"]["train_images"], extent.train, label)
    for option in ("images", "invariance_images"):
        _at_most(key("merging", option), given["merging"][option], have, label)
    architecture = given["network"]["architecture"]
    sides = _fitting(
        f"{settings.models[model].key}.image_size", given["image_size"], extent.sides, architecture, label
    )
    for stage in recipe:
        how = settings.models[model].stage(stage)
        _at_most(key.of_stage(stage, "batch_size"), how["batch_size"], have, label)
        _check_padding(key.of_stage(stage, "crop_padding"), how["crop_padding"], sides)


def _at_most(key: str, asked: int | None, have: int, label: str) -> int:
    """How many images are used."""
    if asked is not None and asked > have:
        raise UserError(f"{key}: {asked} given; allowed is at most {have}, the training images of {label}")
    return have if asked is None else asked


def _fitting(
    key: str, size: int | None, sides: tuple[int, int], architecture: str, label: str
) -> tuple[int, int]:
    """The sides that the images are brought to."""
    allowed = nets.SIDES.get(architecture)
    brought_to = (size, size) if size else sides
    if allowed and not {*brought_to} <= {*allowed}:
        given = f"{size} given" if size else f"{label} has images of {sides[1]}×{sides[0]} pixels"
        raise UserError(f"{key}: {given}; {architecture} takes {allowed[0]} to {allowed[-1]} pixels")
    return brought_to


def _check_padding(key: str, padding: int, sides: tuple[int, int]) -> None:
    if padding >= min(sides):
        raise UserError(f"{key}: {padding} given; allowed is less than the images' {min(sides)} pixels")
