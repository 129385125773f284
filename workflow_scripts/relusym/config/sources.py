"""Where the images of a scale and of its models come from, and how they are prepared."""

import hashlib
import json
from functools import cached_property
from pathlib import Path

from relusym import cifar10
from relusym.config.models import Model, Values
from relusym.config.sections import Data, Run
from relusym.data import DATA_SETS
from relusym.data.extent import Extent, known_extent
from relusym.symmetry import HORIZONTAL_FLIP

GENERATED, IMAGENET = "generated", "imagenet"

PLACE = "source", "root", "train", "test"
INVARIANT_TO = HORIZONTAL_FLIP.name  # of generated images, by default


def specification(source: Values) -> Values:
    """A data set's entry of the config as `data.prepare` takes it; `train` and `test` count where the kind has them."""
    options = DATA_SETS[source["source"]].options.model_fields
    unused = {"source", "label", *({"root", "train", "test"} - {*options})}
    return {"kind": source["source"], **{key: value for key, value in source.items() if key not in unused}}


class Sources:
    """The part of `settings.Settings` that is about images."""

    run: Run
    models: dict[str, Model]
    common: Model

    def source(self, dataset: str) -> Values:
        """Where a data set comes from, and its label."""
        if dataset == GENERATED:
            return {"source": GENERATED, "label": "generated chiral shapes"}
        if dataset == IMAGENET:
            place = self.run.imagenet
            return {
                "source": IMAGENET,
                "root": place.root,
                "train": place.train,
                "test": place.val,
                "label": place.label,
            }
        return (self.run.cifar10 if dataset == "cifar10" else self.run.datasets[dataset]).explicit()

    def label(self, model: str | None = None) -> str:
        """What records and tables call a model's images (or the scale's)."""
        data = self._data(model)
        label = self.source(data.dataset)["label"]
        if data.dataset != GENERATED:
            return label
        if (symmetry := data.invariant_to) != INVARIANT_TO:
            moved = f"the {symmetry.replace('_', ' ')}" if symmetry else "no symmetry"
            label += f" invariant to {moved}"
        return f"{label}, seed {data.seed}"

    def _data(self, model: str | None) -> Data:
        return (self.models[model] if model else self.common).data

    def prepared(self, model: str | None = None) -> str:
        """The name of the file of prepared images that a model (or the scale) reads; each source has its own."""
        data = self._data(model)
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
        """How the file of that name is prepared, as `data.prepare` takes it, and where the config has it."""
        return self.preparation_for(self.readers(prepared)[0])

    def readers(self, prepared: str) -> list[str | None]:
        """The models that read the file of that name; None for the scale itself, whose Figure 3 does."""
        return [
            model for model in (None, *self.models) if self._reads(model) and self.prepared(model) == prepared
        ]

    def preparation_for(self, model: str | None) -> tuple[Values, str]:
        """As `preparation`, of the images of a model or of the scale."""
        data, source = self._data(model), self.source(self._data(model).dataset)
        if source["source"] == GENERATED:
            chosen = data.explicit()
            options = {
                key: getattr(data, key)
                for key in DATA_SETS[GENERATED].options.model_fields
                if key in chosen or key == "seed"
            }
            return {"kind": GENERATED, **options}, (self.models[model] if model else self.common).key("data")
        if source["source"] == IMAGENET:
            net = self.models[model]
            return {
                "kind": IMAGENET,
                "root": source["root"],
                "train": source["train"],
                "val": source["test"],
                "resize": data.resize,
                "seed": data.seed,
                "size": net.image_size,
                "train_images": net.merging.images,
            }, IMAGENET
        key = data.dataset if data.dataset == "cifar10" else f"datasets.{data.dataset}"
        return specification(source), key

    def known_extent(self, model: str | None) -> Extent | None:
        """The extent of the images of a model or of the scale, if it is known wherever they come from."""
        return known_extent(self.preparation_for(model)[0]) if self._reads(model) else None

    def known_digest(self, model: str | None) -> str | None:
        """As `known_extent`, of the images' content."""
        return cifar10.DIGEST if self.preparation_for(model)[0]["kind"] == "torchvision" else None

    def _reads(self, model: str | None) -> bool:
        """ImageNet is prepared for a model's image size alone."""
        return model is not None or self.common.data.dataset != IMAGENET

    @cached_property
    def imagenet(self) -> dict[str, str]:
        """ImageNet's folders, "train" and "test"."""
        source = self.source(IMAGENET)
        return {split: str(Path(source["root"]) / source[split]) for split in ("train", "test")}
