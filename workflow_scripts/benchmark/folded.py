"""The time that an exact GCNN saves by its folded layers, on one thread: alternate runs, milliseconds of CPU time.

    PYTHONPATH=workflow_scripts python -m benchmark.folded layers IMAGES
    PYTHONPATH=workflow_scripts python -m benchmark.folded NET [FIXED [IMAGES [ROUNDS]]]

`layers` bounds the saving: it times a layer, the folded layer, and only the folded layer's two convolutions. The
minimum of several rounds counts.

NET is vgg11 (the paper's) or resnet18 (torchvision's, at 225 pixels), with random weights. The exact GCNN, folded and
compiled, is timed against its net unchanged, fused, and compiled. A random share FIXED of each group's channels are
their own partners. The row has the minima of the rounds, and the ratios of the minima and of the medians.
"""

import os
import sys
from functools import partial
from statistics import median

import torch
from torch import nn

from benchmark.partial_merges import build
from benchmark.sides import CPU, device_name
from relusym.channels.traced import TracedNet
from relusym.evaluation.invariance import relative_invariance_error
from relusym.memory import keep_freed_memory
from relusym.merging.exact_gcnn import exact_gcnn
from relusym.merging.folded import Folded, folded, fused
from relusym.reporting.exact import by_turns
from relusym.symmetry import HORIZONTAL_FLIP

LAYERS = {  # input and output channels, pixels, stride, number of such layers
    "vgg11": [
        *((64, 128, 16, 1, 1), (128, 256, 8, 1, 1), (256, 256, 8, 1, 1)),
        *((256, 512, 4, 1, 1), (512, 512, 4, 1, 1), (512, 512, 2, 1, 2)),
    ],
    "resnet18": [
        *((64, 64, 57, 1, 4), (64, 128, 57, 2, 1), (128, 128, 29, 1, 3), (128, 256, 29, 2, 1)),
        *((256, 256, 15, 1, 3), (256, 512, 15, 2, 1), (512, 512, 8, 1, 3)),
    ],
}
EXACT = 1e-5  # the folded net's largest difference from the tied one, and its invariance error


def channels_last(*shape: int) -> torch.Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def layer_times(reads: int, writes: int, pixels: int, stride: int, images: int) -> list[float]:
    """Milliseconds of a layer, of the folded layer, and of only the folded layer's convolutions."""
    layer = nn.Conv2d(reads, writes, 3, stride, 1).to(memory_format=torch.channels_last)
    swapped = [torch.arange(count).roll(count // 2) for count in (reads, writes)]
    fold = Folded(layer, *swapped, -1)
    x = channels_last(images, reads, pixels, pixels)
    columns = channels_last(images, 3 * reads // 2, pixels, (pixels - 1) // stride + 1)
    calls = (lambda: layer(x), lambda: fold(x), lambda: (fold.even(columns), fold.odd(columns)))
    return [1000 * min(times) for times in by_turns(calls, 6)]


def print_layers(images: int) -> None:
    for net, layers in LAYERS.items():
        total = torch.zeros(3)
        for *layer, count in layers:
            taken = layer_times(*layer, images)
            total += count * torch.tensor(taken)
            times = [f"{each:.1f}" for each in taken]
            print(net, *layer, count, *times, f"{taken[0] / taken[2]:.2f}", flush=True)
        print(net, *(f"{each:.0f}" for each in total), f"{total[0] / total[2]:.2f}", flush=True)


def print_net(name: str, fixed: float = 0.0, images: int = 100, rounds: int = 9) -> None:
    """Print the table's header and a row."""
    print(f"{device_name(CPU, 1)}, load {os.getloadavg()[0]:.0f}; CPU milliseconds\n")
    print(
        "| net | fixed | the net | batch norms fused | compiled | exact GCNN, compiled | times as quick as these | by "
        "medians | error |\n|---|---:|---:|---:|---:|---:|---|---|---:|"
    )
    size = 32 if name == "vgg11" else 225
    net = build(name, size, seed=0).to(memory_format=torch.contiguous_format)  # as the library gets it
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
    traced, pairs = TracedNet(net, (3, size, size)), {}
    for group in traced.groups:
        swapped = torch.randperm(group.size)[int(group.size * fixed) // 2 * 2 :].view(-1, 2)
        pairs[group.name] = torch.arange(group.size).index_put((swapped,), swapped.flip(1))
    tied = traced.copied(exact_gcnn(traced, HORIZONTAL_FLIP, traced.groups, pairs).to_plain().eval())
    plain, fast = fused(tied), folded(tied, HORIZONTAL_FLIP, tied.groups, pairs, compiled=True)
    x = channels_last(images, 3, size, size)
    expected, logits, flipped = tied.net(x[:4]), fast(x[:4]), fast(x[:4].flip(-1))
    difference = (logits - expected).abs().max() / expected.abs().max()
    error = max(difference, relative_invariance_error(logits, flipped).max())
    nets = tied.net, plain, torch.compile(plain), torch.compile(fast)
    taken = by_turns([partial(net, x) for net in nets], rounds)
    ratios = []
    for statistic in (min, median):
        *others, exact = map(statistic, taken)
        ratios.append("; ".join(f"{other / exact:.2f}" for other in others))
    least = [f"{1000 * min(times):.0f}" for times in taken]
    print(f"| {' | '.join([name, f'{fixed:g}', *least, *ratios])} | {error:.1e} |")
    if error > EXACT:
        sys.exit(f"the folded net isn't exact: {error}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    keep_freed_memory()
    name, *numbers = sys.argv[1:]
    with torch.no_grad():
        if name == "layers":
            print_layers(int(*numbers))
        else:
            print_net(name, *(kind(text) for kind, text in zip((float, int, int), numbers, strict=False)))
