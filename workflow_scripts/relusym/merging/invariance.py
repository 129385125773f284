"""Invariance of a net's logits: the loss that trains it and the error that measures it (section 4)."""

import torch
from torch import Tensor, nn

from relusym.merging.images import Images, device_of
from relusym.precision import full_float32
from relusym.symmetry import HORIZONTAL_FLIP, Symmetry


def relative_invariance_error(logits: Tensor, logits_moved: Tensor) -> Tensor:
    """‖Φ(x) − Φ(τx)‖ / (½‖Φ(x)‖ + ½‖Φ(τx)‖) for each image; (B, classes) twice → (B,)."""
    norm = torch.linalg.vector_norm
    return norm(logits - logits_moved, dim=1) / (0.5 * norm(logits, dim=1) + 0.5 * norm(logits_moved, dim=1))


@torch.no_grad()
@full_float32()
def invariance_error(net: nn.Module, images: Images, symmetry: Symmetry = HORIZONTAL_FLIP) -> float:
    """Mean relative invariance error of `net` over `images`."""
    net.eval()
    device = device_of(net)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for x in images.batches(device):
        both = net(torch.cat([x, symmetry.act(x)])).double()
        total += relative_invariance_error(*both.chunk(2)).sum()
    return float(total / len(images))
