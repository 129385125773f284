"""The benchmark's two sides, in processes of their own: this project as its workflow runs it, and the plain way.

A side works on one or more nets at once, each in a process that keeps its cores to itself and shares the GPU. What
counts is the time from the first net's start to the last one's end.
"""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmark.machine import clock, matrix_rate
from relusym.data import image_set
from relusym.data.augmentation import normalise
from relusym.data.batches import ImagesOnDevice
from relusym.data.image_set import ImageSet
from relusym.evaluation.barrier import accuracy
from relusym.evaluation.images import Images
from relusym.memory import keep_freed_memory
from relusym.merging.merge import FLIP, PAIR, flip_merge, merge
from relusym.nets.vgg import VGG11
from relusym.randomness import stream
from relusym.symmetry import HORIZONTAL_FLIP
from relusym.training.loop import autocast_to, train
from relusym.training.recipe import Recipe

Weights = dict[str, np.ndarray]  # a net's state, as it goes from process to process
Nets = tuple[Weights, ...]  # one for a flip merge, two for a pair merge


@dataclass(frozen=True)
class Task:
    """What one process does.

    Attributes:
        data: the prepared images.
        device: name of the device.
        threads, workers: CPU threads of the process; worker processes of its DataLoaders (plain only).
        width: of the nets.
        training: how a net is trained.
        matched: number of training images that merges match on.
        batch_size: of merges.
    """

    data: Path
    device: str
    threads: int
    workers: int
    width: float
    training: Recipe
    matched: int
    batch_size: int

    def net(self, seed: int) -> VGG11:
        """An untrained net, the same on both sides."""
        torch.manual_seed(stream(seed, "benchmark"))
        return VGG11(self.width, initialization="he").to(self.device)

    def load(self, weights: Weights) -> VGG11:
        """A net with these weights."""
        net = VGG11(self.width).to(self.device).eval()
        net.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
        return net


@dataclass(frozen=True)
class Outcome:
    """When a process started and ended (seconds on the shared clock), and what came out."""

    started: float
    ended: float
    result: Any


@lru_cache
def images(data: Path, split: str, device: str) -> ImageSet:
    """A split of the benchmark's images, read once a process."""
    return image_set.load(data, split, device)


def _train(task: Task, seed: int, training: Callable[[VGG11], object]) -> Outcome:
    """Time the training of a net; its test accuracy and weights."""
    torch.set_num_threads(task.threads)
    device, net = torch.device(task.device), task.net(seed)
    started = clock(device)
    training(net)
    ended = clock(device)
    test = images(task.data, "test", task.device)
    weights = {name: tensor.cpu().numpy() for name, tensor in net.state_dict().items()}
    return Outcome(
        started, ended, (accuracy(net, Images(test.images, normalise=normalise), test.labels), weights)
    )


def train_here(task: Task, seed: int) -> Outcome:
    """This project's training."""
    prepare()
    split = images(task.data, "train", task.device)

    def training(net: VGG11) -> None:
        how = task.training
        batches = ImagesOnDevice(
            split.images,
            split.labels,
            len(split.classes),
            batch_size=how.batch_size,
            seed=seed,
            name="benchmark",
            crop_padding=how.crop_padding,
        )
        train(net, batches, how, device=torch.device(task.device))

    return _train(task, seed, training)


def train_plainly(task: Task, seed: int) -> Outcome:
    """The plain training."""
    from benchmark import (
        plain_training,
    )  # here: it needs torchvision, which the other side starts without

    split = images(task.data, "train", "cpu")
    return _train(
        task,
        seed,
        lambda net: plain_training.train(net, split, task.training, torch.device(task.device), task.workers),
    )


def merge_here(task: Task, weights: Nets) -> Outcome:
    """This project's merge; permutations and accuracies."""
    prepare()
    torch.set_num_threads(task.threads)
    device = torch.device(task.device)
    train_set, test = (images(task.data, split, task.device) for split in ("train", "test"))
    nets = [task.load(one).to(memory_format=torch.channels_last) for one in weights]
    some, tests = (
        Images(x, task.batch_size, normalise) for x in (train_set.images[: task.matched], test.images)
    )
    started = clock(device)
    merged = (flip_merge if len(nets) == 1 else merge)(*nets, some, tests, test.labels)
    return Outcome(started, clock(device), (merged.permutations, merged.accuracy))


def merge_plainly(task: Task, weights: Nets) -> Outcome:
    """The plain merge; permutations and accuracies."""
    from benchmark import plain_merging

    torch.set_num_threads(task.threads)
    device = torch.device(task.device)
    train_set, test = (images(task.data, split, "cpu") for split in ("train", "test"))
    matched = ImageSet(
        train_set.images[: task.matched],
        train_set.labels[: task.matched],
        train_set.classes,
        train_set.source,
    )
    nets = [task.load(one) for one in weights]
    started = clock(device)
    flip = len(nets) == 1
    ends = (nets[0], HORIZONTAL_FLIP.transform(nets[0])) if flip else nets
    names = FLIP if flip else PAIR
    result = plain_merging.merge(*ends, names, matched, test, task.batch_size, device, task.workers)
    return Outcome(started, clock(device), result)


def prepare() -> None:
    """What this project's jobs do before their work, see `job.py`."""
    torch.set_flush_denormal(True)
    keep_freed_memory()


def rate(task: Task) -> float:
    """FLOP/s of matrix products in the type that this project trains in."""
    torch.set_num_threads(task.threads)
    device = torch.device(task.device)
    return matrix_rate(device, autocast_to(task.training.precision, device))


class Side:
    """Processes that start once and stay, one a net."""

    def __init__(self, nets: int):
        spawn = multiprocessing.get_context("spawn")  # a forked process can't use a GPU
        self.processes = [ProcessPoolExecutor(1, mp_context=spawn) for _ in range(nets)]

    def run(self, function: Callable[..., Outcome], task: Task, given: list) -> tuple[float, list]:
        """`function(task, x)` for every x in `given`, each in its process at once: seconds in all, and the results."""
        used = self.processes[: len(given)]
        futures = [process.submit(function, task, x) for process, x in zip(used, given, strict=True)]
        done = [future.result() for future in futures]
        seconds = max(outcome.ended for outcome in done) - min(outcome.started for outcome in done)
        return seconds, [outcome.result for outcome in done]

    def rate(self, task: Task) -> float:
        """FLOP/s of matrix products in one process."""
        return self.processes[0].submit(rate, task).result()

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.shutdown()
