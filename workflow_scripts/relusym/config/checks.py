"""What can't be, in sections that are right in themselves: a line that names the key, before any job starts."""

from __future__ import annotations

import itertools
import os
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING, Any

from relusym import cifar10, data, nets
from relusym.beyond import MEASUREMENTS
from relusym.beyond.declaration import PARTS_OF_MODELS
from relusym.config.models import GENERATED, IMAGENET, OF_GENERATED, specification
from relusym.data import Extent
from relusym.errors import UserError
from relusym.matching import OF_FLIPS
from relusym.schema import one_of
from relusym.symmetry import SYMMETRIES

if TYPE_CHECKING:
    from relusym.config.models import Model
    from relusym.config.settings import Settings

NOT_IN_PLAIN_NETS = "group_convs", "initialization"  # of two nets that are merged


def check(settings: Settings) -> None:
    """Raises UserError for the first thing that can't be."""
    _check_sources(settings)
    _check_data(settings, settings.common)
    for model in settings.models.values():
        _check_model(settings, model)
    _check_names(settings)
    if (figure9 := settings.sections.figure9) is not None:
        _one_of(settings.place("figure9"), figure9, settings.sections.models)
    for model in (None, *settings.models):
        if extent := settings.known_extent(model):
            check_images(settings, model, extent)
    _check_pairs(settings)
    _check_beyond(settings)
    if unknown := {*settings.seeds} - {*(seeds := settings.all_seeds)}:
        short = f"{seeds[0]}, {seeds[1]} … {seeds[-1]}" if len(seeds) >= 5 else ", ".join(map(str, seeds))
        raise UserError(f"seeds: {min(unknown)} is none of the scale {settings.scale}'s seeds, {short}")


def _one_of(key: str, value: str, allowed) -> None:
    if value not in allowed:
        raise UserError(one_of(key, value, allowed))


def _check_sources(settings: Settings) -> None:
    run = settings.run
    _check_source("cifar10", run.cifar10.explicit())
    _check_splits(IMAGENET, run.imagenet.model_dump(), "val")
    for name, source in run.datasets.items():
        if name in ("cifar10", GENERATED, IMAGENET):
            raise UserError(f"datasets.{name}: this data set is there already; choose another name")
        _check_source(f"datasets.{name}", source.explicit())
        if source.source in cifar10.SOURCES:
            raise UserError(
                f"datasets.{name}.source: {source.source} gives CIFAR10, which is the data set cifar10"
            )


def _check_source(key: str, source: dict) -> None:
    kinds = [kind for kind in data.DATA_SETS if kind not in (GENERATED, IMAGENET)]
    _one_of(f"{key}.source", source["source"], kinds)
    data.check(specification(source), key)
    _check_splits(key, source, "test")


def _check_splits(key: str, source: dict, test: str) -> None:
    """The images to test on are others than those to train on."""
    train, other = (os.path.normpath(source.get(split, split)) for split in ("train", test))
    if source.get("source") not in cifar10.SOURCES and train == other:
        raise UserError(
            f"{key}.{test}: {source.get(test, test)!r} given, the folder of {key}.train; name the test images' folder"
        )


def _check_data(settings: Settings, model: Model) -> None:
    images = model.data
    known = (GENERATED, "cifar10", IMAGENET, *settings.run.datasets)
    _one_of(model.key("data", "dataset"), images.dataset, known)
    if images.dataset != GENERATED:
        for name in OF_GENERATED:
            if name in images.model_fields_set:
                raise UserError(f"{model.key('data', name)}: only for generated images; remove the key")
    elif images.train_images is None or images.test_images is None:
        raise UserError(f"{model.key('data')}: generated images need numbers train_images and test_images")


