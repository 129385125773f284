"""The config, checked and resolved to one scale: which nets, how each is trained, what is merged with what."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any

import jsonschema
import yaml

from relusym.errors import UserError

Net = tuple[str, int]  # model type and seed

EXPONENTIAL = re.compile(r"[-+]?[0-9]+\.?[0-9]*[eE][-+]?[0-9]+")  # 1e-2, which YAML 1.1 takes for text


def seed_list(given: int | str | list[int]) -> list[int]:
    """The seeds meant by 3, "0-3", "0,2,5-7" or [0, 2].

    Raises:
        UserError: a seed listed twice, or a range that runs backwards.
    """
    if isinstance(given, int):
        return [given]
    seeds: list[int] = []
    for part in given.split(",") if isinstance(given, str) else given:
        first, _, last = str(part).partition("-")
        if last and int(last) < int(first):
            raise UserError(f"seeds: the range {part} runs backwards; write {last}-{first}")
        seeds += range(int(first), int(last or first) + 1)
    twice = [seed for seed, count in Counter(seeds).items() if count > 1]
    if twice:
        raise UserError(f"seeds: {twice[0]} is listed twice in {given}; list each seed once")
    return seeds


def plain(config: Any) -> Any:
    """The config as plain JSON values; numbers that Snakemake's command line left as text are numbers again."""
    if isinstance(config, dict):
        return {key: plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [plain(value) for value in config]
    if isinstance(config, str):
        if EXPONENTIAL.fullmatch(config):
            return float(config)
        try:
            value = yaml.safe_load(config) if config else config
        except yaml.YAMLError:  # text that only looks like YAML, such as a folder named {new}
            return config
        config = value if value is None or isinstance(value, bool | int | float) else config
    # JSON has no infinity or not-a-number: left as text, they are refused as no number
    return str(config) if isinstance(config, float) and not math.isfinite(config) else config


def validate(config: dict[str, Any]) -> None:
    """Check a config of plain values against `config.schema.json` and for what a schema can't say.

    Raises:
        UserError: names the key, what was given and what is allowed.
    """
    schema = json.loads(
        files("relusym.experiments").joinpath("config.schema.json").read_text(encoding="utf-8")
    )
    checker = jsonschema.Draft202012Validator(schema)
    error = jsonschema.exceptions.best_match(checker.iter_errors(config))
    if error is not None:
        raise UserError(_one_line(error))
    if config["scale"] not in config["scales"]:
        raise UserError(f"scale: {config['scale']!r} is none of {', '.join(config['scales'])}")
    for pair in config["pairs"]:
        for model in pair:
            if model not in config["models"]:
                raise UserError(
                    f"pairs: [{', '.join(pair)}] names {model!r}, which isn't trained; "
                    f"the types under `models` are {', '.join(config['models'])}"
                )
    twice = [pair for pair, count in Counter(map(tuple, config["pairs"])).items() if count > 1]
    if twice:
        raise UserError(f"pairs: [{', '.join(twice[0])}] is listed twice; list each pair once")
    for name, scale in config["scales"].items():
        seed_list(scale["seeds"])
        generated = scale["data"]["dataset"] == "generated"
        if generated and (scale["data"]["train_images"] is None or "test_images" not in scale["data"]):
            raise UserError(f"scales.{name}.data: generated images need numbers train_images and test_images")
        if not generated and "test_images" in scale["data"]:
            raise UserError(f"scales.{name}.data.test_images: only for generated images; remove the key")
        width = scale["network"]["width"]
        if width * 32 % 1:
            raise UserError(
                f"scales.{name}.network.width: {width} given; allowed are multiples of 1/32, so that a group conv "
                "has a whole number of pairs of channels"
            )
        training = scale["training"]
        if training["warmup_epochs"] >= training["epochs"]:
            raise UserError(
                f"scales.{name}.training.warmup_epochs: {training['warmup_epochs']} isn't less than the "
                f"{training['epochs']} epochs"
            )


def _one_line(error: jsonschema.ValidationError) -> str:
    """A schema error as key, given, allowed."""
    key = ".".join(str(part) for part in error.absolute_path) or "config"
    if error.validator == "additionalProperties":
        allowed = list(error.schema.get("properties", {}))
        unknown = next(name for name in error.instance if name not in allowed)
        return f"{key}: unknown key {unknown!r}; allowed are {', '.join(allowed)}"
    if error.validator == "required":
        missing = next(name for name in error.validator_value if name not in error.instance)
        return f"{key}: the key {missing!r} is missing"
    rules = {
        "type": "a value of type {}",
        "enum": "one of {}",
        "minimum": "at least {}",
        "maximum": "at most {}",
        "exclusiveMinimum": "more than {}",
        "exclusiveMaximum": "less than {}",
        "pattern": "text that matches {}",
        "minLength": "text of at least {} character",
        "minItems": "a list of at least {}",
        "maxItems": "a list of at most {}",
        "minProperties": "at least {} entry",
    }
    allowed = error.validator_value
    if "seeds" in error.absolute_path:  # written in several ways
        return f"{key}: {error.instance!r} given; allowed are seeds such as 3, 0-3, or [0, 5]"
    allowed = ", ".join(map(str, allowed)) if isinstance(allowed, list) else str(allowed)
    rule = rules.get(error.validator)
    return (
        f"{key}: {error.instance!r} given; allowed is {rule.format(allowed)}"
        if rule
        else f"{key}: {error.message}"
    )


@dataclass(frozen=True)
class Settings:
    """A valid config, resolved to its scale.

    Raises (on creation by `of`):
        UserError: the config is not valid.
    """

    config: dict[str, Any]

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Settings":
        settings = cls(plain(config))
        validate(settings.config)
        unknown = [seed for seed in settings.seeds if seed not in settings.all_seeds]
        if unknown:
            raise UserError(
                f"seeds: {unknown[0]} is none of the scale {settings.scale}'s seeds {settings._scale['seeds']}"
            )
        return settings

    @property
    def scale(self) -> str:
        return self.config["scale"]

    @property
    def _scale(self) -> dict[str, Any]:
        return self.config["scales"][self.scale]

    @cached_property
    def all_seeds(self) -> list[int]:
        """The scale's seeds."""
        return seed_list(self._scale["seeds"])

    @cached_property
    def seeds(self) -> list[int]:
        """Those of the scale's seeds that this run is about."""
        given = self.config["seeds"]
        return self.all_seeds if given is None else seed_list(given)

    @property
    def models(self) -> list[str]:
        """The model types in the order of the config."""
        return list(self.config["models"])

    @property
    def nets(self) -> list[Net]:
        """Every net to train."""
        return [(model, seed) for model in self.models for seed in self.seeds]

    @property
    def types_paired(self) -> list[tuple[str, str]]:
        """The rows of Table 4."""
        return [(first, second) for first, second in self.config["pairs"]]

    @property
    def pairs(self) -> list[tuple[Net, Net]]:
        """Every pair of nets to merge: two types by seed; one type seed by next seed of the scale, cyclically.

        Of a run on some of the seeds, only the pairs whose two nets are both in it.
        """
        following = dict(zip(self.all_seeds, self.all_seeds[1:] + self.all_seeds[:1], strict=True))
        chosen = (
            ((first, seed), (second, following[seed] if first == second else seed))
            for first, second in self.types_paired
            for seed in self.seeds
        )
        return [(a, b) for a, b in chosen if b[1] in self.seeds and a != b]

    @property
    def dataset(self) -> str:
        """The name of the prepared data file."""
        data = self._scale["data"]
        if data["dataset"] == "generated":
            return f"generated-{data['train_images']}-{data['test_images']}-{data['seed']}"
        return f"cifar10-{self.config['cifar10']['source']}"

    def train(self, model: str) -> dict[str, Any]:
        """All that a training of this type depends on, its seed aside; kept in its record."""
        how = self.config["models"][model]
        return {
            "data": self._scale["data"],
            "network": {**self._scale["network"], "group_convs": how["group_convs"]},
            "training": {
                **self._scale["training"],
                "flip_augmentation": how["flip_augmentation"],
                "invariance_from": how["invariance_from"],
            },
            "invariance_images": self._scale["merging"]["invariance_images"],
        }

    def merge(self, models: Iterable[str]) -> dict[str, Any]:
        """All that a merge of nets of these types depends on; kept in its record."""
        merging = {key: self._scale["merging"][key] for key in ("images", "batch_size")}
        return {"merging": merging, "trained": [self.train(model) for model in models]}

    def filters(self, model: str) -> dict[str, Any]:
        """All that the arrays of a net's filters depend on; kept in their file."""
        return {"projection_seed": self.config["filters"]["projection_seed"], **self.merge([model])}

    def theory(self, statement: str) -> dict[str, Any]:
        """All that the demonstration of a statement depends on; kept in its record."""
        given = self.config["theory"]
        return {"seed": given["seed"], "draws": given["draws"][statement]}

    def flipped_training(self) -> dict[str, Any]:
        """All that the two trainings of Figure 3 depend on; kept in their record."""
        training = {key: self._scale["training"][key] for key in ("momentum", "weight_decay", "crop_padding")}
        return {
            "data": self._scale["data"],
            "network": self._scale["network"],
            "training": {**training, **self.config["flipped_training"]},
        }

    def notes(self) -> list[str]:
        """What a reader of a table has to know of this scale: data, nets, training, merging."""
        data, training, merging = (self._scale[key] for key in ("data", "training", "merging"))
        network = self._scale["network"]
        images = "all" if data["train_images"] is None else f"{data['train_images']:,}"
        matched = (
            "all training images" if merging["images"] is None else f"{merging['images']:,} training images"
        )
        return [
            f"Scale {self.scale}: {data['dataset']} data, {images} training images; width {network['width']:g}, "
            f"{network['initialization']} initialization",
            f"{training['epochs']} epochs, batch {training['batch_size']}, learning rate "
            f"{training['learning_rate']:g}, invariance weight {training['invariance_weight']:g}; "
            f"seeds {self._scale['seeds']}",
            f"Channels matched and REPAIR's statistics taken on {matched}; invariance error over "
            f"{merging['invariance_images']:,} training images",
        ]
