import gc
import weakref
from copy import deepcopy
from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import refused
from small_nets import (
    LABELS,
    NARROW,
    PIXELS,
    SMALL,
    Images,
    answers,
    conv_net,
    net_of,
    orbit,
    pooled,
    resnet,
    shuffled,
    smooth_images,
    targets,
    vgg11,
)
from small_training import RESNET_RECIPE, small_images, small_net, train_on
from structures import InPlace, Mixer
from torch import nn

from relusym.channels.groups import permute
from relusym.channels.traced import TracedNet, channel_groups
from relusym.data.augmentation import normalise
from relusym.evaluation.invariance import invariance_error
from relusym.evaluation.metrics import TOP_1, accuracy
from relusym.merging.aligned import align, align_many, interpolate, joint_statistics
from relusym.merging.exact_gcnn import project
from relusym.merging.identities import LIMITS, hold, largest_difference
from relusym.merging.many import merge_many, orbit_merge
from relusym.merging.merge import barrier, curve, flip_merge, merge, merge_weights
from relusym.merging.repair import (
    LayerByLayer,
    repair,
    repair_blocks,
    repair_points,
    reset_batch_norm,
)
from relusym.nets.vgg import VGG11
from relusym.pixels.transform import transformed
from relusym.precision import full_float32
from relusym.reporting.exact import exact
from relusym.symmetry import HORIZONTAL_FLIP, QUARTER_TURN, SYMMETRIES


@pytest.fixture(scope="module")
def images():
    return Images(smooth_images(300), 150)


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
    forth, back = (merge(*nets, images, images, labels) for nets in ((first, second), (second, first)))
    for name, permutation in forth.permutations.items():
        inverse = np.argsort(back.permutations[name]).tolist()
        assert permutation == inverse
        assert forth.similarity[name] == pytest.approx(back.similarity[name], rel=1e-4)
    orders = {name: torch.tensor(permutation) for name, permutation in forth.permutations.items()}
    reordered = permute(back.nets["halfway"].state_dict(), forth.aligned.groups, orders)
    torch.testing.assert_close(reordered, forth.nets["halfway"].state_dict(), rtol=1e-5, atol=1e-6)
    assert forth.scores["loss"]["net_1"] == pytest.approx(back.scores["loss"]["net_2"], rel=1e-5)
    for name in forth.barrier:
        assert forth.scores["loss"][name] == pytest.approx(back.scores["loss"][name], rel=1e-3)
        assert forth.accuracy[name] == pytest.approx(back.accuracy[name], abs=0.01)


def test_nets_of_other_architecture_are_refused(images):
    other, wider = nn.Sequential(nn.Conv2d(3, 8, 3)), VGG11(1 / 4)
    for first, another in combinations((vgg11(), other, wider), 2):
        for attempt in (
            lambda a=first, b=another: merge(a, b, images),
            lambda a=first, b=another: align(a, b, images),
            lambda a=first, b=another: align_many([a, a, b], images),
            lambda a=first, b=another: merge_weights(a, b, (3, 32, 32)),
        ):
            refused(attempt, "the nets are of different architecture, as in ")


@pytest.mark.parametrize("points", [0, 1, 2.5])
def test_a_curve_without_both_endpoints_is_refused(points):
    refused(lambda: curve(None, None, None, None, points), f"points: {points} given; allowed is")


@torch.no_grad()
@pytest.mark.parametrize("symmetry", SYMMETRIES.values(), ids=SYMMETRIES)
@pytest.mark.parametrize("group_convs", [0, 2, 8])
def test_the_transformed_net_on_transformed_images_is_the_net(images, group_convs, symmetry):
    net = vgg11(group_convs=group_convs, symmetry=symmetry)
    x = normalise(images.pixels[:20])
    turned, moved = symmetry.transform(net), symmetry.act(x)
    assert largest_difference(net(x), turned(moved)) < 1e-5
    # among the nets, only the GCNN's logits are invariant
    assert (largest_difference(net(x), net(moved)) < 1e-5) == (group_convs == 8)
    powers = orbit(net, symmetry)
    powers.append(symmetry.transform(powers[-1]))
    alike = [torch.equal(net.features.conv2.weight, power.features.conv2.weight) for power in powers]
    assert alike == [True, *[False] * (symmetry.order - 1), True]


