import pytest
import torch
import torchvision
from small_nets import NARROW

from relusym.channels.groups import Place, block_outputs, permute
from relusym.channels.traced import TracedNet, channel_groups
from relusym.nets import build
from relusym.nets.vgg import VGG11


def test_groups_of_vgg11_are_the_known_ones():
    groups = channel_groups(VGG11(1 / 8))
    sizes = enumerate([8, 16, 32, 32, 64, 64, 64, 64], start=1)
    assert [(g.name, g.size) for g in groups] == [(f"conv{i}", size) for i, size in sizes]
    for i, group in enumerate(groups, start=1):
        following = f"features.conv{i + 1}.weight" if i < 8 else "classifier.weight"
        conv = f"features.conv{i}"
        places = {Place(f"{conv}.weight", 0), Place(f"{conv}.bias", 0), Place(following, 1)}
        assert set(group.places) == places


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


LAST_CONVS = {"resnet18": 2, "resnet34": 2, "resnet50": 3, "wide_resnet50_2": 3}


@pytest.mark.slow(seconds=2)
@pytest.mark.parametrize(("name", "last_conv"), LAST_CONVS.items())
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
    assert names == [f"layer{block}_relu_2" for block in ("1_0", "1_1", "2_0", "3_0", "4_0")]


def test_a_permutation_that_is_no_bijection_is_refused():
    net = VGG11(1 / 16)
    groups = channel_groups(net)
    permutations = {group.name: torch.arange(group.size) for group in groups}
    permutations["conv4"][0] = permutations["conv4"][1]
    with pytest.raises(ValueError, match="conv4"):
        permute(net.state_dict(), groups, permutations)
