import numpy as np
import pytest
import torch
import torchvision
from small_nets import NARROW, resnet, vgg11

from relusym.channels.traced import channel_groups
from relusym.merging.layers import filters_and_matches, kernel_constraint
from relusym.symmetry import HORIZONTAL_FLIP, QUARTER_TURN, VERTICAL_FLIP


def drawn(groups, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {group.name: torch.randperm(group.size, generator=generator) for group in groups}


@pytest.mark.parametrize("symmetry", [HORIZONTAL_FLIP, VERTICAL_FLIP, QUARTER_TURN], ids=lambda s: s.name)
def test_a_gcnn_satisfies_it_with_the_known_permutations_and_with_no_others(symmetry):
    net = vgg11(group_convs=8, symmetry=symmetry)
    groups = channel_groups(net)
    known = {g.name: torch.arange(g.size).roll(g.size // symmetry.order) for g in groups}
    found = filters_and_matches(net, symmetry, groups, known)
    assert list(found) == [f"features.conv{i}" for i in range(1, 9)]
    assert all(kernel_constraint(*pair) == 0 for pair in found.values())
    others = filters_and_matches(net, symmetry, groups, drawn(groups))
    assert all(kernel_constraint(*pair) > 0.5 for pair in others.values())


def test_filters_of_a_vgg11_are_flipped_and_permuted_at_both_ends_but_for_rgb():
    net = vgg11().to(memory_format=torch.channels_last)
    groups = channel_groups(net)
    permutations = drawn(groups)
    before = None
    for name, (psi, match) in filters_and_matches(net, HORIZONTAL_FLIP, groups, permutations).items():
        kernel = net.get_submodule(name).weight.detach().numpy()
        after = permutations[name.split(".")[1]].numpy()
        expected = kernel[after, ..., ::-1]
        expected = expected if before is None else expected[:, before]
        assert np.array_equal(psi.numpy(), kernel) and np.array_equal(match.numpy(), expected)
        fails = np.linalg.norm(expected - kernel) / np.linalg.norm(kernel)
        assert kernel_constraint(psi, match) == pytest.approx(fails, rel=1e-5)
        before = after


def test_filters_of_a_resnet_are_permuted_by_the_streams_that_they_read_and_write():
    net = resnet(NARROW)
    groups = channel_groups(net, (3, 33, 33))
    permutations = drawn(groups)
    found = filters_and_matches(net, HORIZONTAL_FLIP, groups, permutations)
    assert list(found) == [name for name, layer in net.named_modules() if isinstance(layer, torch.nn.Conv2d)]
    # each conv: the groups that it writes and reads
    for name, writes, reads in (
        ("conv1", "conv1", None),
        ("layer1.0.conv1", "layer1.0.conv1", "conv1"),
        ("layer1.0.conv3", "layer1.1.conv3", "layer1.0.conv2"),
        ("layer1.1.conv1", "layer1.1.conv1", "layer1.1.conv3"),
        ("layer2.0.downsample.0", "layer2.0.downsample.0", "layer1.1.conv3"),
    ):
        psi, match = found[name]
        expected = psi.flip(-1)[permutations[writes]]
        assert torch.equal(match, expected if reads is None else expected[:, permutations[reads]]), name


def test_filters_of_a_depthwise_conv_are_permuted_once():
    net = torchvision.models.mobilenet_v2(width_mult=0.25)
    groups = channel_groups(net, (3, 32, 32))
    permutations = drawn(groups)
    psi, match = filters_and_matches(net, HORIZONTAL_FLIP, groups, permutations)["features.1.conv.0.0"]
    (group,) = (g for g in groups if any("features.1.conv.0.0" in p.tensor for p in g.places))
    assert psi.shape[1] == 1 and torch.equal(match, psi.flip(-1)[permutations[group.name]])
