"""Several nets at once: cycle-consistent and cyclic matching recover planted permutations; all are merged into one."""

import itertools
from copy import deepcopy
from functools import partial

import pytest
import torch
import torchvision
from conftest import refused
from small_nets import Images, answers, conv_net, orbit, resnet, shuffled, smooth_images, vgg11
from torch import nn

from relusym.channels.groups import ChannelGroup
from relusym.channels.traced import TracedNet, channel_groups
from relusym.evaluation.invariance import relative_invariance_error
from relusym.matching.cyclic import best_of_order_four
from relusym.matching.universe import universe
from relusym.merging.aligned import align_many
from relusym.merging.exact_gcnn import project
from relusym.merging.many import merge_many, orbit_merge
from relusym.merging.merge import merge
from relusym.symmetry import HORIZONTAL_FLIP, QUARTER_TURN

IMAGES = Images(smooth_images(100), 50)
ODD = Images(smooth_images(60, 33), 30)


def powers(permutation, count):
    """The powers p⁰, p, … of a permutation, int64 (C,)."""
    whole = [torch.arange(len(permutation))]
    for _ in range(count):
        whole.append(permutation[whole[-1]])
    return whole


# ---- one universe


def transformer():
    torch.manual_seed(0)
    return torchvision.models.VisionTransformer(32, 8, 2, 4, 48, 96, num_classes=10).eval()


@pytest.mark.slow(seconds=2)
@pytest.mark.parametrize(("make", "images"), [(vgg11, IMAGES), (resnet, ODD), (transformer, IMAGES)])
def test_planted_permutations_of_several_nets_are_found_exactly_and_cycles_are_the_identity(make, images):
    net = make()
    groups = channel_groups(net, images.shape)
    copies, planted = zip(*(shuffled(net, groups, seed) for seed in range(3)), strict=True)
    aligned = align_many([net, *copies], images)
    for permutations, shuffles in zip(aligned.permutations[1:], planted, strict=True):
        for name, shuffle in shuffles.items():
            assert torch.equal(permutations[name], shuffle.argsort()), name
    # P_ij: channel c of net i is matched to channel P_ij[c] of net j
    for group in groups:
        by_net = [permutations[group.name] for permutations in aligned.permutations]
        to = {(i, j): by_net[j][by_net[i].argsort()] for i, j in itertools.product(range(4), repeat=2)}
        for i, j, k in itertools.permutations(range(4), 3):
            assert torch.equal(to[j, k][to[i, j]], to[i, k])


@torch.no_grad()
def test_dead_channels_of_copies_are_matched_to_each_other():
    net = vgg11()
    net.features.conv3.bias[:5] = -1e3
    groups = channel_groups(net)
    copies, planted = zip(*(shuffled(net, groups, seed) for seed in range(2)), strict=True)
    of_nets = align_many([net, *copies], IMAGES).permutations
    for permutations, shuffles in zip(of_nets[1:], planted, strict=True):
        assert torch.equal(permutations["conv3"], shuffles["conv3"].argsort())


def worth(table, permutations):
    nets = range(len(permutations))
    pairs = itertools.permutations(nets, 2)
    return sum(float(table[i, permutations[i], j, permutations[j]].sum()) for i, j in pairs)


def random_tables(count, nets, channels):
    for seed in range(count):
        random = torch.Generator().manual_seed(seed)
        draw = torch.randn(nets * channels, nets * channels, generator=random, dtype=torch.float64)
        yield (draw + draw.T).view(nets, channels, nets, channels)


def worth_of_universe(table):
    groups = [ChannelGroup("conv", table.shape[1], (), "")]
    return worth(table, [p["conv"] for p in universe(groups, {"conv": table})])


def test_frank_wolfe_reaches_optima_that_ascents_from_single_nets_miss(monkeypatch):
    tables = list(random_tables(8, 5, 10))
    reached = [worth_of_universe(table) for table in tables]
    monkeypatch.setattr("relusym.matching.universe._Unit._frank_wolfe", lambda unit, middle: unit._star(0))
    alone = [worth_of_universe(table) for table in tables]
    assert all(best >= other - 1e-9 for best, other in zip(reached, alone, strict=True))
    assert sum(best > 1.005 * other for best, other in zip(reached, alone, strict=True)) >= 2


def test_the_universe_is_optimal_for_small_tables_and_never_worse_than_matching_to_one_net():
    best = 0
    for table in random_tables(12, 3, 3):
        reached = worth_of_universe(table)
        every = [torch.tensor(p) for p in itertools.permutations(range(3))]
        most = max(worth(table, [every[0], p, q]) for p in every for q in every)
        to_first = [max(every, key=lambda p, i=i: float(table[0, every[0], i, p].sum())) for i in (1, 2)]
        assert worth(table, [every[0], *to_first]) - 1e-9 <= reached <= most + 1e-9
        best += reached > most - 1e-9
    assert best >= 11


