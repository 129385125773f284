"""What folding a layer can save at most: a layer, folded, and the folded one's two convolutions alone, by turns.

python -m benchmark.folded_layers IMAGES: milliseconds of CPU time on one thread, the least of several repeats.
"""

import sys
import time

import torch
from torch import nn

from relusym.memory import keep_freed_memory
from relusym.merging.folded import Folded

LAYERS = {  # channels read and written, pixels, stride, how often
    "vgg11": [
        *((64, 128, 16, 1, 1), (128, 256, 8, 1, 1), (256, 256, 8, 1, 1)),
        *((256, 512, 4, 1, 1), (512, 512, 4, 1, 1), (512, 512, 2, 1, 2)),
    ],
    "resnet18": [
        *((64, 64, 57, 1, 4), (64, 128, 57, 2, 1), (128, 128, 29, 1, 3), (128, 256, 29, 2, 1)),
        *((256, 256, 15, 1, 3), (256, 512, 15, 2, 1), (512, 512, 8, 1, 3)),
    ],
}
REPEATS = 5


@torch.no_grad()
def seconds(reads: int, writes: int, pixels: int, stride: int, images: int) -> list[float]:
    """Of the layer, of it folded, and of the folded one's convolutions alone."""
    layer = nn.Conv2d(reads, writes, 3, stride, 1)
    layer.weight.data = layer.weight.contiguous(memory_format=torch.channels_last)
    swapped = [torch.arange(count).roll(count // 2) for count in (reads, writes)]
    fold = Folded(layer, *swapped, -1)
    x, columns = (
        torch.randn(images, *shape).contiguous(memory_format=torch.channels_last)
        for shape in ((reads, pixels, pixels), (3 * reads // 2, pixels, (pixels - 1) // stride + 1))
    )
    calls = (lambda: layer(x), lambda: fold(x), lambda: (fold.even(columns), fold.odd(columns)))
    least = [float("inf")] * len(calls)
    for _ in range(REPEATS + 1):  # the first warms up
        for place, call in enumerate(calls):
            start = time.process_time()
            call()
            least[place] = min(least[place], time.process_time() - start)
    return least


if __name__ == "__main__":
    torch.set_num_threads(1)
    keep_freed_memory()
    for net, layers in LAYERS.items():
        total = [0.0] * 3
        for *layer, times in layers:
            taken = seconds(*layer, int(sys.argv[1]))
            total = [a + times * b for a, b in zip(total, taken, strict=True)]
            print(
                net,
                *layer,
                times,
                *(f"{1000 * each:.1f}" for each in taken),
                f"{taken[0] / taken[2]:.2f}",
                flush=True,
            )
        print(net, *(f"{1000 * each:.0f}" for each in total), f"{total[0] / total[2]:.2f}", flush=True)
