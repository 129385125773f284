"""Where the config has what is said of a model, for messages."""

from typing import Any

from relusym.config.models import Model, Section


class Keys:
    """The keys of a model's sections and their options, in the place that counts.

    Args:
        config: the whole.
        model: one of its scale's.
    """

    def __init__(self, config: Section, model: Model):
        scale, family = f"scales.{config['scale']}", f"families.{model.given.get('family')}"
        self.config, self.scale = config, scale
        self.places = model.key, f"{scale}.{family}", scale, f"defaults.{family}", "defaults"

    def __call__(self, section: str, option: str = "") -> str:
        """The key of a section, or of that option in it."""
        for place in self.places:
            found: Any = self.config
            for part in [*place.split("."), section, *filter(None, [option])]:
                found = found.get(part) if isinstance(found, dict) else None
            if found is not None:
                return ".".join([place, section, *filter(None, [option])])
        return f"{self.scale}.{section}"

    def of_stage(self, stage: str, option: str) -> str:
        """Likewise; what a stage doesn't say, `training` does."""
        found = self(stage, option), self("training", option)
        return next((key for key in found if key.endswith(option)), self(stage))
