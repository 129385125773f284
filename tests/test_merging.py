import gc
import weakref
from copy import deepcopy
from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import refused
from small_nets import Images, answers, conv_net, resnet, shuffled, smooth_images, vgg11
from torch import nn

from relusym.channels.groups import permute
from relusym.channels.traced import channel_groups
from relusym.data.augmentation import normalise
from relusym.errors import UserError
from relusym.evaluation.barrier import absolute_barrier, accuracy, barrier
from relusym.merging.identities import LIMITS, hold, largest_difference
from relusym.merging.merge import flip_merge, halfway, merge, merge_weights
from relusym.merging.repair import LayerByLayer
from relusym.nets.vgg import VGG11
from relusym.pixels.transform import transformed
from relusym.symmetry import HORIZONTAL_FLIP, QUARTER_TURN

PIXELS = smooth_images(60)
LABELS = torch.arange(60) % 10


@pytest.fixture(scope="module")
def images():
    return Images(smooth_images(300), 150)


@torch.no_grad()
def test_a_gcnn_merged_with_its_flipped_self_under_the_known_permutation_is_itself():
    net = vgg11(group_convs=8)
    groups = channel_groups(net)
    known = {group.name: torch.arange(group.size).roll(group.size // 2) for group in groups}
    flipped = HORIZONTAL_FLIP.transform(net)
    assert not torch.equal(flipped.features.conv1.weight, net.features.conv1.weight)
    flipped.load_state_dict(permute(flipped.state_dict(), groups, known))
    merged = halfway(net, flipped)
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], tensor, rtol=0, atol=1e-6)


def test_a_flip_merge_reports_checks_that_hold(images):
    labels = torch.arange(300) % 10
    merged = flip_merge(vgg11(group_convs=8), Images(images.pixels, 100), images, labels)
    assert merged.checks["flipped_to_identity"] == 0 and max(merged.checks.values()) < 1e-4
    assert set(merged.accuracy) == {"net", "flipped", "halfway", "repaired"}
    assert merged.accuracy["net"] == pytest.approx(merged.accuracy["flipped"], abs=0.011)
    assert merged.permutations["conv1"] == np.roll(np.arange(8), 4).tolist()


@pytest.mark.slow(seconds=2)
@torch.no_grad()
def test_a_flip_merge_at_an_odd_size_reports_checks_that_hold():
    odd, even = Images(smooth_images(60, 33), 30), Images(smooth_images(60, 32), 30)
    labels = torch.arange(60) % 10
    assert max(flip_merge(resnet(), odd, odd, labels).checks.values()) < 1e-4
    merged = flip_merge(resnet(size=32), even, even, labels)
    assert merged.checks["flipped_net_on_flipped_images"] > 1e-2


@pytest.mark.slow(seconds=1)
@torch.no_grad()
def test_a_resnet_merged_with_a_permuted_copy_is_itself_with_and_without_repair():
    net, some = resnet(), Images(smooth_images(200, 33), 100)
    other, _ = shuffled(net, channel_groups(net, some.shape))
    merged = merge(net, other, some, some, answers(net, some))
    assert merged.accuracy["net_1"] == merged.accuracy["net_2"] == merged.accuracy["halfway"] == 1
    assert set(merged.accuracy) == {"net_1", "net_2", "halfway", "reset", "repaired"}
    assert set(merged.barrier) == {"halfway", "reset", "repaired"}
    assert merged.accuracy["reset"] > 0.9 and merged.accuracy["repaired"] > 0.9


@pytest.mark.slow(seconds=3)
@torch.no_grad()
@pytest.mark.parametrize("build", [vgg11, lambda seed: resnet(seed=seed, size=32)], ids=["vgg11", "resnet"])
def test_nets_merged_in_the_other_order_differ_by_the_order_of_channels_and_rounding(images, build):
    first, second = build(0), build(1)
    labels = torch.arange(len(images)) % 10
    one, other = (merge(*nets, images, images, labels) for nets in ((first, second), (second, first)))
    for name, permutation in one.permutations.items():
        inverse = np.argsort(other.permutations[name]).tolist()
        assert permutation == inverse
        assert one.similarity[name] == pytest.approx(other.similarity[name], rel=1e-4)
    orders = {name: torch.tensor(permutation) for name, permutation in one.permutations.items()}
    reordered = permute(other.nets["halfway"].state_dict(), one.aligned.groups, orders)
    for name, tensor in one.nets["halfway"].state_dict().items():
        torch.testing.assert_close(reordered[name], tensor, rtol=1e-5, atol=1e-6)
    assert one.scores["loss"]["net_1"] == pytest.approx(other.scores["loss"]["net_2"], rel=1e-5)
    for name in one.barrier:
        assert one.scores["loss"][name] == pytest.approx(other.scores["loss"][name], rel=1e-3)
        assert one.accuracy[name] == pytest.approx(other.accuracy[name], abs=0.01)


def test_nets_of_other_architecture_are_refused(images):
    other, wider = nn.Sequential(nn.Conv2d(3, 8, 3)), VGG11(1 / 4)
    for one, another in combinations((vgg11(), other, wider), 2):
        with pytest.raises(UserError, match="of different architecture"):
            merge(one, another, images, images, torch.zeros(300, dtype=torch.int64))


@torch.no_grad()
@pytest.mark.parametrize("group_convs", [0, 2, 8])
def test_the_quarter_turned_net_on_turned_images_is_the_net(images, group_convs):
    net = vgg11(group_convs=group_convs, symmetry=QUARTER_TURN)
    x = normalise(images.pixels[:20])
    turned, moved = QUARTER_TURN.transform(net), QUARTER_TURN.act(x)
    assert largest_difference(net(x), turned(moved)) < 1e-5
    # only the GCNN's own logits are invariant
    assert (largest_difference(net(x), net(moved)) < 1e-5) == (group_convs == 8)
    powers = [net]
    for _ in range(4):
        powers.append(QUARTER_TURN.transform(powers[-1]))
    alike = [torch.equal(net.features.conv2.weight, power.features.conv2.weight) for power in powers]
    assert alike == [True, False, False, False, True]