@pytest.mark.slow(seconds=2)
def test_three_nets_are_merged_into_one_and_by_matching_each_to_the_first():
    nets = [vgg11(seed) for seed in range(3)]
    labels = answers(nets[0], IMAGES)
    before = deepcopy(nets[1].state_dict())
    merged = merge_many(nets, IMAGES, test_labels=labels)
    ends = [merged.accuracy[f"net_{i}"] for i in (1, 2, 3)]
    assert ends[0] == 1.0 and [*merged.barrier] == ["halfway", "repaired", "pairwise", "pairwise_repaired"]
    for name, value in merged.barrier.items():
        assert value == pytest.approx(1 - merged.accuracy[name] / (sum(ends) / 3))
    states = [net.state_dict() for net in merged.aligned.nets]
    for key, tensor in merged.nets["halfway"].state_dict().items():
        torch.testing.assert_close(tensor, sum(state[key] for state in states) / 3)
    torch.testing.assert_close(nets[1].state_dict(), before, rtol=0, atol=0)
    similarity = merged.aligned.similarity
    to_first = align_many(nets, IMAGES, matching="activation").similarity
    for name, table in similarity.items():
        assert table.sum() - table.trace() >= to_first[name].sum() - to_first[name].trace() - 1e-9
        torch.testing.assert_close(table, table.T)
    assert any(similarity[name].sum() > table.sum() + 1e-6 for name, table in to_first.items())


@pytest.mark.slow(seconds=2)
def test_two_nets_at_once_are_merged_like_a_pair():
    nets = vgg11(0), vgg11(1)
    labels = answers(nets[0], IMAGES)
    both, pair = merge_many(nets, IMAGES, test_labels=labels), merge(*nets, IMAGES, test_labels=labels)
    assert both.permutations["net_2"] == pair.permutations
    assert both.similarity == pytest.approx(pair.similarity)
    assert both.accuracy["repaired"] == pytest.approx(pair.accuracy["repaired"], abs=0.011)


def test_a_single_net_is_refused():
    refused(lambda: merge_many([vgg11()], IMAGES), match="1 nets given; at least two are merged")


def test_nets_without_channels_to_permute_are_refused():
    nets = [nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()) for _ in range(3)]
    line = "Sequential has no layer whose channels can be permuted: there is nothing to match"
    refused(lambda: merge_many(nets, IMAGES), match=line)
    for matching in ("activation", "cyclic"):
        attempt = partial(orbit_merge, nets[0], QUARTER_TURN, IMAGES, IMAGES, None, matching=matching)
        refused(attempt, match=line)


# ---- cyclic


def planted_turn(size, noise, seed):
    """Tables of correlations of a permutation with cycles of lengths 1, 2 and 4, and the permutation."""
    draw = torch.Generator().manual_seed(seed)
    names = torch.randperm(size, generator=draw)
    turn, start = torch.arange(size), 0
    for length in [4] * (size // 6) + [2] * (size // 8):
        cycle = names[start : start + length]
        turn[cycle], start = cycle.roll(-1), start + length
    whole = powers(turn, 3)
    tables = [noise * torch.rand(size, size, generator=draw, dtype=torch.float64) for _ in range(3)]
    tables[2] = tables[0].T.clone()
    for table, power in zip(tables, whole[1:], strict=True):
        table[torch.arange(size), power] = 1.0
    return tables, turn


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_permutation_of_order_four_is_found_exactly(seed):
    tables, turn = planted_turn(48, 0.9, seed)
    assert torch.equal(best_of_order_four(tables), turn)


@pytest.mark.parametrize("size", [1, 2, 5, 9, 30])
def test_every_result_is_exactly_of_order_four_whatever_the_tables(size):
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        first, second = (torch.randn(size, size, generator=draw, dtype=torch.float64) for _ in range(2))
        turn = best_of_order_four([first, second + second.T, first.T])
        assert torch.equal(turn.sort().values, torch.arange(size))
        assert torch.equal(powers(turn, 4)[4], torch.arange(size))


@pytest.mark.slow(seconds=2)
@torch.no_grad()
def test_a_gcnn_of_quarter_turns_with_its_channels_shuffled_is_found_exactly():
    gcnn = vgg11(group_convs=8, symmetry=QUARTER_TURN)
    groups = channel_groups(gcnn)
    net, _ = shuffled(gcnn, groups)
    merged = orbit_merge(net, QUARTER_TURN, IMAGES, IMAGES, answers(net, IMAGES), matching="cyclic")
    assert set(merged.barrier.values()) == {0.0}
    turned = orbit(net, QUARTER_TURN)
    turns = align_many(turned, IMAGES, matching="cyclic").permutations
    for name, turn in turns[1].items():
        assert [torch.equal(p, of[name]) for p, of in zip(powers(turn, 3), turns, strict=True)] == [True] * 4
    exact = project(net, QUARTER_TURN, groups, turns[1])
    torch.testing.assert_close(exact.state_dict(), net.state_dict(), rtol=0, atol=1e-6)


@pytest.mark.slow(seconds=3)
@torch.no_grad()
def test_a_layer_that_reads_single_pixels_is_turned_with_them():
    torch.manual_seed(0)
    traced = TracedNet(conv_net(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(8 * 16, 10)))
    swaps = {group.name: torch.arange(group.size).flip(0) for group in traced.groups}
    net = project(traced, HORIZONTAL_FLIP, traced.groups, swaps)
    merged = orbit_merge(net, HORIZONTAL_FLIP, IMAGES, IMAGES, answers(net, IMAGES))
    assert merged.accuracy["whole_no_repair"] == merged.accuracy["orbit"] == 1


@torch.no_grad()
def test_the_mean_of_a_nets_four_turned_copies_is_a_gcnn_if_matched_cyclically_and_not_otherwise():
    turned = orbit(vgg11(), QUARTER_TURN)
    x = IMAGES.first(50, torch.device("cpu"))
    errors = {}
    for matching in ("cyclic", "universe", "activation"):
        mean = align_many(turned, IMAGES, matching=matching).mean().net
        errors[matching] = float(relative_invariance_error(mean(x), mean(QUARTER_TURN.act(x))).mean())
    assert errors["cyclic"] < 1e-5 and min(errors["universe"], errors["activation"]) > 1e-3
