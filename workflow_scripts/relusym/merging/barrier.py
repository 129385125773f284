"""Accuracy, and the barrier on the line between two nets (equation (4))."""

import torch
from torch import Tensor, nn

from relusym.data.augmentation import Normalise, normalise


@torch.no_grad()
def accuracy(
    net: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 500, normalise: Normalise = normalise
) -> float:
    """Share of `images`, uint8 (N, H, W, 3), whose largest logit is at `labels`, int64 (N,)."""
    net.eval()
    device = next(net.parameters()).device
    correct = torch.zeros((), dtype=torch.int64, device=device)
    for batch, truth in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        correct += (net(normalise(batch.to(device))).argmax(1) == truth.to(device)).sum()
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
