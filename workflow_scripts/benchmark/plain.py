"""The plain procedure of the public notebooks on REPAIR and VGG11 (Jordan et al. 2023), with the libraries' defaults.

Training: torchvision's data set with a transform per image, a DataLoader with workers, autocast, SGD. Merging two
VGG11s: one pass per layer and net to match channels, REPAIR by tracked nets, DataLoaders throughout.
"""

from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise
from multiprocessing import get_all_start_methods

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10, VisionDataset

from relusym.data.augmentation import MEAN, STD
from relusym.data.image_set import ImageSet
from relusym.merging.merge import FLIP, PAIR
from relusym.nets.vgg import VGG11
from relusym.symmetry import HORIZONTAL_FLIP
from relusym.training.loop import autocast_to
from relusym.training.recipe import Recipe


class CIFAR10Like(CIFAR10):
    """Images in the form of torchvision's CIFAR10: an array in memory; a look-up makes and transforms a PIL image."""

    def __init__(self, images: ImageSet, transform: transforms.Compose):
        VisionDataset.__init__(self, root="", transform=transform)
        self.data, self.targets = images.images.cpu().numpy(), images.labels.tolist()


def loader(
    images: ImageSet, batch_size: int, workers: int, *, padding=0, flip=False, shuffle=False
) -> DataLoader:
    """Batches of normalised images, NCHW, and labels; randomly cropped with `padding`, randomly flipped with `flip`."""
    steps = [transforms.RandomCrop(images.images.shape[1:3], padding=padding)] if padding else []
    steps += [transforms.RandomHorizontalFlip()] if flip else []
    steps += [transforms.ToTensor(), transforms.Normalize(np.divide(MEAN, 255), np.divide(STD, 255))]
    return DataLoader(
        CIFAR10Like(images, transforms.Compose(steps)),
        batch_size,
        shuffle,
        drop_last=shuffle,
        num_workers=workers,
        persistent_workers=workers > 0,
        # the platform's default: workers of a spawned process, such as the benchmark's, would otherwise be spawned, too
        multiprocessing_context=get_all_start_methods()[0] if workers else None,
        pin_memory=torch.cuda.is_available(),
    )


def autocast(device: torch.device) -> torch.autocast:
    """Autocast to float16 on a GPU, as in the notebooks; to bfloat16 on a CPU that is fast in it."""
    if device.type == "cuda":
        return torch.autocast("cuda", torch.float16)
    return torch.autocast("cpu", torch.bfloat16, enabled=autocast_to("auto", device) == torch.bfloat16)


