"""Images on the device: normalisation, random crop and random symmetry of whole batches of uint8 images."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from relusym.symmetry import Symmetry

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
    means, stds = on_device((tuple(mean), tuple(std)), images.device)
    return images.float().sub_(means).div_(stds).permute(0, 3, 1, 2)


@lru_cache
@torch.inference_mode(False)  # whoever asks first, all may use them
def on_device(numbers: tuple[float, ...] | tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    """Constants in float32, copied once: a copy for each batch would make the CPU wait until a GPU is idle."""
    return torch.tensor(numbers, dtype=torch.float32, device=device)


def normalise_imagenet(images: Tensor) -> Tensor:
    """`normalise` by ImageNet's mean and std."""
    return normalise(images, IMAGENET_MEAN, IMAGENET_STD)


def shuffled(
    count: int, batch_size: int, random: torch.Generator, device: str | torch.device = "cpu"
) -> tuple[Tensor, ...]:
    """Indices of `count` images once in random order, int64 (batch_size,) a step; what is left over is dropped."""
    order = torch.randperm(count, generator=random, device=random.device).to(device)
    return order[: count // batch_size * batch_size].split(batch_size)


def random_powers(uniform: Tensor, order: int) -> Tensor:
    """Powers of a symmetry's generator τ, int64 in 0..order-1, from uniform random numbers in 0..1."""
    return order - 1 - (uniform * order).long()


class Augmented:
    """Images with a random crop after zero padding and a random power of τ, drawn for every image on its own.

    UserError if τ doesn't keep the images' shape.

    Args:
        images: uint8 (N, H, W, C), on the device that will train; kept padded, (N, H + 2p, W + 2p, C).
        padding: p, pixels on each side; 0 leaves the crop out.
        symmetry: whose powers are as likely as one another; None leaves them out.
        normalise: how pixels become a net's input.
    """

    def __init__(
        self, images: Tensor, padding: int, symmetry: Symmetry | None, normalise: Normalise = normalise
    ):
        self.height, self.width = images.shape[1:3]
        self.padding, self.symmetry, self.normalise = padding, symmetry, normalise
        padded = torch.nn.functional.pad(images, (0, 0, padding, padding, padding, padding))
        self.stride = padded.shape[2]
        self.image_stride = padded.shape[1] * self.stride
        self.pixels = padded.flatten(0, 2)
        rows, columns = (torch.arange(size, device=images.device) for size in (self.height, self.width))
        grid = rows[:, None] * self.stride + columns
        # (order, H·W): where the pixels of τᵏ of a crop lie, from its first pixel on
        self.places = (symmetry.powers(grid) if symmetry else grid[None]).flatten(1)

    def batch(self, index: Tensor, random: torch.Generator) -> Tensor:
        """Normalised float32 images (B, 3, H, W), channels last, for the int64 `index` (B,) of images."""
        device, count = index.device, len(index)
        top, left = torch.randint(
            2 * self.padding + 1, (2, count, 1), generator=random, device=random.device
        ).to(device, non_blocking=True)
        places = self.places
        if self.symmetry:
            drawn = torch.rand(count, generator=random, device=random.device)
            places = places[random_powers(drawn, self.symmetry.order).to(device, non_blocking=True)]
        first = (index * self.image_stride)[:, None] + top * self.stride + left
        picked = self.pixels.index_select(0, (first + places).flatten())
        return self.normalise(picked.view(count, self.height, self.width, -1))
