"""The benchmark's two sides, `here` and `plain`, each in its own processes.

A side works on one or more nets at once, each in a process with its own cores; the GPU is shared. The time counts from
the start of the first net to the end of the last.
"""

import platform
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from relusym.data import image_set
from relusym.data.augmentation import normalise
from relusym.data.image_set import SPLITS, ImageSet
from relusym.evaluation.images import Images
from relusym.evaluation.metrics import accuracy
from relusym.nets.vgg import VGG11
from relusym.randomness import stream
from relusym.training.recipe import Recipe

CPU = torch.device("cpu")
IMAGES = "images.safetensors"
MERGE_BATCH = 500


def device_name(device: torch.device, cores: int) -> str:
    """The GPU's name, or the CPU's with the number of cores in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else "")
    return f"{named[1] if named else platform.processor() or platform.machine()}, {cores} cores"


def slug(name: str) -> str:
    """`name` as a file name of small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@dataclass(frozen=True)
class Task:
    """What both sides do. Merges match channels on the first `matched` of the `train` images."""

    width: float  # of the nets
    train: int
    test: int
    batch_size: int  # of trainings
    matched: int
    device: torch.device = CPU
    threads: int = 1  # of a process; as many workers load the plain side's images
    folder: Path = Path()  # of the images, and of the nets that this project trained

    @property
    def recipe(self) -> Recipe:
        how = {"epochs": 2, "warmup_epochs": 0.5, "learning_rate": 0.02, "weight_decay": 5e-4}
        return Recipe(batch_size=self.batch_size, crop_padding=4, **how)


# a process's start and end, in seconds on a clock that all processes share, and its result
Outcome = tuple[float, float, Any]


@lru_cache
def images(folder: Path) -> list[ImageSet]:
    """The training and the test images, on the CPU, read once per process."""
    return [image_set.load(folder / IMAGES, split) for split in SPLITS]


def train(task: Task, side: str, seed: int) -> Outcome:
    """Train a net, the same on both sides; its accuracy. This project's is kept for the merges."""
    torch.manual_seed(stream(seed, "benchmark"))
    net, (split, test) = VGG11(task.width, initialization="he").to(task.device), images(task.folder)
    started, ended, _ = _timed(task, side, "train", net, split, task.recipe)
    if side == "here":
        torch.save(net.state_dict(), task.folder / f"{seed}.pt")
    tests = Images(test.images.to(task.device), normalise=normalise)
    return started, ended, accuracy(net, tests, test.labels)


def merge(task: Task, side: str, seeds: Sequence[int]) -> Outcome:
    """Merge one trained net with its flipped self, or two nets; the permutations, and the accuracies by name."""
    nets, (split, test) = [VGG11(task.width).to(task.device).eval() for _ in seeds], images(task.folder)
    for net, seed in zip(nets, seeds, strict=True):
        net.load_state_dict(torch.load(task.folder / f"{seed}.pt", task.device))
    some = replace(split, images=split.images[: task.matched], labels=split.labels[: task.matched])
    return _timed(task, side, "merge", nets, some, test, MERGE_BATCH)


def _timed(task: Task, side: str, function: str, *arguments: object) -> Outcome:
    work = getattr(import_module(f"benchmark.{side}"), function)
    torch.set_num_threads(task.threads)
    started = time.monotonic()
    result = work(*arguments, task.device, task.threads)
    if task.device.type == "cuda":
        torch.cuda.synchronize(task.device)
    return started, time.monotonic(), result
