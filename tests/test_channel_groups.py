"""Channel groups read from the traced graph, and permuting them."""

import pytest
import torch
import torchvision
from small_nets import NARROW, shuffled, smooth_images
from torch import nn

from relusym.channels.groups import Place, block_outputs, permute
from relusym.channels.traced import TracedNet, channel_groups
from relusym.data.augmentation import normalise_imagenet
from relusym.errors import UserError
from relusym.merging.identities import largest_difference
from relusym.nets import build
from relusym.nets.vgg import VGG11


@torch.no_grad()
def difference_after_permuting(net, size):
    torch.manual_seed(0)
    net.eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics that a wrong permutation would show in
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    x = torch.randn(2, 3, size, size)
    permuted, _ = shuffled(net, channel_groups(net, (3, size, size)))
    return largest_difference(net(x), permuted(x))


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


@pytest.mark.slow(seconds=1)
@pytest.mark.parametrize(
    ("name", "blocks", "inside", "streams"),
    [
        ("resnet18", 8, 1, 4),  # the stem of a basic-block net is in its first stage's stream
        ("resnet34", 16, 1, 4),
        ("resnet50", 16, 2, 5),
    ],
)
def test_residual_streams_make_one_group_each(name, blocks, inside, streams):
    groups = channel_groups(getattr(torchvision.models, name)(), (3, 64, 64))
    assert len(groups) == blocks * inside + streams
    assert len(groups) == {"resnet18": 12, "resnet34": 20, "resnet50": 37}[name]
    in_blocks = [group for group in groups if group.name.endswith(("conv1", "conv2")[:inside])]
    assert (
        sum(len(group.places) == 6 for group in in_blocks) == blocks * inside
    )  # one conv, one norm, one reader


def known_streams(net, last_conv):
    """torchvision's structure: of each stage, the places that its residual stream indexes."""

    def written(conv, norm):
        yield Place(f"{conv}.weight", 0)
        yield from (Place(f"{norm}.{name}", 0) for name in ("weight", "bias", "running_mean", "running_var"))

    streams, open_stream = [], set(written("conv1", "bn1"))
    for stage in range(1, 5):
        layer = getattr(net, f"layer{stage}")
        for i, block in enumerate(layer):
            name = f"layer{stage}.{i}"
            open_stream.add(Place(f"{name}.conv1.weight", 1))
            if block.downsample is not None:  # a new stream begins
                open_stream.add(Place(f"{name}.downsample.0.weight", 1))
                streams.append(open_stream)
                open_stream = set(written(f"{name}.downsample.0", f"{name}.downsample.1"))
            open_stream |= set(written(f"{name}.conv{last_conv}", f"{name}.bn{last_conv}"))
    return [*streams, open_stream | {Place("fc.weight", 1)}]


@pytest.mark.slow(seconds=2)
@pytest.mark.parametrize(
    ("name", "last_conv"), [("resnet18", 2), ("resnet34", 2), ("resnet50", 3), ("wide_resnet50_2", 3)]
)
def test_residual_streams_are_those_of_torchvisions_resnets(name, last_conv):
    net = getattr(torchvision.models, name)()
    groups = {frozenset(group.places) for group in channel_groups(net, (3, 64, 64))}
    streams = known_streams(net, last_conv)
    assert len(streams) == (5 if last_conv == 3 else 4)
    for stream in streams:
        assert frozenset(stream) in groups
    blocks = sum(len(getattr(net, f"layer{stage}")) for stage in range(1, 5))
    assert len(groups) == len(streams) + blocks * (last_conv - 1)


def test_block_outputs_are_the_relus_behind_the_additions():
    names = [node.name for node in block_outputs(TracedNet(build(NARROW, 10)).module())]
    assert names == [
        "layer1_0_relu_2",
        "layer1_1_relu_2",
        "layer2_0_relu_2",
        "layer3_0_relu_2",
        "layer4_0_relu_2",
    ]


@pytest.mark.slow(seconds=3)
@pytest.mark.parametrize(
    ("build_net", "size"),
    [
        (lambda: VGG11(1 / 16, initialization="he"), 32),
        (lambda: torchvision.models.resnet18(width_per_group=64), 33),
        (lambda: torchvision.models.resnet50(), 64),
        (
            lambda: torchvision.models.vgg11_bn(num_classes=10),
            64,
        ),  # its first linear layer: 49 pixels a channel
        (lambda: torchvision.models.mobilenet_v2(width_mult=0.25), 32),  # depthwise convs
    ],
    ids=["vgg11", "resnet18", "resnet50", "vgg11_bn", "mobilenet_v2"],
)
def test_permuted_nets_keep_their_logits(build_net, size):
    torch.manual_seed(0)
    assert difference_after_permuting(build_net(), size) < 1e-4


@pytest.mark.slow(seconds=1)
@torch.no_grad()
@pytest.mark.parametrize("size", [224, 225])
def test_a_permuted_resnet50_keeps_its_logits(size):
    torch.manual_seed(0)
    net = torchvision.models.resnet50(num_classes=10).eval()
    permuted, _ = shuffled(net, channel_groups(net, (3, size, size)))
    assert not torch.equal(permuted.layer3[2].conv3.weight, net.layer3[2].conv3.weight)
    x = normalise_imagenet(smooth_images(1, size))
    assert largest_difference(net(x), permuted(x)) < 1e-4


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
    permutations = {group.name: torch.arange(group.size) for group in groups}
    permutations["conv4"][0] = permutations["conv4"][1]
    with pytest.raises(ValueError, match="conv4"):
        permute(net.state_dict(), groups, permutations)


def test_what_reads_neighbouring_channels_leaves_them_at_their_places():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.LocalResponseNorm(3), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Flatten()
    )
    traced = TracedNet(net.append(nn.Linear(8, 2)), (3, 3, 3))
    assert [group.name for group in traced.groups] == ["2"]
    assert list(traced.fixed) == ["local_response_norm in 1"]


def test_a_net_that_cannot_be_traced_is_named():
    class Forks(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UserError, match="Forks can't be traced"):
        channel_groups(Forks())
