"""The models of a scale: each one's sections over those of the scale, and where the config sets each key."""

from dataclasses import dataclass
from functools import cached_property, partial
from operator import attrgetter
from typing import Any

from relusym import nets
from relusym.beyond.declaration import PARTS_OF_MODELS
from relusym.config.reading import deep_merge
from relusym.config.sections import SHARED, STAGES, Data, ModelSection, Scale, Sections, Training
from relusym.data import DATA_SETS
from relusym.schema import dotted
from relusym.whole_files import distinct_names

Values = dict[str, Any]

GENERATED, IMAGENET = "generated", "imagenet"
OF_GENERATED = "test_images", "invariant_to"  # keys of `data`


def specification(source: Values) -> Values:
    """A data set's config entry as `data.prepare` takes it, with `train` and `test` only for kinds that have them."""
    options = DATA_SETS[source["source"]].options.model_fields
    unused = {"source", "label", *({"root", "train", "test"} - {*options})}
    return {"kind": source["source"], **{key: value for key, value in source.items() if key not in unused}}


@dataclass(frozen=True)
class Place:
    """Names keys in messages: as keys of the scale's `file`, unless the run's config overrides them (`over`)."""

    file: str
    over: Values

    def __call__(self, *path: str | int, at: Any = None) -> str:
        """The key, after the scale's file unless the run's config sets the key (with `at`: that key below it)."""
        key = dotted(*path)
        if has(self.over, *path, *([] if at is None else [at])):
            return key or "config"
        return f"{self.file}: {key}" if key else self.file


def has(values: Any, *path: str | int) -> bool:
    """Whether plain values contain the key at `path`; below a list, every key counts as contained."""
    for part in path:
        if isinstance(values, list):
            return True
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return bool(path)


