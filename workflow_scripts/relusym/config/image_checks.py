"""Whether what the config asks of images goes with those there are: how many, and how large."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relusym import nets
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
        scale, how = settings.common, settings.flipped_training()
        have = _at_most(scale.key("data", "train_images"), how["data"]["train_images"], extent.train, label)
        key = settings.place("flipped_training", "batch_size")
        _at_most(key, how["training"]["batch_size"], have, label)
        sides = _fitting(scale.key("image_size"), how["data"].get("size"), extent.sides, "vgg11", label)
        _check_padding(scale.key("training", "crop_padding"), how["training"]["crop_padding"], sides)
        return
    net = settings.models[model]
    have = _at_most(net.key("data", "train_images"), net.data.train_images, extent.train, label)
    for option in ("images", "invariance_images"):
        _at_most(net.key("merging", option), getattr(net.merging, option), have, label)
    for name, section in settings.beyond.items():
        if any(model in types for types in (section.get("models", []), *section.get("pairs", []))):
            for option in ("images", "repair_images"):
                _at_most(settings.place("beyond", name, option), section.get(option), have, label)
    key = net.key("image_size") if net.image_size else settings.place("models", net.id, "image_size")
    sides = _fitting(key, net.image_size, extent.sides, net.network["architecture"], label)
    for stage, how in net.stages.items():
        _at_most(net.stage_key(stage, "batch_size"), how.batch_size, have, label)
        _check_padding(net.stage_key(stage, "crop_padding"), how.crop_padding, sides)


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
