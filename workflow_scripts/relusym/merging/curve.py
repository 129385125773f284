"""The whole line between two nets, of which the barrier of equation (4) is the middle."""

import torch
from torch import Tensor

from relusym.evaluation.images import ImageSource
from relusym.evaluation.metrics import MEASURED, evaluate
from relusym.merging.aligned import Aligned
from relusym.merging.repair import repaired
from relusym.precision import full_float32


@torch.no_grad()
@full_float32()
def curve(
    aligned: Aligned, images: ImageSource, test_images: ImageSource, labels: Tensor, points: int
) -> dict[str, dict[str, list[float]]]:
    """Accuracy and loss at evenly spaced points from one net to the other.

    Args:
        images: those that REPAIR's statistics are taken on; the target statistics at a point are as far between the
            endpoints' as the weights are.
        test_images, labels: what is measured on; labels int64 (N,).
        points: how many, the endpoints included.

    Returns:
        "plain" and "repaired" → "accuracy" and "loss" → one number a point. The endpoints are the nets themselves.
    """
    found: dict[str, dict[str, list[float]]] = {
        way: {"accuracy": [], "loss": []} for way in ("plain", "repaired")
    }
    for i in range(points):
        share = i / (points - 1)
        traced = aligned.between(share)
        inner = 0 < i < points - 1
        nets = {"plain": traced.net}
        if inner:
            nets["repaired"] = repaired(traced, aligned.targets(share), images)[0]
        measured = {way: evaluate(one, test_images, labels, MEASURED)[0] for way, one in nets.items()}
        for way, of in found.items():
            for metric, values in of.items():
                values.append(measured.get(way, measured["plain"])[metric])
    return found
