"""The plain procedure of the public notebooks on REPAIR and VGG11 (Jordan et al. 2023), with the libraries' defaults.

Training: torchvision's data set with a transform per image, a DataLoader with workers, autocast, SGD. Merging two
VGG11s: one pass per layer and net to match channels, REPAIR by tracked nets, DataLoaders throughout.
"""

from copy import deepcopy
from multiprocessing import get_all_start_methods

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10, VisionDataset

from relusym.data.augmentation import MEAN, STD
from relusym.data.image_set import ImageSet
from relusym.nets.vgg import VGG11
from relusym.training.loop import autocast_to
from relusym.training.recipe import Recipe

LAYERS = 8


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


def front(net: VGG11, layer: int) -> nn.Sequential:
    names = [name for name, _ in net.features.named_children()]
    return net.features[: names.index(f"relu{layer}") + 1]


@torch.no_grad()
def correlation(first: nn.Module, second: nn.Module, batches: DataLoader, device: torch.device) -> Tensor:
    """Pearson correlations of two nets' output channels over all images and positions, float64 (channels, channels)."""
    count, sums, squares, outer = 0, [0, 0], [0, 0], 0
    for x, _ in batches:
        x = x.to(device)
        outputs = [net(x).double().movedim(1, -1).flatten(0, 2) for net in (first, second)]
        sums = [total + y.sum(0) for total, y in zip(sums, outputs, strict=True)]
        squares = [total + y.square().sum(0) for total, y in zip(squares, outputs, strict=True)]
        outer += outputs[0].T @ outputs[1]
        count += len(outputs[0])
    means = [total / count for total in sums]
    stds = [(square / count - mean**2).sqrt() for square, mean in zip(squares, means, strict=True)]
    return ((outer / count - torch.outer(*means)) / (torch.outer(*stds) + 1e-4)).nan_to_num(0)


def permute(net: VGG11, layer: int, permutation: Tensor) -> None:
    """Permute the output channels of a conv, and the input channels of the next layer alike."""
    conv = getattr(net.features, f"conv{layer}")
    after = net.classifier if layer == LAYERS else getattr(net.features, f"conv{layer + 1}")
    conv.weight.data, conv.bias.data = conv.weight[permutation].data, conv.bias[permutation].data
    after.weight.data = after.weight[:, permutation].data


class Tracked(nn.Module):
    """A conv followed by a batch norm, whose running statistics are those of the conv's output."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv, self.norm = conv, nn.BatchNorm2d(conv.out_channels, momentum=None)
        self.rescale = False

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        normed = self.norm(y)
        return normed if self.rescale else y


def tracked(net: VGG11) -> VGG11:
    net = deepcopy(net)
    for layer in range(1, LAYERS + 1):
        setattr(net.features, f"conv{layer}", Tracked(getattr(net.features, f"conv{layer}")))
    return net.to(net.classifier.weight.device)


@torch.no_grad()
def reset_statistics(net: nn.Module, batches: DataLoader, device: torch.device) -> None:
    """Reset every batch norm's running statistics to the averages over the batches, by one pass in training mode."""
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    with autocast(device):
        for x, _ in batches:
            net(x.to(device))
    net.eval()


@torch.no_grad()
def repaired(halfway: VGG11, first: VGG11, second: VGG11, batches: DataLoader, device: torch.device) -> VGG11:
    """The net `halfway`, corrected so that every conv's output has the average statistics of the two endpoints."""
    ends = [tracked(net) for net in (first, second)]
    for end in ends:
        reset_statistics(end, batches, device)
    net = tracked(halfway)
    for layer in range(1, LAYERS + 1):
        conv, *convs = (getattr(each.features, f"conv{layer}") for each in (net, *ends))
        conv.rescale = True
        conv.norm.weight.copy_(sum(end.norm.running_var.sqrt() for end in convs) / 2)
        conv.norm.bias.copy_(sum(end.norm.running_mean for end in convs) / 2)
    reset_statistics(net, batches, device)
    for layer in range(1, LAYERS + 1):
        conv = getattr(net.features, f"conv{layer}")
        fused = nn.utils.fuse_conv_bn_eval(conv.conv.eval(), conv.norm.eval())
        setattr(net.features, f"conv{layer}", fused)
    return net


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
    first: VGG11,
    second: VGG11,
    names: tuple[str, str],
    images: ImageSet,
    test: ImageSet,
    batch_size: int,
    device: torch.device,
    workers: int,
) -> tuple[dict[str, list[int]], dict[str, float]]:
    """Match `second` to `first`, average, REPAIR: permutations and accuracies as in `merging.merge`, by `names`."""
    batches, tests = (loader(split, batch_size, workers) for split in (images, test))
    permuted, permutations = deepcopy(second), {}
    for layer in range(1, LAYERS + 1):
        table = correlation(front(first, layer), front(permuted, layer), batches, device)
        _, columns = linear_sum_assignment(table.cpu().numpy(), maximize=True)
        permutations[f"conv{layer}"] = columns.tolist()
        permute(permuted, layer, torch.from_numpy(columns).to(device))
    halfway = deepcopy(first)
    for mean, end in zip(halfway.parameters(), permuted.parameters(), strict=True):
        mean.lerp_(end, 0.5)
    fixed = repaired(halfway, first, permuted, batches, device)
    nets = dict(zip((*names, "halfway", "repaired"), (first, second, halfway, fixed), strict=True))
    return permutations, {name: accuracy(net, tests, device) for name, net in nets.items()}
