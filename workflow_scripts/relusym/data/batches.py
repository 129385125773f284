"""Where a ResNet's training gets its batches: small images kept on the device, or ImageNet's files."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

from relusym.data.augmentation import Normalise, RandomCropFlip, normalise, normalise_imagenet
from relusym.data.views import random_views, simsiam_transform, supervised_transform
from relusym.errors import UserError
from relusym.randomness import generator, stream
from relusym.training.distributed import rank, world_size


class Batches(Protocol):
    """Where a training gets its batches: `steps` of them an epoch."""

    steps: int

    def epoch(self, number: int) -> Iterator["Batch"]:
        """This process's share of every batch of an epoch, counted from 0."""
        ...


Batch = tuple[
    tuple[Tensor, ...], Tensor
]  # one or two views of the images, float32 (B, 3, H, W), and labels (B,)


class ImagesOnDevice:
    """Batches of uint8 images that live on the device.

    Every process draws the whole global batch and takes its own share, so that any number of processes train on the
    same batches.

    Args:
        images, labels: uint8 (N, H, W, 3) and int64 (N,).
        two_views: whether to give two random views of each image (SimSiam) or one crop and flip.
        batch_size: images of all processes together; a last incomplete batch is dropped.
        seed, name: every epoch draws from a stream of its own, named by both.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        two_views: bool,
        batch_size: int,
        crop_padding: int,
        seed: int,
        name: str,
    ):
        self.images, self.labels, self.two_views = images, labels, two_views
        self.augmented = RandomCropFlip(images, crop_padding, flip=True)
        self.batch_size, self.seed, self.name = batch_size, seed, name
        self.steps = len(images) // batch_size

    def epoch(self, number: int) -> Iterator[Batch]:
        """This process's share of every batch of an epoch."""
        random = generator(self.seed, self.name, "epoch", number)
        order = torch.randperm(len(self.images), generator=random).to(self.images.device)
        for index in order[: self.steps * self.batch_size].split(self.batch_size):
            if self.two_views:
                views = tuple(normalise(random_views(self.images[index], random)) for _ in range(2))
            else:
                views = (self.augmented.batch(index, random),)
            mine = slice(rank(), None, world_size())
            yield tuple(view[mine] for view in views), self.labels[index[mine]]


class ImageFiles:
    """Batches of ImageNet's files, decoded and augmented by worker processes.

    Args:
        root: the folder with one folder a class.
        two_views: whether to give two random views of each image (SimSiam) or one crop and flip.
        batch_size: images of all processes together; a last incomplete batch is dropped.
        workers: worker processes of each training process.

    Raises:
        UserError: the folder is missing or has no images.
    """

    def __init__(
        self,
        root: Path,
        size: int,
        two_views: bool,
        batch_size: int,
        workers: int,
        seed: int,
        name: str,
        device: torch.device,
    ):
        one = simsiam_transform(size) if two_views else supervised_transform(size)
        dataset = image_folder(root, Views(one, 2 if two_views else 1))
        self.sampler = torch.utils.data.DistributedSampler(
            dataset, world_size(), rank(), seed=stream(seed, name) % 2**31, drop_last=True
        )
        self.loader = torch.utils.data.DataLoader(
            dataset,
            batch_size // world_size(),
            sampler=self.sampler,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            drop_last=True,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            generator=generator(seed, name, "workers", rank()),
        )
        self.classes, self.device, self.steps = dataset.classes, device, len(self.loader)

    def epoch(self, number: int) -> Iterator[Batch]:
        """This process's share of every batch of an epoch."""
        self.sampler.set_epoch(number)
        for views, labels in self.loader:
            yield (
                tuple(on_device(view, self.device, normalise_imagenet) for view in views),
                labels.to(self.device, non_blocking=True),
            )


def on_device(view: Tensor, device: torch.device, normalise: Normalise) -> Tensor:
    """uint8 (B, 3, H, W) → normalised float32 on `device`, channels last."""
    view = view.to(device, non_blocking=True)
    return normalise(view.permute(0, 2, 3, 1)).contiguous(memory_format=torch.channels_last)


class Views:
    """A transform that gives so many random views of an image."""

    def __init__(self, transform: nn.Module, count: int):
        self.transform, self.count = transform, count

    def __call__(self, image: Image.Image) -> tuple[Tensor, ...]:
        return tuple(self.transform(image) for _ in range(self.count))


def image_folder(root: Path, transform: Callable):
    """torchvision's ImageFolder; unreadable images are named.

    Raises:
        UserError: the folder is missing or has no images.
    """
    from torchvision.datasets import ImageFolder  # here, since it doubles the start-up of every job

    try:
        return ImageFolder(str(root), transform, loader=open_image)
    except (FileNotFoundError, OSError) as error:
        raise UserError(
            f"ImageNet's folder {root} can't be used ({error}): set imagenet.root to the folder that holds "
            "train/<class>/ and val/<class>/"
        ) from error


def open_image(path: str) -> Image.Image:
    """An image file as RGB.

    Raises:
        UserError: it can't be read.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise UserError(f"image {path} can't be read ({error}): replace or remove it") from error
