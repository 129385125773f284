"""What can't be, in a config that its schema allows: each is one line that names the key, before any job starts."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from relusym import data, merging, nets, paper_values
from relusym.errors import UserError
from relusym.experiments.config import seed_list
from relusym.experiments.sources import GENERATED, IMAGENET, specification
from relusym.registry import choose, one_of
from relusym.symmetry import SYMMETRIES
from relusym.training.recipe import OBJECTIVES

if TYPE_CHECKING:
    from relusym.experiments.models import Model, Section
    from relusym.experiments.settings import Settings

NEEDED = {
    "training": ("epochs", "batch_size", "learning_rate", "crop_padding"),
    "merging": ("matching", "images", "invariance_images", "batch_size"),
}

NOT_IN_PLAIN_NETS = "group_convs", "initialization"  # of two nets that are merged


def check(settings: Settings) -> None:
    """Raises UserError for the first thing that can't be."""
    config = settings.config
    _one_of("scale", config["scale"], config["scales"])
    _check_networks("defaults", config["defaults"])
    for name, scale in config["scales"].items():
        _check_networks(f"scales.{name}", scale)
        seed_list(scale["seeds"])
        _check_data(f"scales.{name}.data", {**config["defaults"].get("data", {}), **scale["data"]}, config)
    _check_source("cifar10", config["cifar10"])
    for name, source in config.get("datasets", {}).items():
        _check_source(f"datasets.{name}", source)
        if source["source"] == "torchvision":
            raise UserError(
                f"datasets.{name}.source: torchvision gives CIFAR10, which is the data set cifar10"
            )
    for name in [*settings.matchings, *config.get("matchings", [])]:
        _one_of("matchings", name, merging.MATCHINGS)
    for model in settings.models.values():
        _check_model(settings, model)
    _check_pairs(settings)
    _check_beyond(settings)
    unknown = [seed for seed in settings.seeds if seed not in settings.all_seeds]
    if unknown:
        given = config["scales"][settings.scale]["seeds"]
        raise UserError(f"seeds: {unknown[0]} is none of the scale {settings.scale}'s seeds {given}")


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
        if "matching" in section:
            _one_of(f"{key}.matching", section["matching"], merging.MATCHINGS)


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
    given = model.given
    scale = f"scales.{settings.scale}"
    family = f"families.{given.get('family')}"
    places = model.key, f"{scale}.{family}", scale, f"defaults.{family}", "defaults"

    def key(section: str, option: str = "") -> str:
        """Where the config has a model's section, or that option in it."""
        for place in places:
            found: Any = settings.config
            for part in [*place.split("."), section, *filter(None, [option])]:
                found = found.get(part) if isinstance(found, dict) else None
            if found is not None:
                return ".".join([place, section, *filter(None, [option])])
        return f"{scale}.{section}"

    def key_of(stage: str, option: str) -> str:
        """As `key`; what a stage doesn't say, `training` does."""
        return next(
            (k for k in (key(stage, option), key("training", option)) if k.endswith(option)), key(stage)
        )

    _check_data(key("data"), given["data"], settings.config)
    _one_of(key("symmetry"), given["symmetry"], SYMMETRIES)
    nets.check(given["network"], key("network"))
    for name in NEEDED["merging"]:
        if name not in given["merging"]:
            raise UserError(f"{key('merging')}: the key {name!r} is missing")
    _one_of(key("merging", "matching"), given["merging"]["matching"], merging.MATCHINGS)
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
                f"{key_of(stage, 'warmup_epochs')}: {how['warmup_epochs']} isn't less than the {how['epochs']} epochs"
            )
        if how["batch_size"] % how["processes"]:
            raise UserError(
                f"{key_of(stage, 'batch_size')}: {how['batch_size']} can't be shared evenly by {how['processes']} "
                "processes"
            )
    if given["data"]["dataset"] == "imagenet":
        resize, size = given["data"].get("resize") or 0, given["image_size"]
        if size is None or resize < size:
            raise UserError(
                f"{key('data', 'resize')}: {resize or None} given; a crop of {size} pixels ({model.id}) needs at least "
                "as many"
            )
    if given.get("paper") is not None and given["paper"] not in paper_values.resnets():
        raise UserError(f"{model.key}.paper: the paper's Table 5 has no row {given['paper']!r}")
