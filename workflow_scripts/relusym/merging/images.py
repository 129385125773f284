"""Images as nets read them: the one place of this room where pixels become a net's input."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from relusym.data.augmentation import Normalise, normalise


@dataclass(frozen=True)
class Images:
    """Images that nets are run on, batch by batch.

    Attributes:
        pixels: uint8 (N, H, W, 3), on any device.
        batch_size: how many a net reads at once; results depend on it by rounding alone.
        normalise: uint8 (B, H, W, 3) → float32 (B, 3, H, W); CIFAR10's, if not given.
    """

    pixels: Tensor
    batch_size: int = 500
    normalise: Normalise = normalise

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def count(self) -> int:
        """How many batches there are."""
        return -(-len(self) // self.batch_size)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        return (self.pixels.shape[3], *self.pixels.shape[1:3])

    def batches(self, device: torch.device, *, even: bool = False) -> Iterator[Tensor]:
        """Normalised batches on `device`, the last one what is left; `even` ones are of equal size up to one image."""
        pieces = self.pixels.tensor_split(self.count) if even else self.pixels.split(self.batch_size)
        return (self.normalise(piece.to(device)) for piece in pieces)

    def first(self, count: int, device: torch.device) -> Tensor:
        """The first `count` images, normalised."""
        return self.normalise(self.pixels[:count].to(device))


def device_of(net: torch.nn.Module) -> torch.device:
    """Where a net's parameters are."""
    return next(net.parameters()).device