@pytest.mark.slow(seconds=2)
@torch.no_grad()
def test_a_gcnn_merged_with_its_quarter_turned_self_has_a_permutation_of_order_4_and_no_barrier(images):
    net = vgg11(group_convs=8, symmetry=QUARTER_TURN)
    merged = flip_merge(net, images, images, answers(net, images), symmetry=QUARTER_TURN)
    for name, permutation in merged.permutations.items():
        # a turned net's blocks are one ahead
        known = torch.arange(len(permutation)).roll(len(permutation) // 4)
        assert permutation == known.tolist(), name
        squared = known[known]
        assert torch.equal(squared[squared], torch.arange(len(known)))
        assert not torch.equal(squared, torch.arange(len(known)))
    assert min(merged.similarity.values()) > 0.99
    assert merged.barrier["halfway"] == pytest.approx(0, abs=0.005)
    assert merged.barrier["repaired"] == pytest.approx(0, abs=0.02)
    assert max(merged.checks.values()) < 1e-4
    # neither the flip's permutation nor none at all would do, and a CNN has no such permutation
    how = {"symmetry": QUARTER_TURN, "matching": "identity"}
    unpermuted = flip_merge(net, images, images, answers(net, images), **how)
    cnn = vgg11()
    other = flip_merge(cnn, images, images, answers(cnn, images), symmetry=QUARTER_TURN)
    assert min(unpermuted.barrier["halfway"], other.barrier["halfway"]) > 0.1


def test_barrier_on_a_hand_worked_case():
    assert absolute_barrier(0.9, 0.7, 0.6) == pytest.approx(0.2)
    assert barrier(0.9, 0.7, 0.6) == pytest.approx(0.25)
    assert barrier(0.5, 0.5, 0.6) == pytest.approx(-0.2)
    with pytest.raises(ZeroDivisionError):
        barrier(0.0, 0.0, 0.0)


def test_accuracy_counts_the_last_incomplete_batch(images):
    net = vgg11()
    truth = answers(net, images)
    truth[:30] = (truth[:30] + 1) % 10
    assert accuracy(net, Images(images.pixels, 77), truth) == pytest.approx(0.9)


def test_a_weight_that_two_layers_share_is_averaged_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.one, self.two = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8))
            self.two.weight = self.one.weight
            self.head = nn.Linear(8, 10)

        def forward(self, x):
            x = self.one(self.stem(x).relu()).relu()
            return self.head(self.two(x).relu().mean((2, 3)))

    first, second = Tied(), Tied()
    middle = halfway(first, second)
    assert torch.allclose(middle.one.weight, (first.one.weight + second.one.weight) / 2)
    assert middle.two.weight is middle.one.weight


def test_a_net_that_is_no_longer_needed_is_gone_at_once(images):
    net = vgg11()
    gone = weakref.ref(net.features.conv3.weight)
    gc.disable()  # cycles would keep it
    try:
        channel_groups(net)
        transformed(net, HORIZONTAL_FLIP, (3, 32, 32))
        LayerByLayer(net, images).measure(1)
        assert gone() is not None
        del net
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.slow(seconds=1)
def test_the_nets_of_a_merge_have_the_accuracies_that_it_reports():
    net, images = resnet(size=32), Images(PIXELS, 16)
    merged = flip_merge(net, images, test_labels=LABELS)
    assert set(merged.nets) == {"net", "flipped", "halfway", "reset", "repaired", "permuted"}
    assert {name: accuracy(merged.nets[name], images, LABELS) for name in merged.accuracy} == merged.accuracy
    assert accuracy(merged.nets["permuted"], images, LABELS) == merged.accuracy["flipped"]
    keys = {"accuracy", "barrier", "absolute_barrier", "permutations", "similarity", "checks"}
    assert set(merged.body()) == keys


def test_nets_are_merged_by_their_weights_without_images():
    net = vgg11()
    other, planted = shuffled(net, channel_groups(net))
    aligned = merge_weights(net, other, (3, 32, 32))
    for name, order in aligned.permutations.items():
        assert torch.equal(planted[name][order], torch.arange(len(order)))
    halfway = aligned.interpolate(0.5).net.state_dict()
    assert all(torch.allclose(tensor, halfway[key]) for key, tensor in net.state_dict().items())
    assert aligned.similarity == {}


def test_a_transformed_net_that_isnt_the_net_on_transformed_images_stops_a_flip_merge(monkeypatch):
    def wrong(traced, symmetry):
        flipped = deepcopy(traced.net)
        flipped[0].weight.data[0] *= 1.1
        return flipped

    monkeypatch.setattr("relusym.merging.merge.transformed", wrong)
    merging = lambda: flip_merge(conv_net(), Images(PIXELS, 16))  # noqa: E731
    refused(merging, "flipped_net_on_flipped_images", "no result is given")


def test_a_net_that_sees_where_things_are_is_flipped_with_all_its_weights():
    net = conv_net(nn.MaxPool2d(15), nn.Flatten(), nn.Linear(32, 10))
    assert flip_merge(net, Images(PIXELS, 16)).checks["flipped_net_on_flipped_images"] < 1e-5


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("value", [0.006, float("nan"), float("inf")])
def test_an_identity_that_doesnt_hold_stops_with_one_line(name, value):
    refused(lambda: hold({name: value}), name)
    hold({name: value}, exempt=(name,))
    hold({name: 0.0})
