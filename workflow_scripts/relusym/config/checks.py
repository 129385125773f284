"""What can't be, in a config that its schema allows: each is one line that names the key, before any job starts."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

from relusym import cifar10, data, matching, nets, paper_values
from relusym.config.image_checks import check_images
from relusym.config.keys import Keys
from relusym.config.reading import seed_list
from relusym.config.sources import GENERATED, IMAGENET, specification
from relusym.errors import UserError
from relusym.registry import choose, one_of
from relusym.symmetry import SYMMETRIES
from relusym.training.recipe import OBJECTIVES

if TYPE_CHECKING:
    from relusym.config.models import Model, Section
    from relusym.config.settings import Settings

NEEDED = {
    "training": ("epochs", "batch_size", "learning_rate", "crop_padding"),
    "merging": ("matching", "images", "invariance_images", "batch_size"),
}

NOT_IN_PLAIN_NETS = "group_convs", "initialization"  # of two nets that are merged


def check(settings: Settings) -> None:
    """Raises UserError for the first thing that can't be."""
    config = settings.config
    _check_networks("defaults", config["defaults"])
    for name, scale in config["scales"].items():
        models = {*config["models"], *scale.get("models", {})}
        if (figure9 := scale.get("figure9")) is not None:
            _one_of(f"scales.{name}.figure9", figure9, sorted(models))
        _check_networks(f"scales.{name}", scale)
        seed_list(scale["seeds"])
        _check_data(f"scales.{name}.data", {**config["defaults"].get("data", {}), **scale["data"]}, config)
    _check_source("cifar10", config["cifar10"])
    _check_splits(IMAGENET, config[IMAGENET], "val")
    for name, source in config.get("datasets", {}).items():
        if name in ("cifar10", GENERATED, IMAGENET):
            raise UserError(f"datasets.{name}: this data set is there already; choose another name")
        _check_source(f"datasets.{name}", source)
        if source["source"] in cifar10.SOURCES:
            raise UserError(
                f"datasets.{name}.source: {source['source']} gives CIFAR10, which is the data set cifar10"
            )
    for name in [*settings.compared, *config.get("matchings", [])]:
        _one_of("matchings", name, matching.MATCHINGS)
    for model in settings.models.values():
        _check_model(settings, model)
    for model in (None, *settings.models):
        if extent := settings.known_extent(model):
            check_images(settings, model, extent)
    _check_pairs(settings)
    _check_beyond(settings)
    unknown = {*settings.seeds} - {*settings.all_seeds}
    if unknown:
        given = config["scales"][settings.scale]["seeds"]
        raise UserError(f"seeds: {min(unknown)} is none of the scale {settings.scale}'s seeds {given}")


def _one_of(key: str, given: str, allowed) -> None:
    if given not in allowed:
        raise UserError(one_of(key, given, allowed))


def _check_networks(key: str, sections: Section) -> None:
    """The networks of a scale and of its families, which models of any architecture share."""
    for family, given in sections.get("families", {}).items():
        _check_networks(f"{key}.families.{family}", given)
    network = dict(sections.get("network", {}))
    architecture = network.pop("architecture", None)
    if architecture is not None:
        _one_of(f"{key}.network.architecture", architecture, nets.ARCHITECTURES)
    allowed = nets.options(architecture)
    for option in network:
        if option not in allowed:
            raise UserError(f"{key}.network: unknown key {option!r}; allowed are {', '.join(allowed)}")


def _check_data(key: str, data: dict, config: dict) -> None:
    _one_of(
        f"{key}.dataset", data["dataset"], ("generated", "cifar10", "imagenet", *config.get("datasets", {}))
    )
    generated = data["dataset"] == "generated"
    if generated and (data["train_images"] is None or "test_images" not in data):
        raise UserError(f"{key}: generated images need numbers train_images and test_images")
    for name in ("test_images", "invariant_to"):
        if not generated and name in data:
            raise UserError(f"{key}.{name}: only for generated images; remove the key")
    if generated and data.get("invariant_to") is not None:
        _one_of(f"{key}.invariant_to", data["invariant_to"], SYMMETRIES)


def _check_source(key: str, source: dict) -> None:
    kinds = [kind for kind in data.DATA_SETS if kind not in (GENERATED, IMAGENET)]
    _one_of(f"{key}.source", source["source"], kinds)
    data.check(specification(source), key)
    _check_splits(key, source, "test")


def _check_splits(key: str, source: dict, test: str) -> None:
    """The images to test on are others than those to train on."""
    splits = [os.path.normpath(source.get(split, split)) for split in ("train", test)]
    if source.get("source") not in cifar10.SOURCES and splits[0] == splits[1]:
        raise UserError(
            f"{key}.{test}: {source.get(test, test)!r} given, the folder of {key}.train; name the test images' folder"
        )


