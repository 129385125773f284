"""Weight, involution and random matching: planted permutations are recovered, involutions are the best of all."""

import itertools

import pytest
import torch
from records import NAMES  # noqa: F401  the folder is on the path
from small_nets import Images, smooth_images, vgg11
from torch import nn

from relusym import nets
from relusym.channels.groups import permute
from relusym.channels.traced import channel_groups
from relusym.errors import UserError
from relusym.matching.involution import best_involution
from relusym.matching.match import Pair, match
from relusym.merging.merge import flip_merge, merge

NETS = {
    "vgg11": {"architecture": "vgg11", "width": 1 / 16, "initialization": "he"},
    "vgg11_bn": {"architecture": "vgg11_bn", "width": 1 / 16},
    "resnet20": {"architecture": "cifar_resnet", "blocks": 3, "width": 1.0},
    "bottlenecks": {"architecture": "resnet", "block": "bottleneck", "layers": [2, 2, 2, 2], "width": 0.125},
}


def planted(net: nn.Module, noise: float):
    """A pair whose second net is the first, its channels shuffled and its weights disturbed; how they were shuffled."""
    random = torch.Generator().manual_seed(1)
    groups = channel_groups(net)
    shuffles = {group.name: torch.randperm(group.size, generator=random) for group in groups}
    state = permute(net.state_dict(), groups, shuffles)
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.ndim > 1:
            state[name] = tensor + noise * tensor.std() * torch.randn(tensor.shape, generator=random)
    tables = {group.name: torch.zeros(group.size, group.size) for group in groups}
    return Pair((net.state_dict(), state), groups, tables, torch.Generator().manual_seed(0)), shuffles


def share_recovered(name: str, noise: float) -> float:
    torch.manual_seed(0)
    pair, shuffles = planted(nets.build(NETS[name], 10), noise)
    found = match("weight", pair).permutations
    # channel i of the shuffled net was channel shuffle[i]: it goes with channel i of the first net's shuffle[i]
    right = [found[group.name].argsort() == shuffles[group.name] for group in pair.groups]
    return float(torch.cat(right).float().mean())


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("name", NETS)
def test_weight_matching_recovers_planted_permutations(name, noise):
    assert share_recovered(name, noise) == 1.0


def test_weight_matching_never_asks_for_images_and_gives_the_same_from_the_same_seed():
    torch.manual_seed(0)
    pair, _ = planted(nets.build(NETS["vgg11"], 10), 2.0)
    again = Pair(pair.states, pair.groups, pair.correlations, torch.Generator().manual_seed(0))
    one, other = match("weight", pair).permutations, match("weight", again).permutations
    assert all(torch.equal(one[name], other[name]) for name in one)


class Residual(nn.Module):
    """Blocks of a single conv: each reads and writes the channels of one stream, so that its weight has them twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.convs = (
            nn.Conv2d(3, 8, 3),
            nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)),
        )
        self.classifier = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        for conv in self.convs:
            x = x + conv(x).relu()
        return self.classifier(x.mean((2, 3)))


def test_weight_matching_ends_where_a_weight_has_the_same_channels_twice(monkeypatch):
    sweeps, randperm = iter(range(100)), torch.randperm

    def counted(*given, **how):
        next(sweeps)
        return randperm(*given, **how)

    monkeypatch.setattr(torch, "randperm", counted)
    for seed in range(8):
        torch.manual_seed(seed)
        first, second = Residual(), Residual()
        groups = channel_groups(first)
        tables = {group.name: torch.zeros(group.size, group.size) for group in groups}
        pair = Pair(
            (first.state_dict(), second.state_dict()), groups, tables, torch.Generator().manual_seed(0)
        )
        found = match("weight", pair).permutations
        moved = permute(second.state_dict(), groups, found)
        alike = [
            sum(float((tensor * state[name]).sum()) for name, tensor in first.state_dict().items())
            for state in (moved, second.state_dict())
        ]
        assert alike[0] > alike[1]


def objective(table, permutation):
    return float(table[torch.arange(len(table)), permutation].sum())


@pytest.mark.parametrize("size", [1, 2, 5, 7])
def test_the_best_involution_is_the_best_of_all(size):
    random = torch.Generator().manual_seed(size)
    for _ in range(20):
        table = torch.rand(size, size, generator=random, dtype=torch.float64) * 2 - 0.7
        involutions = [
            p for p in itertools.permutations(range(size)) if all(p[p[i]] == i for i in range(size))
        ]
        best = max(objective(table, torch.tensor(p)) for p in involutions)
        found = best_involution(table)
        assert torch.equal(found[found], torch.arange(size))
        assert objective(table, found) == pytest.approx(best, abs=1e-9)


@pytest.mark.slow(seconds=1)
def test_involutions_are_what_a_flip_merge_matches_by_and_nothing_that_two_nets_are_merged_by():
    images = Images(smooth_images(200), 100)
    labels = torch.arange(200) % 10
    net = vgg11()
    merged = flip_merge(net, images, images, labels, matching="involution")
    for permutation in map(torch.tensor, merged.permutations.values()):
        assert torch.equal(permutation[permutation], torch.arange(len(permutation)))
    free = flip_merge(net, images, images, labels, matching="activation")
    lost = {name: free.similarity[name] - merged.similarity[name] for name in free.similarity}
    assert all(-1e-9 <= loss < 0.2 for loss in lost.values()), lost
    with pytest.raises(UserError, match="only for a net and its own transformed self"):
        merge(net, vgg11(seed=1), images, images, labels, matching="involution")


def test_random_matching_draws_from_its_seed():
    images = Images(smooth_images(100), 100)
    labels, net = torch.arange(100) % 10, vgg11()
    one, same, other = (
        flip_merge(net, images, images, labels, matching="random", seed=seed).permutations
        for seed in (0, 0, 1)
    )
    assert one == same != other
    assert all(sorted(p) == list(range(len(p))) for p in one.values())
