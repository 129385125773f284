"""Images on the device: normalisation, random crop and flip of whole batches of uint8 images."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# CIFAR10's channel statistics as REPAIR's notebook has them, in grey levels 0..255
MEAN = (125.307, 122.961, 113.8575)
STD = (51.5865, 50.847, 51.255)
# ImageNet's as torchvision's presets have them
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

Normalise = Callable[[Tensor], Tensor]


def normalise(
    images: Tensor, mean: tuple[float, float, float] = MEAN, std: tuple[float, float, float] = STD
) -> Tensor:
    """uint8 (B, H, W, 3) → float32 (B, 3, H, W), channels last in memory, by mean and std: CIFAR10's, if not given."""
    means, stds = images.new_tensor([mean, std], dtype=torch.float32)
    return images.float().sub_(means).div_(stds).permute(0, 3, 1, 2)


def normalise_imagenet(images: Tensor) -> Tensor:
    """`normalise` by ImageNet's mean and std."""
    return normalise(images, IMAGENET_MEAN, IMAGENET_STD)


class RandomCropFlip:
    """Random crop after zero padding, and random horizontal flip, for every image on its own.

    Args:
        images: uint8 (N, H, W, 3), on the device that will train; kept padded, (N, H + 2p, W + 2p, 3).
        padding: p, pixels on each side; 0 leaves the crop out.
        flip: whether each image is flipped with probability 1/2.
    """

    def __init__(self, images: Tensor, padding: int, flip: bool):
        self.count, self.height, self.width = images.shape[:3]
        self.padding, self.flip = padding, flip
        padded = torch.nn.functional.pad(images, (0, 0, padding, padding, padding, padding))
        self.stride = padded.shape[2]
        self.image_stride = padded.shape[1] * self.stride
        self.pixels = padded.reshape(-1, 3)

    def batch(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Normalised float32 images (B, 3, H, W), channels last, for the int64 `index` (B,) of images."""
        device, count = index.device, len(index)
        top, left = torch.randint(
            2 * self.padding + 1, (2, count, 1), generator=generator, device=generator.device
        ).to(device, non_blocking=True)
        rows = (top + torch.arange(self.height, device=device)) * self.stride
        columns = torch.arange(self.width, device=device).expand(count, -1)
        if self.flip:
            mirrored = torch.rand((count, 1), generator=generator, device=generator.device) < 0.5
            columns = torch.where(mirrored.to(device, non_blocking=True), self.width - 1 - columns, columns)
        columns = columns + left
        where = (index * self.image_stride)[:, None, None] + rows[:, :, None] + columns[:, None, :]
        picked = self.pixels.index_select(0, where.flatten())
        return normalise(picked.view(count, self.height, self.width, 3))

    def epoch(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """All images once in random order, as (index, images); a last incomplete batch is dropped."""
        order = torch.randperm(self.count, generator=generator, device=generator.device).to(
            self.pixels.device
        )
        for start in range(0, self.count - batch_size + 1, batch_size):
            index = order[start : start + batch_size]
            yield index, self.batch(index, generator)
