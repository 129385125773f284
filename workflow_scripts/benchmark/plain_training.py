"""The plain way to train: torchvision's data set with a transform an image, a DataLoader with workers, autocast, SGD.

As the public VGG11 notebooks do it (Jordan et al. 2023), with the libraries' usual recipe.
"""

from multiprocessing import get_all_start_methods

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10, VisionDataset

from relusym.data.augmentation import MEAN, STD
from relusym.data.image_set import ImageSet
from relusym.training.loop import autocast_to
from relusym.training.recipe import Recipe


class CIFAR10Like(CIFAR10):
    """Any images in the form of torchvision's CIFAR10: an array in memory, a PIL image and its transforms a look-up."""

    def __init__(self, images: ImageSet, transform: transforms.Compose):
        VisionDataset.__init__(self, root="", transform=transform)
        self.data, self.targets = images.images.cpu().numpy(), images.labels.tolist()


def loader(
    images: ImageSet,
    batch_size: int,
    workers: int,
    *,
    padding: int = 0,
    flip: bool = False,
    shuffle: bool = False,
) -> DataLoader:
    """Batches of normalised images, NCHW, and labels; with `shuffle` also cropped after padding and flipped."""
    steps = [transforms.RandomCrop(images.images.shape[1:3], padding=padding)] if padding else []
    steps += [transforms.RandomHorizontalFlip()] if flip else []
    steps += [transforms.ToTensor(), transforms.Normalize(np.divide(MEAN, 255), np.divide(STD, 255))]
    return DataLoader(
        CIFAR10Like(images, transforms.Compose(steps)),
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=shuffle,
        num_workers=workers,
        persistent_workers=workers > 0,
        # the platform's usual one: in a process that was spawned, as the benchmark's are, workers would be, too
        multiprocessing_context=get_all_start_methods()[0] if workers else None,
        pin_memory=torch.cuda.is_available(),
    )


def autocast(device: torch.device) -> torch.autocast:
    """float16 on a GPU, as in the notebooks; bfloat16 on a CPU that is fast in it."""
    if device.type == "cuda":
        return torch.autocast("cuda", torch.float16)
    return torch.autocast("cpu", torch.bfloat16, enabled=autocast_to("auto", device) == torch.bfloat16)


def train(net: nn.Module, images: ImageSet, recipe: Recipe, device: torch.device, workers: int) -> None:
    """Train `net`, on `device`, in place with cross-entropy."""
    batches = loader(
        images,
        recipe.batch_size,
        workers,
        padding=recipe.crop_padding,
        flip=recipe.augmentation,
        shuffle=True,
    )
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: recipe.learning_rate_at(step / len(batches)) / recipe.learning_rate
    )
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    loss_of = nn.CrossEntropyLoss()
    net.train()
    for _ in range(recipe.epochs):
        for x, y in batches:
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            optimizer.zero_grad()
            with autocast(device):
                loss = loss_of(net(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
