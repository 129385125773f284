"""Accuracy, and the barrier on the line between two nets (equation (4))."""

import torch
from torch import Tensor, nn

from relusym.merging.images import Images, device_of
from relusym.precision import full_float32


@torch.no_grad()
@full_float32()
def accuracy(net: nn.Module, images: Images, labels: Tensor) -> float:
    """Share of the images whose largest logit is at `labels`, int64 (N,)."""
    net.eval()
    device = device_of(net)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    for x, truth in zip(images.batches(device), labels.split(images.batch_size), strict=True):
        correct += (net(x).argmax(1) == truth.to(device)).sum()
    return int(correct) / len(labels)


def absolute_barrier(first: float, second: float, halfway: float) -> float:
    """Equation (4) without its denominator: ½(ζ(θ₁) + ζ(θ₂)) − ζ(½(θ₁ + θ₂))."""
    return (first + second) / 2 - halfway


def barrier(first: float, second: float, halfway: float) -> float:
    """Equation (4): the share of the endpoints' mean performance ζ that the halfway net lacks.

    Raises:
        ZeroDivisionError: both endpoints are at zero.
    """
    return absolute_barrier(first, second, halfway) / ((first + second) / 2)
