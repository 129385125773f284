"""Images on the device: normalisation, random crop and random symmetry of whole batches of uint8 images."""

from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

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
    """uint8 (B, H, W, 3) → float32 (B, 3, H, W), channels last in memory, by mean and std (default: CIFAR10's)."""
    means, stds = on_device((tuple(mean), tuple(std)), images.device)
    return images.float().sub_(means).div_(stds).permute(0, 3, 1, 2)


@lru_cache
@torch.inference_mode(False)  # so that later calls outside of inference mode can use them
def on_device(numbers: tuple[float, ...] | tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    """Constants in float32, copied once: a copy for each batch would make the CPU wait until a GPU is idle."""
    return torch.tensor(numbers, dtype=torch.float32, device=device)


def normalise_imagenet(images: Tensor) -> Tensor:
    """`normalise` by ImageNet's mean and std."""
    return normalise(images, IMAGENET_MEAN, IMAGENET_STD)


def shuffled(
    count: int, batch_size: int, random: torch.Generator, device: str | torch.device = "cpu"
) -> tuple[Tensor, ...]:
    """Indices of `count` images in random order, int64 (batch_size,) per step; an incomplete batch is dropped."""
    order = torch.randperm(count, generator=random, device=random.device).to(device)
    return order[: count // batch_size * batch_size].split(batch_size)


def random_powers(uniform: Tensor, order: int) -> Tensor:
    """Powers of a symmetry's generator τ, int64 in 0..order-1, from uniform random numbers in 0..1."""
    return order - 1 - (uniform * order).long()


class Augmented:
    """Images with a random crop after zero padding and a random power of τ, drawn separately for each image.

    UserError if τ doesn't keep the images' shape.

    Args:
        images: uint8 (N, H, W, C), on the device that will train; kept padded, (N, H + 2p, W + 2p, C).
        padding: p, pixels on each side; 0 leaves the crop out.
        symmetry: all of its powers are equally likely; None leaves them out.
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
        # (order, H·W): places of the pixels of τᵏ of a crop, counted from its first pixel
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


CROP_AREA = (0.2, 1.0)  # share of the image, as in SimSiam
CROP_RATIO = (3 / 4, 4 / 3)
JITTER = 0.4  # of brightness, contrast and saturation
HUE = 0.1
JITTER_SHARE, GREY_SHARE = 0.8, 0.2
BLUR_SHARE, BLUR = 0.5, (0.1, 2.0)  # and the range of its standard deviation, in pixels
LUMA = (0.299, 0.587, 0.114)


def random_power(symmetry: Symmetry, image: Tensor) -> Tensor:
    """A random power of a symmetry's generator on an image (3, H, H), drawn as in torchvision's transforms."""
    for _ in range(int(random_powers(torch.rand(()), symmetry.order))):
        image = symmetry.act(image)
    return image


def crop_transform(size: int, symmetry: Symmetry | None) -> nn.Module:
    """torchvision's reference for training: random resized crop and symmetry; PIL image → uint8 (3, size, size)."""
    from torchvision.transforms import v2  # here, since it doubles the start-up of every job

    power = [partial(random_power, symmetry)] if symmetry else []
    return v2.Compose([v2.RandomResizedCrop(size), v2.PILToTensor(), *power])


def view_transform(size: int, symmetry: Symmetry | None) -> nn.Module:
    """SimSiam's augmentation, drawn anew at each call; PIL image → uint8 (3, size, size)."""
    from torchvision.transforms import v2

    jitter = v2.ColorJitter(JITTER, JITTER, JITTER, HUE)
    blur = v2.GaussianBlur(size // 20 * 2 + 1, BLUR)
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, CROP_AREA, CROP_RATIO),
            v2.RandomApply([jitter], JITTER_SHARE),
            v2.RandomGrayscale(GREY_SHARE),
            v2.RandomApply([blur], BLUR_SHARE),
            v2.PILToTensor(),
            *([partial(random_power, symmetry)] if symmetry else []),
        ]
    )


def _uniform(images: Tensor, generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    """Random numbers for each image of a batch, on the images' device, (B, *shape)."""
    drawn = torch.rand((len(images), *shape), generator=generator, device=generator.device)
    return (drawn * (high - low) + low).to(images.device, non_blocking=True)


def random_crops(
    images: Tensor, generator: torch.Generator, area: tuple[float, float], symmetry: Symmetry | None
) -> Tensor:
    """A random resized crop and random power of τ of each of uint8 images (B, H, W, 3); float32 (B, H, W, 3) in 0..255.

    torchvision's transforms draw once for a whole batch, and image by image they are slower than the training of small
    nets; these draw separately for each image. `area`: range of the crop's share of the image. `symmetry`: with the
    generator τ; None: none.
    """
    uniform, (count, height, width) = partial(_uniform, images, generator), images.shape[:3]
    share, ratio = uniform(*area), torch.exp(uniform(*torch.tensor(CROP_RATIO).log().tolist()))
    across, along = (share * ratio).sqrt().clamp(max=1), (share / ratio).sqrt().clamp(max=1)
    x, y = (1 - across) * uniform(-1, 1), (1 - along) * uniform(-1, 1)
    crop = torch.diag_embed(torch.stack([across, along], 1))
    if symmetry:
        crop = crop @ _powers(uniform(0, 1), symmetry)
    crop = torch.cat([crop, torch.stack([x, y], 1)[:, :, None]], 2)
    return grid_sample(
        images.float().permute(0, 3, 1, 2),
        affine_grid(crop, [count, 3, height, width], align_corners=False),
        padding_mode="border",
        align_corners=False,
    ).permute(0, 2, 3, 1)


def _powers(drawn: Tensor, symmetry: Symmetry) -> Tensor:
    """A random power of τ for each image, as the matrix (B, 2, 2) that takes coordinates (x, y) in -1..1."""
    y, x = torch.meshgrid(*[torch.arange(-1.0, 2, device=drawn.device)] * 2, indexing="ij")
    x, y = symmetry.powers(x), symmetry.powers(y)  # (order, 3, 3): where each of nine pixels comes from
    powers = torch.stack([x[:, 1, 2], x[:, 2, 1], y[:, 1, 2], y[:, 2, 1]], 1).view(-1, 2, 2)
    return powers[random_powers(drawn, symmetry.order)]


def random_views(images: Tensor, generator: torch.Generator, symmetry: Symmetry | None) -> Tensor:
    """A random view of each image, as `random_crops`, with colour jitter and grey: SimSiam's, without hue and blur."""
    view, uniform = random_crops(images, generator, CROP_AREA, symmetry), partial(_uniform, images, generator)
    luma = on_device(LUMA, view.device)
    brightness, contrast, saturation = uniform(1 - JITTER, 1 + JITTER, 3).unbind(1)
    jittered = view * brightness[:, None, None, None]
    mean = (jittered @ luma).mean((1, 2))[:, None, None, None]
    jittered = torch.lerp(mean.expand_as(jittered), jittered, contrast[:, None, None, None])
    grey = (jittered @ luma)[..., None].expand_as(jittered)
    jittered = torch.lerp(grey, jittered, saturation[:, None, None, None]).clamp(0, 255)
    view = torch.where(uniform(0, 1, 1, 1, 1) < JITTER_SHARE, jittered, view)
    return torch.where(uniform(0, 1, 1, 1, 1) < GREY_SHARE, (view @ luma)[..., None].expand_as(view), view)
