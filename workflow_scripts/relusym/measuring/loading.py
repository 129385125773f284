"""The inputs of a job, prepared images and trained nets, each checked against its record; and the job's cost."""

import platform
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

import relusym
from relusym import checkpoint, nets
from relusym.data import augmentation, digest, image_set
from relusym.data.image_set import ImageSet
from relusym.errors import UserError
from relusym.evaluation.images import normalisation
from relusym.memory import peak_mb
from relusym.records.files import load_record
from relusym.records.fingerprint import non_default
from relusym.symmetry import SYMMETRIES
from relusym.whole_files import sha256

Record = dict[str, Any]
Tensors = dict[str, Tensor]

CHANCE_MARGIN = 1.1  # a net within a tenth of chance accuracy has learnt nothing


def digest_in_use(data: Path, in_use: tuple[str, str] | None) -> str:
    """The content digest of prepared images; UserError if it isn't that of the images `in_use`: (digest, a record)."""
    content = digest(data)
    if in_use is not None and content != in_use[0]:
        raise UserError(
            f"{data} holds other images than record {in_use[1]} was made from: name those images in the config, "
            "or move the records away to begin anew"
        )
    return content


def training_images(data: Path, settings: Record, label: str, device: torch.device) -> ImageSet:
    """The images that a net is trained and matched on: all, or a seeded subset, at the net's size."""
    images = image_set.load(data, "train", device, source=label)
    if settings["dataset"] != "imagenet":  # ImageNet's file holds only the subset, at its size
        images = image_set.subset(images, settings["train_images"], settings["seed"])
        images = image_set.resized(images, settings["size"])
    return images


def test_images(data: Path, settings: Record, label: str, device: torch.device) -> ImageSet:
    """The images that accuracy is measured on, at the net's size."""
    images = image_set.load(data, "test", device, source=label)
    return images if settings["dataset"] == "imagenet" else image_set.resized(images, settings["size"])


def normalise_of(settings: Record) -> augmentation.Normalise:
    """The normalisation of pixels: by the mean and std of `normalisation`, by default those of the data set."""
    if numbers := settings.get("normalisation"):
        return normalisation(numbers["mean"], numbers["std"])
    return augmentation.normalise_imagenet if settings["dataset"] == "imagenet" else augmentation.normalise


def least_accuracy(labels: Tensor) -> float:
    """The accuracy up to which a net counts as degenerate: slightly more than the share of the most frequent class."""
    share = float(labels.bincount().max()) / len(labels)
    return min(CHANCE_MARGIN * share, (share + 1) / 2)


def load_net(path: Path, device: torch.device) -> nn.Module:
    """A net in evaluation mode; UserError if its checkpoint is damaged or doesn't hold a net of this project."""
    return net_of(path, *checkpoint.load(path, device), device)


def net_of(path: Path, tensors: Tensors, about: Record, device: torch.device) -> nn.Module:
    """Like `load_net`, of tensors and a header that were read from `path`."""
    try:
        settings = about["settings"]
        net = nets.build(settings["network"], about["classes"], SYMMETRIES[settings["symmetry"]])
        net.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"checkpoint {path} doesn't hold a net of this project: delete it, and it is made again"
        ) from error
    return net.eval().to(device, memory_format=torch.channels_last)


def trained_net(
    path: Path, record: Path, settings: Record, device: torch.device
) -> tuple[nn.Module | None, Record]:
    """A net as from `load_net`, or None if its status is "absent"; and its train record.

    UserError as in `named_checkpoint` and `load_net`, or if a net of status "ok" has weights that aren't finite.
    """
    tensors, about, trained = named_checkpoint(path, record, settings, device)
    if trained["status"] == "ok" and (
        wrong := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    ):
        raise UserError(
            f"checkpoint {path} has weights that aren't finite numbers, in {wrong[0]}: delete it and {record}"
        )
    return net_of(path, tensors, about, device) if trained["status"] != "absent" else None, trained


def named_checkpoint(
    path: Path, record: Path, settings: Record, device: torch.device
) -> tuple[Tensors, Record, Record]:
    """A checkpoint's tensors and header, and its train record; UserError if the record names another checkpoint or the
    settings differ."""
    tensors, about = checkpoint.load(path, device)
    trained = load_record(record)
    if sha256(path) != trained["outputs"]["checkpoint"]:
        raise UserError(
            f"checkpoint {path} isn't the one that {record} names: delete it, and it is made again"
        )
    for key in ("model", "seed"):
        if about.get(key, trained[key]) != trained[key]:
            raise UserError(
                f"checkpoint {path} is of {key} {about[key]}, and {record} of {trained[key]}: delete both, and they "
                "are made again"
            )
    if non_default(about.get("settings")) != non_default(settings):
        raise UserError(f"checkpoint {path} was made with other settings: delete it, and it is made again")
    return tensors, about, trained


def device_named(name: str) -> torch.device:
    """The device that a config's `device` means; auto is a GPU if there is one. UserError if it doesn't exist."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"device: {name} is asked for, but torch {torch.__version__} sees no GPU; set device: cpu"
        )
    if name.startswith("cuda:") and int(name[5:]) >= torch.cuda.device_count():
        raise UserError(f"device: {name} given; allowed is at most cuda:{torch.cuda.device_count() - 1}")
    return torch.device(name)


class JobMeter:
    """Measures the time and memory that a job takes from here on, and names the versions and device it runs with."""

    def __init__(self, device: torch.device):
        self.device, self.started = device, time.perf_counter()

    def fields(self, earlier_seconds: float = 0.0) -> dict[str, Any]:
        """The `code` and `cost` of a record: versions and device; seconds and peak memory in MB, of job and process.

        `earlier_seconds`: the time that a resumed job took before; included in the record's seconds.
        """
        resident = peak_mb()
        if self.device.type == "cuda":
            name, peak = (
                torch.cuda.get_device_name(self.device),
                torch.cuda.max_memory_allocated(self.device) / 2**20,
            )
        else:
            name, peak = platform.machine(), resident
        seconds = time.perf_counter() - self.started
        since_start = time.time() - psutil.Process().create_time()  # this clock may be set back
        return {
            "code": {
                "relusym": relusym.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
                "device": f"{self.device.type} {name}",
            },
            "cost": {
                "seconds": round(earlier_seconds + seconds, 2),
                "earlier_seconds": round(earlier_seconds, 2),
                "peak_memory_mb": round(peak, 1),
                "job_seconds": round(earlier_seconds + max(seconds, since_start), 2),
                "job_memory_mb": round(resident, 1),
            },
        }
