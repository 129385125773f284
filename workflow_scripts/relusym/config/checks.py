"""Contradictions between sections that are each valid: a line that names the key, before any job starts."""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from relusym import cifar10, data, nets
from relusym.beyond import MEASUREMENTS
from relusym.beyond.declaration import PARTS_OF_MODELS
from relusym.config.models import GENERATED, IMAGENET, OF_GENERATED, specification
from relusym.config.sections import STAGES
from relusym.data import Extent
from relusym.errors import UserError, listed
from relusym.matching import OF_FLIPS
from relusym.schema import one_of, raise_all
from relusym.symmetry import SYMMETRIES

if TYPE_CHECKING:
    from relusym.config.models import Model
    from relusym.config.settings import Settings

NOT_IN_PLAIN_NETS = "group_convs", "initialization"  # options in which nets that are merged may differ


def check(settings: Settings) -> None:
    """Raise a UserError with a line for each contradiction, except those that another one hides."""
    of_models = [partial(_check_model, model=model) for model in settings.models.values()]
    _check_all(settings, _check_sources, _check_data, *of_models)
    extents = {model: settings.known_extent(model) for model in (None, *settings.models)}
    images = [partial(check_images, model=model, extent=its) for model, its in extents.items() if its]
    _check_all(settings, _check_names, _check_figure9, *images, _check_resize, _check_snapshots)
    beyond = [partial(_check_measurement, name=name, section=each) for name, each in settings.beyond.items()]
    _check_all(settings, _check_pairs, *beyond, _check_seeds)


def _check_all(settings: Settings, *checks: Callable[[Settings], None]) -> None:
    """Raise a UserError with the lines of all checks, one for each wrong key."""
    lines: dict[str, str] = {}
    for check in checks:
        try:
            check(settings)
        except UserError as error:
            for line in str(error).split("\n"):
                lines.setdefault(re.match(r"(.*?\.yaml: )?[^ ]*", line)[0], line)
    raise_all(lines.values())


def _check_figure9(settings: Settings) -> None:
    # filters are kept only from merges for the paper's tables
    not_merged = {model.id for model in settings.models.values() if not model.is_in_paper}
    shown = [id_ for id_ in settings.sections.models if id_ not in not_merged]
    if shown and (figure9 := settings.sections.figure9) is not None:
        _one_of(settings.place("figure9"), figure9, shown)


def _check_seeds(settings: Settings) -> None:
    if unknown := {*(settings.run.seeds or ())} - {*(seeds := settings.sections.seeds)}:
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
            raise UserError(f"datasets.{name}: this data set exists already; choose another name")
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
    """Test images must be in another folder than training images."""
    train, other = (os.path.normpath(source.get(split, split)) for split in ("train", test))
    if source.get("source") not in cifar10.SOURCES and train == other:
        raise UserError(
            f"{key}.{test}: {source.get(test, test)!r} given, the folder of {key}.train; name the test images' folder"
        )


def _check_data(settings: Settings, model: Model | None = None) -> None:
    model = model or settings.common
    images = model.data
    known = (GENERATED, "cifar10", IMAGENET, *settings.run.datasets)
    _one_of(model.key("data", "dataset"), images.dataset, known)
    if images.dataset != GENERATED:
        for name in OF_GENERATED:
            if name in images.model_fields_set:
                raise UserError(f"{model.key('data', name)}: only for generated images; remove the key")
    elif images.train_images is None or images.test_images is None:
        raise UserError(f"{model.key('data')}: generated images need numbers train_images and test_images")


def _check_resize(settings: Settings) -> None:
    """A model's `resize` is only for ImageNet; the scale's needs at least one model on ImageNet."""
    models = settings.models.values()
    wrong = [model for model in models if model.entry.data.resize and model.data.dataset != IMAGENET]
    if not wrong and settings.common.data.resize and all(m.data.dataset != IMAGENET for m in models):
        wrong = [settings.common]
    for model in wrong:
        raise UserError(f"{model.key('data', 'resize')}: only for ImageNet; remove the key")


def _check_snapshots(settings: Settings) -> None:
    """No snapshot may be later than the longest of the trainings that share its key."""
    longest: dict[str, int] = {}
    asked: dict[str, int] = {}
    for model in settings.models.values():
        for stage, how in model.stages.items():
            key = model.stage_key(stage, "snapshots")
            longest[key] = max(longest.get(key, 0), how.epochs)
            asked[key] = max([*how.snapshots, 0])
    raise_all(
        f"{key}: {asked[key]} given; allowed is at most {epochs}, the epochs of the training"
        for key, epochs in longest.items()
        if asked[key] > epochs
    )


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
    if model.weights and len(model.seeds) > 1:
        raise UserError(
            f"{settings.place('models', model.id, 'seeds')}: {len(model.seeds)} seeds given; its weights aren't "
            "trained, so its nets would all be the same; give it a single seed"
        )
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
    """The stages must make a classifier, and each must be able to start from the one before; no other has settings."""
    objectives = [stage.objective for stage in model.stages.values()]
    shown = f"{model.key('recipe')}: [{', '.join(model.stages)}] given"
    if objectives[-1:] == ["simsiam"]:
        raise UserError(f"{shown}; the last stage has to make a classifier, as training and linear do")
    if objectives[:1] == ["linear"]:
        raise UserError(f"{shown}; a linear layer needs a stage before it, whose net it is trained on")
    # not `model.recipe`: weights from elsewhere leave a training's settings in the file
    recipe = model.sections.recipe
    for stage in STAGES:
        if stage not in ("training", *recipe) and getattr(model.entry, stage).explicit():
            raise UserError(
                f"{model.key(stage)}: no stage of its recipe, [{', '.join(recipe)}]; add it there, or remove the key"
            )