def _check_model(settings: Settings, model: Model) -> None:
    _check_data(settings, model)
    network, symmetry = model.network, SYMMETRIES[model.symmetry]
    if network.get("group_convs") and (count := nets.NARROWEST * network.get("width", 1)) % symmetry.order:
        raise UserError(
            f"{model.key('network', 'width')}: {network['width']} given; the {count:g} channels of {model.id}'s first "
            f"group conv don't split into {symmetry.order} orientations; make it larger"
        )
    if model.merging.matching in OF_FLIPS and symmetry.order > 2:
        raise UserError(
            f"{model.key('merging', 'matching')}: {model.merging.matching!r} given; the symmetry of "
            f"{model.id} isn't of order 2"
        )
    _check_recipe(model)
    if model.data.dataset == IMAGENET:
        resize, size = model.data.resize or 0, model.image_size
        if size is None or resize < size:
            raise UserError(
                f"{model.key('data', 'resize')}: {resize or None} given; a crop of {size} pixels ({model.id}) needs at "
                "least as many"
            )
        images, measured = model.merging.images, model.merging.invariance_images
        if images is None or measured > images:
            raise UserError(
                f"{model.key('merging', 'images')}: {images} given; allowed is a number, at least the {measured} "
                "invariance_images"
            )


def _check_recipe(model: Model) -> None:
    """Stages that make a classifier, in an order in which each can start from the one before."""
    objectives = [stage.objective for stage in model.stages.values()]
    shown = f"{model.key('recipe')}: [{', '.join(model.stages)}] given"
    if objectives[-1:] == ["simsiam"]:
        raise UserError(f"{shown}; the last stage has to make a classifier, as training and linear do")
    if objectives[:1] == ["linear"]:
        raise UserError(f"{shown}; a linear layer needs a stage before it, whose net it is trained on")


def _check_names(settings: Settings) -> None:
    """Of two models that a table shows by one name, no reader knows which is which."""
    first: dict[Any, str] = {}
    for model in settings.models.values():
        name = " ".join(unicodedata.normalize("NFKC", model.name).casefold().split())
        what = (model.table, name, *(() if model.is_in_paper else (model.symmetry, str(model.data))))
        if (other := first.setdefault(what, model.id)) != model.id:
            raise UserError(
                f"{settings.place('models', model.id, 'name')}: {model.name!r} given, the name of {other}; "
                "give each model a name of its own"
            )


def _check_pairs(settings: Settings) -> None:
    pairs, key = settings.types_paired, settings.place("pairs")
    for pair in pairs:
        shown = f"{key}: [{', '.join(pair)}]"
        for model in pair:
            if model not in settings.models:
                raise UserError(
                    f"{shown} names {model!r}, which isn't trained; the types under `models` are "
                    + ", ".join(settings.models)
                )
        first, second = (settings.models[model] for model in pair)
        if first.seeds != second.seeds:
            raise UserError(f"{shown} have other seeds, {first.seeds} and {second.seeds}")
        a, b = _of_a_merge(first), _of_a_merge(second)
        if differing := [name for name in a | b if a.get(name) != b.get(name)]:
            raise UserError(f"{shown} can't be merged, since they differ in {', '.join(differing)}")
        if first.merging.matching in OF_FLIPS:
            raise UserError(
                f"{first.key('merging', 'matching')}: {first.merging.matching!r} given, which matches no pair of two "
                f"nets, such as [{', '.join(pair)}] of `pairs`"
            )
    twice = [pair for pair, count in Counter(tuple(sorted(pair)) for pair in pairs).items() if count > 1]
    if twice:
        raise UserError(f"{key}: [{', '.join(twice[0])}] is listed twice; list each pair once")


def _of_a_merge(model: Model) -> dict[str, Any]:
    """What two types have to agree in to be merged, by its key."""
    name = {"architecture": model.network["architecture"]}
    network = nets.check(model.network).model_dump(exclude={*NOT_IN_PLAIN_NETS})
    shared = {"data.dataset": model.data.dataset, "data.normalisation": model.data.normalisation}
    shared["image_size"] = model.image_size
    return {f"network.{key}": value for key, value in (name | network).items()} | shared


