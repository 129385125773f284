"""The VGG11s and their group convs, and nets by their names in the config."""

import subprocess
import sys

import pytest
import torch
from conftest import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import difference_from_equivariant

from relusym import nets
from relusym.errors import UserError
from relusym.nets.group_conv import LiftingConv2d, RegularConv2d
from relusym.nets.vgg import VGG11
from relusym.symmetry import HORIZONTAL_FLIP, QUARTER_TURN, SYMMETRIES


@pytest.mark.parametrize(("group_convs", "parameters"), [(0, 9_225_610), (8, 4_612_810), (2, 9_187_786)])
def test_parameter_counts_at_width_1(group_convs, parameters):
    assert sum(p.numel() for p in VGG11(1.0, group_convs).parameters()) == parameters


def difference_of(conv, channels):
    """Of a group conv from an equivariant layer: τ acts in space, and on regular channels by moving on their blocks."""

    def act(x):
        moved = conv.symmetry.act(x)
        return moved if x.shape[1] == 3 else moved.roll(x.shape[1] // conv.symmetry.order, 1)

    return difference_from_equivariant(conv, torch.randn(2, channels, 9, 9), act, act)


@pytest.mark.parametrize("symmetry", SYMMETRIES.values(), ids=lambda s: s.name)
@pytest.mark.parametrize(("layer", "channels"), [(LiftingConv2d, 3), (RegularConv2d, 8)])
def test_group_convs_are_equivariant(symmetry, layer, channels):
    torch.manual_seed(0)
    conv = layer(channels, 16, symmetry=symmetry)
    assert difference_of(conv, channels) < 1e-5
    assert conv.check_kernel_constraint() == 0
    assert conv.bias.numel() == 16 // symmetry.order


def test_a_broken_layer_is_not_equivariant():
    class Broken(RegularConv2d):
        def kernel(self):
            return torch.cat([self.weight, self.weight])  # the second orientation isn't flipped

    torch.manual_seed(0)
    broken = Broken(8, 16)
    assert difference_of(broken, 8) > 0.1
    assert broken.check_kernel_constraint() > 0.01


@pytest.mark.parametrize("group_convs", [0, 2, 8])
def test_to_plain_keeps_the_function(group_convs):
    torch.manual_seed(0)
    net = VGG11(1 / 16, group_convs, initialization="he")
    torch.nn.init.normal_(net.features.conv1.bias)
    x = torch.randn(4, 3, 32, 32)
    plain = nets.plain(net)
    assert all(type(module) is not RegularConv2d for module in plain.modules())
    torch.testing.assert_close(plain(x), net(x), rtol=1e-5, atol=1e-6)


def difference(net, symmetry, x):
    """Between the logits of an image and of its moved one, relative to the largest."""
    y = net(x)
    return ((net(symmetry.act(x)) - y).abs().max() / y.abs().max()).item()


@pytest.mark.parametrize("symmetry", SYMMETRIES.values(), ids=lambda s: s.name)
def test_only_the_gcnn_is_invariant_to_its_symmetry(symmetry):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)
    network = {"architecture": "vgg11", "width": 1 / 16, "initialization": "he"}
    gcnn = nets.build(network | {"group_convs": 8}, 10, symmetry)
    assert difference(gcnn, symmetry, x) < 1e-5
    torch.testing.assert_close(nets.plain(gcnn)(x), gcnn(x), rtol=1e-5, atol=1e-6)
    assert difference(nets.build(network | {"group_convs": 2}, 10, symmetry), symmetry, x) > 1e-3
    for other in SYMMETRIES.values():
        if other is not symmetry:
            assert difference(gcnn, other, x) > 1e-3


@given(st.integers(0, 8), st.sampled_from([1 / 32, 1 / 16, 3 / 32]))
@settings(max_examples=12)
def test_the_flipped_net_on_flipped_images_is_the_net(group_convs, width):
    torch.manual_seed(group_convs)
    net = VGG11(width, group_convs, initialization="he").to_plain()
    x = torch.randn(2, 3, 32, 32)
    flipped = HORIZONTAL_FLIP.transform(net)
    torch.testing.assert_close(flipped(x.flip(-1)), net(x), rtol=1e-4, atol=1e-6)
    back = HORIZONTAL_FLIP.transform(flipped).state_dict()
    assert all(torch.equal(tensor, back[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    "wrong", [{"width": 0.3}, {"width": 1 / 64}, {"group_convs": 9}, {"initialization": "zero"}]
)
def test_what_no_vgg11_can_be_is_refused(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        VGG11(**wrong)


def test_channels_that_do_not_split_into_orientations_are_refused():
    with pytest.raises(ValueError, match="orientations"):
        RegularConv2d(3, 4)


# ---- nets by their names


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


@pytest.mark.parametrize(
    ("network", "line"),
    [
        ({"width": 1.0}, r"^network\.architecture: None given; allowed is one of"),
        (
            {"architecture": "vgg11_bn", "group_convs": 2},
            r"^network: unknown key 'group_convs'; allowed are width",
        ),
        ({"architecture": "resnet", "block": "basic"}, r"^network: the key 'layers' is missing"),
        (
            RESNET | {"layers": [1, 1, 1]},
            r"^network\.layers: \[1, 1, 1\] given; allowed is a list of at least 4",
        ),
    ],
)
def test_a_network_that_cannot_be_is_refused(network, line):
    refused(lambda: nets.check(network), match=line)


def test_what_only_the_net_knows_is_a_users_error_too():
    with pytest.raises(UserError, match="don't split into 4 orientations"):
        nets.build({"architecture": "vgg11", "width": 1 / 32, "group_convs": 8}, 10, QUARTER_TURN)


def test_config_is_checked_and_symmetries_are_named_without_torch(pytestconfig):
    code = (
        "import sys\nfrom relusym import nets\nfrom relusym.symmetry import SYMMETRIES\n"
        "from relusym.training.recipe import Recipe\n"
        "nets.check({'architecture': 'vgg11'}); Recipe(epochs=1, batch_size=2, learning_rate=3.0)\n"
        "assert 'torch' not in sys.modules"
    )
    scripts = str(pytestconfig.rootpath / "workflow_scripts")
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": scripts}, check=True)
