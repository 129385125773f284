import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import rustworkx
import torch
import torchvision
from small_nets import PIXELS, Images, conv_net, net_of, smooth_images, vgg11
from structures import Attended, with_statistics
from torch import nn

from relusym import nets
from relusym.channels.groups import ChannelGroup, permute, random_permutations
from relusym.channels.traced import channel_groups
from relusym.matching.cyclic import best_involution
from relusym.matching.match import Pair, Search, assigned, match
from relusym.merging.merge import flip_merge

NETS = {
    "vgg11": {"architecture": "vgg11", "width": 1 / 16, "initialization": "he"},
    "vgg11_bn": {"architecture": "vgg11_bn", "width": 1 / 16},
    "resnet20": {"architecture": "cifar_resnet", "blocks": 3, "width": 1.0},
    "bottlenecks": {"architecture": "resnet", "block": "bottleneck", "layers": [2, 2, 2, 2], "width": 0.125},
}


def planted(net: nn.Module, noise: float):
    """A pair whose second net is the first with shuffled channels and disturbed weights, and the permutations."""
    random = torch.Generator().manual_seed(1)
    groups = channel_groups(net)
    shuffles = random_permutations(groups, random)
    state = permute(net.state_dict(), groups, shuffles)
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.ndim > 1:
            state[name] = tensor + noise * tensor.std() * torch.randn(tensor.shape, generator=random)
    tables = {group.name: torch.zeros(group.size, group.size) for group in groups}
    return Pair((net.state_dict(), state), groups, tables, torch.Generator().manual_seed(0)), shuffles


@pytest.mark.parametrize("name", NETS)
def test_weight_matching_recovers_planted_permutations_of_disturbed_weights(name):
    torch.manual_seed(0)
    pair, shuffles = planted(nets.build(NETS[name], 10), 0.3)
    for group, permutation in match("weight", pair).permutations.items():
        # channel i of the shuffled net was channel shuffle[i] of the first
        assert torch.equal(permutation.argsort(), shuffles[group]), group


def test_weight_matching_needs_no_images_and_is_deterministic_given_a_seed():
    torch.manual_seed(0)
    pair, _ = planted(nets.build(NETS["vgg11"], 10), 2.0)
    again = Pair(pair.states, pair.groups, pair.correlations, torch.Generator().manual_seed(0))
    first, other = match("weight", pair).permutations, match("weight", again).permutations
    assert all(torch.equal(first[name], other[name]) for name in first)


@net_of(lambda: {
    "stem": nn.Conv2d(3, 8, 3), "convs": nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)),
    "classifier": nn.Linear(8, 4),
})  # fmt: skip
def Residual(self, x):
    """Blocks of a single conv that reads and writes one stream, so that its weight has the same channels twice."""
    x = self.stem(x)
    for conv in self.convs:
        x = x + conv(x).relu()
    return self.classifier(x.mean((2, 3)))


@pytest.mark.parametrize("matching", ["weight", "weight_identity"])
def test_weight_matching_ends_where_a_weight_has_the_same_channels_twice(matching, monkeypatch):
    draws, randperm = iter(()), torch.randperm

    def counted(*given, **how):
        next(draws)
        return randperm(*given, **how)

    monkeypatch.setattr(torch, "randperm", counted)
    for seed in range(8):
        draws = iter(range(100))
        torch.manual_seed(seed)
        first, second = Residual(), Residual()
        groups = channel_groups(first)
        tables = {group.name: torch.zeros(group.size, group.size) for group in groups}
        states = first.state_dict(), second.state_dict()
        pair = Pair(states, groups, tables, torch.Generator().manual_seed(0))
        permutations = match(matching, pair).permutations
        assert alike(pair, permutations) > alike(pair)


def alike(pair, permutations=None):
    """The inner product of a pair's weights, optionally with the second net's permuted."""
    first, second = pair.states
    moved = permute(second, pair.groups, permutations) if permutations else second
    matrices = [(tensor, moved[name]) for name, tensor in first.items() if tensor.ndim > 1]
    return sum(float((tensor.double() * other).sum()) for tensor, other in matrices)


