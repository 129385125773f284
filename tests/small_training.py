"""A small training of each family of nets, shared by several tests: images, nets, recipes."""

from pathlib import Path

import torch
from PIL import Image

from relusym import checkpoint, nets
from relusym.data.batches import ImagesOnDevice
from relusym.data.chiral_shapes import generate
from relusym.data.image_set import ImageSet, resized
from relusym.symmetry import HORIZONTAL_FLIP
from relusym.training.distributed import rank, world_size
from relusym.training.loop import Training, train
from relusym.training.recipe import Recipe

CPU = torch.device("cpu")
VGG = {"architecture": "vgg11", "width": 1 / 32, "initialization": "he"}
RESNET = {"architecture": "resnet", "block": "basic", "layers": [1, 1, 1, 1], "width": 0.125}

VGG_RECIPE = Recipe(
    epochs=3, batch_size=20, learning_rate=0.02, weight_decay=5e-4, warmup_epochs=1, crop_padding=2,
    invariance_weight=0.3, invariance_from=0.4,
)  # fmt: skip
RESNET_RECIPE = Recipe(
    epochs=2, batch_size=40, learning_rate=0.1 * 40 / 256, schedule="cosine", weight_decay=5e-4,
    crop_padding=2, precision="float32", dimensions=32, bottleneck=8,
)  # fmt: skip


def small_images(count: int = 200, size: int = 32) -> ImageSet:
    return resized(generate(count, 10, 0)[0], size)


def small_net(network=VGG, seed: int = 0, **options):
    torch.manual_seed(seed)
    return nets.build(network | options, 10)


def image_tree(root: Path) -> Path:
    """ImageNet's layout with three classes of colour, 8 images each, of several sizes."""
    random = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        for label, name in enumerate(("n01", "n02", "n03")):
            (root / split / name).mkdir(parents=True)
            for i in range(8):
                noise = torch.randint(0, 60, (40 + 5 * i, 50, 3), generator=random, dtype=torch.uint8)
                noise[..., label] += 150
                Image.fromarray(noise.numpy()).save(root / split / name / f"{i}.png")
    return root


def settings_of(network, recipe: Recipe, size: int | None = None, dataset: str = "generated", **more):
    """The settings of such a training, as from `Settings.train`."""
    return {
        "data": {"dataset": dataset, "train_images": None, "seed": 0, "size": size}, "network": network,
        "symmetry": "horizontal_flip", "training": recipe.model_dump(),
    } | more  # fmt: skip


def batches_of(images: ImageSet, recipe: Recipe, symmetry=HORIZONTAL_FLIP) -> ImagesOnDevice:
    return ImagesOnDevice(
        images.images, images.labels, len(images.classes), batch_size=recipe.batch_size, seed=0, name="net",
        views=recipe.views, crop_padding=recipe.crop_padding,
        symmetry=symmetry if recipe.augmentation else None, rank=rank(), processes=world_size(),
    )  # fmt: skip


def train_on(images: ImageSet, net, recipe: Recipe, **how) -> Training:
    return train(net, batches_of(images, recipe), recipe, device=CPU, **how)


def assert_same(one, other, tolerance: float = 0) -> None:
    """Whether two state dicts have the same tensors."""
    torch.testing.assert_close(other, one, rtol=0, atol=tolerance)


def saved(path: str | Path):
    return checkpoint.load(path)[0]
