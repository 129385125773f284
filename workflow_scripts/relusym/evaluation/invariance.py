"""The invariance error of a net's logits (section 4), and nets that average logits."""

import torch
from torch import Tensor, nn

from relusym.evaluation.images import AnyImages, as_images, device_of
from relusym.evaluation.logits import evaluating, logits_of
from relusym.precision import full_float32
from relusym.symmetry import HORIZONTAL_FLIP, Symmetry


class Averaged(nn.Module):
    """A net's logits, averaged over all orientations of an image: test-time augmentation."""

    def __init__(self, net: nn.Module, symmetry: Symmetry):
        super().__init__()
        self.net, self.symmetry = net, symmetry

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of normalised images (B, C, H, W)."""
        return torch.stack([logits_of(self.net(view)) for view in self.symmetry.powers(x)]).mean(0)


class Ensemble(nn.Module):
    """The mean of several nets' logits."""

    def __init__(self, *nets: nn.Module):
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes, …) of normalised images (B, C, H, W)."""
        return torch.stack([logits_of(net(x)) for net in self.nets]).mean(0)


def relative_invariance_error(logits: Tensor, logits_moved: Tensor) -> Tensor:
    """‖Φ(x) − Φ(τx)‖ / (½‖Φ(x)‖ + ½‖Φ(τx)‖) for each image, 0 if all logits are 0; (B, classes) twice → (B,)."""
    norm = torch.linalg.vector_norm
    size = 0.5 * norm(logits, dim=1) + 0.5 * norm(logits_moved, dim=1)
    return norm(logits - logits_moved, dim=1) / size.clamp(min=torch.finfo(size.dtype).tiny)


def moved(logits: Tensor, symmetry: Symmetry) -> Tensor:
    """τ on logits: moves the pixels of logits at every pixel (B, classes, H, W), and leaves (B, classes) unchanged."""
    return symmetry.act(logits) if logits.ndim == 4 else logits


@torch.no_grad()
@full_float32()
def invariance_error(net: nn.Module, images: AnyImages, symmetry: Symmetry = HORIZONTAL_FLIP) -> float:
    """Mean relative invariance error of `net` over `images`; Φ(τx) is compared with τΦ(x) if logits have pixels.
    UserError if images don't fit the symmetry (`Symmetry.powers`).
    """
    device, images = device_of(net), as_images(images)
    symmetry.powers(torch.empty(images.shape, device="meta"))
    total, count = torch.zeros((), dtype=torch.float64, device=device), 0
    with evaluating(net):
        for x in images.batches(device):
            both = logits_of(net(torch.cat([x, symmetry.act(x)]))).double()
            here, there = both.chunk(2)
            total += relative_invariance_error(moved(here, symmetry).flatten(1), there.flatten(1)).sum()
            count += len(x)
    return float(total / count)