def _check_beyond(settings: Settings) -> None:
    others: dict[str, str] = {}  # seeds that there aren't, as of a scale that has been cut down
    for name, section in settings.beyond.items():

        def key(*path: str, name: str = name) -> str:
            return settings.place("beyond", name, *path)

        models, pairs = section.get("models", []), section.get("pairs", [])
        parts = [(option, model) for option in PARTS_OF_MODELS for model in section.get(option, [])]
        for model in [*models, *(model for _, model in parts)]:
            _one_of(key("models"), model, settings.models)
            if name != "matchings" and settings.models[model].recipe[-1:] != ["training"]:
                raise UserError(f"{key('models')}: {model} isn't trained by a recipe that ends in `training`")
        for pair in pairs:
            if tuple(pair) not in settings.types_paired:
                raise UserError(f"{key('pairs')}: [{', '.join(pair)}] is none of the pairs that are merged")
        chosen = [*dict.fromkeys([*models, *itertools.chain(*pairs)])] or [*settings.models]
        known = {seed for model in chosen for seed in settings.models[model].seeds}
        if unknown := {*section.get("seeds", [])} - known:
            others[key("seeds")] = f"{min(unknown)} is none of the seeds of {', '.join(chosen)}"
        for model in models if "counts" in section else ():
            if (seeds := len(settings.models[model].seeds)) < (count := max(section["counts"])):
                raise UserError(f"{key('counts')}: {count} given; {model} has {seeds} nets, one a seed")
        for option, model in parts:
            _one_of(key(option), model, models)
        if name in MEASUREMENTS and MEASUREMENTS[name].flips_alone:
            turning = (m for m in models if SYMMETRIES[settings.models[m].symmetry].order > 2)
            for model in turning:
                raise UserError(
                    f"{key('models')}: {model}'s symmetry isn't of order 2, so no involution matches it"
                )
    for first, line in others.items():
        raise UserError(f"{first}: {line}{_likewise([*others][1:])}")


def check_images(settings: Settings, model: str | None, extent: Extent) -> None:
    """Check all that is done with the images of a model (None: with the scale's, in Figure 3), against their extent."""
    label = settings.label(model)
    net = settings.models[model] if model else settings.common
    _at_most({net.key("data", "train_images"): net.data.train_images}, extent.train, label)
    have = extent.train if net.data.train_images is None else net.data.train_images
    if model is None:
        how = settings.flipped_training()
        _at_most(
            {settings.place("flipped_training", "batch_size"): how["training"]["batch_size"]}, have, label
        )
        sides = _fitting(net.key("image_size"), how["data"].get("size"), extent.sides, "vgg11", label)
        _check_padding(net.key("training", "crop_padding"), how["training"]["crop_padding"], sides)
        return
    asked = {net.key("merging", key): getattr(net.merging, key) for key in ("images", "invariance_images")}
    for name, section in settings.beyond.items():
        if any(model in types for types in (section.get("models", []), *section.get("pairs", []))):
            for key in ("images", "repair_images"):
                asked[settings.place("beyond", name, key)] = section.get(key)
    asked |= {net.stage_key(stage, "batch_size"): how.batch_size for stage, how in net.stages.items()}
    _at_most(asked, have, label)
    key = net.key("image_size") if net.image_size else settings.place("models", net.id, "image_size")
    sides = _fitting(key, net.image_size, extent.sides, net.network["architecture"], label)
    for stage, how in net.stages.items():
        _check_padding(net.stage_key(stage, "crop_padding"), how.crop_padding, sides)


def _at_most(asked: dict[str, int | None], have: int, label: str) -> None:
    if over := {key: count for key, count in asked.items() if count is not None and count > have}:
        key, *others = over
        raise UserError(
            f"{key}: {over[key]} given; allowed is at most {have}, the training images of {label}{_likewise(others)}"
        )


def _likewise(keys: list[str]) -> str:
    """The end of a line that is as true of other keys."""
    return f"; likewise {', '.join(key.rpartition(': ')[2] for key in keys)}" if keys else ""


def _fitting(
    key: str, size: int | None, sides: tuple[int, int], architecture: str, label: str
) -> tuple[int, int]:
    allowed = nets.SIDES.get(architecture)
    brought_to = (size, size) if size else sides
    if allowed and not {*brought_to} <= {*allowed}:
        what = f"{size} given" if size else f"{label} has images of {sides[1]}×{sides[0]} pixels"
        raise UserError(f"{key}: {what}; {architecture} takes {allowed[0]} to {allowed[-1]} pixels")
    return brought_to


def _check_padding(key: str, padding: int, sides: tuple[int, int]) -> None:
    if padding >= min(sides):
        raise UserError(f"{key}: {padding} given; allowed is less than the images' {min(sides)} pixels")
