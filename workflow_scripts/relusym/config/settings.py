"""The config, resolved to one scale: which nets, how each is made, what is merged with what."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from relusym import cifar10, paper_values
from relusym.beyond import MEASUREMENTS
from relusym.beyond.declaration import NOT_IN_SETTINGS
from relusym.config import checks
from relusym.config.models import (
    GENERATED,
    IMAGENET,
    Model,
    Place,
    Values,
    specification,
    without_left_out,
)
from relusym.config.reading import check_file, deep_merge, scale_file
from relusym.config.sections import ModelSection, Run, Running, Scale
from relusym.data import DATA_SETS, Extent, known_extent
from relusym.errors import UserError
from relusym.matching import OF_FLIPS, SEARCHES
from relusym.schema import allowed_names, unknown_key
from relusym.symmetry import HORIZONTAL_FLIP, SYMMETRIES
from relusym.training.recipe import Recipe

PLACE = "source", "root", "train", "test"
INVARIANT_TO = HORIZONTAL_FLIP.name  # of generated images, by default
Net = tuple[str, int]  # model and seed

FIGURE_3 = "momentum", "weight_decay", "crop_padding"  # what it takes from the scale's `training`


@dataclass(frozen=True)
class Settings:
    """A valid config, resolved to its scale.

    Attributes:
        run, sections: the keys of the run, and the sections of its scale.
        values: the scale's file, overridden by the run's config, as plain values; `place` names their keys in messages.
        folders: those in which scales are looked up.
    """

    run: Run
    sections: Scale
    values: Values
    place: Place
    folders: tuple[Path, ...]

    @classmethod
    def of(cls, config: Values, folders: Sequence[str | Path] = ("scales",)) -> Settings:
        """The settings of a run; UserError if the config isn't valid.

        Args:
            config: the keys of `Run`, and those of `Scale` that override the scale's file.
            folders: those in which scales are looked up; of two scales with one name, the first folder's counts.
        """
        over = {key: value for key, value in config.items() if key not in Run.model_fields}
        for key in over:
            if key not in Scale.model_fields:
                known = {**Run.model_fields, **Scale.model_fields}
                raise UserError(f"config: {unknown_key(key, known).context['text']}")
        run = Run.read({key: value for key, value in config.items() if key not in over}, Place("", config))
        file = scale_file(run.scale, folders)
        place = Place(str(file), over)
        in_file = check_file(file)
        values = deep_merge(in_file, over)
        scale = Scale.read(values, place)
        there = in_file.get("models") or {}
        for id_, model in scale.models.items():
            if model is None and id_ not in there:  # the type that was meant would be trained
                removes = "null given, which removes a type of the scale"
                raise UserError(f"{place('models', id_)}: {removes}; {allowed_names(id_, there)}")
        settings = cls(run, without_left_out(scale), values, place, tuple(map(Path, folders)))
        checks.check(settings)
        return settings

    # ---- the scale

    @property
    def scale(self) -> str:
        return self.run.scale

    @cached_property
    def paper(self) -> Settings | None:
        """The same run at the scale `paper`, as in its file; None if there is no valid one."""
        try:
            return self.of(self.run.explicit() | {"scale": "paper", "seeds": None}, self.folders)
        except UserError:
            return None

    @cached_property
    def models(self) -> dict[str, Model]:
        """Every type of net by its id, in the order of the config; without those that are set to null."""
        entries = self.sections.models.items()
        return {id_: self._model_with(id_, entry) for id_, entry in entries if entry is not None}

    @cached_property
    def common(self) -> Model:
        """The scale's sections alone, as a model whose entry is empty."""
        return self._model_with("", ModelSection())

    def _model_with(self, id_: str, entry: ModelSection) -> Model:
        return Model(id_, entry, self.values, self.place, self.sections)

    def table(self, name: str) -> list[str]:
        """The models in the table of that name, "table2" or "table5"."""
        return [model.id for model in self.models.values() if model.table == name]

    # ---- what is made

    @property
    def nets(self) -> list[Net]:
        """Every net of this run: each model with those of its seeds that are in the run."""
        return [(model.id, seed) for model in self.models.values() for seed in self._chosen(model)]

    def _chosen(self, model: Model) -> list[int]:
        """A model's seeds in this run; a limit on the scale's seeds doesn't apply to those of a model's own entry."""
        whole = self.run.seeds is None or model.entry.seeds is not None
        return model.seeds if whole else [seed for seed in model.seeds if seed in self.run.seeds]

    @property
    def trainings(self) -> list[Net]:
        """Every training and seed: those of the nets, and those of earlier stages."""
        return [
            (training_id, seed)
            for model, seed in self.nets
            for training_id in self.models[model].training_ids
        ]

    @property
    def types_paired(self) -> list[tuple[str, str]]:
        """The pairs of types that are merged with each other."""
        return [(first, second) for first, second in self.sections.pairs]

    @property
    def pairs(self) -> list[tuple[Net, Net]]:
        """Every pair of nets to merge: two types at each seed; one type at each seed and the type's next, cyclically.

        Each pair occurs once, in either order. In a run on some of the seeds, only pairs with both nets in the run.
        """
        nets, pairs = set(self.nets), {}
        for first, second in self.types_paired:
            seeds = self.models[first].seeds
            partners = seeds[1:] + seeds[:1] if first == second else seeds
            for a, b in zip(seeds, partners, strict=True):
                pair = (first, a), (second, b)
                pairs.setdefault(frozenset(pair), pair)
        return [(a, b) for a, b in pairs.values() if a in nets and b in nets and a != b]

    @property
    def compared(self) -> list[str]:
        """The matchings that the target `matchings` compares: those of its section, or the scale's; none if the
        section is null, or has no types left."""
        beyond = self.sections.beyond
        if beyond.matchings is None and "matchings" in beyond.model_fields_set:
            return []
        return self.beyond.get("matchings", {}).get("matchings") or self.sections.matchings

    def model_of(self, training_id: str) -> Model:
        """The model that a training belongs to; the id of an earlier stage is `<model>.<stage>`."""
        return self.models[training_id.partition(".")[0]]

    def stage_of(self, training_id: str) -> str | None:
        """The stage that is trained; None if weights come from elsewhere."""
        model, _, stage = training_id.partition(".")
        return stage or next(reversed(self.models[model].recipe), None)

    def start_of(self, training_id: str) -> str | None:
        """The training whose net it starts from, that of the stage before; None for the first."""
        training_ids = self.model_of(training_id).training_ids
        place = training_ids.index(training_id)
        return training_ids[place - 1] if place else None

    # ---- what a result depends on; the path of its record has a fingerprint of it (records/fingerprint.py)

    def train(self, training_id: str) -> Values:
        """Everything that a net depends on, apart from its seed."""
        model, stage = self.model_of(training_id), self.stage_of(training_id)
        settings = {
            "data": model.data.settings() | {"size": model.image_size},
            "network": model.whole_network,
            "symmetry": model.symmetry,
        }
        if stage is None:
            return settings | {"weights": model.origin}
        settings["training"] = model.stages[stage].settings()
        start = self.start_of(training_id)
        return settings | ({"start": self.train(start)} if start else {})

    def _merging(self, matching: str | None, *models: str) -> Values:
        model = self.models[models[0]]
        matched = {"matching": matching or model.merging.matching, "images": model.merging.images}
        if matched["matching"] in SEARCHES:
            matched["starts"] = model.merging.starts
        if model.data.resize is not None:
            matched["resize"] = model.data.resize
        return {"merging": matched, "trained": [self.train(model) for model in models]}

    def flip_merge(self, model: str, matching: str | None = None) -> Values:
        """Everything that a merge of a net with its flipped self, with its measurements, depends on."""
        return self._merging(matching, model) | {
            "symmetry": self.models[model].symmetry,
            "invariance_images": self.models[model].merging.invariance_images,
            "projection_seed": self.sections.filters.projection_seed,
        }

    def pair_merge(self, first: str, second: str, matching: str | None = None) -> Values:
        """Everything that merging two nets depends on."""
        return self._merging(matching, first, second)

    def theory(self, statement: str) -> Values:
        """Everything that the demonstration of a statement depends on."""
        theory = self.sections.theory
        return {"seed": theory.seed, "draws": getattr(theory.draws, statement)}

    def flipped_training(self) -> Values:
        """Everything that the two trainings of Figure 3 depend on."""
        common, training = self.common, self.sections.training.explicit()
        how = {key: training.get(key, Recipe.model_fields[key].default) for key in FIGURE_3}
        return {
            "data": common.data.settings() | ({"size": common.image_size} if common.image_size else {}),
            "network": {key: value for key, value in common.whole_network.items() if key != "group_convs"},
            "training": how | self.sections.flipped_training.model_dump(),
        }

    def running(self, training_id: str) -> Values:
        """The settings of `Running` and the number of processes of a training; empty if nothing is trained."""
        stage = self.stage_of(training_id)
        how = self.model_of(training_id).stages[stage] if stage else None
        return how.model_dump(include={*Running.model_fields, "processes"}) if how else {}

    @cached_property
    def absent(self) -> dict[str, str]:
        """Models whose images or weights aren't available, and why; what can be downloaded counts as available."""
        reasons = {name: self._absence(model) for name, model in self.models.items()}
        return {name: reason for name, reason in reasons.items() if reason}

    def _absence(self, model: Model) -> str | None:
        folders = self.imagenet.values() if model.data.dataset == IMAGENET else ()
        for folder in (folder for folder in folders if not Path(folder).is_dir()):
            return f"ImageNet is not at {folder}: set imagenet.root to the folder with train/ and val/"
        key = f"models.{model.id}.weights.file"
        for file in (file for file in model.files if not Path(file).is_file()):
            return f"the checkpoint {file} is missing: set {key}"
        if not model.weights and not model.recipe:
            return f"no checkpoint is at hand: set {key} to a local file"
        return None

    # ---- images

    def source(self, dataset: str) -> Values:
        """Where a data set comes from, and its label."""
        if dataset == GENERATED:
            return {"source": GENERATED, "label": "generated chiral shapes"}
        if dataset == IMAGENET:
            place = self.run.imagenet.model_dump()
            return {"source": IMAGENET, "test": place.pop("val"), **place}
        return (self.run.cifar10 if dataset == "cifar10" else self.run.datasets[dataset]).explicit()

    def unread(self, over: Values) -> list[str]:
        """The data sets in `over`, a part of the run's config, that nothing at this scale reads."""
        read = {model.data.dataset for model in (self.common, *self.models.values())}
        names = [name for name in ("cifar10", IMAGENET) if name in over]
        return [name for name in [*names, *over.get("datasets", {})] if name not in read]

    def label(self, model: str | None = None) -> str:
        """The label of a model's images (None: the scale's) in records and tables."""
        data = self._model(model).data
        label = self.source(data.dataset)["label"]
        if data.dataset != GENERATED:
            return label
        if (symmetry := data.invariant_to) != INVARIANT_TO:
            label += (
                f" invariant to the {symmetry}".replace("_", " ") if symmetry else " invariant to no symmetry"
            )
        return f"{label}, seed {data.seed}"

    def _model(self, model: str | None) -> Model:
        return self.models[model] if model else self.common

    def prepared(self, model: str | None = None) -> str:
        """The name of the file of prepared images that a model (None: the scale) reads; different for each source."""
        data = self._model(model).data
        if data.dataset == GENERATED:
            ending = "" if data.invariant_to == INVARIANT_TO else f"-{data.invariant_to}"
            return f"generated-{data.train_images}-{data.test_images}-{data.seed}{ending}"
        source = self.source(data.dataset)
        others = [value for key, value in source.items() if key not in (*PLACE, "label")]
        place = json.dumps([*(source.get(key) for key in PLACE), *others])
        name = f"{data.dataset}-{source['source']}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"
        if data.dataset != IMAGENET:
            return name
        net = self.models[model]
        return f"{name}-{data.resize}-{net.image_size}-{net.merging.images}-{data.seed}"

    def preparation(self, prepared: str) -> tuple[Values, str]:
        """The specification of that file of prepared images for `data.prepare`, and its key in the config."""
        return self.preparation_for(self.readers(prepared)[0])

    def readers(self, prepared: str) -> list[str | None]:
        """The models that read that file of prepared images; None stands for the scale itself, in Figure 3."""
        return [id_ for id_ in (None, *self.models) if self._reads(id_) and self.prepared(id_) == prepared]

    def preparation_for(self, model: str | None) -> tuple[Values, str]:
        """Like `preparation`, for the images of a model (None: of the scale)."""
        net, data = self._model(model), self._model(model).data
        source = self.source(data.dataset)
        if data.dataset == GENERATED:
            options = DATA_SETS[GENERATED].options.model_fields
            chosen = {key: getattr(data, key) for key in options if key in data.explicit() or key == "seed"}
            return {"kind": GENERATED, **chosen}, net.key("data")
        if data.dataset == IMAGENET:
            folders = {"root": source["root"], "train": source["train"], "val": source["test"]}
            how = {"resize": data.resize, "seed": data.seed, "size": net.image_size}
            return {"kind": IMAGENET, **folders, **how, "train_images": net.merging.images}, IMAGENET
        key = data.dataset if data.dataset == "cifar10" else f"datasets.{data.dataset}"
        return specification(source), key

    def known_extent(self, model: str | None) -> Extent | None:
        """The extent of a model's images (None: the scale's), if it is known without reading them."""
        return known_extent(self.preparation_for(model)[0]) if self._reads(model) else None

    def known_digest(self, model: str | None) -> str | None:
        """The digest of their content, if it is known without reading them."""
        return cifar10.DIGEST if self.preparation_for(model)[0]["kind"] == "torchvision" else None

    def _reads(self, model: str | None) -> bool:
        """Whether it reads prepared images: ImageNet is prepared only for a model, at its image size."""
        return model is not None or self.common.data.dataset != IMAGENET

    @cached_property
    def imagenet(self) -> dict[str, str]:
        """ImageNet's folders, "train" and "test"."""
        source = self.source(IMAGENET)
        return {split: str(Path(source["root"]) / source[split]) for split in ("train", "test")}

    # ---- beyond the paper: the nets of each measurement, and what it depends on

    @cached_property
    def beyond(self) -> dict[str, Values]:
        """The scale's measurements beyond the paper by name: their options and the chosen nets."""
        chosen = "models", "pairs", "seeds"
        return {
            name: section.model_dump(exclude={key for key in chosen if getattr(section, key, None) is None})
            for name in self.values.get("beyond", {})  # in the order of the scale's file
            if (section := getattr(self.sections.beyond, name)) is not None
        }

    @property
    def measured(self) -> list[str]:
        """The scale's measurements beyond the paper, without `matchings`, which consists of merges."""
        return [name for name in self.beyond if name in MEASUREMENTS]

    def subjects(self, name: str) -> list[tuple[Net, ...]]:
        """The nets, then the pairs, that a measurement beyond the paper is made on, in this run and of its `seeds`.

        For a measurement on several nets, the first is of `seeds`, the others are of the seeds that follow, cyclically.
        """
        section = self.beyond[name]
        if MEASUREMENTS[name].several:
            chosen, count = {*self.nets}, max(section["counts"])
            sets = [
                tuple((model, seed) for seed in (seeds + seeds)[place : place + count])
                for model in section.get("models", [])
                for seeds in [self.models[model].seeds]
                for place, first in enumerate(seeds)
                if first in section.get("seeds", seeds)
            ]
            return [nets for nets in sets if chosen.issuperset(nets)]
        types = [tuple(pair) for pair in section.get("pairs", [])]
        nets = [(net,) for net in self.nets if net[0] in section.get("models", [])]
        pairs = [pair for pair in self.pairs if (pair[0][0], pair[1][0]) in types]
        return [several for several in nets + pairs if self._has_seeds(section, several)]

    def is_matched(self, nets: tuple[Net, ...], matching: str | None) -> bool:
        """Whether these one or two nets are merged by `matching`, too (None: by the config's, for all tables)."""
        if not all(self.models[model].is_in_paper for model, _ in nets):
            return False
        if matching == self.models[nets[0][0]].merging.matching:  # the config's
            return False
        orders = {SYMMETRIES[self.models[model].symmetry].order for model, _ in nets}
        if matching in OF_FLIPS and (len(nets) > 1 or orders != {2}):
            return False
        return matching is None or self.is_in_matchings(nets)

    def is_in_matchings(self, nets: tuple[Net, ...]) -> bool:
        """Whether the target `matchings` includes these nets; its section chooses them, by default all."""
        section, types = self.beyond.get("matchings", {}), [model for model, _ in nets]
        if len(types) > 1 and types not in section.get("pairs", [types]):
            return False
        return self._has_seeds(section, nets) and {*types} <= {*section.get("models", types)}

    def _has_seeds(self, section: Values, nets: tuple[Net, ...]) -> bool:
        return section.get("seeds") is None or {seed for _, seed in nets} <= {*section["seeds"]}

    def measurement(self, name: str, *models: str) -> Values:
        """Everything that a measurement beyond the paper depends on."""
        section = self.beyond[name]
        settings = self._merging(section.get("matching"), *models)
        if section.get("images") is not None:
            settings["merging"] = settings["merging"] | {"images": section["images"]}
        if len(models) == 1:
            settings["symmetry"] = self.models[models[0]].symmetry
        settings |= {key: value for key, value in section.items() if key not in NOT_IN_SETTINGS}
        snapshots = self.running(models[0]).get("snapshots", [])
        return settings | MEASUREMENTS[name].settings(section, models[0], settings, snapshots)

    # ---- what the tables show

    @property
    def figure9(self) -> str | None:
        """The model whose filters Figure 9 shows; None if the scale has no such model."""
        model = self.models.get(self.sections.figure9)
        return model.id if model and model.is_in_paper else None

    @property
    def names(self) -> dict[str, str]:
        """The name of each model in tables."""
        return {name: model.name for name, model in self.models.items()}

    def paper_row(self, model: str) -> str | None:
        """The row of the paper's Table 5 that a model is compared with, if any."""
        row = self.models[model].entry.paper
        return row if row or model not in paper_values.resnets() else model

    @property
    def in_table3(self) -> list[str]:
        """The models of Table 3: those whose counterparts are in the paper's Table 3."""
        there = {row for row, values in paper_values.resnets().items() if values["in_table3"] == "yes"}
        return [model for model in self.table("table5") if self.paper_row(model) in there]

    def shown(self, model: str) -> Values:
        """What Tables 3 and 5 show of a model besides its measurements; its config overrides the paper's row."""
        net, row = self.models[model], self.paper_row(model)
        published, flags = paper_values.resnets()[row] if row else {}, {}
        for key in ("trained_by_authors", "self_supervised"):
            flag = getattr(net.entry, key)
            flags[key] = published.get(key) == "yes" if flag is None else flag
        return {"name": net.name, **flags, "image_size": net.image_size, "paper": row}
