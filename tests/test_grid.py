from itertools import product

import pytest
import torch
import torchvision
from conftest import refused
from small_nets import net_of, resnet
from structures import Focused
from torch import nn

from relusym.channels.traced import TracedNet
from relusym.merging.identities import largest_difference
from relusym.pixels.grid import grid
from relusym.pixels.transform import check_planted
from relusym.symmetry import HORIZONTAL_FLIP, QUARTER_TURN, VERTICAL_FLIP


@net_of(lambda: {"conv": nn.Conv2d(3, 3, 3, 2, 1)})
def Sliced(self, x):
    """A conv beside a shortcut of every second pixel, as in option A of ResNets."""
    return self.conv(x) + x[:, :, ::2, ::2]


@net_of(lambda function: {"function": function})
def Applied(self, x):
    return self.function(x)


@net_of(lambda layer: {"layer": layer})
def First(self, x):
    return self.layer(x)[0]


LAYERS = {
    **{f"conv {k} {s} {p} {d}": lambda k=k, s=s, p=p, d=d: nn.Conv2d(3, 4, k, s, p, d) for k, s, p,
     d in product((1, 2, 3), (1, 2, 3), (0, 1), (1, 2))},
    "conv same 2": lambda: nn.Conv2d(3, 4, 2, padding="same"),
    "conv same 3": lambda: nn.Conv2d(3, 4, 3, padding="same"), "max pool 2": lambda: nn.MaxPool2d(2),
    "max pool 3 2 1": lambda: nn.MaxPool2d(3, 2, 1),
    "max pool function": lambda: Applied(lambda x: nn.functional.max_pool2d(x, 3, 2, 1)),
    "max pool function by name": lambda: Applied(
        lambda x: nn.functional.max_pool2d(x, kernel_size=3, stride=2, padding=1)),
    "average pool function": lambda: Applied(lambda x: nn.functional.avg_pool2d(x, 3, padding=1, stride=2)),
    "max pool, each number in a tuple": lambda: nn.MaxPool2d((3,), (2,), (1,)),
    "average pool function, each number in a tuple": lambda: Applied(
        lambda x: nn.functional.avg_pool2d(x, (2,), stride=(2,))),
    "max pool ceil": lambda: nn.MaxPool2d(3, 2, ceil_mode=True), "average pool": lambda: nn.AvgPool2d(2),
    "power average pool": lambda: nn.LPPool2d(2, 3, 2), "power average pool, no stride": lambda: nn.LPPool2d(2, 2),
    "power average function": lambda: Applied(lambda x: nn.functional.lp_pool2d(x, 2, 2, ceil_mode=True)),
    "narrow": lambda: Applied(lambda x: x.narrow(-1, 1, x.shape[-1] - 1)),
    "narrow symmetric": lambda: Applied(lambda x: x.narrow(3, length=x.shape[3] - 2, start=1)),
    "max pool with indices": lambda: Applied(lambda x: nn.functional.max_pool2d(x, 2, return_indices=True)[0]),
    "max pool layer with indices": lambda: First(nn.MaxPool2d(3, 2, return_indices=True)),
    "narrow channels": lambda: Applied(lambda x: torch.cat([x, x], 1).narrow(1, 2, 3)),
    "narrow height": lambda: Applied(lambda x: torch.narrow(x, 2, 0, 5)),
    "adaptive": lambda: nn.AdaptiveAvgPool2d(4), "upsample": lambda: nn.Upsample(scale_factor=2),
    "bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "transposed": lambda: nn.ConvTranspose2d(3, 4, 3, 2, 1, output_padding=1),
    "transposed symmetric": lambda: nn.ConvTranspose2d(3, 4, 2, 2),
    "transpose function": lambda: Applied(lambda x: nn.functional.conv_transpose2d(x, torch.ones(3, 3, 1, 1), None, 2)),
    "transpose function, padded": lambda: Applied(
        lambda x: nn.functional.conv_transpose2d(x, torch.ones(3, 3, 1, 1), stride=2, output_padding=1)),
    "bilinear by 0.7": lambda: nn.Upsample(scale_factor=0.7, mode="bilinear"),
    "nearest by 0.7": lambda: nn.Upsample(scale_factor=0.7),
    "bicubic function by 0.7": lambda: Applied(
        lambda x: nn.functional.interpolate(input=x, scale_factor=0.7, mode="bicubic")),
    "pad": lambda: Applied(lambda x: nn.functional.pad(x, (0, 1, 0, 1))),
    "zero pad": lambda: nn.ZeroPad2d((1, 2, 0, 0)), "slices": Sliced,
    "every second": lambda: Applied(lambda x: x[..., ::2]),
    "zero pad, conv": lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 4, 3, 2)),
    "zero pad, pool": lambda: nn.Sequential(nn.ZeroPad2d((0, 2, 0, 2)), nn.MaxPool2d(3, 3)),
    "nearest": lambda: nn.Upsample(scale_factor=0.5), "nearest to 7": lambda: nn.Upsample(7),
    "nearest function": lambda: Applied(lambda x: nn.functional.interpolate(x, scale_factor=0.5)),
    "nearest exact": lambda: nn.Upsample(scale_factor=0.5, mode="nearest-exact"),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("size", [9, 10, 11, 12])