def train(net: nn.Module, images: ImageSet, recipe: Recipe, device: torch.device, workers: int) -> None:
    augmentation = {"padding": recipe.crop_padding, "flip": recipe.augmentation}
    batches = loader(images, recipe.batch_size, workers, shuffle=True, **augmentation)
    rate, momentum, decay = recipe.learning_rate, recipe.momentum, recipe.weight_decay
    optimizer = torch.optim.SGD(net.parameters(), rate, momentum, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: recipe.learning_rate_at(step / len(batches)) / rate
    )
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    net.train()
    for _ in range(recipe.epochs):
        for x, y in batches:
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            optimizer.zero_grad()
            with autocast(device):
                loss = nn.functional.cross_entropy(net(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()


@torch.no_grad()
def correlation(first: nn.Module, second: nn.Module, batches: DataLoader, device: torch.device) -> Tensor:
    """Pearson correlations of two nets' output channels over all images and positions, float64 (channels, channels)."""
    count, totals = 0, [0] * 5
    for x, _ in batches:
        x = x.to(device)
        a, b = (net(x).double().movedim(1, -1).flatten(0, 2) for net in (first, second))
        sums = a.sum(0), b.sum(0), a.square().sum(0), b.square().sum(0), a.T @ b
        totals = [total + each for total, each in zip(totals, sums, strict=True)]
        count += len(a)
    *means, square_a, square_b, product = (total / count for total in totals)
    stds = [(square - mean**2).sqrt() for square, mean in zip((square_a, square_b), means, strict=True)]
    return ((product - torch.outer(*means)) / (torch.outer(*stds) + 1e-4)).nan_to_num(0)


def with_norms(net: VGG11, rescale: bool) -> VGG11:
    """A copy whose convs have a batch norm each, `norm`, which keeps track of their outputs and normalises them if
    `rescale`."""

    def normalise(conv: nn.Conv2d, _: tuple, y: Tensor) -> Tensor:
        normed = conv.norm(y)
        return normed if rescale else y

    net = deepcopy(net)
    for conv in net.features:
        if isinstance(conv, nn.Conv2d):
            conv.norm = nn.BatchNorm2d(conv.out_channels, device=conv.weight.device)
            conv.register_forward_hook(normalise)
    return net


@torch.no_grad()
def repaired(halfway: VGG11, first: VGG11, second: VGG11, batches: DataLoader, device: torch.device) -> VGG11:
    """The net `halfway`, corrected so that every conv's output has the average statistics of the two endpoints."""
    ends = [with_norms(net, rescale=False) for net in (first, second)]
    rescaled, fixed = with_norms(halfway, rescale=True), deepcopy(halfway).eval()
    with autocast(device):
        for end in ends:
            update_bn(batches, end, device)
        for conv, *pair in zip(rescaled.features, *(end.features for end in ends), strict=True):
            if isinstance(conv, nn.Conv2d):
                conv.norm.weight.copy_(sum(end.norm.running_var.sqrt() for end in pair) / 2)
                conv.norm.bias.copy_(sum(end.norm.running_mean for end in pair) / 2)
        update_bn(batches, rescaled, device)
    for place, conv in enumerate(rescaled.features.eval()):
        if isinstance(conv, nn.Conv2d):
            fixed.features[place] = nn.utils.fuse_conv_bn_eval(fixed.features[place], conv.norm)
    return fixed


@torch.no_grad()
def accuracy(net: nn.Module, batches: DataLoader, device: torch.device) -> float:
    net.eval()
    correct = count = 0
    with autocast(device):
        for x, y in batches:
            correct += (net(x.to(device)).argmax(1).cpu() == y).sum().item()
            count += len(y)
    return correct / count


@torch.no_grad()
def merge(
    nets: Sequence[VGG11], images: ImageSet, test: ImageSet, batch: int, device: torch.device, workers: int
) -> tuple[dict[str, list[int]], dict[str, float]]:
    """Match the second of two nets, or the flipped self of one, to the first, average, REPAIR.

    Returns permutations and accuracies as `merging.merge`, by the same names.
    """
    batches, tests = (loader(split, batch, workers) for split in (images, test))
    names = FLIP if len(nets) == 1 else PAIR
    first, second = (nets[0], HORIZONTAL_FLIP.transform(nets[0])) if names == FLIP else nets
    permuted, permutations = deepcopy(second), {}
    layers = [layer for layer in permuted.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for number, (conv, after) in enumerate(pairwise(layers), start=1):
        end = [*permuted.features].index(conv) + 2  # behind its ReLU
        table = correlation(first.features[:end], permuted.features[:end], batches, device)
        _, columns = linear_sum_assignment(table.cpu().numpy(), maximize=True)
        permutations[f"conv{number}"] = columns.tolist()
        conv.weight.data, conv.bias.data = conv.weight[columns].data, conv.bias[columns].data
        after.weight.data = after.weight[:, columns].data
    halfway = deepcopy(first)
    for mean, end in zip(halfway.parameters(), permuted.parameters(), strict=True):
        mean.lerp_(end, 0.5)
    fixed = repaired(halfway, first, permuted, batches, device)
    named = zip((*names, "halfway", "repaired"), (first, second, halfway, fixed), strict=True)
    return permutations, {name: accuracy(net, tests, device) for name, net in named}