@cache
def planted_in_transformer(seed):
    """The permutations planted in an untrained vision transformer, and the match of the two nets."""
    torch.manual_seed(seed)
    net = torchvision.models.VisionTransformer(32, 8, 3, 4, 48, 96, num_classes=10)
    nn.init.trunc_normal_(net.heads[0].weight, std=0.02)
    pair, shuffles = planted(net, 0.1)
    return shuffles, match("weight", pair)


@pytest.mark.parametrize("seed", range(6))
def test_weight_matching_finds_planted_permutations_in_an_untrained_vision_transformer(seed):
    shuffles, matched = planted_in_transformer(seed)
    for name, shuffle in shuffles.items():
        assert torch.equal(matched.permutations[name].argsort(), shuffle), name
    assert matched.search.objectives["outside_in"] > 0.9  # whatever random starts reach


def test_planted_permutations_are_missed_from_the_identity_in_some_of_these_nets():
    starts = [planted_in_transformer(seed)[1].search.objectives for seed in range(6)]
    assert sum(objectives["identity"] < max(objectives.values()) - 1e-6 for objectives in starts) >= 2


def trained_apart(name: str = "vgg11") -> Pair:
    """A pair of nets with independent weights, and with random correlations."""
    random = torch.Generator().manual_seed(2)
    first, second = (nets.build(NETS[name], 10) for _ in range(2))
    groups = channel_groups(first)
    tables = {group.name: torch.rand(group.size, group.size, generator=random) for group in groups}
    return Pair((first.state_dict(), second.state_dict()), groups, tables, torch.Generator().manual_seed(0))


def test_the_best_of_all_starts_is_what_weight_matching_reports():
    torch.manual_seed(0)
    pair = trained_apart()
    matched = match("weight", replace(pair, starts=6))
    starts = matched.search.objectives
    assert [*starts] == ["identity", "activation", "outside_in", "random_1", "random_2", "random_3"]
    best = {"objective": max(starts.values()), "reached": matched.search.reached}
    assert matched.search.body() == best | {"starts": starts}
    assert starts[matched.search.best] == max(starts.values()) > min(starts.values())
    first, second = pair.states
    both = [(first[name].double(), second[name].double()) for name in first if first[name].ndim > 1]
    norm = sum(float(each.norm() * other.norm()) for each, other in both)
    assert alike(pair, matched.permutations) / norm == pytest.approx(max(starts.values()), rel=1e-3)
    alone = match("weight_identity", pair)
    assert [*alone.search.objectives] == ["identity"] and alone.search.reached == 1
    assert alike(pair, matched.permutations) > alike(pair, alone.permutations)


def test_how_many_starts_reached_the_best_is_counted_up_to_rounding():
    assert Search({"identity": 0.5, "outside_in": 0.5 + 1e-13, "random_1": 0.4}).reached == 2
    assert Search({"identity": 0.5, "outside_in": 0.5 + 1e-6, "random_1": 0.4}).reached == 1


