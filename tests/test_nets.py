import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT, refused, settings_of
from public_files import official_cifar10, public_resnet
from small_nets import SMALL, difference_from_equivariant, smooth_images
from torch import nn

from relusym import nets
from relusym.data.augmentation import IMAGENET_MEAN, IMAGENET_STD, normalise_imagenet
from relusym.evaluation.images import Images, normalisation
from relusym.evaluation.invariance import invariance_error
from relusym.evaluation.metrics import accuracy
from relusym.measuring.loading import normalise_of
from relusym.merging.identities import largest_difference
from relusym.nets import build
from relusym.nets.group_conv import LiftingConv2d, RegularConv2d
from relusym.nets.resnet import ScaledResNet
from relusym.nets.vgg import VGG11
from relusym.nets.weights import gather
from relusym.pixels.transform import transformed
from relusym.reporting import image_files, net_files
from relusym.symmetry import HORIZONTAL_FLIP, QUARTER_TURN, SYMMETRIES


@pytest.mark.parametrize(("group_convs", "parameters"), [(0, 9_225_610), (8, 4_612_810), (2, 9_187_786)])
def test_parameter_counts_at_width_1(group_convs, parameters):
    assert sum(p.numel() for p in VGG11(1.0, group_convs).parameters()) == parameters


def difference_of(conv, channels):
    """The equivariance error of a group conv: τ acts in space, and on regular channels by shifting their blocks."""

    def act(x):
        moved = conv.symmetry.act(x)
        return moved if x.shape[1] == 3 else moved.roll(x.shape[1] // conv.symmetry.order, 1)

    return difference_from_equivariant(conv, torch.randn(2, channels, 9, 9), act, act)


@pytest.mark.parametrize("symmetry", SYMMETRIES.values(), ids=lambda s: s.name)
@pytest.mark.parametrize(("layer", "channels"), [(LiftingConv2d, 3), (RegularConv2d, 8)])
def test_group_convs_are_equivariant(symmetry, layer, channels):
    torch.manual_seed(0)
    conv = layer(channels, 16, symmetry=symmetry)
    assert difference_of(conv, channels) < 1e-5 and conv.check_kernel_constraint() == 0
    assert conv.bias.numel() == 16 // symmetry.order


def test_a_broken_layer_is_not_equivariant():
    class Broken(RegularConv2d):
        def kernel(self):
            return torch.cat([self.weight, self.weight])  # but the second orientation isn't flipped

    torch.manual_seed(0)
    broken = Broken(8, 16)
    assert difference_of(broken, 8) > 0.1 and broken.check_kernel_constraint() > 0.01


@pytest.mark.parametrize("group_convs", [0, 2, 8])
@pytest.mark.parametrize("activation, pooling", [("relu", "max"), ("tanh", "average")])
def test_to_plain_keeps_the_function(group_convs, activation, pooling):
    torch.manual_seed(0)
    net = VGG11(1 / 16, group_convs, initialization="he", activation=activation, pooling=pooling)
    torch.nn.init.normal_(net.features.conv1.bias)
    x = torch.randn(4, 3, 32, 32)
    plain = nets.plain(net)
    assert not any(isinstance(module, LiftingConv2d | RegularConv2d) for module in plain.modules())
    torch.testing.assert_close(plain(x), net(x), rtol=1e-5, atol=1e-6)
    torch.nn.init.normal_(net.double().features.conv1.bias)  # in float64, to be free of rounding
    x = x.double()
    torch.testing.assert_close(nets.plain(net)(x), net(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("symmetry", SYMMETRIES.values(), ids=lambda s: s.name)
@torch.no_grad()
def test_only_the_gcnn_is_invariant_to_its_symmetry(symmetry):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)
    network = {"architecture": "vgg11", "width": 1 / 16, "initialization": "he"}
    gcnn = nets.build(network | {"group_convs": 8}, 10, symmetry)
    assert largest_difference(gcnn(x), gcnn(symmetry.act(x))) < 1e-5
    torch.testing.assert_close(nets.plain(gcnn)(x), gcnn(x), rtol=1e-5, atol=1e-6)
    partly = nets.build(network | {"group_convs": 2}, 10, symmetry)
    assert largest_difference(partly(x), partly(symmetry.act(x))) > 1e-3
    for other in SYMMETRIES.values():
        if other is not symmetry:
            assert largest_difference(gcnn(x), gcnn(other.act(x))) > 1e-3


@pytest.mark.parametrize("name", nets.ARCHITECTURES)
def test_every_architecture_has_a_linear_layer_and_a_plain_net(name):
    torch.manual_seed(0)
    needed = {"resnet": {"block": "basic", "layers": [1, 1, 1, 1]}}.get(name, {})
    net = nets.build({"architecture": name, "width": 1 / 16} | needed, 7).eval()
    x = torch.randn(2, 3, 32, 32)
    assert getattr(net, net.head).out_features == 7 and net(x).shape == (2, 7)
    torch.testing.assert_close(nets.plain(net)(x), net(x), rtol=1e-5, atol=1e-6)


def test_vgg11_bn_has_a_batch_norm_after_each_conv():
    net = nets.build({"architecture": "vgg11_bn", "width": 1 / 16}, 10)
    kinds = [type(module).__name__ for module in net.features]
    convs = [i for i, kind in enumerate(kinds) if kind == "Conv2d"]
    assert len(convs) == 8 and all(kinds[i + 1 : i + 3] == ["BatchNorm2d", "ReLU"] for i in convs)


RESNET = {"architecture": "resnet", "block": "basic", "layers": [1, 1, 1, 1]}


@pytest.mark.parametrize("network, line", [
    ({"width": 1.0}, r"^network\.architecture: None given; allowed is one of"),
    ({"architecture": "vgg11", "width": 0.3}, r"^network\.width: 0\.3 given; allowed is a multiple of 1/32"),
    ({"architecture": "vgg11", "group_convs": 9}, r"^network\.group_convs: 9 given; allowed is at most 8"),
    ({"architecture": "vgg11", "pooling": "min"}, "^network.pooling: 'min' given; allowed is one of max, average"),
    ({"architecture": "vgg11_bn", "group_convs": 2},
     r"^network: unknown key 'group_convs'; allowed are width"),
    ({"architecture": "resnet", "block": "basic"}, r"^network: the key 'layers' is missing"),
    (RESNET | {"layers": [1, 1, 1]}, r"^network\.layers: \[1, 1, 1\] given; allowed is a list of at least 4"),
])  # fmt: skip
def test_invalid_network_settings_are_refused(network, line):
    refused(lambda: nets.check(network), match=line)


def test_an_error_that_only_the_net_detects_is_a_users_error_too():
    network = {"architecture": "vgg11", "width": 1 / 32, "group_convs": 8}
    refused(lambda: nets.build(network, 10, QUARTER_TURN), "don't split into 4 orientations")


def test_at_width_one_the_net_is_torchvisions():
    ours = ScaledResNet("bottleneck", [3, 4, 6, 3]).state_dict()
    theirs = torchvision.models.resnet50().state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: t.shape for n, t in theirs.items()}


def test_three_blocks_per_stage_make_resnet20():
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
        if strides and module.kernel_size != (1, 1):  # the shortcut has the block's input
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


# Accuracy, as published, and the flipped net's; relative invariance error over the test images
PUBLISHED = {
    "public_resnet20": ("resnet20-12fca82f.th", 0.9173, 0.9105, 0.3435),
    "public_resnet32": ("resnet32-d509ac18.th", 0.9263, 0.9180, 0.3180),
}


@pytest.fixture(scope="module")
def test_images():
    return image_files.read(str(official_cifar10()[1]))


@pytest.mark.slow(seconds=30)
@pytest.mark.parametrize("model", PUBLISHED)
def test_a_public_resnet_has_its_published_accuracy_on_the_original_images(test_images, model, tmp_path):
    name, published, flipped, error = PUBLISHED[model]
    settings = settings_of(scale="laptop").models[model]
    state, about = gather({"file": str(public_resnet(name, tmp_path))}, settings.network, tmp_path)
    net = nets.build(settings.network, about["classes"])
    net.load_state_dict(state)
    assert not about["dropped"] and not test_images.notes  # the digest of the official test images
    images = Images(test_images.pixels, 500, normalise_of(settings.data.settings()))
    assert accuracy(net, images, test_images.labels) == published
    # the flipped net isn't the net on flipped images: strides of 2 on an even width read other pixels
    assert accuracy(transformed(net, HORIZONTAL_FLIP, (3, 32, 32)), images, test_images.labels) == flipped
    assert invariance_error(net, images) == pytest.approx(error, abs=5e-5)


def test_the_net_of_the_docs_gives_the_same_logits_as_the_workflows(tmp_path):
    file = public_resnet("resnet20-12fca82f.th", tmp_path)
    plain, _ = net_files.build(f"{ROOT / 'docs/resnet20.py'}:ResNet20", str(file), 0)
    model = settings_of(scale="laptop").models["public_resnet20"]
    net = nets.build(model.network, 10)
    net.load_state_dict(gather({"file": str(file)}, model.network, tmp_path)[0])
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8))
    scale = model.data.normalisation
    x, y = normalise_of(model.data.settings())(pixels), normalisation(scale.mean, scale.std)(pixels)
    assert torch.allclose(x, y, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(net.eval()(x), plain.eval()(y), atol=1e-4)
