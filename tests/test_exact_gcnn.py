import itertools

import pytest
import torch
from small_nets import smooth_images, vgg11
from torch import nn

from relusym import nets
from relusym.channels.traced import channel_groups
from relusym.data.augmentation import normalise
from relusym.merging.exact_gcnn import exact_gcnn, matched_self, orbits, project
from relusym.nets.tied import TiedNet
from relusym.nets.vgg import VGG11
from relusym.symmetry import HORIZONTAL_FLIP, QUARTER_TURN


def mirrored(size: int, fixed: int) -> torch.Tensor:
    """`fixed` channels that stay, the others swapped in pairs, in a shuffled order."""
    swapped = torch.randperm(size)[fixed:].reshape(-1, 2)
    permutation = torch.arange(size)
    permutation[swapped[:, 0]], permutation[swapped[:, 1]] = swapped[:, 1], swapped[:, 0]
    return permutation


@pytest.fixture(params=["vgg11", "vgg11_bn", "resnet20"])
def constrained(request):
    """A net, its groups, and involutions with a third of the channels fixed."""
    torch.manual_seed(0)
    given = {
        "vgg11": {"architecture": "vgg11", "width": 1 / 8, "initialization": "he"},
        "vgg11_bn": {"architecture": "vgg11_bn", "width": 1 / 8},
        "resnet20": {"architecture": "cifar_resnet", "blocks": 3, "width": 0.5},
    }[request.param]
    net = nets.build(given, 10).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    groups = channel_groups(net, (3, 33, 33) if request.param == "resnet20" else (3, 32, 32))
    return net, groups, {group.name: mirrored(group.size, group.size // 3 // 2 * 2) for group in groups}


def images(net):
    return normalise(smooth_images(20, 33 if not isinstance(net, VGG11) and hasattr(net, "layer1") else 32))


def test_an_exact_gcnn_is_invariant_and_each_of_its_kernels_satisfies_the_constraint(constrained):
    net, groups, permutations = constrained
    tied = exact_gcnn(net, HORIZONTAL_FLIP, groups, permutations).eval()
    x = images(net)
    logits = tied(x)
    before = (net(x) - net(x.flip(-1))).abs().max()
    assert (logits - tied(x.flip(-1))).abs().max() < min(1e-5 * logits.abs().max(), before / 100)
    plain = tied.to_plain()
    moved = matched_self(plain, HORIZONTAL_FLIP, groups, permutations).state_dict()
    assert all(torch.equal(tensor, moved[name]) for name, tensor in plain.state_dict().items())
    torch.testing.assert_close(plain.eval()(x), logits)


def test_it_is_the_nearest_and_a_net_that_is_one_stays_as_it_is(constrained):
    net, groups, permutations = constrained
    one = project(net, HORIZONTAL_FLIP, groups, permutations)
    again = project(one, HORIZONTAL_FLIP, groups, permutations)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        if tensor.is_floating_point():  # the difference is orthogonal to all that satisfies the constraint
            off = net.state_dict()[name] - tensor
            assert abs(float((off * tensor).sum())) < 1e-3 * max(float(tensor.norm() * off.norm()), 1e-6)


@pytest.mark.slow(seconds=1)
def test_it_is_saved_and_loaded_and_stays_a_gcnn_whatever_a_training_does(constrained, tmp_path):
    net, groups, permutations = constrained
    tied = exact_gcnn(net, HORIZONTAL_FLIP, groups, permutations)
    optimizer = torch.optim.SGD(tied.parameters(), 0.01, momentum=0.9)
    x = images(net)
    for _ in range(3):
        tied.train()(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(tied.state_dict(), tmp_path / "net")
    loaded = exact_gcnn(net, HORIZONTAL_FLIP, groups, permutations)
    loaded.load_state_dict(torch.load(tmp_path / "net", weights_only=True))
    loaded.eval(), tied.eval()
    logits = loaded(x)
    assert torch.equal(logits, tied(x))
    assert (logits - loaded(x.flip(-1))).abs().max() < 1e-5 * logits.abs().max()
    assert not torch.equal(logits, exact_gcnn(net, HORIZONTAL_FLIP, groups, permutations).eval()(x))


def test_its_free_parameters_are_counted_by_fixed_and_swapped_channels():
    """A 3×3 kernel between swapped pairs has half its entries free; between fixed channels six of nine."""
    net = VGG11(1 / 8, 0, initialization="he")
    groups = channel_groups(net)
    fixed = {group.name: torch.arange(group.size) for group in groups}
    swapped = {name: torch.arange(len(p)).reshape(-1, 2).flip(1).flatten() for name, p in fixed.items()}
    counts = [8, 16, 32, 32, 64, 64, 64, 64]
    inner = sum(a * b for a, b in itertools.pairwise(counts))
    biases = sum(counts)
    of_fixed = exact_gcnn(net, HORIZONTAL_FLIP, groups, fixed)
    assert of_fixed.free_parameters == 6 * (3 * 8 + inner) + biases + 64 * 10 + 10
    of_swapped = exact_gcnn(net, HORIZONTAL_FLIP, groups, swapped)
    assert of_swapped.free_parameters == (9 * (3 * 8 + inner) + biases + 64 * 10) // 2 + 10
    regular = VGG11(1 / 8, 8, initialization="he")
    assert of_swapped.free_parameters == sum(parameter.numel() for parameter in regular.parameters())


def test_a_gcnn_of_group_convs_is_one_already():
    net = vgg11(group_convs=8)
    groups = channel_groups(net)
    swapped = {group.name: torch.arange(group.size).reshape(-1, 2).flip(1).flatten() for group in groups}
    by_pairs = {group.name: torch.arange(group.size).roll(group.size // 2) for group in groups}
    kept = [
        all(
            torch.equal(tensor, net.state_dict()[name])
            for name, tensor in project(net, HORIZONTAL_FLIP, groups, p).state_dict().items()
        )
        for p in (swapped, by_pairs)
    ]
    assert any(kept)


def test_an_orbit_of_a_quarter_turn_has_four_entries_and_other_orders_are_refused():
    net = VGG11(1 / 8, 0, initialization="he")
    groups = channel_groups(net)
    cycled = {g.name: torch.arange(g.size).reshape(-1, 4).roll(1, dims=1).flatten() for g in groups}
    found = orbits(net, QUARTER_TURN, groups, cycled)
    convs = [numbers.unique(return_counts=True)[1] for name, numbers in found.items() if "conv" in name]
    assert all((counts == 4).all() for counts in convs)
    with pytest.raises(ValueError, match="aren't of order 2"):
        project(net, HORIZONTAL_FLIP, groups, cycled)
    assert isinstance(exact_gcnn(net, QUARTER_TURN, groups, cycled), TiedNet)


def involutions(net):
    groups = channel_groups(net)
    return groups, {g.name: torch.arange(g.size).reshape(-1, 2).flip(1).flatten() for g in groups}


def test_a_step_of_a_tied_net_is_the_ordinary_nets_step_projected():
    """With momentum and weight decay."""
    net = vgg11()
    groups, permutations = involutions(net)
    plain = project(net, HORIZONTAL_FLIP, groups, permutations)
    tied = exact_gcnn(net, HORIZONTAL_FLIP, groups, permutations)
    x, labels = normalise(smooth_images(20)), torch.arange(20) % 10
    how = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01}
    optimizers = [torch.optim.SGD(one.parameters(), **how) for one in (plain, tied)]
    for _ in range(3):
        for one, optimizer in zip((plain, tied), optimizers, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(one.train()(x), labels).backward()
            optimizer.step()
        plain.load_state_dict(project(plain, HORIZONTAL_FLIP, groups, permutations).state_dict())
    for name, tensor in tied.to_plain().state_dict().items():
        torch.testing.assert_close(tensor, plain.state_dict()[name], rtol=1e-3, atol=1e-5)


def test_free_parameters_that_are_drawn_have_an_ordinary_nets_variance_and_projected_ones_half():
    torch.manual_seed(0)
    net = VGG11(0.5, initialization="he")
    groups, permutations = involutions(net)
    drawn = TiedNet(net, orbits(net, HORIZONTAL_FLIP, groups, permutations)).to_plain()
    projected = project(net, HORIZONTAL_FLIP, groups, permutations)
    for layer in ("conv3", "conv8"):
        weights = (getattr(one.features, layer).weight.detach() for one in (net, drawn, projected))
        own, free, halved = (float(weight.var()) for weight in weights)
        assert free == pytest.approx(own, rel=0.02) and halved == pytest.approx(own / 2, rel=0.02)
