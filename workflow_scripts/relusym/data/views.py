"""Random views of images for self-supervised training: whole batches on the device, or one file at a time."""

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

from relusym.data.augmentation import on_device, random_powers
from relusym.symmetry import Symmetry

CROP_AREA = (0.2, 1.0)  # share of the image, as in SimSiam
CROP_RATIO = (3 / 4, 4 / 3)
JITTER = 0.4  # of brightness, contrast and saturation
HUE = 0.1
JITTER_SHARE, GREY_SHARE = 0.8, 0.2
BLUR_SHARE, BLUR = 0.5, (0.1, 2.0)  # and the range of its standard deviation, in pixels
LUMA = (0.299, 0.587, 0.114)


class RandomPower(nn.Module):
    """A random power of a symmetry's generator, of an image (3, H, H) of torchvision's transforms."""

    def __init__(self, symmetry: Symmetry):
        super().__init__()
        self.symmetry = symmetry

    def forward(self, image: Tensor) -> Tensor:
        for _ in range(int(random_powers(torch.rand(()), self.symmetry.order))):
            image = self.symmetry.act(image)
        return image


def crop_transform(size: int, symmetry: Symmetry | None) -> nn.Module:
    """torchvision's reference for training: random resized crop and symmetry; PIL image → uint8 (3, size, size)."""
    from torchvision.transforms import v2  # here, since it doubles the start-up of every job

    power = [RandomPower(symmetry)] if symmetry else []
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
            *([RandomPower(symmetry)] if symmetry else []),
        ]
    )


class Draws:
    """Uniform random numbers, one set for each image of a batch, on the images' device."""

    def __init__(self, images: Tensor, generator: torch.Generator):
        self.count, self.device, self.generator = len(images), images.device, generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """(B, *shape)."""
        drawn = torch.rand((self.count, *shape), generator=self.generator, device=self.generator.device)
        return (drawn * (high - low) + low).to(self.device, non_blocking=True)


def random_crops(
    images: Tensor, generator: torch.Generator, area: tuple[float, float], symmetry: Symmetry | None
) -> Tensor:
    """A random resized crop and random power of τ of each of uint8 images (B, H, W, 3); float32 (B, H, W, 3) in 0..255.

    torchvision's transforms draw once for a whole batch, and one by one they are slower than small nets train; these
    draw for every image on its own. `area`: range of the crop's share of the image. `symmetry`: its generator is τ;
    None: none.
    """
    uniform, (count, height, width) = Draws(images, generator).uniform, images.shape[:3]
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
    """One random view of each image: resized crop, symmetry, colour jitter, grey (SimSiam's, without hue and blur).

    Arguments and result as in `random_crops`.
    """
    view, uniform = random_crops(images, generator, CROP_AREA, symmetry), Draws(images, generator).uniform
    luma = on_device(LUMA, view.device)
    brightness, contrast, saturation = uniform(1 - JITTER, 1 + JITTER, 3).unbind(1)
    jittered = view * brightness[:, None, None, None]
    mean = (jittered @ luma).mean((1, 2))[:, None, None, None]
    jittered = torch.lerp(mean.expand_as(jittered), jittered, contrast[:, None, None, None])
    grey = (jittered @ luma)[..., None].expand_as(jittered)
    jittered = torch.lerp(grey, jittered, saturation[:, None, None, None]).clamp(0, 255)
    view = torch.where(uniform(0, 1, 1, 1, 1) < JITTER_SHARE, jittered, view)
    return torch.where(uniform(0, 1, 1, 1, 1) < GREY_SHARE, (view @ luma)[..., None].expand_as(view), view)
