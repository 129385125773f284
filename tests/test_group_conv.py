"""The seven VGG11s and their group convs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relusym.nets.group_conv import LiftingConv2d, RegularConv2d
from relusym.nets.vgg import VGG11
from relusym.symmetry import HORIZONTAL_FLIP, QUARTER_TURN, VERTICAL_FLIP

SYMMETRIES = [HORIZONTAL_FLIP, VERTICAL_FLIP, QUARTER_TURN]


@pytest.mark.parametrize(("group_convs", "parameters"), [(0, 9_225_610), (8, 4_612_810), (2, 9_187_786)])
def test_parameter_counts_at_width_1(group_convs, parameters):
    assert sum(p.numel() for p in VGG11(1.0, group_convs).parameters()) == parameters


@pytest.mark.parametrize("symmetry", SYMMETRIES, ids=lambda s: s.name)
@pytest.mark.parametrize(("layer", "channels"), [(LiftingConv2d, 3), (RegularConv2d, 8)])
def test_group_convs_are_equivariant(symmetry, layer, channels):
    torch.manual_seed(0)
    conv = layer(channels, 16, symmetry=symmetry)
    assert conv.check_equivariance(torch.randn(2, channels, 9, 9)) < 1e-5
    assert conv.check_kernel_constraint() == 0
    assert conv.bias.numel() == 16 // symmetry.order


def test_check_equivariance_notices_a_broken_layer():
    class Broken(RegularConv2d):
        def kernel(self):
            return torch.cat([self.weight, self.weight])  # the second orientation isn't flipped

    torch.manual_seed(0)
    broken = Broken(8, 16)
    assert broken.check_equivariance(torch.randn(2, 8, 9, 9)) > 0.1
    assert broken.check_kernel_constraint() > 0.01


@pytest.mark.parametrize("group_convs", [0, 2, 8])
def test_to_plain_keeps_the_function(group_convs):
    torch.manual_seed(0)
    net = VGG11(1 / 16, group_convs, initialization="he")
    torch.nn.init.normal_(net.features.conv1.bias)
    x = torch.randn(4, 3, 32, 32)
    plain = net.to_plain()
    assert all(type(module) is not RegularConv2d for module in plain.modules())
    torch.testing.assert_close(plain(x), net(x), rtol=1e-5, atol=1e-6)


def test_only_the_gcnn_is_invariant_to_flips():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)

    def difference(net):
        y = net(x)
        return ((net(x.flip(-1)) - y).abs().max() / y.abs().max()).item()

    assert difference(VGG11(1 / 16, 8, initialization="he")) < 1e-5
    assert difference(VGG11(1 / 16, 2, initialization="he")) > 1e-3


@given(st.integers(0, 8), st.sampled_from([1 / 32, 1 / 16, 3 / 32]))
@settings(max_examples=12, deadline=None)
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
