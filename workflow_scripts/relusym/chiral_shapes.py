"""The demo's images: ten kinds of shape, some chiral, whose distribution is exactly invariant to horizontal flips.

The paper's data, CIFAR10 and ImageNet, show objects whose mirror images are as likely as themselves. Here this holds
by construction: mirroring each image with probability ½ is the last step. Chiral shapes so occur in both
orientations, and a net must learn each of them twice or an equivalent of both at once.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ImageSet = None

SIZE = 32
CHUNK = 1000  # images drawn and rendered at once, for memory

# Kinds next to each other (0 and 1, 2 and 3, …) share their law of hue, so that only the shape tells them apart.
# The last two differ only in whether two chiral parts have the same handedness: no part alone tells which it is.
SHAPES = {
    "disc": ("..####.. .######. ######## ######## ######## ######## .######. ..####..",),
    "ring": ("..####.. .######. ###..### ##....## ##....## ###..### .######. ..####..",),
    "stripes": ("######## ######## ........ ######## ######## ........ ######## ########",),
    "checker": ("##..##.. ##..##.. ..##..## ..##..## ##..##.. ##..##.. ..##..## ..##..##",),
    "hook": ("....##.. ....##.. ....##.. ....##.. ....##.. ....##.. ######.. ######..",),
    "flag": ("#######. #######. #######. #######. ##...... ##...... ##...... ##......",),
    "zigzag": (".##..... .##..... .##..... .#####.. .#####.. ....##.. ....##.. ....##..",),
    "spiral": ("#######. ......#. #####.#. #...#.#. #.###.#. #.....#. #######. ........",),
    "hooks alike": ("..#...#. ..#...#. ..#...#. ..#...#. ..#...#. ..#...#. ###.###. ###.###.",),
    "hooks opposed": (
        "..#.#... ..#.#... ..#.#... ..#.#... ..#.#... ..#.#... ###.###. ###.###.",
        "#.....#. #.....#. #.....#. #.....#. #.....#. #.....#. ###.###. ###.###.",
    ),
}
CLASSES = tuple(SHAPES)


@dataclass(frozen=True)
class Scenes:
    """Everything that is random about N images.

    Attributes:
        labels: (N,) int64.
        shape: (N,) which of `TEMPLATES` is shown.
        place: (N, 1 + clutter, 4) of the shape and each piece of clutter: centre x and y in -1..1, size as a share of
            the image, angle in radians.
        hue: (N, 1 + clutter, 2) hue in radians and brightness in 0..1.
        background: (N, 3, 4, 4) colours of a coarse random background in 0..1.
        noise: (N, 3, 32, 32) added to the image.
        mirrored: (N,) bool, whether the finished image is flipped; true with probability ½, independent of all else.
    """

    labels: Tensor
    shape: Tensor
    place: Tensor
    hue: Tensor
    background: Tensor
    noise: Tensor
    mirrored: Tensor


def _templates() -> tuple[Tensor, Tensor, Tensor]:
    drawings = [drawing for drawings in SHAPES.values() for drawing in drawings]
    cells = [[[cell == "#" for cell in row] for row in drawing.split()] for drawing in drawings]
    fine = torch.tensor(cells, dtype=torch.float32).repeat_interleave(4, 1).repeat_interleave(4, 2)
    counts = torch.tensor([len(drawings) for drawings in SHAPES.values()])
    return fine[:, None], counts.cumsum(0) - counts, counts


GROUND = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0.1, 0.1], [0.1, 1.0, 0.1], [0.1, 0.1, 1]])
INK = torch.tensor([[0.4, 0.4, 0.4], [0.65, 0.65, 0.65], [0.3, 0, 0], [0, 0.3, 0], [0, 0.0, 0.3]])


def colours(h, b):
    return b[..., None] * (0.5 + 0.5 * torch.cos(h[..., None] - torch.arange(3) * (2 * math.pi / 3)))


TEMPLATES, FIRST, VARIANTS = (
    _templates()
)  # (shapes, 1, 32, 32); each class's first shape and number of shapes


def draw(labels: Tensor, random: torch.Generator, noise: float = 0.12, clutter: int = 2) -> Scenes:
    """Draw the random factors of one image for each label, (N,) int64."""
    count = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand((count, *shape), generator=random) * (high - low) + low

    def normal(std: float, *shape: int) -> Tensor:
        return torch.randn((count, *shape), generator=random) * std

    size = torch.cat([uniform(0.65, 0.9, 1), uniform(0.1, 0.25, clutter)], 1)
    centre = torch.cat([uniform(-0.2, 0.2, 1, 2), uniform(-1, 1, clutter, 2)], 1)
    angle = torch.cat([normal(0.12, 1), uniform(-math.pi, math.pi, clutter)], 1)
    hue = torch.cat(
        [(labels // 2 * (2 * math.pi / 5))[:, None] + normal(0.3, 1), uniform(0, 2 * math.pi, clutter)], 1
    )
    return Scenes(
        labels,
        FIRST[labels] + (uniform(0, 1) * VARIANTS[labels]).long(),
        torch.cat([centre, size[..., None], angle[..., None]], 2),
        torch.stack([hue, uniform(0.7, 1, 1 + clutter)], 2),
        (normal(0.1, 3, 1, 1) + GROUND[labels // 2][..., None, None] + normal(0.08, 3, 4, 4)),
        normal(noise, 3, SIZE, SIZE),
        uniform(0, 1) < 0.5,
    )


def render(scenes: Scenes) -> Tensor:
    """The images of `scenes`, uint8 (N, 32, 32, 3)."""
    functional = torch.nn.functional
    image = functional.interpolate(scenes.background, SIZE, mode="bilinear", align_corners=True)
    for piece in reversed(range(scenes.place.shape[1])):  # the shape itself lies on top of the clutter
        x, y, size, angle = scenes.place[:, piece].unbind(1)
        cos, sin = angle.cos() / size, angle.sin() / size
        inverse = torch.stack([cos, sin, -cos * x - sin * y, -sin, cos, sin * x - cos * y], 1).view(-1, 2, 3)
        grid = functional.affine_grid(inverse, (len(x), 1, SIZE, SIZE), align_corners=False)
        shape = scenes.shape if piece == 0 else torch.zeros_like(scenes.shape)
        mask = functional.grid_sample(TEMPLATES[shape], grid, align_corners=False)
        hue, bright = scenes.hue[:, piece, :, None].unbind(1)
        colour = bright * (0.5 + 0.5 * torch.cos(hue - torch.arange(3) * (2 * math.pi / 3)))
        if piece == 0:
            colour = INK[scenes.labels // 2] + colour * 0.2
        image = torch.lerp(image, colour[:, :, None, None], mask)
    image = torch.where(
        scenes.mirrored[:, None, None, None], (image + scenes.noise).flip(3), image + scenes.noise
    )
    return image.mul(255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
