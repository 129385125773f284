"""Time and memory of a report's partial merges, against making and running each net as a whole, on one thread.

    PYTHONPATH=workflow_scripts python -m benchmark.partial_merges NET [IMAGES [SAMPLED [SIZE]]]

NET is vgg11 (the paper's, or torchvision's if SIZE isn't 32), resnet50 or efficientnet_lite0. Weights are random and
images are noise: time depends on neither. The plain way makes only SAMPLED of its nets, spread over the depth, on the
same images and with the same batch size; their mean counts for all, since each needs the same passes. The two ways run
at the same time, in a process each, so that other work slows down both. Seconds are CPU time.
"""

import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import torch
import torchvision
from torch import nn
from torchvision.ops import SqueezeExcitation

from benchmark.sides import CPU, device_name
from relusym.channels.traced import TracedNet
from relusym.evaluation.images import Images, normalisation
from relusym.evaluation.metrics import MEASURED, evaluate
from relusym.memory import keep_freed_memory, peak_mb
from relusym.merging.aligned import joint_statistics
from relusym.merging.partial import PartialMerges, Which, partial_merges
from relusym.nets.vgg import VGG11

AGREE = 1e-3  # the largest difference between the two ways' losses that counts as rounding


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0: B0 without squeeze and excitation, with ReLU6."""
    net = torchvision.models.efficientnet_b0()
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, SqueezeExcitation):
                setattr(module, name, nn.Identity())
            elif isinstance(child, nn.SiLU):
                setattr(module, name, nn.ReLU6(inplace=True))
    return net


def build(name: str, size: int, seed: int) -> nn.Module:
    """A net by its name, in evaluation mode."""
    torch.manual_seed(seed)
    if name == "efficientnet_lite0":
        net = efficientnet_lite0()
    elif name == "vgg11" and size == 32:
        net = VGG11(1.0, initialization="he")
    else:
        net = torchvision.models.get_model(name, weights=None)
    return net.eval().to(memory_format=torch.channels_last)


def images(count: int, size: int) -> Images:
    """Noise."""
    draw = torch.Generator().manual_seed(count)
    pixels = torch.randint(256, (count, size, size, 3), dtype=torch.uint8, generator=draw)
    return Images(pixels, 50, normalisation([0.5] * 3, [0.25] * 3))


@torch.no_grad()
def plain(name: str, count: int, sampled: int, size: int) -> tuple[float, dict[Which, float]]:
    """The seconds to make, correct and measure all nets one by one, and the loss barriers of the sampled nets."""
    torch.set_num_threads(1)
    first, second = (build(name, size, seed) for seed in (0, 1))
    some, started = images(count, size), time.process_time()
    traced = TracedNet(first, some.shape)
    statistics = joint_statistics([traced, traced.copied(second)], some, []).statistics
    nets = PartialMerges(traced, second, statistics, some)
    end = evaluate(first, some, None, MEASURED)
    labels = end.labels
    mean = sum(each.means()["loss"] for each in (end, evaluate(second, some, labels, MEASURED))) / 2
    shared, every, barriers = time.process_time() - started, list(nets.which()), {}
    started = time.process_time()
    for place in torch.linspace(0, len(every) - 1, sampled).round().int():
        which, parts = every[place]
        loss = evaluate(nets.merged(parts), some, labels, MEASURED).means()["loss"]
        barriers[which] = MEASURED["loss"].absolute_barrier(mean, loss)
    return shared + (time.process_time() - started) * len(every) / sampled, barriers


def main(name: str, count: int = 500, sampled: int = 4, size: int = 224) -> None:
    """Print a row of the table."""
    first, second = (build(name, size, seed) for seed in (0, 1))
    partial_merges(first, second, images(2, size), images(2, size), None)  # warm-up
    keep_freed_memory()  # as the command does
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as other:
        side = other.submit(plain, name, count, sampled, size)
        some, started = images(count, size), time.process_time()
        parts = partial_merges(first, second, some, some, None)
        here = time.process_time() - started
        seconds, barriers = side.result()
    peak = peak_mb() / 2**10
    apart = max(abs(getattr(parts[number], kind)["loss"] - loss) for (kind, number), loss in barriers.items())
    print(
        f"| {name} | {size} | {len(parts)} | {count} | {here:.0f} | {seconds:.0f} | {seconds / here:.1f} | "
        f"{peak:.1f} | {apart:.1e} |"
    )
    if apart > AGREE:
        sys.exit(f"the losses of the two ways differ by {apart}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"{device_name(CPU, 1)}; CPU seconds\n")
    print(
        "| net | pixels | parts | images | here, s | plain, s | ratio | peak, GiB | losses differ by |\n"
        "|:---|---:|---:|---:|---:|---:|---:|---:|---:|"
    )
    main(sys.argv[1], *map(int, sys.argv[2:]))
