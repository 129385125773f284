"""Small nets without dead channels, and images for them, for the tests of nets and of merging."""

from copy import deepcopy

import torch
from torch import nn

from relusym.channels.groups import permute, random_permutations
from relusym.channels.traced import channel_groups
from relusym.data.augmentation import normalise
from relusym.evaluation import images
from relusym.merging.aligned import joint_statistics
from relusym.merging.repair import reset_batch_norm
from relusym.nets import build
from relusym.nets.group_conv import RegularConv2d
from relusym.nets.vgg import VGG11
from relusym.symmetry import HORIZONTAL_FLIP

SMALL = {"architecture": "resnet", "block": "basic", "layers": [1, 1, 1, 1], "width": 0.25}
NARROW = {"architecture": "resnet", "block": "bottleneck", "layers": [2, 1, 1, 1], "width": 0.125}


def Images(pixels, batch_size=500, normalise=normalise):
    """Images, by default normalised as CIFAR10's."""
    return images.Images(pixels, batch_size, normalise)


def smooth_images(count, size=32, seed=1):
    """Smooth random images, uint8 (count, size, size, 3)."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    fine = nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)
    return (fine * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


PIXELS, LABELS = smooth_images(60), torch.arange(60) % 10


@torch.no_grad()
def vgg11(seed=0, group_convs=0, symmetry=HORIZONTAL_FLIP):
    """An eighth of the width; group convs written out.

    Biases are such that no channel is dead, and that images get different answers.
    """
    torch.manual_seed(seed)
    net = VGG11(1 / 8, group_convs, symmetry=symmetry, initialization="he")
    x = normalise(smooth_images(100))
    for layer in net.features:
        if isinstance(layer, nn.Conv2d | RegularConv2d):
            mean = layer(x).mean((0, 2, 3)).unflatten(0, (-1, len(layer.bias))).mean(0)  # over orientations
            layer.bias -= mean - layer(x).std() / 2
        x = layer(x)
    net = net.to_plain().eval()
    net.classifier.bias -= net(normalise(smooth_images(100))).mean(0)
    return net


def resnet(network=SMALL, seed=0, size=33):
    """The net with batch norms as after training: with statistics of data, and varying weights and biases."""
    torch.manual_seed(seed)
    net = build(network, 10)
    torch.manual_seed(7)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.7)
    return reset_batch_norm(net.to(memory_format=torch.channels_last), Images(smooth_images(64, size), 64))


def shuffled(net, groups, seed=5):
    """A copy of the net with its channels in random order, and the permutations applied."""
    generator = torch.Generator().manual_seed(seed)
    planted = random_permutations(groups, generator)
    copy = deepcopy(net)
    copy.load_state_dict(permute(net.state_dict(), groups, planted))
    return copy, planted


def orbit(net, symmetry):
    """The net, and the net transformed once, twice, … up to the last time before it is itself again."""
    nets = [net]
    for _ in range(symmetry.order - 1):
        nets.append(symmetry.transform(nets[-1]))
    return nets


def targets(first, second, images):
    """The average of two nets' statistics, by channel index, without matching."""
    pairs = joint_statistics([first, second], images, channel_groups(first, images.shape))
    return {point: has.towards(pairs.statistics[1][point]) for point, has in pairs.statistics[0].items()}


def answers(net, images):
    """The net's predictions, as labels with which its accuracy is 1."""
    with torch.no_grad():
        return net(images.first(len(images), torch.device("cpu"))).argmax(1)


@torch.no_grad()
def difference_from_equivariant(layer, x, act_on_input, act_on_output):
    """Largest difference between Ψ(τx) and τΨ(x) of a layer Ψ, relative to the largest output; x is (B, C, H, H)."""
    y = layer(x)
    return float((layer(act_on_input(x)) - act_on_output(y)).abs().max() / y.abs().max())


def net_of(parts):
    """Make a class of nets from a function, their `forward`; `parts` returns their layers and parameters by name."""

    def made(forward):
        def set_up(self, *arguments, **options):
            nn.Module.__init__(self)
            for name, part in parts(*arguments, **options).items():
                setattr(self, name, part)

        body = {"__init__": set_up, "forward": forward, "__doc__": forward.__doc__}
        return type(forward.__name__, (nn.Module,), body | {"__module__": forward.__module__})

    return made


def conv_net(*layers):
    torch.manual_seed(0)
    layers = layers or (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *layers).eval()


def pooled(*layers, channels=8):
    """A net of these layers, which end with this many channels, a ReLU, the mean over pixels and a classifier."""
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4))


class Wrapped(nn.Module):
    """A net whose output is wrapped by `wrap`."""

    def __init__(self, net, wrap):
        super().__init__()
        self.net, self.wrap = net, wrap

    def forward(self, x):
        return self.wrap(self.net(x))
