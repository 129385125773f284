"""What a scale measures beyond the paper (docs/beyond.md): of which nets, and on what each measurement depends."""

from collections.abc import Callable
from functools import cached_property

from relusym.config.measurements import MEASUREMENTS, SECTIONS, SELECTION
from relusym.config.models import Model, Section
from relusym.config.reading import seed_list
from relusym.matching import OF_FLIPS
from relusym.registry import choose
from relusym.symmetry import SYMMETRIES

Net = tuple[str, int]  # model and seed


class Beyond:
    """The part of `settings.Settings` that is about measurements beyond the paper."""

    scale: str
    models: dict[str, Model]
    nets: list[Net]
    pairs: list[tuple[Net, Net]]
    running: Callable[[str], Section]
    _scale: Section
    _merging: Callable[..., Section]

    @cached_property
    def beyond(self) -> dict[str, Section]:
        """By name, the sections of the scale's measurements beyond the paper, their options' defaults filled in."""
        found = {}
        for name, given in self._scale.get("beyond", {}).items():
            if given is not None:
                key = f"scales.{self.scale}.beyond"
                options = {option: value for option, value in given.items() if option not in SELECTION}
                chosen = {option: value for option, value in given.items() if option in SELECTION}
                if chosen.get("seeds") is not None:
                    chosen["seeds"] = seed_list(chosen["seeds"])
                found[name] = choose(SECTIONS, "name", {"name": name, **options}, key)[1] | chosen
        return found

    @property
    def measured(self) -> list[str]:
        """The measurements beyond the paper that the scale has, in their own order."""
        return [name for name in MEASUREMENTS if name in self.beyond]

    def subjects(self, name: str) -> list[tuple[Net, ...]]:
        """What a measurement beyond the paper is made on, as far as it is of this run: nets, then pairs of nets.

        `models` are the types of single nets, `pairs` those of pairs; the nets are of `seeds` (left out: of all).
        """
        section = self.beyond[name]
        types = [tuple(pair) for pair in section.get("pairs", [])]
        nets = [(net,) for net in self.nets if net[0] in section.get("models", [])]
        found = nets + [pair for pair in self.pairs if (pair[0][0], pair[1][0]) in types]
        return [several for several in found if self._has_seeds(section, several)]

    def is_matched(self, nets: tuple[Net, ...], matching: str | None) -> bool:
        """Whether one net or two are merged by this matching (None: the config's, for all tables)."""
        if not all(self.models[model].is_papers for model, _ in nets):
            return False
        orders = {SYMMETRIES[self.models[model].given["symmetry"]].order for model, _ in nets}
        if matching in OF_FLIPS and (len(nets) > 1 or orders != {2}):
            return False
        return matching is None or self.is_in_matchings(nets)

    def is_in_matchings(self, nets: tuple[Net, ...]) -> bool:
        """Whether the target `matchings` is about these nets; its section says which, by default all."""
        section, types = self.beyond.get("matchings", {}), [model for model, _ in nets]
        if len(types) > 1 and types not in section.get("pairs", [types]):
            return False
        return self._has_seeds(section, nets) and {*types} <= {*section.get("models", types)}

    def _has_seeds(self, section: Section, nets: tuple[Net, ...]) -> bool:
        return section.get("seeds") is None or {seed for _, seed in nets} <= {*section["seeds"]}

    def measurement(self, name: str, *models: str) -> Section:
        """All that a measurement beyond the paper depends on."""
        section = self.beyond[name]
        settings = self._merging(section.get("matching"), *models)
        if section["images"] is not None:
            settings["merging"] = settings["merging"] | {"images": section["images"]}
        if len(models) == 1:
            settings["symmetry"] = self.models[models[0]].given["symmetry"]
        skipped = {*SELECTION, "images", "matching"}
        settings |= {key: value for key, value in section.items() if key not in skipped}
        if name == "exact_gcnn":
            settings["from_scratch"] = models[0] in section["from_scratch"]
        training = settings["trained"][0].get("training", {})
        if name == "during_training":
            last = training["epochs"]
            kept = self.running(models[0])["snapshots"]
            settings["epochs"] = [*sorted(epoch for epoch in kept if epoch < last), last]
        if name == "symmetries":  # a net that wasn't trained for any has none of its own
            trained_for_none = not training["augmentation"] and training["invariance_from"] is None
            settings["symmetries"] = [*SYMMETRIES] if trained_for_none else [settings["symmetry"]]
        return settings