def _check_names(settings: Settings) -> None:
    """Models in one table must have different names."""
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
        if others := {*first.seeds} ^ {*second.seeds}:
            which = listed([str(seed) for seed in sorted(others)], 5)
            raise UserError(f"{shown} have different seeds: only one of them has {which}")
        a, b = _needed_to_merge(first), _needed_to_merge(second)
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


def _needed_to_merge(model: Model) -> dict[str, Any]:
    """The settings in which two types have to agree to be merged, by key."""
    network = model.whole_network.items()
    return {f"network.{key}": value for key, value in network if key not in NOT_IN_PLAIN_NETS} | {
        "data.dataset": model.data.dataset,
        "data.normalisation": model.data.normalisation,
        "image_size": model.image_size,
    }


def _check_measurement(settings: Settings, name: str, section: dict[str, Any]) -> None:
    def key(*path: str) -> str:
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
        for model in pair:
            _one_of(key("pairs"), model, settings.models)
    chosen = [*dict.fromkeys([*models, *itertools.chain(*pairs)])] or [*settings.models]
    known = {seed for model in chosen for seed in settings.models[model].seeds}
    if unknown := {*section.get("seeds", [])} - known:
        raise UserError(f"{key('seeds')}: {min(unknown)} is none of the seeds of {', '.join(chosen)}")
    if pairs and "seeds" in section:
        # of these pairs alone, since others may name unknown types
        sections = settings.sections.model_copy(update={"pairs": pairs})
        run = settings.run.model_copy(update={"seeds": None})
        whole = replace(settings, run=run, sections=sections)
        merged = {(a, b) for (a, i), (b, j) in whole.pairs if {i, j} <= {*section["seeds"]}}
        for pair in (pair for pair in pairs if tuple(pair) not in merged):
            raise UserError(
                f"{key('seeds')}: no two nets of [{', '.join(pair)}] that are merged have these seeds"
            )
    for model in models if "counts" in section else ():
        if (seeds := len(settings.models[model].seeds)) < (count := max(section["counts"])):
            raise UserError(
                f"{key('counts')}: {count} given; {model} has {seeds} nets, one per seed; lower it, or leave this "
                "measurement out"
            )
    for option, model in parts:
        _one_of(key(option), model, models)
    if name in MEASUREMENTS and MEASUREMENTS[name].flips_alone:
        turning = (m for m in models if SYMMETRIES[settings.models[m].symmetry].order > 2)
        for model in turning:
            raise UserError(
                f"{key('models')}: {model}'s symmetry isn't of order 2, so no involution matches it"
            )


def check_images(settings: Settings, model: str | None, extent: Extent) -> None:
    """Check everything done with a model's images (None: with the scale's, in Figure 3) against their extent."""
    raise_all(_too_many(settings, model, extent))


def _too_many(settings: Settings, model: str | None, extent: Extent) -> Iterator[str | None]:
    label = settings.label(model)
    if model is None:
        scale, how = settings.common, settings.flipped_training()
        asked, key = how["data"]["train_images"], settings.place("flipped_training", "batch_size")
        yield _above(scale.key("data", "train_images"), asked, extent.train, label)
        yield _above(key, how["training"]["batch_size"], _have(asked, extent), label)
        size = how["data"].get("size")
        yield _unfit(scale.key("image_size"), size, extent.sides, "vgg11", label)
        padding = how["training"]["crop_padding"]
        yield _wide(scale.key("training", "crop_padding"), padding, size, extent.sides)
        return
    net = settings.models[model]
    have = _have(net.data.train_images, extent)
    yield _above(net.key("data", "train_images"), net.data.train_images, extent.train, label)
    for option in ("images", "invariance_images"):
        yield _above(net.key("merging", option), getattr(net.merging, option), have, label)
    for name, section in settings.beyond.items():
        if any(model in types for types in (section.get("models", []), *section.get("pairs", []))):
            for option in ("images", "repair_images"):
                yield _above(settings.place("beyond", name, option), section.get(option), have, label)
            if extent.test is not None:
                key = settings.place("beyond", name, "lie_images")
                yield _above(key, section.get("lie_images"), extent.test, label, "test")
    key = net.key("image_size") if net.image_size else settings.place("models", net.id, "image_size")
    yield _unfit(key, net.image_size, extent.sides, net.network["architecture"], label)
    for stage, how in net.stages.items():
        yield _above(net.stage_key(stage, "batch_size"), how.batch_size, have, label)
        yield _wide(net.stage_key(stage, "crop_padding"), how.crop_padding, net.image_size, extent.sides)


def _have(asked: int | None, extent: Extent) -> int:
    """The number of training images that a net uses."""
    return extent.train if asked is None else min(asked, extent.train)


def _above(key: str, asked: int | None, have: int, label: str, split: str = "training") -> str | None:
    if asked is None or asked <= have:
        return None
    return f"{key}: {asked} given; allowed is at most {have}, the {split} images of {label}"


def _unfit(key: str, size: int | None, sides: tuple[int, int], architecture: str, label: str) -> str | None:
    allowed = nets.SIDES.get(architecture)
    if not allowed or {*((size, size) if size else sides)} <= {*allowed}:
        return None
    what = f"{size} given" if size else f"{label} has images of {sides[1]}×{sides[0]} pixels"
    return f"{key}: {what}; {architecture} takes {allowed[0]} to {allowed[-1]} pixels"


def _wide(key: str, padding: int, size: int | None, sides: tuple[int, int]) -> str | None:
    if padding < (least := size or min(sides)):
        return None
    return f"{key}: {padding} given; allowed is less than the images' {least} pixels"
