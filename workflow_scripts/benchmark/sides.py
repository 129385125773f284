"""The benchmark's two sides, each in its own processes: this project as its workflow runs it, and the plain procedure.

A side works on one or more nets at once, each in a process with its own cores; the GPU is shared. The time counts from
the start of the first net to the end of the last.
"""

import multiprocessing
import platform
import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from relusym.data import image_set
from relusym.data.augmentation import normalise
from relusym.data.batches import ImagesOnDevice
from relusym.data.image_set import ImageSet
from relusym.evaluation.images import Images
from relusym.evaluation.metrics import accuracy
from relusym.memory import keep_freed_memory
from relusym.merging.merge import FLIP, PAIR, flip_merge, merge
from relusym.nets.vgg import VGG11
from relusym.randomness import stream
from relusym.symmetry import HORIZONTAL_FLIP
from relusym.training.loop import autocast_to, train
from relusym.training.recipe import Recipe

Weights = dict[str, np.ndarray]  # a net's state dict, as it is passed between processes
Nets = tuple[Weights, ...]  # one for a flip merge, two for a pair merge
REPEATS = 7
SIDE = {"cpu": 2048, "cuda": 8192}  # rows of the square matrices: enough to reach the device's peak rate


def clock(device: torch.device) -> float:
    """Seconds on a clock that all processes share, after all work queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def device_name(device: torch.device, cores: int) -> str:
    """The GPU's name, or the CPU's with the number of cores in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(models, platform.processor() or platform.machine())}, {cores} cores"


def slug(name: str) -> str:
    """`name` as a file name of small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """The median FLOP/s of several products of square matrices, with torch's current number of threads."""
    side = side or SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    a @ b  # warm-up
    seconds = []
    for _ in range(REPEATS):
        started = clock(device)
        a @ b
        seconds.append(clock(device) - started)
    return 2 * side**3 / statistics.median(seconds)


@dataclass(frozen=True)
class Task:
    """The task of a process."""

    data: Path  # the prepared images
    device: str
    threads: int
    workers: int  # of its DataLoaders (plain only)
    width: float  # of the nets
    training: Recipe
    matched: int  # number of training images that merges match channels on
    batch_size: int  # of merges

    def net(self, seed: int) -> VGG11:
        """An untrained net, the same on both sides."""
        torch.manual_seed(stream(seed, "benchmark"))
        return VGG11(self.width, initialization="he").to(self.device)

    def load(self, weights: Weights) -> VGG11:
        net = VGG11(self.width).to(self.device).eval()
        net.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
        return net


@lru_cache
def images(data: Path, split: str, device: str) -> ImageSet:
    """A split of the benchmark's images, read once per process."""
    return image_set.load(data, split, device)


# a process's start and end, in seconds on the shared clock, and its result
Outcome = tuple[float, float, Any]


def timed(task: Task, work: Callable[[], Any]) -> Outcome:
    """Run `work` with the task's threads: when it started and ended, and its result."""
    torch.set_num_threads(task.threads)
    started = clock(torch.device(task.device))
    result = work()
    return started, clock(torch.device(task.device)), result


def _train(task: Task, seed: int, training: Callable[[VGG11], object]) -> Outcome:
    net = task.net(seed)
    started, ended, _ = timed(task, lambda: training(net))
    test = images(task.data, "test", task.device)
    weights = {name: tensor.cpu().numpy() for name, tensor in net.state_dict().items()}
    return started, ended, (accuracy(net, Images(test.images, normalise=normalise), test.labels), weights)


def train_here(task: Task, seed: int) -> Outcome:
    prepare()
    split, recipe = images(task.data, "train", task.device), task.training
    options = {"batch_size": recipe.batch_size, "crop_padding": recipe.crop_padding, "seed": seed}

    def training(net: VGG11) -> None:
        labelled = split.images, split.labels, len(split.classes)
        batches = ImagesOnDevice(*labelled, **options, name="benchmark")
        train(net, batches, recipe, device=torch.device(task.device))

    return _train(task, seed, training)


def train_plainly(task: Task, seed: int) -> Outcome:
    from benchmark import plain  # imported here, since the other side needs no torchvision

    arguments = images(task.data, "train", "cpu"), task.training, torch.device(task.device), task.workers
    return _train(task, seed, lambda net: plain.train(net, *arguments))


def merge_here(task: Task, weights: Nets) -> Outcome:
    prepare()
    split, test = (images(task.data, name, task.device) for name in ("train", "test"))
    nets = [task.load(each).to(memory_format=torch.channels_last) for each in weights]
    pixels = split.images[: task.matched], test.images
    some, tests = (Images(each, task.batch_size, normalise) for each in pixels)
    merging = flip_merge if len(nets) == 1 else merge
    started, ended, merged = timed(task, lambda: merging(*nets, some, tests, test.labels))
    return started, ended, (merged.permutations, merged.accuracy)


def merge_plainly(task: Task, weights: Nets) -> Outcome:
    from benchmark import plain

    split, test = (images(task.data, name, "cpu") for name in ("train", "test"))
    some = replace(split, images=split.images[: task.matched], labels=split.labels[: task.matched])
    nets, names = [task.load(each) for each in weights], PAIR if len(weights) == 2 else FLIP
    how = names, some, test, task.batch_size, torch.device(task.device), task.workers

    def merging() -> tuple:
        return plain.merge(nets[0], nets[1] if nets[1:] else HORIZONTAL_FLIP.transform(nets[0]), *how)

    return timed(task, merging)


def prepare() -> None:
    torch.set_flush_denormal(True)
    keep_freed_memory()


def rate(task: Task) -> float:
    """FLOP/s of matrix products in the dtype that this project trains in."""
    torch.set_num_threads(task.threads)
    device = torch.device(task.device)
    return matrix_rate(device, autocast_to(task.training.precision, device))


class Side(ExitStack):
    """Processes, one per net, that live as long as the context."""

    def __init__(self, nets: int):
        super().__init__()
        spawn = multiprocessing.get_context("spawn")  # a forked process can't use a GPU
        pools = [ProcessPoolExecutor(1, mp_context=spawn) for _ in range(nets)]
        self.processes = [self.enter_context(pool) for pool in pools]

    def run(self, function: Callable[..., Outcome], task: Task, arguments: list) -> tuple[float, list]:
        """Call `function(task, x)` for all x at once, each in its own process: seconds in total, and the results."""
        pairs = zip(self.processes, arguments, strict=False)
        futures = [process.submit(function, task, x) for process, x in pairs]
        started, ended, results = zip(*(future.result() for future in futures), strict=True)
        return max(ended) - min(started), [*results]

    def rate(self, task: Task) -> float:
        """FLOP/s of matrix products in one process."""
        return self.processes[0].submit(rate, task).result()
