"""A training's batches, of small images kept on the device or of ImageNet's files."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from relusym.data.augmentation import (
    Augmented,
    Normalise,
    crop_transform,
    normalise,
    normalise_imagenet,
    random_views,
    shuffled,
    view_transform,
)
from relusym.data.folder import image_folder, loaded
from relusym.errors import UserError
from relusym.randomness import generator, stream
from relusym.symmetry import HORIZONTAL_FLIP, Symmetry

# one or two views of the images, float32 (B, 3, H, W), and labels (B,)
Batch = tuple[tuple[Tensor, ...], Tensor]


class TrainingBatches(Protocol):
    """A training's batches, of `batch_size` images over all processes, `steps` per epoch.

    Every process draws whole batches and takes its share of each, so that any number of processes train on the same
    images in the same order. What is drawn depends only on the seed, the name and the epoch. A last incomplete batch
    is dropped. `classes`: the number of classes.
    """

    batch_size: int
    steps: int
    classes: int

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """This process's share of the batches of an epoch, counted from 0, without the first `start` batches."""
        ...


def _steps(count: int, batch_size: int) -> int:
    if batch_size > count:
        raise UserError(f"batch_size: {batch_size} is more than the {count} training images; make it smaller")
    return count // batch_size


class ImagesOnDevice:
    """TrainingBatches of uint8 images kept on the device.

    UserError if a batch is larger than the set, or the symmetry doesn't keep the images' shape.

    Args:
        images, labels, classes: uint8 (N, H, W, 3) and int64 (N,); the number of classes.
        views: 1, a crop after zero padding of `crop_padding` pixels, or 2 random views as in SimSiam.
        symmetry: a random power of it moves each image; None: none.
        normalise: how pixels become a net's input.
        rank, processes: this process's number, from 0, and how many share each batch.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        classes: int,
        *,
        batch_size: int,
        seed: int,
        name: str,
        views: int = 1,
        crop_padding: int = 0,
        symmetry: Symmetry | None = HORIZONTAL_FLIP,
        normalise: Normalise = normalise,
        rank: int = 0,
        processes: int = 1,
    ):
        self.images, self.labels, self.classes, self.views = images, labels, classes, views
        self.batch_size, self.steps = batch_size, _steps(len(images), batch_size)
        self.seed, self.name, self.symmetry, self.normalise = seed, name, symmetry, normalise
        self.augmented = Augmented(images, crop_padding, symmetry, normalise)
        self.share = slice(rank, None, processes)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """As in `TrainingBatches`; the first batches are drawn, too, so that the next ones don't depend on `start`."""
        random = generator(self.seed, self.name, "epoch", number)
        order = shuffled(len(self.images), self.batch_size, random, self.images.device)
        return islice((self._batch(index, random) for index in order), start, None)

    def _batch(self, index: Tensor, random: torch.Generator) -> Batch:
        if self.views == 1:
            views = (self.augmented.batch(index, random),)
        else:
            some = self.images[index]
            draw = (random_views(some, random, self.symmetry) for _ in range(self.views))
            views = tuple(map(self.normalise, draw))
        return tuple(view[self.share] for view in views), self.labels[index[self.share]]


class ImageFiles:
    """TrainingBatches of ImageNet's files, decoded and augmented by worker processes.

    UserError if the folder is missing or has no images, or fewer than a batch.

    Args:
        root, size: the folder with one folder per class; the images' side in pixels.
        views: 1, torchvision's random resized crop, or 2 random views as in SimSiam.
        symmetry, normalise, rank, processes: as in `ImagesOnDevice`.
        workers: worker processes of each training process.
    """

    def __init__(
        self,
        root: Path,
        size: int,
        device: torch.device,
        *,
        batch_size: int,
        seed: int,
        name: str,
        views: int = 1,
        symmetry: Symmetry | None = HORIZONTAL_FLIP,
        normalise: Normalise = normalise_imagenet,
        workers: int = 0,
        rank: int = 0,
        processes: int = 1,
    ):
        transform = (crop_transform if views == 1 else view_transform)(size, symmetry)
        folder = image_folder(root, partial(views_of, transform, views))
        self.batch_size, self.steps = batch_size, _steps(len(folder), batch_size)
        self.classes, self.device, self.normalise = len(folder.classes), device, normalise
        self.order = _Order(len(folder), batch_size, seed, name, slice(rank, None, processes))
        self.loader = DataLoader(
            _Drawn(folder, seed, name),
            batch_sampler=self.order,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            generator=torch.Generator(),  # else it draws from the global one
        )

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """As in `TrainingBatches`; the first batches aren't read."""
        self.order.epoch, self.order.start = number, start
        for views, labels in loaded(self.loader):
            on_device = (view.to(self.device, non_blocking=True).permute(0, 2, 3, 1) for view in views)
            normalised = (self.normalise(view) for view in on_device)
            channels_last = tuple(x.contiguous(memory_format=torch.channels_last) for x in normalised)
            yield channels_last, labels.to(self.device, non_blocking=True)


class _Order(Sampler):
    """The images, with their epoch, that one process reads at each step."""

    def __init__(self, count: int, batch_size: int, seed: int, name: str, share: slice):
        self.count, self.batch_size, self.seed, self.name, self.share = count, batch_size, seed, name, share
        self.epoch = self.start = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        random = generator(self.seed, self.name, "epoch", self.epoch)
        for index in shuffled(self.count, self.batch_size, random)[self.start :]:
            yield [(self.epoch, image) for image in index[self.share].tolist()]


class _Drawn(Dataset):
    """Images whose random views depend only on seed, epoch and image, whichever process or worker reads them."""

    def __init__(self, folder: Dataset, seed: int, name: str):
        self.folder, self.seed, self.name = folder, seed, name

    def __getitem__(self, which: tuple[int, int]) -> tuple[tuple[Tensor, ...], int]:
        epoch, image = which
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(stream(self.seed, self.name, "image", epoch, image))
            return self.folder[image]


def views_of(
    transform: Callable[[Image.Image], Tensor], count: int, image: Image.Image
) -> tuple[Tensor, ...]:
    """`count` random views of an image."""
    return tuple(transform(image) for _ in range(count))