def test_a_layer_is_symmetric_exactly_if_its_flipped_version_on_flipped_images_equals_it(layer, size):
    torch.manual_seed(0)
    channels = 4 if "conv" in layer or "transposed" in layer else 3
    net = nn.Sequential(LAYERS[layer](), nn.Conv2d(channels, 1, 1))
    x = torch.rand(2, 3, size, size)
    holds = largest_difference(net(x).flip(-1), HORIZONTAL_FLIP.transform(net)(x.flip(-1))) < 1e-5
    assert grid(net, (3, size, size), HORIZONTAL_FLIP).symmetric == holds


@pytest.mark.slow(seconds=1)
def test_resnet50_at_224_is_off_by_31_pixels_and_fits_225():
    net = torchvision.models.resnet50()
    fit = grid(net, (3, 224, 224), HORIZONTAL_FLIP)
    assert [(misfit.layer, misfit.stride, misfit.size, misfit.pixels) for misfit in fit.misfits] == [
        ("conv1", 2, 224, 1), ("maxpool", 2, 112, 2), ("layer2.0.conv2", 2, 56, 4),
        ("layer2.0.downsample.0", 2, 56, 4), ("layer3.0.conv2", 2, 28, 8),
        ("layer3.0.downsample.0", 2, 28, 8), ("layer4.0.conv2", 2, 14, 16),
        ("layer4.0.downsample.0", 2, 14, 16),
    ]  # fmt: skip
    assert (fit.size, fit.offset, fit.next_size) == (224, 31, 225)
    odd = grid(net, (3, 225, 225), HORIZONTAL_FLIP)
    assert odd.symmetric and odd.offset == 0 and odd.next_size is None


@torch.no_grad()
def test_the_flipped_net_sees_the_image_shifted_by_the_offset():
    net = resnet(size=32)
    features = nn.Sequential(*list(net.children())[:-2]).eval()  # up to the last map
    flipped, x = HORIZONTAL_FLIP.transform(features), torch.rand(2, 3, 64, 320)
    middle = slice(4, 7)  # pixels further out see the border
    here = features(x).flip(-1)[..., middle]
    assert grid(features, (3, 64, 320), HORIZONTAL_FLIP).offset == 31
    for offset in (0, 30, 31, 32):
        there = flipped(nn.functional.pad(x.flip(-1), (-offset, offset)))[..., middle]
        difference = largest_difference(here, there)
        assert difference < 1e-5 if offset == 31 else difference > 0.1


def test_slices_concatenated_to_patches_are_symmetric_together():
    net = Focused()
    fit = grid(net, (3, 32, 32), HORIZONTAL_FLIP)
    assert fit.symmetric and fit.offset == 0
    assert check_planted(TracedNet(net, (3, 32, 32)), HORIZONTAL_FLIP) < 1e-12
    # parts of a patch whose mirror images it lacks
    for starts in ([(0, 0), (1, 1)], [(0, 0), (1, 0)], [(0, 1)]):
        part = Applied(lambda x, starts=starts: torch.cat([x[:, :, i::2, j::2] for i, j in starts], 1))
        assert not grid(part, (3, 8, 8), HORIZONTAL_FLIP).symmetric


def test_only_the_mirrored_axis_counts():
    net, shape = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1)), (3, 9, 10)
    assert not grid(net, shape, HORIZONTAL_FLIP).symmetric and grid(net, shape, VERTICAL_FLIP).symmetric
    assert grid(net, (3, 9, 9), QUARTER_TURN).symmetric and not grid(net, (3, 10, 10), QUARTER_TURN).symmetric
    assert grid(net, shape, HORIZONTAL_FLIP).next_size == 11


def test_a_net_of_a_fixed_size_has_no_next_size():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Flatten(), nn.Linear(4 * 25, 2))
    assert grid(net, (3, 10, 10), HORIZONTAL_FLIP).next_size is None
    refused(lambda: grid(net, (3, 12, 12), HORIZONTAL_FLIP), match="can't be run on an image of 3×12×12")


def test_an_error_in_tracing_at_a_larger_size_is_raised(monkeypatch):
    def record(*args):
        raise ZeroDivisionError

    net = TracedNet(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1)), (3, 10, 10))
    monkeypatch.setattr("relusym.pixels.grid.record", record)
    with pytest.raises(ZeroDivisionError):
        grid(net, (3, 10, 10), HORIZONTAL_FLIP)
