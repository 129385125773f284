"""Matching, merging, REPAIR and barriers."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from relusym.data.augmentation import normalise
from relusym.merging.activation_matching import EPSILON, match, survey
from relusym.merging.barrier import absolute_barrier, accuracy, barrier
from relusym.merging.channel_groups import channel_groups, permute
from relusym.merging.channel_statistics import Statistics
from relusym.merging.merge import flip_merge, halfway, largest_difference, merge
from relusym.merging.repair import repair, unfused
from relusym.nets.vgg import VGG11
from relusym.symmetry import HORIZONTAL_FLIP


def a_net(seed=0, group_convs=0, width=1 / 8):
    torch.manual_seed(seed)
    net = VGG11(width, group_convs, initialization="he")
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            nn.init.uniform_(parameter, 0.5, 1.5)  # no dead channels
    return net.to_plain().eval()


def convs(net):
    return [module for module in net.features if isinstance(module, nn.Conv2d)]


@pytest.fixture(scope="module")
def images():
    """Smooth random images, uint8 (300, 32, 32, 3)."""
    coarse = torch.rand(300, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    fine = nn.functional.interpolate(coarse, 32, mode="bicubic").clamp(0, 1)
    return (fine * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def plain_correlation(first, second, layer, images):
    """One pass a layer, in float64 throughout, as the notebooks do it."""
    outputs = []
    for net in (first, second):
        cut = list(net.features.named_children())
        until = [name for name, _ in cut].index(f"relu{layer[-1]}") + 1
        front = nn.Sequential(*(module for _, module in cut[:until]))
        y = front(normalise(images)).double()
        outputs.append(y.permute(0, 2, 3, 1).reshape(-1, y.shape[1]))
    a, b = (y - y.mean(0) for y in outputs)
    covariance = a.T @ b / len(a)
    deviations = torch.outer(a.square().mean(0).sqrt(), b.square().mean(0).sqrt())
    return torch.nan_to_num(covariance / (deviations + EPSILON), nan=0.0)


@torch.no_grad()
def test_single_pass_correlations_equal_one_pass_a_layer(images):
    first, second = a_net(0), a_net(1)
    found = survey(first, second, images, channel_groups(first), batch_size=70)
    assert list(found.correlation) == [f"conv{i}" for i in range(1, 9)]
    for layer, table in found.correlation.items():
        torch.testing.assert_close(table, plain_correlation(first, second, layer, images), rtol=0, atol=5e-6)


@torch.no_grad()
def test_a_planted_permutation_is_recovered_exactly(images):
    every = {f"features.conv{i}": len(conv.bias) for i, conv in enumerate(convs(a_net()), start=1)}
    lively = {name: Statistics(torch.zeros(size), torch.ones(size)) for name, size in every.items()}
    net, _ = repair(a_net(), lively, images)  # no channel is dead: nothing tells dead ones apart
    groups = channel_groups(net)
    generator = torch.Generator().manual_seed(5)
    planted = {group.name: torch.randperm(group.size, generator=generator) for group in groups}
    shuffled = deepcopy(net)
    shuffled.load_state_dict(permute(net.state_dict(), groups, planted))
    found = match(survey(net, shuffled, images, groups).correlation).permutations
    for name, permutation in planted.items():
        assert torch.equal(found[name], permutation.argsort()), name
    merged = merge(net, shuffled, images, images, torch.zeros(300, dtype=torch.int64))
    assert merged.accuracy["halfway"] == merged.accuracy["first"]


@torch.no_grad()
def test_a_gcnn_merged_with_its_flipped_self_under_the_known_permutation_is_itself(images):
    net = a_net(group_convs=8)
    groups = channel_groups(net)
    known = {group.name: torch.arange(group.size).roll(group.size // 2) for group in groups}
    flipped = HORIZONTAL_FLIP.transform(net)
    assert not torch.equal(flipped.features.conv1.weight, net.features.conv1.weight)
    flipped.load_state_dict(permute(flipped.state_dict(), groups, known))
    merged = halfway(net, flipped)
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], tensor, rtol=0, atol=1e-6)


def goals_of(first, second, images):
    found = survey(first, second, images, channel_groups(first))
    return {conv: has.halfway(found.statistics[1][conv]) for conv, has in found.statistics[0].items()}


@torch.no_grad()
def test_repair_meets_its_goals_in_every_layer(images):
    first, second = a_net(0), a_net(1)
    goals = goals_of(first, second, images)
    between = halfway(first, second)
    repaired, _ = repair(between, goals, images, batch_size=64)
    before = survey(between, repaired, images, channel_groups(first)).statistics
    assert any((before[0][conv].std / goal.std - 1).abs().max() > 0.2 for conv, goal in goals.items())
    for conv, goal in goals.items():
        torch.testing.assert_close(before[1][conv].std, goal.std, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(before[1][conv].mean, goal.mean, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_fused_equals_unfused_repair(images):
    first, second = a_net(0), a_net(1)
    between = halfway(first, second)
    repaired, rescalings = repair(between, goals_of(first, second, images), images)
    x = normalise(images[:50])
    assert largest_difference(unfused(between, rescalings, x), repaired(x)) < 1e-5
    assert largest_difference(between(x), repaired(x)) > 1e-2
    assert [name for name, _ in repaired.named_modules()] == [name for name, _ in between.named_modules()]


@torch.no_grad()
def test_repair_of_a_net_to_its_own_statistics_leaves_it(images):
    net = a_net()
    repaired, _ = repair(net, goals_of(net, net, images), images)
    assert largest_difference(net(normalise(images)), repaired(normalise(images))) < 1e-2


def test_barrier_on_a_hand_worked_case():
    assert absolute_barrier(0.9, 0.7, 0.6) == pytest.approx(0.2)
    assert barrier(0.9, 0.7, 0.6) == pytest.approx(0.25)
    assert barrier(0.5, 0.5, 0.6) == pytest.approx(-0.2)
    with pytest.raises(ZeroDivisionError):
        barrier(0.0, 0.0, 0.0)


def test_accuracy_counts_the_last_incomplete_batch(images):
    net = a_net()
    with torch.no_grad():
        truth = net(normalise(images)).argmax(1)
    truth[:30] = (truth[:30] + 1) % 10
    assert accuracy(net, images, truth, batch_size=77) == pytest.approx(0.9)


def test_a_flip_merge_reports_checks_that_hold(images):
    labels = torch.arange(300) % 10
    merged = flip_merge(a_net(group_convs=8), images, images, labels, batch_size=100)
    assert merged.checks["flipped_to_identity"] == 0
    assert max(merged.checks.values()) < 1e-4
    assert merged.accuracy["first"] == pytest.approx(merged.accuracy["second"], abs=0.011)
    known = np.roll(np.arange(8), 4).tolist()
    assert merged.permutations["conv1"] == known


@torch.no_grad()
def test_a_dead_channel_matches_without_harm(images):
    first, second = a_net(0), a_net(1)
    first.features.conv2.bias[3] = -1e3
    second.features.conv2.bias[:2] = -1e3
    merged = merge(first, second, images, images, torch.arange(300) % 10)
    assert sorted(merged.permutations["conv2"]) == list(range(16))
    assert all(np.isfinite(value) for value in merged.similarity.values())


def test_nets_of_other_architecture_are_refused(images):
    with pytest.raises((ValueError, RuntimeError)):
        merge(a_net(), nn.Sequential(nn.Conv2d(3, 8, 3)), images, images, torch.zeros(300, dtype=torch.int64))
