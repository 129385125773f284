"""The speed-up of a training step by `quick_steps` on one thread of this CPU, measured alternately with and without it.

    PYTHONPATH=workflow_scripts python -m benchmark.training_step [repeats]

A step's time is its CPU time, and the minimum of the repeats counts, so that other work on the machine matters little.
Images are noise: a step's time doesn't depend on them.
"""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from itertools import product

import torch

from benchmark.sides import CPU, device_name
from relusym.memory import keep_freed_memory
from relusym.nets.vgg import VGG11
from relusym.reporting.exact import by_turns
from relusym.symmetry import HORIZONTAL_FLIP
from relusym.training.loop import make_optimizer
from relusym.training.objectives import Supervised
from relusym.training.quick_steps import quick_steps
from relusym.training.recipe import Recipe

DTYPE = torch.bfloat16
INVARIANT = {"invariance_from": 0.0}
TYPES = {"cnn": {}, "cnn_inv": INVARIANT, "gcnn": {"group_convs": 8}, "pgcnn": {"group_convs": 2}}
SIZES = ((1 / 4, 100), (1 / 2, 100), (1, 500))  # width, images per step


def step_of(width: float, images: int, quick: bool, group_convs=0, **recipe: float) -> Callable[[], None]:
    """A function that runs one training step as `loop.train` does."""
    torch.manual_seed(0)
    rates = {"learning_rate": 0.05, "weight_decay": 0.0018, "invariance_weight": 0.15}
    how = Recipe(epochs=1, batch_size=images, **rates, **recipe)
    net = VGG11(width, group_convs, initialization="he").to(memory_format=torch.channels_last)
    objective = Supervised(net, how, HORIZONTAL_FLIP)
    optimizer = make_optimizer(objective, how)
    x = torch.randn(images, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (images,))
    context = quick_steps(net, CPU, DTYPE) if quick else nullcontext()

    def step() -> None:
        with torch.autocast("cpu", DTYPE), context:
            loss, _ = objective.loss(net, (x,), labels, 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    print(f"{device_name(CPU, 1)}; milliseconds a step\n")
    print("| type | width | images | plain | quick | ratio |\n|:---|---:|---:|---:|---:|---:|")
    for (width, images), kind in product(SIZES, TYPES):
        steps = [step_of(width, images, quick, **TYPES[kind]) for quick in (False, True)]
        # a long step needs fewer repeats
        taken = by_turns(steps, repeats if images < 500 else max(1, repeats // 5))
        plain, quick = (1000 * min(times) for times in taken)
        row = f"| {kind} | {width} | {images} | {plain:.1f} | {quick:.1f} | {plain / quick:.2f} |"
        print(row, flush=True)
