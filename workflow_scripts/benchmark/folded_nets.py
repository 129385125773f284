"""An exact GCNN, folded and compiled, against its net as it is, fused and compiled: milliseconds of CPU time, by turns.

    python -m benchmark.folded_nets NET [FIXED [IMAGES [ROUNDS]]]

NET is vgg11 (the paper's) or resnet18 (torchvision's, at 225 pixels), with random weights; of each group's channels a
share FIXED, drawn at random, are their own partners. One thread; the least of the rounds, and ratios of
these and of medians.
"""

import os
import sys
import time
from statistics import median

import torch
import torchvision
from torch import nn

from benchmark.sides import device_name
from relusym.channels.traced import TracedNet
from relusym.evaluation.invariance import relative_invariance_error
from relusym.memory import keep_freed_memory
from relusym.merging.exact_gcnn import exact_gcnn
from relusym.merging.folded import folded, fused
from relusym.nets.vgg import VGG11
from relusym.symmetry import HORIZONTAL_FLIP

EXACT = 1e-5  # the folded net's largest difference from the tied one, and its invariance error


def main(name: str, fixed: float = 0.0, images: int = 100, rounds: int = 9) -> None:
    """Print a row of the table."""
    torch.manual_seed(0)
    if name == "vgg11":
        net, shape = VGG11(1.0, initialization="he"), (3, 32, 32)
    else:
        net, shape = torchvision.models.get_model(name), (3, 225, 225)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
    traced, pairs = TracedNet(net.eval(), shape), {}
    for group in traced.groups:
        swapped = torch.randperm(group.size)[int(group.size * fixed) // 2 * 2 :].view(-1, 2)
        pairs[group.name] = torch.arange(group.size).index_put((swapped,), swapped.flip(1))
    tied = traced.copied(exact_gcnn(traced, HORIZONTAL_FLIP, traced.groups, pairs).to_plain().eval())
    fast = folded(tied, HORIZONTAL_FLIP, tied.groups, pairs, compiled=True)
    x = torch.randn(images, *shape).contiguous(memory_format=torch.channels_last)
    expected, logits, flipped = (
        f(part) for f, part in ((tied.net, x[:4]), (fast, x[:4]), (fast, x[:4].flip(-1)))
    )
    error = max(
        (logits - expected).abs().max() / expected.abs().max(),
        relative_invariance_error(logits, flipped).max(),
    )
    plain = fused(tied)
    nets = {"net": tied.net, "fused": plain, "compiled": torch.compile(plain), "exact": torch.compile(fast)}
    taken: dict[str, list[float]] = {key: [] for key in nets}
    for _ in range(rounds + 1):  # the first compiles
        for key, each in nets.items():
            start = time.process_time()
            each(x)
            taken[key].append(1000 * (time.process_time() - start))
    ratios = []
    for statistic in (min, median):
        *others, exact = (statistic(times[1:]) for times in taken.values())
        ratios.append("; ".join(f"{other / exact:.2f}" for other in others))
    least = [f"{min(times[1:]):.0f}" for times in taken.values()]
    print(f"| {' | '.join([name, f'{fixed:g}', *least, *ratios])} | {error:.1e} |")
    if error > EXACT:
        sys.exit(f"the folded net isn't exact: {error}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    keep_freed_memory()
    print(f"{device_name(torch.device('cpu'), 1)}, load {os.getloadavg()[0]:.0f}; CPU milliseconds\n")
    print(
        "| net | fixed | the net | batch norms fused | compiled | exact GCNN, compiled | times as quick as these | by "
        "medians | error |\n|---|---:|---:|---:|---:|---:|---|---|---:|"
    )
    with torch.no_grad():
        main(sys.argv[1], *(kind(text) for kind, text in zip((float, int, int), sys.argv[2:], strict=False)))
