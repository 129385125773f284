"""Channel groups read from the traced graph."""

import pytest
import torch
import torchvision
from torch import nn

from relusym.errors import UserError
from relusym.merging.channel_groups import Place, channel_groups, permute
from relusym.nets.vgg import VGG11


def shuffled(groups, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {group.name: torch.randperm(group.size, generator=generator) for group in groups}


def difference_after_permuting(net, size):
    torch.manual_seed(0)
    net.eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics that a wrong permutation would show in
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    x = torch.randn(2, 3, size, size)
    groups = channel_groups(net, (3, size, size))
    before = net(x).detach()
    net.load_state_dict(permute(net.state_dict(), groups, shuffled(groups)))
    return ((net(x) - before).abs().max() / before.abs().max()).item()


def test_groups_of_vgg11_are_the_known_ones():
    groups = channel_groups(VGG11(1 / 8))
    assert [(g.name, g.size) for g in groups] == [
        (f"conv{i}", c) for i, c in enumerate([8, 16, 32, 32, 64, 64, 64, 64], start=1)
    ]
    for i, group in enumerate(groups, start=1):
        following = f"features.conv{i + 1}.weight" if i < 8 else "classifier.weight"
        conv = f"features.conv{i}"
        assert set(group.places) == {
            Place(f"{conv}.weight", 0),
            Place(f"{conv}.bias", 0),
            Place(following, 1),
        }


@pytest.mark.parametrize(("name", "count"), [("resnet18", 13), ("resnet34", 21), ("resnet50", 37)])
def test_residual_streams_make_one_group_each(name, count):
    groups = channel_groups(getattr(torchvision.models, name)(), (3, 64, 64))
    blocks = {"resnet18": 8, "resnet34": 16, "resnet50": 16}[name]
    inside = 2 if name == "resnet50" else 1
    streams = 5 if name == "resnet50" else 4  # the stem of a basic-block net is in its first stage's stream
    assert len(groups) == blocks * inside + streams
    assert len(groups) == {**{name: count}, "resnet18": 12, "resnet34": 20}[name]


@pytest.mark.parametrize(
    ("build", "size"),
    [
        (lambda: VGG11(1 / 16, initialization="he"), 32),
        (lambda: torchvision.models.resnet18(width_per_group=64), 33),
        (lambda: torchvision.models.resnet50(), 64),
        (
            lambda: torchvision.models.vgg11_bn(num_classes=10),
            64,
        ),  # 49 pixels a channel in its first linear layer
        (lambda: torchvision.models.mobilenet_v2(width_mult=0.25), 32),  # depthwise convs
    ],
)
def test_permuted_nets_keep_their_logits(build, size):
    torch.manual_seed(0)
    assert difference_after_permuting(build(), size) < 1e-4


def test_a_permutation_of_one_place_only_changes_the_logits():
    torch.manual_seed(0)
    net = VGG11(1 / 16, initialization="he")
    x = torch.randn(2, 3, 32, 32)
    before = net(x).detach()
    weight = net.features.conv3.weight.data
    weight.copy_(weight[torch.randperm(len(weight))])
    assert (net(x) - before).abs().max() / before.abs().max() > 1e-3


def test_a_permutation_that_is_no_bijection_is_refused():
    net = VGG11(1 / 16)
    groups = channel_groups(net)
    permutations = shuffled(groups)
    permutations["conv4"][0] = permutations["conv4"][1]
    with pytest.raises(ValueError, match="conv4"):
        permute(net.state_dict(), groups, permutations)


def test_a_layer_with_unknown_effect_is_named():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.PixelShuffle(2))
    with pytest.raises(UserError, match="layer 1"):
        channel_groups(net)


def test_a_net_that_cannot_be_traced_is_told():
    class Forks(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UserError, match="Forks can't be traced"):
        channel_groups(Forks())
