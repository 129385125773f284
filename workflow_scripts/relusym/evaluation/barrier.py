"""Accuracy, and the barrier on the line between two nets (equation (4))."""

from torch import Tensor, nn

from relusym.evaluation.images import AnyImages
from relusym.evaluation.metrics import TOP_1, evaluate


def accuracy(net: nn.Module, images: AnyImages, labels: Tensor | None = None) -> float:
    """Share of the images whose largest logit is at `labels`, int64 (N,), or at those that the batches bring."""
    return evaluate(net, images, labels, {"accuracy": TOP_1})[0]["accuracy"]


def absolute_barrier(first: float, second: float, halfway: float) -> float:
    """Equation (4) without its denominator: ½(ζ(θ₁) + ζ(θ₂)) − ζ(½(θ₁ + θ₂))."""
    return TOP_1.absolute_barrier(first, second, halfway)


def barrier(first: float, second: float, halfway: float) -> float:
    """Equation (4): the share of the endpoints' mean performance ζ that the halfway net lacks.

    Raises:
        ZeroDivisionError: both endpoints are at zero.
    """
    return absolute_barrier(first, second, halfway) / ((first + second) / 2)