@pytest.mark.parametrize("name", ["vgg11", "resnet20", "attended"])
def test_renumbering_either_nets_channels_changes_no_match(name):
    torch.manual_seed(0)
    if name == "attended":
        first, second = (with_statistics(Attended()).float() for _ in range(2))
        groups = channel_groups(first, (3, 32, 32))
        pair = Pair((first.state_dict(), second.state_dict()), groups, {}, torch.Generator())
    else:
        pair = trained_apart(name)
    # channels that no weight distinguishes; where both nets have such channels, their match is arbitrary
    for state in pair.states if name == "vgg11" else pair.states[1:]:
        for group in pair.groups[::2]:
            for place in group.places:
                if group.heads == 1 and state[place.tensor].is_floating_point():
                    state[place.tensor].index_fill_(place.dim, place.index(group.size)[2:5].flatten(), 0.0)
    tables = {group.name: torch.zeros(group.size, group.size) for group in pair.groups}

    def matched(*renumbered: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        states = [permute(state, pair.groups, by) for state, by in zip(pair.states, renumbered, strict=True)]
        again = Pair(tuple(states), pair.groups, tables, torch.Generator().manual_seed(0), starts=4)
        result = match("weight", again)
        assert result.search.best != "identity"  # the only start that depends on the numbering
        return permute(states[1], pair.groups, result.permutations), renumbered[0]

    random = torch.Generator().manual_seed(7)
    straight = {group.name: torch.arange(group.size) for group in pair.groups}
    before, _ = matched(straight, straight)
    random_orders = [random_permutations(pair.groups, random) for _ in range(2)]
    for renumbered in ((straight, random_orders[0]), (random_orders[1], straight)):
        after, first = matched(*renumbered)
        after = permute(after, pair.groups, {key: of.argsort() for key, of in first.items()})
        assert all(torch.equal(before[key], after[key]) for key in before)


def objective(table, permutation):
    return float(table[torch.arange(len(table)), permutation].sum())


def test_channels_stay_if_swapping_them_gains_rounding_only():
    even, odd = 0.99973746, -0.99973766  # a row and a column of coordinates, flipped, with float32's errors
    assert best_involution(np.array([[even, -7e-10], [1e-9, odd]])).tolist() == [0, 1]
    assert best_involution(np.array([[even, 1e-4], [1e-4, odd]])).tolist() == [1, 0]


@pytest.mark.parametrize(("size", "heads"), [(1, 1), (2, 1), (5, 1), (7, 1), (6, 2), (6, 3)])
def test_the_best_involution_is_the_best_of_all_that_keep_heads_whole(size, heads):
    random = torch.Generator().manual_seed(size)
    group, width = ChannelGroup("conv", size, (), "conv", heads=heads), size // heads

    def whole(p):
        return all(len({j // width for j in p[i : i + width]}) == 1 for i in range(0, size, width))

    for _ in range(20):
        table = torch.rand(size, size, generator=random, dtype=torch.float64) * 2 - 0.7
        permutations = itertools.permutations(range(size))
        involutions = [p for p in permutations if all(p[p[i]] == i for i in range(size)) and whole(p)]
        best = max(objective(table, torch.tensor(p)) for p in involutions)
        involution = assigned([group], {"conv": table}, best_involution)["conv"]
        assert torch.equal(involution[involution], torch.arange(size)) and whole(involution.tolist())
        assert objective(table, involution) == pytest.approx(best, abs=1e-9)


def test_the_best_involution_of_many_channels_is_that_of_a_matching_of_all_pairs():
    random = torch.Generator().manual_seed(0)
    for size in range(20, 80, 4):
        table = torch.rand(size, size, generator=random, dtype=torch.float64) - 0.5
        gains = table + table.T - table.diag()[:, None] - table.diag()
        graph = rustworkx.PyGraph()
        graph.add_nodes_from(range(size))
        weights = ((i, j, round(float(gains[i, j]) * 2**40)) for i in range(size) for j in range(i))
        graph.add_edges_from([*weights])
        pairs = rustworkx.max_weight_matching(graph, weight_fn=int)
        best = float(table.diag().sum()) + sum(float(gains[pair]) for pair in pairs)
        involution = torch.from_numpy(best_involution(table.numpy()))
        assert objective(table, involution) == pytest.approx(best, abs=1e-8)


@pytest.mark.slow(seconds=1)
def test_involutions_match_flip_merges():
    images = Images(smooth_images(200), 100)
    labels = torch.arange(200) % 10
    net = vgg11()
    merged = flip_merge(net, images, images, labels, matching="involution")
    for permutation in map(torch.tensor, merged.permutations.values()):
        assert torch.equal(permutation[permutation], torch.arange(len(permutation)))
    free = flip_merge(net, images, images, labels, matching="activation")
    lost = {name: free.similarity[name] - merged.similarity[name] for name in free.similarity}
    assert all(-1e-9 <= loss < 0.2 for loss in lost.values()), lost


def test_random_matching_draws_from_its_seed():
    merged = [flip_merge(conv_net(), Images(PIXELS), matching="random", seed=seed) for seed in (0, 0, 1)]
    first, same, other = (each.permutations for each in merged)
    assert first == same != other and all(sorted(p) == list(range(len(p))) for p in first.values())