@dataclass(frozen=True)
class Model:
    """One type of nets: the sections of its entry over those of its scale.

    Attributes:
        id, entry: its key among the scale's models, and the entry there, which has what differs.
        values: the scale's file, overridden by the run's config, as plain values; `place` names their keys in messages.
        scale: the scale's sections.
    """

    id: str
    entry: ModelSection
    values: Values
    place: Place
    scale: Scale

    def key(self, *path: str | int, at: Any = None) -> str:
        """A key's name in messages: where the model's entry sets it, else where its scale does."""
        below = () if at is None else (at,)
        for above in (("models", self.id), ()):
            if has(self.values, *above, *path, *below):
                return self.place(*above, *path, at=at)
        return self.place(*path)

    def stage_key(self, stage: str, *path: str | int, at: Any = None) -> str:
        """Like `key`, for a key of a stage, which may be set under `training`."""
        below = path if at is None else (*path, at)
        has_it = any(has(self.values, *above, stage, *below) for above in (("models", self.id), ()))
        return self.key(stage if has_it else "training", *path, at=at)

    @cached_property
    def sections(self) -> Sections:
        """Its entry's sections merged over its scale's, except for `network`."""
        how = {"include": {*SHARED} - {"network"}, "exclude_unset": True}
        return Sections.model_validate(deep_merge(self.scale.model_dump(**how), self.entry.model_dump(**how)))

    table, image_size, symmetry, merging = (
        property(attrgetter(f"sections.{key}")) for key in ("table", "image_size", "symmetry", "merging")
    )

    @property
    def name(self) -> str:
        """Its name in tables."""
        return self.entry.name or self.id

    @property
    def seeds(self) -> list[int]:
        """The seeds of its nets."""
        return self.scale.seeds if self.entry.seeds is None else self.entry.seeds

    @property
    def is_in_paper(self) -> bool:
        """Whether it is part of the reproduction, and not only of measurements beyond the paper."""
        return self.table is not None

    @cached_property
    def data(self) -> Data:
        """Its images. Unless they are generated, keys for generated images (`OF_GENERATED`) aren't inherited from the
        scale; nor, if the run's config names the scale's data set, from the scale's file. Null is as if left out."""
        values = self.sections.data.explicit()
        if self.sections.data.dataset != GENERATED:
            path = ("models", self.id, "data") if self.id else ("data",)
            by_run = not self.id and has(self.place.over, *path, "dataset")
            for key in OF_GENERATED:
                if values.get(key) is None or not has(self.place.over if by_run else self.values, *path, key):
                    values.pop(key, None)
        return Data.read(values, partial(self.key, "data"))

    @cached_property
    def network(self) -> Values:
        """Its architecture and the options set for it; the scale's options for other architectures are ignored."""
        chosen = self.entry.explicit().get("network", {})
        network = Sections.model_fields["network"].default | self.scale.network | chosen
        known = ("architecture", *nets.options(network["architecture"]), *chosen)
        network = {key: value for key, value in network.items() if key in known}
        options = nets.check(network, partial(self.key, "network"))
        return network | options.explicit()

    @property
    def whole_network(self) -> Values:
        """Its architecture and all options, those that aren't set at their defaults."""
        return self.network | nets.check(self.network).model_dump()

    @property
    def recipe(self) -> list[str]:
        """The stages of its training; none if its weights come from elsewhere."""
        return [] if self.weights else self.sections.recipe

    @cached_property
    def stages(self) -> dict[str, Training]:
        """How each stage is trained: its section over its defaults (`STAGES`), over `training`."""
        training, stages = self.sections.training.explicit(), {}
        for stage in self.recipe:
            values = training | STAGES[stage] | getattr(self.sections, stage).explicit()
            stages[stage] = Training.read(values, partial(self.stage_key, stage))
        return stages

    @cached_property
    def weights(self) -> Values | None:
        """The source of its weights, a file before any other; None if it is trained."""
        weights = self.entry.weights
        sources = ((key, getattr(weights, key, None)) for key in ("file", "urls", "torchvision"))
        return next(({key: source, "layout": weights.layout} for key, source in sources if source), None)

    @property
    def origin(self) -> Values | None:
        """`weights` as far as its net depends on them, without the hashes at the end of URLs, which are only checks."""
        weights = self.weights or {}
        bare = {"urls": [url.partition("#")[0] for url in weights.get("urls", [])]}
        return weights | (bare if bare["urls"] else {}) or None

    @property
    def pinned(self) -> dict[str, str]:
        """The SHA-256 hashes at the end of its weights' URLs, by `distinct_names`."""
        parts = [url.partition("#sha256=") for url in (self.weights or {}).get("urls", [])]
        names = distinct_names(address for address, *_ in parts)
        return {name: pin.lower() for name, (*_, pin) in zip(names, parts, strict=True) if pin}

    @property
    def files(self) -> list[str]:
        """The local checkpoint files that the config names."""
        file = (self.weights or {}).get("file", [])
        return [file] if isinstance(file, str) else file

    @property
    def training_ids(self) -> list[str]:
        """The ids of the trainings of one of its nets, in order; only its id if its weights come from elsewhere."""
        return [*(f"{self.id}.{stage}" for stage in self.recipe[:-1]), self.id]


def without_left_out(scale: Scale) -> Scale:
    """The scale without the types that are set to null, and without measurements that have no types left."""
    gone = {id_ for id_, model in scale.models.items() if model is None}
    if not gone:
        return scale

    def kept(entries: list) -> list:
        return [each for each in entries if gone.isdisjoint(each if isinstance(each, list) else [each])]

    beyond = {}
    for name in scale.beyond.model_fields_set:
        if (section := getattr(scale.beyond, name)) is not None:
            lists = {key: getattr(section, key, None) for key in ("models", "pairs", *PARTS_OF_MODELS)}
            changed = {key: kept(value) for key, value in lists.items() if value}
            left = [changed.get(key, []) for key in ("models", "pairs") if lists[key] is not None]
            beyond[name] = None if left and not any(left) else section.model_copy(update=changed)
    update = {"pairs": kept(scale.pairs), "beyond": scale.beyond.model_copy(update=beyond)}
    return scale.model_copy(update=update)