def _check_pairs(settings: Settings) -> None:
    pairs = settings.types_paired
    for pair in pairs:
        for model in pair:
            if model not in settings.models:
                raise UserError(
                    f"pairs: [{', '.join(pair)}] names {model!r}, which isn't trained; the types under `models` are "
                    + ", ".join(settings.models)
                )
        first, second = (settings.models[model] for model in pair)
        if first.seeds != second.seeds:
            raise UserError(f"pairs: [{', '.join(pair)}] have other seeds, {first.seeds} and {second.seeds}")
        one, other = _of_a_merge(first), _of_a_merge(second)
        if differing := [key for key in one | other if one.get(key) != other.get(key)]:
            raise UserError(
                f"pairs: [{', '.join(pair)}] can't be merged, since they differ in {', '.join(differing)}"
            )
    twice = [pair for pair, count in Counter(map(tuple, pairs)).items() if count > 1]
    if twice:
        raise UserError(f"pairs: [{', '.join(twice[0])}] is listed twice; list each pair once")


def _check_beyond(settings: Settings) -> None:
    for name, section in settings.beyond.items():
        key = f"scales.{settings.scale}.beyond.{name}"
        for model in [*section.get("models", []), *section.get("from_scratch", [])]:
            _one_of(f"{key}.models", model, settings.models)
            if name != "matchings" and settings.models[model].recipe[-1:] != ["training"]:
                raise UserError(f"{key}.models: {model} isn't trained by a recipe that ends in `training`")
        for pair in section.get("pairs", []):
            if pair not in map(list, settings.types_paired):
                raise UserError(f"{key}.pairs: [{', '.join(pair)}] is none of the pairs that are merged")
        chosen = [*section.get("models", []), *itertools.chain(*section.get("pairs", []))]
        known = {seed for model in chosen for seed in settings.models[model].seeds}
        if chosen and section.get("seeds") is not None and not known & {*section["seeds"]}:
            raise UserError(f"{key}.seeds: {section['seeds'][0]} is none of the seeds of {', '.join(chosen)}")
        if "pairs" in section and name not in ("matchings", "curves"):
            raise UserError(f"{key}.pairs: {name} is of single nets; remove the key")
        if name == "exact_gcnn":
            for model in section["from_scratch"]:
                _one_of(f"{key}.from_scratch", model, section.get("models", []))
            for model in section.get("models", []):
                if SYMMETRIES[settings.models[model].given["symmetry"]].order > 2:
                    raise UserError(
                        f"{key}.models: {model}'s symmetry isn't of order 2, so no involution matches it"
                    )


def _of_a_merge(model: Model) -> dict[str, Any]:
    """What two types have to agree in to be merged, by its key."""
    name = {"architecture": model.given["network"]["architecture"]}
    options = choose(nets.ARCHITECTURES, "architecture", model.given["network"], "network")[1]
    network = {key: value for key, value in options.items() if key not in NOT_IN_PLAIN_NETS}
    data_keys = ("dataset", "normalisation")
    shared = {f"data.{key}": model.given["data"].get(key) for key in data_keys}
    shared["image_size"] = model.given["image_size"]
    return {f"network.{key}": value for key, value in (name | network).items()} | shared


def _check_model(settings: Settings, model: Model) -> None:
    given, key = model.given, Keys(settings.config, model)
    _check_data(key("data"), given["data"], settings.config)
    _one_of(key("symmetry"), given["symmetry"], SYMMETRIES)
    nets.check(given["network"], key("network"))
    for name in NEEDED["merging"]:
        if name not in given["merging"]:
            raise UserError(f"{key('merging')}: the key {name!r} is missing")
    _one_of(key("merging", "matching"), given["merging"]["matching"], matching.MATCHINGS)
    for stage in model.recipe:
        how = model.stage(stage)
        for name in (
            *NEEDED["training"],
            *(("dimensions", "bottleneck") if how["objective"] == "simsiam" else ()),
        ):
            if name not in how:
                raise UserError(f"{key(stage)}: the key {name!r} is missing")
        _one_of(key(stage, "objective"), how["objective"], OBJECTIVES)
        if how["warmup_epochs"] >= how["epochs"]:
            raise UserError(
                f"{key.of_stage(stage, 'warmup_epochs')}: {how['warmup_epochs']} isn't less than the "
                f"{how['epochs']} epochs"
            )
        start = how["invariance_from"]
        # a single epoch is a rehearsal
        if start is not None and start * how["epochs"] > how["epochs"] - 1 > 0:
            raise UserError(
                f"{key.of_stage(stage, 'invariance_from')}: {start} given; the invariance loss would never be on in "
                f"{how['epochs']} epochs; allowed is at most {(how['epochs'] - 1) / how['epochs']:.3g}, or null"
            )
        if how["batch_size"] % how["processes"]:
            raise UserError(
                f"{key.of_stage(stage, 'batch_size')}: {how['batch_size']} can't be shared evenly by "
                f"{how['processes']} processes"
            )
    if given["data"]["dataset"] == "imagenet":
        resize, size = given["data"].get("resize") or 0, given["image_size"]
        if size is None or resize < size:
            raise UserError(
                f"{key('data', 'resize')}: {resize or None} given; a crop of {size} pixels ({model.id}) needs at least "
                "as many"
            )
        images, measured = given["merging"]["images"], given["merging"]["invariance_images"]
        if images is None or measured > images:
            raise UserError(
                f"{key('merging')}.images: {images} given; allowed is a number, at least the {measured} "
                "invariance_images"
            )
    if given.get("paper") is not None and given["paper"] not in paper_values.resnets():
        raise UserError(f"{model.key}.paper: the paper's Table 5 has no row {given['paper']!r}")
