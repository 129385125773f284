"""How good a net is: accuracy and loss in one pass, of one net or of the average of its outputs over a symmetry."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relusym.merging.images import Images, device_of
from relusym.precision import full_float32
from relusym.symmetry import Symmetry


@dataclass(frozen=True)
class Scores:
    """Means over the test images.

    Attributes:
        accuracy: share of the images whose largest logit is at the label.
        loss: cross-entropy.
    """

    accuracy: float
    loss: float


@torch.no_grad()
@full_float32()
def scores(net: nn.Module, images: Images, labels: Tensor, symmetry: Symmetry | None = None) -> Scores:
    """Accuracy and loss of `net`.

    Args:
        labels: int64 (N,).
        symmetry: if given, the logits are averaged over all orientations of an image (test-time augmentation).
    """
    net.eval()
    device = device_of(net)
    correct, loss = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(2))
    for x, truth in zip(images.batches(device), labels.split(images.batch_size), strict=True):
        views = symmetry.powers(x) if symmetry else x[None]
        logits = torch.stack([net(view) for view in views]).mean(0)
        correct += (logits.argmax(1) == truth.to(device)).sum()
        loss += nn.functional.cross_entropy(logits.double(), truth.to(device), reduction="sum")
    return Scores(float(correct) / len(labels), float(loss) / len(labels))
