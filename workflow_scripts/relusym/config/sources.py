"""Where the images of a scale and of its models come from, and how they are prepared."""

import hashlib
import json
from functools import cached_property
from pathlib import Path

from relusym import cifar10
from relusym.config.models import Model, Section
from relusym.data import DATA_SETS
from relusym.data.extent import Extent, known_extent
from relusym.symmetry import HORIZONTAL_FLIP

GENERATED, IMAGENET = "generated", "imagenet"

PLACE = "source", "root", "train", "test"
INVARIANT_TO = HORIZONTAL_FLIP.name  # generated images, if nothing else is said


def specification(source: Section) -> Section:
    """A data set's entry of the config as `data.prepare` takes it; `train` and `test` count where the kind has them."""
    options = DATA_SETS[source["source"]].options
    unused = {"source", "label", *({"root", "train", "test"} - {*options})}
    return {"kind": source["source"], **{key: value for key, value in source.items() if key not in unused}}


class Sources:
    """The part of `settings.Settings` that is about images."""

    config: Section
    scale: str
    models: dict[str, Model]
    _scale: Section

    def source(self, dataset: str) -> Section:
        """Where a data set comes from, and its label."""
        if dataset == GENERATED:
            return {"source": GENERATED, "label": "generated chiral shapes"}
        if dataset == IMAGENET:
            given = self.config["imagenet"]
            return {
                "source": IMAGENET,
                "root": given["root"],
                "train": given["train"],
                "test": given["val"],
                "label": given["label"],
            }
        return self.config["cifar10"] if dataset == "cifar10" else self.config["datasets"][dataset]

    def label(self, model: str | None = None) -> str:
        """What records and tables call a model's images (or the scale's)."""
        data = self._data(model)
        label = self.source(data["dataset"])["label"]
        if data["dataset"] != GENERATED:
            return label
        if (symmetry := data.get("invariant_to", INVARIANT_TO)) != INVARIANT_TO:
            moved = f"the {symmetry.replace('_', ' ')}" if symmetry else "no symmetry"
            label += f" invariant to {moved}"
        return f"{label}, seed {data['seed']}"

    def _data(self, model: str | None) -> Section:
        return self.models[model].given["data"] if model else self._scale["data"]

    def prepared(self, model: str | None = None) -> str:
        """The name of the file of prepared images that a model (or the scale) reads; each source has its own."""
        data = self._data(model)
        if data["dataset"] == GENERATED:
            symmetry = data.get("invariant_to", INVARIANT_TO)
            ending = "" if symmetry == INVARIANT_TO else f"-{symmetry}"
            return f"generated-{data['train_images']}-{data['test_images']}-{data['seed']}{ending}"
        source = self.source(data["dataset"])
        others = [value for key, value in source.items() if key not in (*PLACE, "label")]
        place = json.dumps([*(source.get(key) for key in PLACE), *others])
        name = f"{data['dataset']}-{source['source']}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"
        if data["dataset"] != IMAGENET:
            return name
        given = self.models[model].given
        return f"{name}-{data['resize']}-{given['image_size']}-{given['merging']['images']}-{data['seed']}"

    def preparation(self, prepared: str) -> tuple[Section, str]:
        """How the file of that name is prepared, as `data.prepare` takes it, and where the config has it."""
        return self.preparation_for(self.readers(prepared)[0])

    def readers(self, prepared: str) -> list[str | None]:
        """The models that read the file of that name; None for the scale itself, whose Figure 3 does."""
        return [
            model for model in (None, *self.models) if self._reads(model) and self.prepared(model) == prepared
        ]

    def preparation_for(self, model: str | None) -> tuple[Section, str]:
        """As `preparation`, of the images of a model or of the scale."""
        given, source = self._data(model), self.source(self._data(model)["dataset"])
        if source["source"] == GENERATED:
            options = {key: given[key] for key in DATA_SETS[GENERATED].options if key in given}
            return {"kind": GENERATED, **options}, f"scales.{self.scale}.data"
        if source["source"] == IMAGENET:
            one = self.models[model].given
            return {
                "kind": IMAGENET,
                "root": source["root"],
                "train": source["train"],
                "val": source["test"],
                "resize": given["resize"],
                "seed": given["seed"],
                "size": one["image_size"],
                "train_images": one["merging"]["images"],
            }, IMAGENET
        key = given["dataset"] if given["dataset"] == "cifar10" else f"datasets.{given['dataset']}"
        return specification(source), key

    def known_extent(self, model: str | None) -> Extent | None:
        """The extent of the images of a model or of the scale, if it is known wherever they come from."""
        return known_extent(self.preparation_for(model)[0]) if self._reads(model) else None

    def known_digest(self, model: str | None) -> str | None:
        """As `known_extent`, of the images' content."""
        return cifar10.DIGEST if self.preparation_for(model)[0]["kind"] == "torchvision" else None

    def _reads(self, model: str | None) -> bool:
        """ImageNet is prepared for a model's image size alone."""
        return model is not None or self._scale["data"]["dataset"] != IMAGENET

    @cached_property
    def imagenet(self) -> dict[str, str]:
        """ImageNet's folders, "train" and "test"."""
        source = self.source(IMAGENET)
        return {split: str(Path(source["root"]) / source[split]) for split in ("train", "test")}
