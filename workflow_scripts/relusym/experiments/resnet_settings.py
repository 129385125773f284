"""The rows of Tables 3 and 5: where each net comes from, how it is trained, what it is measured on."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from relusym.errors import UserError
from relusym.experiments.settings import Settings
from relusym.findings import paper_values

STAGES = {"supervised": ("supervised",), "simsiam": ("pretraining", "linear")}
NEEDS = {"torchvision": "weights", "download": "urls", "train": "recipe"}


def absence(record: dict[str, Any]) -> str | None:
    """Why the row of a record couldn't be measured when the record was made; None if it could."""
    return record["reason"] if record["status"] == "absent" else None


@dataclass(frozen=True)
class ResNetSettings:
    """The `resnet` section of a config's scale.

    Raises (on creation by `of`):
        UserError: a row that lacks what its source needs, or a setting that can't be.
    """

    settings: Settings

    @classmethod
    def of(cls, settings: Settings) -> "ResNetSettings":
        resnet = cls(settings)
        for name, row in resnet.rows.items():
            key, need = f"scales.{settings.scale}.resnet.rows.{name}", NEEDS.get(row["source"])
            if need is not None and row.get(need) is None:
                raise UserError(f"{key}: the source {row['source']} needs the key '{need}'")
            for section in STAGES.get(row.get("recipe"), ()):
                if section not in resnet._section:
                    raise UserError(
                        f"{key}: its recipe needs the section scales.{settings.scale}.resnet.{section}"
                    )
                batch = resnet._section[section]["batch_size"]
                if batch % resnet.processes:
                    raise UserError(
                        f"scales.{settings.scale}.resnet.{section}.batch_size: {batch} can't be shared evenly by "
                        f"{resnet.processes} processes"
                    )
            if (
                resnet.on_imagenet
                and (resize := resnet._section["evaluation"]["resize"] or 0) < row["image_size"]
            ):
                raise UserError(
                    f"scales.{settings.scale}.resnet.evaluation.resize: {resize or None} given; a crop of "
                    f"{row['image_size']} pixels ({name}) needs at least as many"
                )
            if row.get("paper") is not None and row["paper"] not in set(paper_values.table(5)["method"]):
                raise UserError(f"{key}.paper: the paper's Table 5 has no row {row['paper']!r}")
        return resnet

    @property
    def _section(self) -> dict[str, Any]:
        return self.settings.config["scales"][self.settings.scale].get("resnet", {"rows": {}})

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """The rows of the scale by their ids, in the order of the config; a row set to null is left out."""
        return {name: row for name, row in self._section["rows"].items() if row is not None}

    @property
    def processes(self) -> int:
        """How many processes train one net, each on a GPU of its own."""
        return self._section.get("processes", 1)

    @property
    def workers(self) -> int:
        """Processes that read image files, of each training process."""
        return self._section.get("workers", 0)

    @property
    def restarts(self) -> int:
        """How often a training's processes are started again together after one died."""
        return self._section.get("restarts", 0)

    @property
    def on_imagenet(self) -> bool:
        """Whether the images are ImageNet's, and not the scale's small ones."""
        return self._section.get("dataset") == "imagenet"

    @cached_property
    def imagenet(self) -> dict[str, Path]:
        """ImageNet's folders, `train` and `val`."""
        given = self.settings.config["imagenet"]
        return {split: Path(given["root"]) / given[split] for split in ("train", "val")}

    def paper_row(self, row: str) -> str | None:
        """The row of the paper's Table 5 that a row stands beside."""
        given = self.rows[row].get("paper")
        return given if given or row not in set(paper_values.table(5)["method"]) else row

    @property
    def in_table3(self) -> list[str]:
        """The rows of Table 3: those whose counterparts the paper has there."""
        there = set(paper_values.table(3)["method"])
        return [row for row in self.rows if self.paper_row(row) in there]

    @property
    def figure9(self) -> str | None:
        """The row whose filters Figure 9 shows; None if the scale has no such row."""
        row = self._section.get("figure9")
        return row if row in self.rows else None

    def shown(self, row: str) -> dict[str, Any]:
        """What tables say of a row besides its measurements: name, whose training and of what kind, size, paper.

        A row's config goes before what the paper says of the row that it stands beside.
        """
        given, paper = self.rows[row], paper_values.table(5).set_index("method")
        says = paper.loc[self.paper_row(row)] if self.paper_row(row) else {}
        flags = {
            key: given.get(key, says.get(key) == "yes") for key in ("trained_by_authors", "self_supervised")
        }
        return {
            "name": given.get("name", row),
            **flags,
            "image_size": given["image_size"],
            "paper": self.paper_row(row),
        }

    def is_trained(self, row: str) -> bool:
        """Whether its net is trained here, and not read from files."""
        return self.rows[row]["source"] == "train" and not self.rows[row].get("file")

    def stages(self, row: str) -> tuple[str, ...]:
        """The trainings of a row's net, in their order."""
        return STAGES[self.rows[row]["recipe"]] if self.is_trained(row) else ()

    def _images(self, row: str) -> dict[str, Any]:
        size = self.rows[row]["image_size"]
        if self.on_imagenet:
            return {"dataset": self.settings.config["imagenet"]["label"], "size": size}
        return {**self.settings.config["scales"][self.settings.scale]["data"], "size": size}

    def train(self, row: str, stage: str) -> dict[str, Any]:
        """All that one training of a row depends on; kept in its record."""
        section = self._section
        recipe = {**section[stage], "save_every": section["save_every"], "precision": section["precision"]}
        heads = {key: recipe.pop(key) for key in ("dimensions", "bottleneck") if key in recipe}
        weight = recipe.pop("invariance_weight", None)
        return {
            "seed": section["seed"],
            "images": self._images(row),
            "network": section["network"],
            "processes": self.processes,
            "crop_padding": section["crop_padding"],
            "recipe": recipe,
            "heads": heads,
            "invariance_weight": weight if self.rows[row].get("invariance") else None,
            "pretrained": self.train(row, "pretraining") if stage == "linear" else None,
        }

    def weights(self, row: str) -> dict[str, Any]:
        """Where a row's net comes from: the settings of its last training, or its source."""
        if stages := self.stages(row):
            return self.train(row, stages[-1])
        given = self.rows[row]
        if given.get("file"):
            return {
                "file": given["file"],
                "layout": given.get("layout", "auto"),
                "network": self._section["network"],
            }
        kept = {key: given.get(key) for key in ("source", "weights", "urls")}
        return {**kept, "layout": given.get("layout", "auto"), "network": self._section["network"]}

    def merge(self, row: str) -> dict[str, Any]:
        """All that the measurements of a row depend on; kept in its record."""
        return {
            "evaluation": self._section["evaluation"],
            "images": self._images(row),
            "seed": self._section["seed"],
            "weights": self.weights(row),
        }

    def prepared(self, row: str) -> str:
        """The name of the file of prepared images that a row is measured on."""
        if not self.on_imagenet:
            return self.settings.dataset
        how = self._section["evaluation"]
        return (
            f"imagenet-{how['resize']}-{self.rows[row]['image_size']}-{how['images']}-{self._section['seed']}"
        )

    def files(self, row: str) -> list[str]:
        """The local checkpoint files that a row's config names."""
        given = self.rows[row].get("file") or []
        return [given] if isinstance(given, str) else given

    def absent(self, row: str) -> str | None:
        """Why a row can't be measured with what is at hand, or None: what can be downloaded counts as at hand."""
        given, key = self.rows[row], f"scales.{self.settings.scale}.resnet.rows.{row}.file"
        if self.on_imagenet and (told := self.imagenet_absent()):
            return told
        files = self.files(row)
        for file in files:
            if not Path(file).is_file():
                return f"the checkpoint {file} is missing: set {key}"
        if given["source"] == "file" and not files:
            return f"no checkpoint is at hand: set {key} to a local file"
        return None

    def imagenet_absent(self) -> str | None:
        """Which key to set if a folder of ImageNet is missing."""
        missing = [folder for folder in self.imagenet.values() if not folder.is_dir()]
        if not missing:
            return None
        return f"ImageNet is not at {missing[0]}: set imagenet.root to the folder with train/ and val/"

    def notes(self) -> list[str]:
        """What a reader of Table 5 has to know of this scale: data, nets, training, measuring."""
        if not self.rows:
            return []
        section, scale = self._section, self.settings.scale
        network, how = section["network"], section["evaluation"]
        layers = ", ".join(map(str, network["layers"]))
        seen = (
            f"resized to {how['resize']} and cropped"
            if self.on_imagenet
            else "enlarged where the row's size asks"
        )
        notes = [
            f"Scale {scale}: ResNets of {network['block']} blocks, {layers} in the stages, width {network['width']:g}; "
            f"images {seen}; seed {section['seed']}"
        ]
        used = dict.fromkeys(stage for row in self.rows for stage in self.stages(row))
        for stage in used:
            recipe = section[stage]
            notes.append(
                f"{stage.capitalize()}: {recipe['epochs']} epochs, batch {recipe['batch_size']}, learning rate "
                f"{recipe['learning_rate']:g} a 256 images, {recipe['schedule']} schedule"
            )
        notes.append(
            f"Channels matched, batch norm reset and REPAIR's statistics taken on {how['images']:,} training images; "
            f"invariance error over {how['invariance_images']:,}"
        )
        if not self.on_imagenet:
            notes.append(
                "At an even size the five strides of a flipped net are off by up to 31 pixels in all: that is the "
                "whole image here and a seventh of it at 224, so accuracies fall further and barriers can be negative"
            )
        return notes
