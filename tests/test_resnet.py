import pytest
import torch
import torchvision
from small_nets import SMALL, smooth_images
from torch import nn

from relusym.data.augmentation import IMAGENET_MEAN, IMAGENET_STD, normalise_imagenet
from relusym.merging.identities import largest_difference
from relusym.nets import build
from relusym.nets.resnet import ScaledResNet
from relusym.symmetry import HORIZONTAL_FLIP


def test_at_width_one_the_net_is_torchvisions():
    ours = ScaledResNet("bottleneck", [3, 4, 6, 3]).state_dict()
    theirs = torchvision.models.resnet50().state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: t.shape for n, t in theirs.items()}


def test_three_blocks_a_stage_make_resnet20():
    net = build({"architecture": "cifar_resnet", "blocks": 3}, 10)
    weights = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(weights) + 1 == 20 and [weights[i].shape[0] for i in (0, 7, 13)] == [16, 32, 64]
    assert sum(p.numel() for p in net.parameters()) == 272_474  # 0.27 million, and the shortcuts' 2,752
    seen = []
    net.layer3.register_forward_hook(lambda module, args, output: seen.append(output.shape[1:]))
    assert net.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10) and seen == [(64, 8, 8)]


def test_padded_shortcuts_take_every_second_pixel_and_add_zero_channels_before_and_after():
    net = build({"architecture": "cifar_resnet", "shortcut": "pad"}, 10)
    assert sum(p.numel() for p in net.parameters()) == 269_722
    x = torch.randn(2, 16, 7, 7)
    y = net.layer2[0].downsample(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2]) and y.shape == (2, 32, 4, 4)
    assert not y[:, :8].any() and not y[:, 24:].any()
    assert net.layer3[0].downsample(torch.randn(1, 32, 8, 8)).shape == (1, 64, 4, 4)


@pytest.mark.parametrize(("size", "widths"), [(32, [32, 16, 8, 4, 2]), (33, [33, 17, 9, 5, 3])])
def test_small_images_keep_the_parity_of_every_width_that_a_stride_sees(size, widths):
    net, seen = build(SMALL, 10).eval(), []
    for module in net.modules():
        strides = isinstance(module, nn.Conv2d | nn.MaxPool2d) and module.stride in (2, (2, 2))
        if strides and module.kernel_size != (1, 1):  # the shortcut sees what the block sees
            module.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[-1]))
    net(torch.zeros(1, 3, size, size))
    assert seen == widths


@torch.no_grad()
@pytest.mark.parametrize(("size", "equal"), [(225, True), (224, False)])
def test_the_flipped_resnet50_on_flipped_images_is_the_net_at_225_and_not_at_224(size, equal):
    torch.manual_seed(0)
    net = torchvision.models.resnet50(num_classes=10).eval()
    x = normalise_imagenet(smooth_images(1, size))
    difference = largest_difference(net(x), HORIZONTAL_FLIP.transform(net)(HORIZONTAL_FLIP.act(x)))
    assert difference < 1e-4 if equal else difference > 1e-2


def test_imagenets_normalisation_is_torchvisions_preset():
    preset = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.transforms()
    torch.testing.assert_close(torch.tensor(IMAGENET_MEAN) / 255, torch.tensor(preset.mean))
    torch.testing.assert_close(torch.tensor(IMAGENET_STD) / 255, torch.tensor(preset.std))