@pytest.mark.slow(seconds=2)
@torch.no_grad()
def test_a_gcnn_merged_with_its_quarter_turned_self_has_permutations_of_order_4_and_no_barrier(images):
    net = vgg11(group_convs=8, symmetry=QUARTER_TURN)
    merged = flip_merge(net, images, images, answers(net, images), symmetry=QUARTER_TURN)
    for name, permutation in merged.permutations.items():
        # the blocks of a turned net are shifted by one
        known = torch.arange(len(permutation)).roll(len(permutation) // 4)
        assert permutation == known.tolist(), name
        squared = known[known]
        assert torch.equal(squared[squared], torch.arange(len(known)))
        assert not torch.equal(squared, torch.arange(len(known)))
    assert min(merged.similarity.values()) > 0.99
    assert merged.barrier["halfway"] == pytest.approx(0, abs=0.005)
    assert merged.barrier["repaired"] == pytest.approx(0, abs=0.02)
    assert max(merged.checks.values()) < 1e-4
    # neither the flip's permutation nor the identity works, and a CNN has no such permutation
    how = {"symmetry": QUARTER_TURN, "matching": "identity"}
    unpermuted = flip_merge(net, images, images, answers(net, images), **how)
    cnn = vgg11()
    other = flip_merge(cnn, images, images, answers(cnn, images), symmetry=QUARTER_TURN)
    assert min(unpermuted.barrier["halfway"], other.barrier["halfway"]) > 0.1


def test_barrier_on_a_hand_worked_case():
    assert TOP_1.absolute_barrier((0.9 + 0.7) / 2, 0.6) == pytest.approx(0.2)
    assert barrier((0.9 + 0.7) / 2, 0.6) == pytest.approx(0.25)
    assert barrier(0.5, 0.6) == pytest.approx(-0.2)
    assert barrier(0.0, 0.0) is None


def test_accuracy_counts_the_last_incomplete_batch(images):
    net = vgg11()
    truth = answers(net, images)
    truth[:30] = (truth[:30] + 1) % 10
    assert accuracy(net, Images(images.pixels, 77), truth) == pytest.approx(0.9)


def test_a_net_that_is_no_longer_needed_is_freed_at_once(images):
    net = vgg11()
    gone = weakref.ref(net.features.conv3.weight)
    gc.disable()  # so that a reference cycle would keep the net alive
    try:
        channel_groups(net)
        transformed(net, HORIZONTAL_FLIP, (3, 32, 32))
        LayerByLayer(net, images).measure(1)
        assert gone() is not None
        del net
        assert gone() is None
    finally:
        gc.enable()


def test_the_nets_of_a_merge_have_the_accuracies_that_it_reports():
    net, images = resnet(size=32), Images(PIXELS, 16)
    merged = flip_merge(net, images, test_labels=LABELS)
    assert set(merged.nets) == {"net", "flipped", "halfway", "reset", "repaired", "permuted"}
    assert {name: accuracy(merged.nets[name], images, LABELS) for name in merged.accuracy} == merged.accuracy
    assert accuracy(merged.nets["permuted"], images, LABELS) == merged.accuracy["flipped"]
    keys = {"accuracy", "barrier", "absolute_barrier", "permutations", "similarity", "checks"}
    assert set(merged.body()) == keys


def test_a_transformed_net_that_isnt_the_net_on_transformed_images_stops_a_flip_merge(monkeypatch):
    def wrong(traced, symmetry):
        flipped = deepcopy(traced.net)
        flipped[0].weight.data[0] *= 1.1
        return flipped

    monkeypatch.setattr("relusym.merging.merge.transformed", wrong)
    merging = lambda: flip_merge(conv_net(), Images(PIXELS, 16))  # noqa: E731
    refused(merging, "flipped_net_on_flipped_images", "no result is given")


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("value", [0.006, float("nan"), float("inf")])
def test_an_identity_that_doesnt_hold_stops_with_one_line(name, value):
    refused(lambda: hold({name: value}), name)
    hold({name: value}, exempt=(name,))
    hold({name: 0.0})


PLAIN = {"architecture": "vgg11_bn", "width": 1 / 8}


@torch.no_grad()
def test_repair_meets_its_targets_in_every_layer(images):
    first, second = vgg11(0), vgg11(1)
    wanted = targets(first, second, images)
    between = interpolate(first, second, 0.5)
    repaired, _ = repair(between, wanted, Images(images.pixels, 64))
    before = joint_statistics([between, repaired], images, channel_groups(first)).statistics
    assert any((before[0][conv].std / target.std - 1).abs().max() > 0.2 for conv, target in wanted.items())
    for conv, target in wanted.items():
        torch.testing.assert_close(before[1][conv].std, target.std, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(before[1][conv].mean, target.mean, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_repair_leaves_a_net_that_meets_its_targets_as_it_is_however_small_its_activations(images):
    net = vgg11()
    first, second = net.features.conv1, net.features.conv2
    for tensor, factor in ((first.weight, 1e-4), (first.bias, 1e-4), (second.weight, 1e4)):
        tensor *= factor
    repaired, _ = repair(net, targets(net, net, images), images)
    x = normalise(images.pixels[:20])
    assert largest_difference(net(x), repaired(x)) < 1e-3


@torch.no_grad()
@pytest.mark.parametrize("build_net", [vgg11, lambda seed: InPlace()], ids=["vgg11", "in_place"])
def test_maps_that_do_not_fit_in_memory_are_held_a_batch_at_a_time(images, monkeypatch, build_net):
    first, second = build_net(0), build_net(1)
    between, some = interpolate(first, second, 0.5), Images(images.pixels[:60], 25)
    wanted = targets(first, second, some)
    held = repair(between, wanted, some)[0]
    for room in (0, 60 * 8 * 16 * 16 * 4):  # for no map, or for those from the second conv on
        monkeypatch.setattr("relusym.merging.repair.HELD_BYTES", room)
        again = repair(between, wanted, some)[0]
        x = normalise(images.pixels[:20])
        assert largest_difference(held(x), again(x)) < 1e-5
        run = LayerByLayer(deepcopy(between), some)
        for place in [i for i, node in enumerate(run.nodes) if node.name in run.points]:
            run.measure(place)
            taken = sum(of.nbytes for env in run.environments for of in env.values())
            assert taken <= room


@torch.no_grad()
def test_reset_batch_norms_hold_the_statistics_of_the_images():
    net, some = resnet(), smooth_images(90, 33, seed=3)
    reset = reset_batch_norm(net, Images(some, 30))
    first = net.conv1(normalise(some)).permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(reset.bn1.running_mean, first.mean(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reset.bn1.running_var, first.var(1), rtol=0.05, atol=1e-4)
    assert not torch.allclose(net.bn1.running_mean, reset.bn1.running_mean, atol=1e-3)
    assert not reset.training


@torch.no_grad()
@pytest.mark.parametrize("network", [SMALL, NARROW, PLAIN], ids=["basic", "bottleneck", "no residual blocks"])
def test_repair_meets_its_targets_at_every_block_output(network):
    first, second, some = resnet(network, 0), resnet(network, 1), smooth_images(300, 33)
    wanted = targets(first, second, Images(some, 100))
    assert list(wanted) == list(repair_points(TracedNet(first)).values())
    repaired = repair_blocks(interpolate(first, second, 0.5), wanted, Images(some, 300))
    modules, outputs = dict(repaired.named_modules()), {}
    for point in wanted:
        hook = lambda module, args, output, point=point: outputs.update({point: output.double()})  # noqa: E731
        modules[f"{point}_repair"].register_forward_hook(hook)
    repaired(normalise(some))
    for point, target in wanted.items():
        std, mean = torch.std_mean(outputs[point], (0, 2, 3))
        torch.testing.assert_close(mean, target.mean, rtol=0.01, atol=0.01)
        torch.testing.assert_close(std, target.std, rtol=0.02, atol=0.01)


@torch.no_grad()
@pytest.mark.parametrize("network", [SMALL, PLAIN], ids=["basic", "no residual blocks"])
def test_resetting_alone_misses_repairs_targets(network):
    first, second, some = resnet(network, 0), resnet(network, 1), Images(smooth_images(200, 33), 200)
    wanted = targets(first, second, some)
    reset = reset_batch_norm(interpolate(first, second, 0.5), some)
    has = joint_statistics([reset, reset], some, channel_groups(reset, some.shape)).statistics[0]
    assert max(float((has[point].std / target.std - 1).abs().max()) for point, target in wanted.items()) > 0.2


@torch.no_grad()
@pytest.mark.parametrize("network", [SMALL, NARROW], ids=["basic", "bottleneck"])
def test_targets_of_nets_with_batch_norm_are_the_averages_of_batches_normalised_by_themselves(network):
    net, some = resnet(network), Images(smooth_images(90, 33, seed=3), 30)
    trained = deepcopy(net.state_dict())
    measured = joint_statistics([net, net], some, channel_groups(net, some.shape)).statistics[0]
    torch.testing.assert_close(net.state_dict(), trained, rtol=0, atol=0)
    seen = []
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        for block in stage:
            seen.append([])
            taken = lambda module, args, y, to=seen[-1]: to.append(torch.var_mean(y.double(), (0, 2, 3)))  # noqa: E731
            block.register_forward_hook(taken)
    net.train()
    for x in some.batches(torch.device("cpu"), even=True):
        net(x)
    assert len(measured) == len(seen) == sum(network["layers"])
    for statistics, batches in zip(measured.values(), seen, strict=True):
        variances, means = (torch.stack(values).mean(0) for values in zip(*batches, strict=True))
        torch.testing.assert_close(statistics.mean, means, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(statistics.std, variances.sqrt(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batches", [[1], [2, 2, 1]])
def test_a_batch_norm_that_would_read_one_number_per_channel_is_refused(batches):
    net = conv_net(nn.Flatten(), nn.Linear(8 * 36, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    merging = lambda: merge(net, net, [torch.rand(count, 3, 8, 8) for count in batches])  # noqa: E731
    refused(merging, "a batch norm reads a batch of one image", "larger batches")


class Auxiliary(nn.Module):
    """A net with an auxiliary head, with a batch norm, that only training runs."""

    def __init__(self, normed):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8) if normed else nn.Identity()
        self.second, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 10)
        self.aux = nn.Sequential(nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.Flatten(), nn.LazyLinear(10))

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        logits = self.head(torch.relu(self.second(x)).mean((2, 3)))
        return (logits, self.aux(x)) if self.training else logits


@torch.no_grad()
@pytest.mark.parametrize("normed", [False, True], ids=["bare", "normed"])
def test_what_evaluation_doesnt_run_is_named_kept_and_no_reason_not_to_repair(normed):
    torch.manual_seed(0)
    nets, some = [Auxiliary(normed), Auxiliary(normed)], Images(smooth_images(60), 60)
    x = some.first(60, torch.device("cpu"))
    for net in nets:
        net(x), net.eval()
    merged = merge(*nets, some)
    assert merged.notes == ["channels stay at their places in aux: evaluation mode doesn't run it"]
    for name in merged.nets.keys() - {"net_1", "net_2", "permuted", "repaired" if normed else ""}:
        mean = (nets[0].aux[1].running_mean + nets[1].aux[1].running_mean) / 2
        torch.testing.assert_close(merged.nets[name].aux[1].running_mean, mean)
    assert ("reset" in merged.nets) == normed
    if not normed:
        ends = [net.first(x).std((0, 2, 3)) for net in (nets[0], merged.nets["permuted"])]
        target, std = sum(ends) / 2, merged.nets["repaired"].first(x).std((0, 2, 3))
        torch.testing.assert_close(std, target, rtol=1e-3, atol=1e-4)


@net_of(lambda: {
    "conv": nn.Conv2d(3, 8, 3, padding=1), "norm": nn.BatchNorm2d(8), "up": nn.Linear(8, 12), "down": nn.Linear(12, 8),
    "head": nn.Linear(8, 10),
})  # fmt: skip
def LastAfterNorm(self, x):
    """A residual block on a map with channels last, in a net with batch norm."""
    x = torch.relu(self.norm(self.conv(x))).permute(0, 2, 3, 1)
    return self.head((x + self.down(torch.relu(self.up(x)))).mean((1, 2)))


@net_of(lambda: {"conv": nn.Conv2d(3, 8, 3, padding=1), "norm": nn.BatchNorm2d(8), "head": nn.Linear(8, 10)})
def Sigmoids(self, x):
    return self.head(torch.sigmoid(self.norm(self.conv(x))).mean((2, 3)))


@net_of(lambda: {
    "weight": nn.Parameter(torch.randn(8, 3, 3, 3)), "again": nn.Conv2d(8, 8, 3, padding=1), "head": nn.Linear(8, 10),
})  # fmt: skip
def Functional(self, x):
    x = nn.functional.conv2d(x, self.weight).relu()
    return self.head(self.again(self.again(x).relu()).relu().mean((2, 3)))


@pytest.mark.parametrize(("net", "note"), [
    (LastAfterNorm, "REPAIR doesn't correct add: channels there aren't in dimension 1"),
    (Sigmoids, "REPAIR only resets batch norms: the net has no sum of maps, and no activation after a batch norm"),
    (Functional,
     "REPAIR doesn't correct conv2d, again: it corrects convolutions and linear layers that are called once"),
])  # fmt: skip
def test_what_repair_doesnt_correct_is_named(net, note):
    torch.manual_seed(0)
    merged = merge(net(), net(), Images(smooth_images(40), 40))
    assert merged.notes == [note]
    if "reset" in merged.nets:
        x = normalise(smooth_images(40))
        torch.testing.assert_close(merged.nets["repaired"](x), merged.nets["reset"](x))


@net_of(lambda: {
    "stem": nn.Conv2d(3, 8, 3, padding=1), "mask": nn.Buffer(torch.rand(8, 8, 3, 3).round()),
    "pruned": nn.Conv2d(8, 8, 3, padding=1), "head": nn.Linear(8, 10),
})  # fmt: skip
def Masked(self, x):
    """A net pruned by hand, whose mask is a buffer."""
    x = self.stem(x).relu()
    return self.head(nn.functional.conv2d(x, self.pruned.weight * self.mask, padding=1).relu().mean((2, 3)))


@net_of(lambda: {
    "first": nn.Conv2d(3, 8, 3), "stem": nn.Conv2d(8, 8, 3), "beside": nn.Conv1d(1, 1, 3, padding=1),
    "head": nn.Linear(8, 10),
})  # fmt: skip
def Neighbours(self, x):
    """A net in which each channel of a layer has neighbours."""
    return self.head(self.beside(self.stem(self.first(x).relu()).mean((2, 3))[:, None])[:, 0])


@net_of(lambda: {"first": nn.Conv2d(3, 8, 3), "last": nn.Conv2d(8, 8, 3), "head": nn.Linear(8, 10)})
def Featured(self, x):
    """A net that also returns a map, which another layer reads."""
    x = self.first(x).relu()
    return self.head(self.last(x).relu().mean((2, 3))), x


@net_of(lambda: {
    "stem": nn.Conv2d(3, 12, 4, 4), "query": nn.Parameter(torch.randn(1, 1, 12)),
    "attention": nn.MultiheadAttention(12, 3, batch_first=True), "head": nn.Linear(12, 10),
})  # fmt: skip
def AttentionPooled(self, x):
    x = self.stem(x).flatten(2).mT
    return self.head(self.attention(self.query.expand(len(x), -1, -1), x, x)[0][:, 0])


@net_of(lambda: {
    "stem": nn.Conv2d(3, 8, 3), "keys": nn.Conv2d(8, 6, 1), "values": nn.Conv2d(8, 6, 1), "head": nn.Linear(36, 10),
})  # fmt: skip
def Crossed(self, x):
    """The products of all pairs of a key and a value, as in linear attention."""
    x = self.stem(x).relu()
    return self.head((self.keys(x).flatten(2) @ self.values(x).flatten(2).mT / 900).flatten(1))


@net_of(lambda: {
    "stem": nn.Conv2d(3, 8, 3), "weight": nn.Parameter(torch.randn(8, 8)), "up": nn.Linear(3, 8, bias=False),
    "down": nn.Linear(8, 3, bias=False), "head": nn.Linear(8, 10),
})  # fmt: skip
def Adapted(self, x):
    """A layer with a low-rank addend."""
    kernel = self.weight + self.up.weight @ self.down.weight
    return self.head(nn.functional.linear(self.stem(x).relu().mean((2, 3)), kernel).relu())


@pytest.mark.parametrize(("net", "note"), [
    (Masked, "averaged as weights are: the buffers mask"),
    (Neighbours, "channels stay at their places in stem: what reads them tells them from one another"),
    (Featured, "channels stay at their places in first: the net returns them"),
    (AttentionPooled,
     "channels stay at their places in attention: no output shows them, by which they could be matched"),
    (Adapted, "channels stay at their places in down: no output shows them, by which they could be matched"),
    (Crossed,
     "channels stay at their places in matmul: they are multiplied by one another, so that they only move together"),
    (Mixer, "channels stay at their places in t1: they lie along positions, and another layer reads them"),
])  # fmt: skip
def test_what_a_merge_averages_besides_weights_and_what_it_leaves_is_named(net, note):
    torch.manual_seed(0)
    assert note in merge(net(), net(), Images(smooth_images(40), 40)).notes


@net_of(lambda: {
    "conv": nn.Conv2d(3, 8, 3), "norm": nn.BatchNorm2d(8), "last": nn.Conv2d(8, 8, 3, padding=1),
    "row": nn.Parameter(torch.randn(1, 8, 1, 1)), "column": nn.Parameter(torch.randn(1, 8, 1, 1)),
    "head": nn.Linear(8, 10),
})  # fmt: skip
def SumOfParameters(self, x):
    x = torch.relu(self.norm(self.conv(x))) + (2 * self.row + 2 * self.column)
    return self.head(torch.relu(x + self.last(x)).mean((2, 3)))


def test_a_sum_of_parameters_is_no_block():
    torch.manual_seed(0)
    merged = merge(SumOfParameters(), SumOfParameters(), Images(smooth_images(40), 20))
    assert [*repair_points(merged.traced)] == ["add_1", "relu_1"] and merged.notes == []


def test_a_layer_whose_activations_are_too_small_for_correlations_is_a_note():
    net, some = vgg11(), Images(smooth_images(40), 20)
    with torch.no_grad():
        state = net.state_dict()
        for name in ("features.conv2.weight", "features.conv2.bias"):
            state[name] /= 1000
        state["features.conv3.weight"] *= 1000  # so that the net computes the same
    merged = flip_merge(net, some)
    assert merged.similarity["conv2"] < 0.01 < 0.1 < merged.similarity["conv1"]
    (note,) = [
        note for note in merged.notes if "mean little in conv2: activations there vary by less" in note
    ]
    several = merge_many([net, net], some)
    assert note in several.notes and not [note for note in flip_merge(vgg11(), some).notes if "mean" in note]


@net_of(lambda normed: {
    "conv": nn.Conv2d(3, 8, 3), "norm": nn.BatchNorm2d(8) if normed else nn.Identity(), "head": nn.Linear(8, 10),
})  # fmt: skip
def Standardised(self, x):
    x = x / x.std((1, 2, 3), keepdim=True)
    return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.mark.parametrize("normed", [False, True])
def test_an_image_for_which_a_net_isnt_finite_is_named(normed):
    batches = list(torch.randn(3, 10, 3, 8, 8))
    batches[1][4] = 0
    line = "a net's logits of image 15 aren't finite"
    refused(lambda: flip_merge(Standardised(normed), batches), match=line)
    refused(lambda: merge_many([Standardised(normed) for _ in range(3)], batches), match=line)


def test_test_images_that_a_net_cant_read_are_refused():
    nets = [conv_net(nn.Flatten(), nn.Linear(8 * 36, 10)) for _ in range(3)]
    batches, others = [torch.randn(20, 3, 8, 8)], [torch.randn(20, 3, 9, 9)]
    for attempt in (
        lambda: merge(*nets[:2], batches, others),
        lambda: merge_many(nets, batches, others),
        lambda: flip_merge(nets[0], batches, others),
        lambda: orbit_merge(nets[0], QUARTER_TURN, batches, others, None),
    ):
        refused(attempt, "can't read images of shape (3, 9, 9)")


def test_a_curve_through_more_than_two_nets_is_refused():
    batches = [torch.randn(20, 3, 8, 8)]
    aligned = merge_many([conv_net(), conv_net(), conv_net()], batches).aligned
    refused(lambda: curve(aligned, batches, batches, None, 3), match="curve: for two nets")


def test_a_merge_by_weights_with_another_seed_or_shape_of_images_is_refused():
    nets = conv_net(), conv_net()
    refused(lambda: merge_weights(*nets, (3, 8, 8), seed=-1), match="seed: -1 given; allowed is")
    for shape in (32, (3, 8.0, 8)):
        refused(lambda shape=shape: merge_weights(*nets, shape), match="image_shape: ")


@torch.no_grad()
def test_channels_are_matched_at_the_images_positions_and_not_at_those_that_a_layer_writes():
    torch.manual_seed(0)
    net, other = Mixer(), Mixer()
    other.load_state_dict(net.state_dict())
    for tensor in (other.t1.weight, other.t1.bias, other.t2.weight.T):
        tensor.copy_(tensor.flip(0))
    permutations = merge(net, other, Images(smooth_images(40), 40)).permutations
    assert permutations == {name: [*range(len(order))] for name, order in permutations.items()}


@net_of(lambda: {
    "stem": nn.Conv2d(3, 12, 3, padding=1), "inner": nn.Conv2d(12, 8, 3, padding=1), "gate": nn.Linear(8, 8),
    "head": nn.Linear(8, 10),
})  # fmt: skip
def Gated(self, x):
    """Gates that are open, as those of MobileNetV3 may be."""
    x = self.inner(self.stem(x).relu())
    return self.head((x * nn.functional.relu6(self.gate(x.mean((2, 3))) + 20)[..., None, None]).mean((2, 3)))


def test_channels_are_matched_by_maps_and_not_by_gates_that_are_the_same_for_all_images():
    torch.manual_seed(0)
    traced = TracedNet(Gated().eval())
    swaps = {g.name: torch.arange(g.size).reshape(-1, 2).flip(1).flatten() for g in traced.groups}
    gcnn = project(traced, HORIZONTAL_FLIP, traced.groups, swaps)
    merged = flip_merge(gcnn, Images(smooth_images(40), 40))
    assert merged.permutations == {name: order.tolist() for name, order in swaps.items()}
    assert set(merged.barrier.values()) == {0.0}


@net_of(lambda: {
    "stem": nn.Conv2d(3, 8, 3, padding=1), "inner": nn.Conv2d(8, 8, 3, padding=1),
    "classes": nn.Linear(8, 10, bias=False),
})  # fmt: skip
def Cosines(self, x):
    """A classifier by cosines, whose weights are normalised, behind a residual block."""
    x = self.stem(x)
    x = nn.functional.normalize((x + self.inner(x.relu())).relu().mean((2, 3)))
    return nn.functional.linear(x, nn.functional.normalize(self.classes.weight))


@torch.no_grad()
def test_layers_before_a_classifier_that_is_a_function_are_repaired():
    torch.manual_seed(0)
    merged, x = merge(Cosines(), Cosines(), Images(smooth_images(40), 40)), normalise(smooth_images(40))
    assert merged.notes == []
    for layer, reads in (("stem", lambda net: x), ("inner", lambda net: net.stem(x).relu())):
        maps = {name: net.get_submodule(layer)(reads(net)) for name, net in merged.nets.items()}
        stds = {name: of.std((0, 2, 3)) for name, of in maps.items()}
        wanted = (stds["net_1"] + stds["permuted"]) / 2
        torch.testing.assert_close(stds["repaired"], wanted, rtol=1e-2, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("shift", [0, 40])
def test_batch_norm_statistics_that_dont_fit_the_images_are_a_note(shift):
    torch.manual_seed(0)
    net = pooled(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), channels=16)
    images = Images(smooth_images(80), 40)
    net[0].weight += net[0].weight.flip(3)  # the flipped net is the net, and so is the net halfway
    net = reset_batch_norm(net, images)
    net[-1].bias -= net(images.first(80, torch.device("cpu"))).mean(0)  # else they are all of one class
    labels = answers(net, images)
    net[1].running_mean += shift
    merged, made = flip_merge(net, images, test_labels=labels), exact(net, images, labels)
    for notes in (merged.notes, made.notes):
        stale = [note for note in notes if "the net's batch norms don't fit these images" in note]
        assert len(stale) == (shift > 0) and ("accuracy of 1.000, not" in "".join(stale)) == (shift > 0)


KINDS = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul)


def precisions():
    return [kind.fp32_precision for kind in KINDS]


def in_tf32(x):
    """Round to the ten mantissa bits of TF32."""
    return ((x.contiguous().view(torch.int32) + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)


@torch.no_grad()
def test_a_gcnn_is_invariant_to_float32s_precision_on_a_gpu_with_tf32(monkeypatch):
    """Convolutions round their operands like a GPU since Ampere, if PyTorch's settings allow it."""
    conv = nn.Conv2d._conv_forward

    def forward(self, x, weight, bias):
        if torch.backends.cudnn.conv.fp32_precision == "tf32":
            x, weight = in_tf32(x), in_tf32(weight)
        return conv(self, x, weight, bias)

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", forward)
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"  # PyTorch's default
    net, images = vgg11(group_convs=8), Images(smooth_images(100))
    assert invariance_error(net, images) < 1e-5
    x = images.first(100, torch.device("cpu"))
    logits, moved = net(x), net(x.flip(3))
    error = (logits - moved).norm(dim=1) / (logits.norm(dim=1) + moved.norm(dim=1)) * 2
    assert error.mean() > 1e-4  # the error without full precision


@pytest.mark.slow(seconds=1)
@pytest.mark.parametrize("net", [vgg11, resnet])
def test_every_measurement_runs_in_full_float32_and_leaves_the_settings_as_they_were(net):
    net, images, before, seen = net(), Images(smooth_images(60, 33), 30), precisions(), []
    labels = answers(net, images)
    other = Images(images.pixels, 30)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(lambda *_: seen.append(precisions()))
    for measure in (
        lambda: accuracy(net, images, labels),
        lambda: invariance_error(net, images),
        lambda: merge(net, net, images, other, labels),
        lambda: flip_merge(net, images, other, labels),
    ):
        seen.clear()
        measure()
        assert seen and all(precision == ["ieee"] * 3 for precision in seen) and precisions() == before


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_computes_in_the_precision_in_its_record(precision):
    images, net, seen, before = small_images(40), small_net(), [], precisions()
    conv = net.features.conv2
    conv.register_forward_hook(lambda module, args, output: seen.append((output.dtype, precisions())))
    train_on(images, net, RESNET_RECIPE.but(epochs=1, precision=precision))
    assert seen == [(getattr(torch, precision), ["ieee"] * 3)] * len(seen) and seen
    assert precisions() == before


def test_the_settings_are_restored_after_an_error():
    before = precisions()
    with pytest.raises(RuntimeError), full_float32():
        raise RuntimeError
    assert precisions() == before
