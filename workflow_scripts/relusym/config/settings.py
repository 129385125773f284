"""The config, resolved to one scale: which nets, how each is made, what is merged with what.

Nothing here imports PyTorch: Snakemake reads it at every start.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from relusym import paper_values
from relusym.config import checks
from relusym.config.beyond import Beyond
from relusym.config.models import Model, Section, resolved, without_left_out
from relusym.config.reading import laid_over, plain, seed_list, validate
from relusym.config.sources import IMAGENET, Sources
from relusym.errors import UserError
from relusym.matching import SEARCHES, STARTS

Net = tuple[str, int]  # model and seed

NOT_IN_RESULTS = {
    "save_every",
    "restarts",
    "workers",
    "snapshots",
}  # of a stage: how it runs, not what comes of it


@dataclass(frozen=True)
class Settings(Sources, Beyond):
    """A valid config, resolved to its scale.

    Raises (on creation by `of`):
        UserError: the config is not valid.
    """

    config: Section

    @classmethod
    def of(cls, config: Section) -> Settings:
        config = plain(config)
        validate(config)
        settings = cls(without_left_out(config))
        checks.check(settings)
        return settings

    # ---- the scale

    @property
    def scale(self) -> str:
        return self.config["scale"]

    @cached_property
    def _scale(self) -> Section:
        """The scale's own sections over the defaults."""
        return laid_over(self.config["defaults"], self.config["scales"][self.scale])

    @cached_property
    def paper(self) -> Settings | None:
        """The same config at the scale `paper`; None without a valid one."""
        try:
            return self.of({**self.config, "scale": "paper", "seeds": None})
        except UserError:
            return None

    @cached_property
    def models(self) -> dict[str, Model]:
        """Every type of net by its id, in the order of the config."""
        return resolved(self.config)

    def table(self, name: str) -> list[str]:
        """The models that a table shows, "table2" or "table5"."""
        return [model.id for model in self.models.values() if model.given["table"] == name]

    @cached_property
    def all_seeds(self) -> list[int]:
        """The scale's seeds."""
        return seed_list(self.config["scales"][self.scale]["seeds"])

    @cached_property
    def seeds(self) -> list[int]:
        """Those of the scale's seeds that this run is about."""
        given = self.config["seeds"]
        return self.all_seeds if given is None else seed_list(given)

    # ---- what is made

    @property
    def nets(self) -> list[Net]:
        """Every net of this run: of each model those of its seeds that the run is about."""
        return [(model.id, seed) for model in self.models.values() for seed in self._chosen(model)]

    def _chosen(self, model: Model) -> list[int]:
        """A model with seeds of its own is part of the run on any piece of the scale's."""
        own = self.config["seeds"] is None or model.given["seeds"] is not None
        return model.seeds if own else [seed for seed in model.seeds if seed in self.seeds]

    @property
    def trainings(self) -> list[Net]:
        """Every unit and seed: the nets, and the earlier stages of those that have several."""
        return [(unit, seed) for model, seed in self.nets for unit in self.models[model].units]

    @property
    def types_paired(self) -> list[tuple[str, str]]:
        """Which types are merged with each other."""
        return [(first, second) for first, second in [*self.config["pairs"], *self._scale.get("pairs", [])]]

    @property
    def pairs(self) -> list[tuple[Net, Net]]:
        """Every pair of nets to merge: two types by seed; one type seed by next seed of the type, cyclically.

        Of a run on some of the seeds, only the pairs whose two nets are both in it.
        """
        nets, chosen = set(self.nets), []
        for first, second in self.types_paired:
            seeds = self.models[first].seeds
            partners = seeds[1:] + seeds[:1] if first == second else seeds
            chosen += [((first, a), (second, b)) for a, b in zip(seeds, partners, strict=True)]
        return [(a, b) for a, b in chosen if a in nets and b in nets and a != b]

    @property
    def matchings(self) -> list[str]:
        """The matchings that the target `matchings` compares, without the one of all other tables."""
        default = self._scale["merging"]["matching"]
        return [name for name in self.compared if name != default]

    @property
    def compared(self) -> list[str]:
        """All matchings that the target `matchings` compares: those of its section, or the config's."""
        return self.beyond.get("matchings", {}).get("matchings") or self.config.get("matchings", [])

    def model_of(self, unit: str) -> Model:
        """The model of a unit: of itself, or of one of its earlier stages."""
        return self.models[unit.partition(".")[0]]

    def stage_of(self, unit: str) -> str | None:
        """The stage that a unit trains; None if its weights come from elsewhere."""
        model, _, stage = unit.partition(".")
        return stage or next(reversed(self.models[model].recipe), None)

    def start_of(self, unit: str) -> str | None:
        """The unit whose net a training starts from: the stage before its own."""
        units = self.model_of(unit).units
        place = units.index(unit)
        return units[place - 1] if place else None

    # ---- what a result depends on: kept in its record, compared by `currency.stale`

    def train(self, unit: str) -> Section:
        """All that the making of a net depends on, its seed aside."""
        model, stage = self.model_of(unit), self.stage_of(unit)
        given = model.given
        data = {
            key: value for key, value in given["data"].items() if key != "resize"
        }  # of measurements alone
        settings = {
            "data": {**data, "size": given["image_size"]},
            "network": given["network"],
            "symmetry": given["symmetry"],
        }
        if stage is None:
            return settings | {"weights": model.weights}
        how = {key: value for key, value in model.stage(stage).items() if key not in NOT_IN_RESULTS}
        if how["invariance_from"] is None:
            how.pop("invariance_weight")
        start = self.start_of(unit)
        return settings | {"training": how} | ({"start": self.train(start)} if start else {})

    def _merging(self, matching: str | None, *models: str) -> Section:
        given = self.models[models[0]].given
        matched = {"matching": matching or given["merging"]["matching"], "images": given["merging"]["images"]}
        if matched["matching"] in SEARCHES:
            matched["starts"] = given["merging"].get("starts", STARTS)
        if "resize" in given["data"]:
            matched["resize"] = given["data"]["resize"]
        return {"merging": matched, "trained": [self.train(model) for model in models]}

    def flip_merge(self, model: str, matching: str | None = None) -> Section:
        """All that merging a net with its flipped self depends on, and what else is measured of the two."""
        given = self.models[model].given
        return self._merging(matching, model) | {
            "symmetry": given["symmetry"],
            "invariance_images": given["merging"]["invariance_images"],
            "projection_seed": self.config["filters"]["projection_seed"],
        }

    def pair_merge(self, first: str, second: str, matching: str | None = None) -> Section:
        """All that merging two nets depends on."""
        return self._merging(matching, first, second)

    def theory(self, statement: str) -> Section:
        """All that the demonstration of a statement depends on."""
        given = self.config["theory"]
        return {"seed": given["seed"], "draws": given["draws"][statement]}

    def flipped_training(self) -> Section:
        """All that the two trainings of Figure 3 depend on."""
        training = {key: self._scale["training"][key] for key in ("momentum", "weight_decay", "crop_padding")}
        network = {key: value for key, value in self._scale["network"].items() if key != "group_convs"}
        size = self._scale["image_size"]
        return {
            "data": self._scale["data"] | ({"size": size} if size else {}),
            "network": network,
            "training": {**training, **self.config["flipped_training"]},
        }

    def running(self, unit: str) -> Section:
        """How the training of a unit runs, as far as its result doesn't depend on it; empty if it isn't trained."""
        stage = self.stage_of(unit)
        how = self.model_of(unit).stage(stage) if stage else {}
        return {key: how[key] for key in (*NOT_IN_RESULTS, "processes") if key in how}

    @cached_property
    def absent(self) -> dict[str, str]:
        """Models that can't be made with what is at hand, and why; what can be downloaded counts as at hand."""
        found = {name: self._absence(model) for name, model in self.models.items()}
        return {name: reason for name, reason in found.items() if reason}

    def _absence(self, model: Model) -> str | None:
        if model.given["data"]["dataset"] == IMAGENET:
            for folder in self.imagenet.values():
                if not Path(folder).is_dir():
                    return (
                        f"ImageNet is not at {folder}: set imagenet.root to the folder with train/ and val/"
                    )
        for file in model.files:
            if not Path(file).is_file():
                return f"the checkpoint {file} is missing: set {model.key}.weights.file"
        if not model.weights and not model.recipe:
            return f"no checkpoint is at hand: set {model.key}.weights.file to a local file"
        return None

    # ---- what the tables show

    @property
    def figure9(self) -> str | None:
        """The model whose filters Figure 9 shows; None if the scale has no such model."""
        model = self._scale.get("figure9")
        return model if model in self.models else None

    @property
    def names(self) -> dict[str, str]:
        """What tables call each model."""
        return {name: model.name for name, model in self.models.items()}

    def paper_row(self, model: str) -> str | None:
        """The row of the paper's Table 5 that a model stands beside."""
        given = self.models[model].given.get("paper")
        return given if given or model not in paper_values.resnets() else model

    @property
    def in_table3(self) -> list[str]:
        """The models of Table 3: those whose counterparts the paper has there."""
        there = {row for row, says in paper_values.resnets().items() if says["in_table3"] == "yes"}
        return [model for model in self.table("table5") if self.paper_row(model) in there]

    def shown(self, model: str) -> Section:
        """What Tables 3 and 5 say of a model besides its measurements; its config goes before its paper's row."""
        given, row = self.models[model].given, self.paper_row(model)
        says = paper_values.resnets()[row] if row else {}
        flags = {
            key: given.get(key, says.get(key) == "yes") for key in ("trained_by_authors", "self_supervised")
        }
        return {"name": self.models[model].name, **flags, "image_size": given["image_size"], "paper": row}
