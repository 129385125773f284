"""One type of net: its entry of the config, laid over its family, its scale and the defaults."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from relusym import nets
from relusym.config.reading import laid_over, seed_list
from relusym.errors import UserError
from relusym.registry import one_of

Section = dict[str, Any]

NOT_A_MODELS = "families", "models", "pairs", "figure9", "beyond"  # of what a scale says


@dataclass(frozen=True)
class Model:
    """One type of net: its entry of the config, laid over its family, its scale and the defaults.

    Attributes:
        id: its key in the config.
        key: where the config has it, for messages.
        given: all sections, resolved.
        seeds: one net each.
    """

    id: str
    key: str
    given: Section
    seeds: list[int]

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.given.get("name", self.id)

    @property
    def is_papers(self) -> bool:
        """Whether it is part of the reproduction, and not of measurements beyond the paper alone."""
        return self.given["table"] != "beyond"

    @property
    def recipe(self) -> list[str]:
        """The stages of its training; none if its weights come from elsewhere."""
        return [] if self.weights else self.given["recipe"]

    @cached_property
    def weights(self) -> Section | None:
        """Where its weights come from, a file before any other source; None if a training makes them."""
        given = self.given.get("weights", {})
        source = next(((key, given[key]) for key in ("file", "urls", "torchvision") if given.get(key)), None)
        return dict([source]) | {"layout": given.get("layout", "auto")} if source else None

    @property
    def files(self) -> list[str]:
        """The local checkpoint files that the config names."""
        file = (self.weights or {}).get("file", [])
        return [file] if isinstance(file, str) else file

    def stage(self, name: str) -> Section:
        """How one stage trains: what `pretraining` and `linear` don't say, `training` does."""
        own = self.given[name] if name != "training" else {}
        return laid_over(self.given["training"], own)

    @property
    def units(self) -> list[str]:
        """Every training of one of its nets, in order; just one where weights come from elsewhere."""
        return [*(f"{self.id}.{stage}" for stage in self.recipe[:-1]), self.id]


def resolved(config: Section) -> dict[str, Model]:
    """Every model of the config's scale by its id, in the order of the config; those set to null are left out.

    Raises:
        UserError: a family that the scale doesn't have.
    """
    name = config["scale"]
    scale = laid_over(config["defaults"], config["scales"][name])
    shared = {key: value for key, value in scale.items() if key not in NOT_A_MODELS} | {"seeds": None}
    families = scale.get("families", {})
    found: dict[str, Model] = {}
    for key, entries in (("models", config["models"]), (f"scales.{name}.models", scale.get("models", {}))):
        for id_, entry in entries.items():
            found.pop(id_, None)
            if entry is None:
                continue
            family = entry.get("family")
            if family not in (None, *families):
                raise UserError(one_of(f"{key}.{id_}.family", family, families))
            given = laid_over(shared, families.get(family, {}), entry)
            known = nets.options(given["network"].get("architecture"))
            own = entry.get(
                "network", {}
            )  # of other sections' options, those of another architecture don't count
            given["network"] = {
                key: value
                for key, value in given["network"].items()
                if key in known or key in {"architecture", *own}
            }
            for option in ("test_images", "invariant_to"):  # likewise: of generated images alone
                if given["data"].get("dataset") != "generated" and option not in entry.get("data", {}):
                    given["data"].pop(option, None)
            seeds = given["seeds"] if given["seeds"] is not None else scale["seeds"]
            found[id_] = Model(id_, f"{key}.{id_}", given, seed_list(seeds))
    return found


def without_left_out(config: Section) -> Section:
    """The config without the types that are set to null where its pairs and measurements beyond the paper name them.

    A measurement that is left with none of the types it was of is left out as well.

    Raises:
        UserError: a scale that the config doesn't have.
    """
    name = config["scale"]
    if name not in config["scales"]:
        raise UserError(one_of("scale", name, config["scales"]))
    scale = config["scales"][name]
    models = {**config["models"], **scale.get("models", {})}
    gone = {id_ for id_, entry in models.items() if entry is None}

    def kept(entries: list) -> list:
        return [each for each in entries if gone.isdisjoint(each if isinstance(each, list) else [each])]

    def measured(section: Section | None) -> Section | None:
        lists = {key: kept(value) for key, value in (section or {}).items() if isinstance(value, list)}
        of = [lists[key] for key in ("models", "pairs") if key in lists]
        return None if section is None or (of and not any(of)) else {**section, **lists}

    own = {"pairs": kept(scale["pairs"])} if "pairs" in scale else {}
    if "beyond" in scale:
        own["beyond"] = {key: measured(section) for key, section in scale["beyond"].items()}
    scales = {**config["scales"], name: {**scale, **own}}
    return {**config, "pairs": kept(config["pairs"]), "scales": scales}
