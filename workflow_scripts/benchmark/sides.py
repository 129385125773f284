"""The benchmark's two sides, in processes of their own: this project as its workflow runs it, and the plain way.

A side works on one or more nets at once, each in a process that keeps its cores to itself and shares the GPU. What
counts is the time from the first net's start to the last one's end.
"""

import multiprocessing
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
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

Weights = dict[str, np.ndarray]  # a net's state, as it goes from process to process
Nets = tuple[Weights, ...]  # one for a flip merge, two for a pair merge
REPEATS = 7
SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices: large enough to reach the device's rate


def clock(device: torch.device) -> float:
    """Seconds on a clock that all processes share, once everything asked of the device is done."""
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
    """A name as a file's: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """FLOP/s of products of square matrices, with torch's present number of threads; the median of several."""
    side = side or SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    a @ b  # the first product sets things up
    seconds = []
    for _ in range(REPEATS):
        started = clock(device)
        a @ b
        seconds.append(clock(device) - started)
    return 2 * side**3 / statistics.median(seconds)


def by_turns(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Milliseconds of CPU time that each call took in each round, after one that sets things up."""
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(1 + rounds):
        for call, times in zip(calls, taken, strict=True):
            started = time.process_time()
            call()
            times.append(1000 * (time.process_time() - started))
    return [times[1:] for times in taken]


@dataclass(frozen=True)
class Task:
    """What a process does."""

    data: Path  # the prepared images
    device: str
    threads: int
    workers: int  # processes of its DataLoaders (plain only)
    width: float  # of the nets
    training: Recipe
    matched: int  # training images that merges match on
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
    """A split of the benchmark's images, read once a process."""
    return image_set.load(data, split, device)


# When a process started and ended, seconds on the shared clock; what came out
Outcome = tuple[float, float, Any]


def timed(task: Task, work: Callable[[], Any]) -> Outcome:
    """What `work` comes to, by the process's threads."""
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
    split, how = images(task.data, "train", task.device), task.training
    chosen = {"batch_size": how.batch_size, "crop_padding": how.crop_padding, "seed": seed}

    def training(net: VGG11) -> None:
        labelled = split.images, split.labels, len(split.classes)
        batches = ImagesOnDevice(*labelled, **chosen, name="benchmark")
        train(net, batches, how, device=torch.device(task.device))

    return _train(task, seed, training)


def train_plainly(task: Task, seed: int) -> Outcome:
    from benchmark import plain  # here: it needs torchvision, which the other side starts without

    how = images(task.data, "train", "cpu"), task.training, torch.device(task.device), task.workers
    return _train(task, seed, lambda net: plain.train(net, *how))


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
    """FLOP/s of matrix products in the type that this project trains in."""
    torch.set_num_threads(task.threads)
    device = torch.device(task.device)
    return matrix_rate(device, autocast_to(task.training.precision, device))


class Side(ExitStack):
    """Processes that start once and stay for the time of the context, one a net."""

    def __init__(self, nets: int):
        super().__init__()
        spawn = multiprocessing.get_context("spawn")  # a forked process can't use a GPU
        pools = [ProcessPoolExecutor(1, mp_context=spawn) for _ in range(nets)]
        self.processes = [self.enter_context(pool) for pool in pools]

    def run(self, function: Callable[..., Outcome], task: Task, arguments: list) -> tuple[float, list]:
        """`function(task, x)` for every x, each in its process at once: seconds in all, and the results."""
        pairs = zip(self.processes, arguments, strict=False)
        futures = [process.submit(function, task, x) for process, x in pairs]
        started, ended, results = zip(*(future.result() for future in futures), strict=True)
        return max(ended) - min(started), [*results]

    def rate(self, task: Task) -> float:
        """FLOP/s of matrix products in one process."""
        return self.processes[0].submit(rate, task).result()
