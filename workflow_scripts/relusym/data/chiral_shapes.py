"""The demo's images: ten kinds of shape, some chiral, whose distribution is exactly invariant to a symmetry.

The paper's data, CIFAR10 and ImageNet, show objects whose mirror images are as likely as themselves. Here this holds
by construction: the last step mirrors each image with probability ½. So chiral shapes occur in both orientations, and a
net must learn each of them twice, or something equivalent for both at once. Another symmetry can replace the horizontal
flip, or none: then the shapes stand upright, and no flip or turn preserves the distribution.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from relusym.data.augmentation import random_powers
from relusym.data.image_set import ImageSet, save
from relusym.randomness import generator
from relusym.symmetry import HORIZONTAL_FLIP, SYMMETRIES, Symmetry

SIZE = 32
NOISE, CLUTTER = 0.2, 3  # the standard deviation of the pixels' noise; how many discs lie behind a shape
CHUNK = 1000  # images drawn and rendered at once, for memory

# Kinds next to each other (0 and 1, 2 and 3, …) share their colours, so that only the shape tells them apart.
SHAPES = {
    "disc": "..####.. .######. ######## ######## ######## ######## .######. ..####..",
    "ring": "..####.. .######. ###..### ##....## ##....## ###..### .######. ..####..",
    "stripes": "######## ######## ........ ######## ######## ........ ######## ########",
    "checker": "##..##.. ##..##.. ..##..## ..##..## ##..##.. ##..##.. ..##..## ..##..##",
    "hook": "....##.. ....##.. ....##.. ....##.. ....##.. ....##.. ######.. ######..",
    "flag": "#######. #######. #######. #######. ##...... ##...... ##...... ##......",
    "zigzag": ".##..... .##..... .##..... .#####.. .#####.. ....##.. ....##.. ....##..",
    "wedge": "#....... ##...... ###..... ####.... #####... ######.. #######. ########",
    "boot": "####.... ####.... ####.... ####.... ####.... ######## ######## ########",
    "outline": "####.... #..#.... #..#.... #..#.... #..#.... #..##### #......# ########",
}
CLASSES = tuple(SHAPES)
# Mean colours of background and shape for each pair of kinds. Backgrounds are coarse cues that a net learns in its
# first epoch; shapes stand out in all three channels, so that narrow nets learn these, too, in a few more epochs.
GROUND = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.1, 0.1], [0.1, 1.0, 0.1], [0.1, 0.1, 1.0]])
INK = torch.tensor([[0.3, 0.3, 0.3], [0.7, 0.7, 0.7], [0.3, 0.6, 0.6], [0.6, 0.3, 0.6], [0.6, 0.6, 0.3]])


@dataclass(frozen=True)
class Scenes:
    """Everything that is random about N images."""

    template: Tensor  # (N,) int64, which of `TEMPLATES` is shown
    # (N, 1 + CLUTTER, 4) of the shape and each piece of clutter: centre x and y in -1..1, size, angle (radians)
    place: Tensor
    colour: Tensor  # (N, 1 + CLUTTER, 3) of these, about 0..1
    ground: Tensor  # (N, 3, 4, 4) of a coarse background, about 0..1
    noise: Tensor  # (N, 3, 32, 32), added to the image
    power: Tensor  # (N,) int64, of the symmetry's generator, which moves the image; uniform and independent


_CELLS = torch.tensor([[[c == "#" for c in row] for row in shape.split()] for shape in SHAPES.values()])
TEMPLATES = _CELLS.float().repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]  # (10, 1, 32, 32)


def draw(labels: Tensor, random: torch.Generator, symmetry: Symmetry | None) -> Scenes:
    """Draw the random factors of one image for each label, (N,) int64 in 0..9; without a symmetry no image is moved."""
    count, pair = len(labels), labels // 2

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand((count, *shape), generator=random) * (high - low) + low

    def normal(std: float, *shape: int) -> Tensor:
        return torch.randn((count, *shape), generator=random) * std

    size = torch.cat([uniform(0.65, 0.9, 1), uniform(0.1, 0.25, CLUTTER)], 1)
    centre = torch.cat([uniform(-0.2, 0.2, 1, 2), uniform(-1, 1, CLUTTER, 2)], 1)
    angle = torch.cat([normal(0.12, 1), uniform(-math.pi, math.pi, CLUTTER)], 1)
    return Scenes(
        template=labels,
        place=torch.cat([centre, size[..., None], angle[..., None]], 2),
        colour=torch.cat([INK[pair][:, None] + normal(0.1, 1, 3), uniform(0, 1, CLUTTER, 3)], 1),
        ground=GROUND[pair][..., None, None] + normal(0.1, 3, 1, 1) + normal(0.08, 3, 4, 4),
        noise=normal(NOISE, 3, SIZE, SIZE),
        power=random_powers(uniform(0, 1), symmetry.order if symmetry else 1),
    )


def render(scenes: Scenes, symmetry: Symmetry | None) -> Tensor:
    """The images of `scenes`, which were drawn for this symmetry, uint8 (N, 32, 32, 3)."""
    image = interpolate(scenes.ground, SIZE, mode="bilinear", align_corners=True)
    for piece in reversed(range(scenes.place.shape[1])):  # the shape lies on top of the clutter
        x, y, size, angle = scenes.place[:, piece].unbind(1)
        cos, sin = angle.cos() / size, angle.sin() / size
        inverse = torch.stack([cos, sin, -cos * x - sin * y, -sin, cos, sin * x - cos * y], 1).view(-1, 2, 3)
        grid = affine_grid(inverse, (len(x), 1, SIZE, SIZE), align_corners=False)
        drawing = scenes.template if piece == 0 else torch.zeros_like(scenes.template)  # clutter is discs
        mask = grid_sample(TEMPLATES[drawing], grid, align_corners=False)
        colour = scenes.colour[:, piece, :, None, None].expand_as(image)
        image = torch.lerp(image, colour, mask.expand_as(image))
    image = image + scenes.noise
    if symmetry:
        image = symmetry.powers(image)[scenes.power, torch.arange(len(image))]
    return image.mul(255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def generate(
    train: int, test: int, seed: int, symmetry: Symmetry | None = HORIZONTAL_FLIP
) -> tuple[ImageSet, ImageSet]:
    """Training and test set with balanced classes, the same bytes from the same seed, invariant to `symmetry`."""
    return _split("train", train, seed, symmetry), _split("test", test, seed, symmetry)


def _split(name: str, count: int, seed: int, symmetry: Symmetry | None) -> ImageSet:
    random = generator(seed, "chiral shapes", name)
    labels = (torch.arange(count) % len(CLASSES))[torch.randperm(count, generator=random)]
    images = torch.cat([render(draw(some, random, symmetry), symmetry) for some in labels.split(CHUNK)])
    return ImageSet(images, labels, CLASSES, f"generated chiral shapes, seed {seed}")


def prepare(
    to: Path,
    *,
    train_images: int,
    test_images: int,
    seed: int,
    invariant_to: str | None,
    workers: int,
    key: str,
) -> None:
    """Write generated images; see `generate`."""
    symmetry = SYMMETRIES[invariant_to] if invariant_to else None
    save(to, *generate(train_images, test_images, seed, symmetry))
