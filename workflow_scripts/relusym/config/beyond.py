"""What a scale measures beyond the paper (docs/beyond.md): of which nets, and on what each measurement depends."""

from collections.abc import Callable
from functools import cached_property

from relusym.config.measurements import MEASUREMENTS, SELECTION
from relusym.config.models import Model, Values
from relusym.config.sections import Scale
from relusym.matching import OF_FLIPS
from relusym.symmetry import SYMMETRIES

Net = tuple[str, int]  # model and seed


class Beyond:
    """The part of `settings.Settings` that is about measurements beyond the paper."""

    sections: Scale
    models: dict[str, Model]
    nets: list[Net]
    pairs: list[tuple[Net, Net]]
    running: Callable[[str], Values]
    _merging: Callable[..., Values]

    @cached_property
    def beyond(self) -> dict[str, Values]:
        """By name, the scale's measurements beyond the paper: their options, and which nets are chosen."""
        given = {name: getattr(self.sections.beyond, name) for name in self.sections.beyond.model_fields_set}
        return {
            name: {
                key: value
                for key, value in section.model_dump().items()
                if key not in SELECTION or value is not None
            }
            for name, section in given.items()
            if section is not None
        }

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
        orders = {SYMMETRIES[self.models[model].symmetry].order for model, _ in nets}
        if matching in OF_FLIPS and (len(nets) > 1 or orders != {2}):
            return False
        return matching is None or self.is_in_matchings(nets)

    def is_in_matchings(self, nets: tuple[Net, ...]) -> bool:
        """Whether the target `matchings` is about these nets; its section says which, by default all."""
        section, types = self.beyond.get("matchings", {}), [model for model, _ in nets]
        if len(types) > 1 and types not in section.get("pairs", [types]):
            return False
        return self._has_seeds(section, nets) and {*types} <= {*section.get("models", types)}

    def _has_seeds(self, section: Values, nets: tuple[Net, ...]) -> bool:
        return section.get("seeds") is None or {seed for _, seed in nets} <= {*section["seeds"]}

    def measurement(self, name: str, *models: str) -> Values:
        """All that a measurement beyond the paper depends on."""
        section = self.beyond[name]
        settings = self._merging(section.get("matching"), *models)
        if section["images"] is not None:
            settings["merging"] = settings["merging"] | {"images": section["images"]}
        if len(models) == 1:
            settings["symmetry"] = self.models[models[0]].symmetry
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
