"""Nets of every structure keep what they compute when their channels are permuted."""

import pytest
import torch
from small_nets import shuffled
from structures import STRUCTURES
from torch import nn
from torch.utils._pytree import tree_leaves

from relusym.errors import UserError
from relusym.merging.channel_groups import channel_groups
from relusym.merging.pixels import transformed
from relusym.symmetry import SYMMETRIES

UNFLIPPED = {
    "Additions",
    "Upscaled",
    "Tokens",
}  # a stride on an even width, pixels of channels, products of pixels
FLIPPED = [structure for structure in STRUCTURES if structure.__name__ not in UNFLIPPED]


@torch.no_grad()
def with_statistics(net):
    """In float64, with batch norms that a wrong permutation would show in."""
    for module in net.modules():
        if isinstance(
            module, nn.BatchNorm1d | nn.BatchNorm2d | nn.InstanceNorm2d | nn.GroupNorm | nn.LayerNorm
        ):
            if getattr(module, "running_mean", None) is not None:
                module.running_mean.uniform_(-0.1, 0.1), module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5), module.bias.uniform_(-0.5, 0.5)
    return net.double().eval()


@torch.no_grad()
def difference(net, size=32, seed=5):
    """Of what a net and its permuted self compute, relative to the largest output, and how many channels moved."""
    groups = channel_groups(net, (3, size, size))
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    permuted, planted = shuffled(net, groups, seed)
    pairs = list(zip(tree_leaves(net(x)), tree_leaves(permuted(x)), strict=True))
    moved = sum(int((of != torch.arange(len(of))).sum()) for of in planted.values())
    return max(float((one - other).abs().max() / one.abs().max()) for one, other in pairs), moved


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: structure.__name__)
def test_a_permuted_net_computes_the_same(structure):
    torch.manual_seed(0)
    found, moved = difference(with_statistics(structure()))
    assert found < 1e-10 and moved > 10


@torch.no_grad()
@pytest.mark.parametrize("symmetry", SYMMETRIES.values(), ids=SYMMETRIES)
@pytest.mark.parametrize("structure", FLIPPED, ids=lambda structure: structure.__name__)
def test_a_transformed_net_on_transformed_images_computes_the_same(structure, symmetry):
    if structure.__name__ == "Normed" and symmetry.order == 4:  # sums over rows
        with pytest.raises(
            UserError, match="the net combines pixels in a way that doesn't commute with quarter_turn"
        ):
            transformed(structure(), symmetry, (3, 32, 32))
        return
    torch.manual_seed(0)
    net, x = with_statistics(structure()), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    moved = transformed(net, symmetry, (3, 32, 32))
    for one, other in zip(tree_leaves(net(x)), tree_leaves(moved(symmetry.act(x))), strict=True):
        other = inverse(symmetry, other) if other.shape[-2:] in ((32, 32), (30, 30)) else other
        assert float((one - other).abs().max() / one.abs().max()) < 1e-10
    assert any(
        not torch.equal(a, b)
        for a, b in zip(net.parameters(), moved.parameters(), strict=True)
        if a.ndim == 4
    )


def inverse(symmetry, x):
    for _ in range(symmetry.order - 1):
        x = symmetry.act(x)
    return x
