import numpy as np
import pytest
import torch
from conftest import python
from small_nets import Images, answers, shuffled, smooth_images, vgg11

from relusym.channels.groups import ChannelGroup
from relusym.channels.traced import channel_groups
from relusym.data.augmentation import normalise, normalise_imagenet
from relusym.matching.match import Pair, match
from relusym.merging.aligned import joint_statistics
from relusym.merging.merge import merge
from relusym.merging.moments import EPSILON


@pytest.fixture(scope="module")
def images():
    return Images(smooth_images(300), 150)


def test_images_are_read_in_normalised_batches():
    pixels, device = smooth_images(10, 33), torch.device("cpu")
    images = Images(pixels, 4, normalise_imagenet)
    assert (len(images), images.count, images.shape) == (10, 3, (3, 33, 33))
    for even, sizes in ((False, [4, 4, 2]), (True, [4, 3, 3])):
        batches = list(images.batches(device, even=even))
        assert [len(batch) for batch in batches] == sizes
        assert torch.equal(torch.cat(batches), normalise_imagenet(pixels))
    assert torch.equal(images.first(3, device), normalise_imagenet(pixels[:3]))


def plain_correlation(first, second, layer, pixels):
    """One pass per layer, as in the public notebooks, but in float64."""
    outputs = []
    for net in (first, second):
        until = [*net.features._modules].index(f"relu{layer[-1]}") + 1
        y = net.features[:until](normalise(pixels)).double()
        outputs.append(y.permute(0, 2, 3, 1).reshape(-1, y.shape[1]))
    a, b = (y - y.mean(0) for y in outputs)
    covariance = a.T @ b / len(a)
    deviations = torch.outer(a.square().mean(0).sqrt(), b.square().mean(0).sqrt())
    return torch.nan_to_num(covariance / (deviations + EPSILON), nan=0.0)


@pytest.mark.slow(seconds=1)
@torch.no_grad()
def test_single_pass_correlations_equal_one_pass_per_layer(images):
    first, second = vgg11(0), vgg11(1)
    statistics = joint_statistics([first, second], Images(images.pixels, 70), channel_groups(first))
    assert list(statistics.correlations) == [f"conv{i}" for i in range(1, 9)]
    for layer, table in statistics.correlations.items():
        plain = plain_correlation(first, second, layer, images.pixels)
        torch.testing.assert_close(table, plain, rtol=0, atol=5e-6)


def test_activation_matching_has_the_largest_sum_of_correlations_on_a_hand_worked_table():
    table = torch.tensor([[0.9, 0.8, 0.0], [0.0, 0.1, 0.7], [0.6, 0.0, 0.2]], dtype=torch.float64)
    groups = [ChannelGroup("conv1", 3, (), "")]
    matched = match("activation", Pair(({}, {}), groups, {"conv1": table}, torch.Generator()))
    assert matched.permutations["conv1"].tolist() == [1, 2, 0]  # a greedy match would take 0.9 first
    assert matched.similarity["conv1"] == pytest.approx(0.7)


@torch.no_grad()
def test_a_dead_channel_does_not_disturb_matching(images):
    first, second = vgg11(0), vgg11(1)
    first.features.conv2.bias[3] = -1e3
    copy, planted = shuffled(first, channel_groups(first))
    permutations = merge(first, copy, images).permutations
    assert permutations == {name: p.argsort().tolist() for name, p in planted.items()}
    second.features.conv2.bias[:2] = -1e3
    merged = merge(first, second, images, images, torch.arange(300) % 10)
    assert sorted(merged.permutations["conv2"]) == list(range(16))
    assert all(np.isfinite(value) for value in merged.similarity.values())


@pytest.mark.slow(seconds=1)
@torch.no_grad()
def test_activations_recover_a_planted_permutation_and_the_identity_merges_channels_by_index(images):
    net = vgg11()
    groups = channel_groups(net)
    other, planted = shuffled(net, groups)
    by_activation, unpermuted = (
        merge(net, other, images, test_labels=answers(net, images), matching=matching)
        for matching in ("activation", "identity")
    )
    assert by_activation.permutations == {name: p.argsort().tolist() for name, p in planted.items()}
    assert by_activation.accuracy["halfway"] == by_activation.accuracy["net_1"] == 1
    correlations = joint_statistics([net, other], images, groups).correlations
    for name, permutation in unpermuted.permutations.items():
        assert permutation == list(range(len(permutation)))
        assert unpermuted.similarity[name] == pytest.approx(float(correlations[name].diag().mean()))
    assert unpermuted.checks["permuted_logits"] == 0 and unpermuted.barrier["halfway"] > 0.1


PEAK = """
import resource, sys, torch
from relusym.data.augmentation import normalise
from relusym.channels.traced import TracedNet, channel_groups
from relusym.evaluation.images import Images
from relusym.merging.aligned import Lockstep, joint_statistics
from relusym.nets import build

torch.set_num_threads(1)
torch.set_grad_enabled(False)
net = {"architecture": "resnet", "block": "bottleneck", "layers": [1, 1, 1, 1], "width": 0.25}
first, second = (build(net, 10).eval().to(memory_format=torch.channels_last) for _ in range(2))
images = Images(torch.randint(0, 256, (64, 224, 224, 3), dtype=torch.uint8), 64, normalise)
groups = channel_groups(first, images.shape)
if sys.argv[1] == "matching":
    joint_statistics([first, second], images, groups)
else:
    for x in images.batches(torch.device("cpu")):
        Lockstep([TracedNet(first).module(), TracedNet(second).module()]).run([x, x], lambda node, outputs: None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, sum(8 * g.size**2 for g in groups))
"""


@pytest.mark.slow(seconds=9)
def test_matching_takes_at_most_a_fifth_more_memory_than_plain_inference():
    peaks = {}
    for what in ("plain", "matching"):
        peaks[what], tables = map(int, python(PEAK, what).split())
    assert peaks["plain"] > 7e8  # so that activations dominate the libraries' memory
    assert peaks["matching"] <= 1.2 * peaks["plain"] + tables
