from copy import deepcopy

import pytest
import torch
from small_nets import NARROW, SMALL, Images, resnet, smooth_images, targets, vgg11
from torch import nn

from relusym.channels.traced import TracedNet, channel_groups
from relusym.data.augmentation import normalise
from relusym.merging.aligned import pair_statistics
from relusym.merging.identities import largest_difference
from relusym.merging.merge import halfway
from relusym.merging.repair import (
    LayerByLayer,
    repair,
    repair_blocks,
    repair_points,
    reset_batch_norm,
    unfused,
)

PLAIN = {"architecture": "vgg11_bn", "width": 1 / 8}


@pytest.fixture(scope="module")
def pixels():
    return smooth_images(300)


@torch.no_grad()
def test_repair_meets_its_targets_in_every_layer(pixels):
    first, second = vgg11(0), vgg11(1)
    wanted = targets(first, second, Images(pixels))
    between = halfway(first, second)
    repaired, _ = repair(between, wanted, Images(pixels, 64))
    before = pair_statistics(between, repaired, Images(pixels), channel_groups(first)).statistics
    assert any((before[0][conv].std / target.std - 1).abs().max() > 0.2 for conv, target in wanted.items())
    for conv, target in wanted.items():
        torch.testing.assert_close(before[1][conv].std, target.std, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(before[1][conv].mean, target.mean, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_fused_equals_unfused_repair(pixels):
    first, second = vgg11(0), vgg11(1)
    between = halfway(first, second)
    repaired, rescalings = repair(between, targets(first, second, Images(pixels)), Images(pixels))
    x = normalise(pixels[:50])
    assert largest_difference(unfused(between, rescalings, x), repaired(x)) < 1e-5
    assert largest_difference(between(x), repaired(x)) > 1e-2
    assert [name for name, _ in repaired.named_modules()] == [name for name, _ in between.named_modules()]


class InPlace(nn.Module):
    """Residual blocks without batch norm, of layers that overwrite what they read."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8, 8))
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(8, 10)

    def forward(self, x):
        x = self.relu(self.convs[0](x))
        for conv in self.convs[1:]:
            x += conv(x)
            x = self.relu(x)
        return self.head(x.mean((2, 3)))


@torch.no_grad()
@pytest.mark.parametrize("build_net", [vgg11, lambda seed: InPlace()], ids=["vgg11", "in_place"])
def test_maps_that_there_is_no_room_for_are_held_a_batch_at_a_time(pixels, monkeypatch, build_net):
    first, second = build_net(0), build_net(1)
    between, some = halfway(first, second), Images(pixels[:60], 25)
    wanted = targets(first, second, some)
    held = repair(between, wanted, some)[0]
    for room in (0, 60 * 8 * 16 * 16 * 4):  # none, or from the second conv on
        monkeypatch.setattr("relusym.merging.repair.HELD_BYTES", room)
        again = repair(between, wanted, some)[0]
        x = normalise(pixels[:20])
        assert largest_difference(held(x), again(x)) < 1e-5
        run = LayerByLayer(deepcopy(between), some)
        for place in [i for i, node in enumerate(run.nodes) if node.name in run.points]:
            run.measure(place)
            taken = sum(of.nbytes for env in run.environments for of in env.values())
            assert taken <= room


@torch.no_grad()
def test_repair_of_a_net_to_its_own_statistics_leaves_it(pixels):
    net = vgg11()
    repaired, _ = repair(net, targets(net, net, Images(pixels)), Images(pixels))
    assert largest_difference(net(normalise(pixels)), repaired(normalise(pixels))) < 1e-2


@torch.no_grad()
def test_reset_batch_norms_hold_the_statistics_of_the_images():
    net, some = resnet(), smooth_images(90, 33, seed=3)
    reset = reset_batch_norm(net, Images(some, 30))
    first = net.conv1(normalise(some)).permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(reset.bn1.running_mean, first.mean(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reset.bn1.running_var, first.var(1), rtol=0.05, atol=1e-4)
    assert not torch.allclose(net.bn1.running_mean, reset.bn1.running_mean, atol=1e-3)
    assert not reset.training


@pytest.mark.slow(seconds=1)
@torch.no_grad()
@pytest.mark.parametrize("network", [SMALL, NARROW, PLAIN], ids=["basic", "bottleneck", "no residual blocks"])
def test_repair_meets_its_targets_at_every_block_output(network):
    first, second, some = resnet(network, 0), resnet(network, 1), smooth_images(300, 33)
    wanted = targets(first, second, Images(some, 100))
    assert list(wanted) == list(repair_points(TracedNet(first).module()).values())
    repaired = repair_blocks(halfway(first, second), wanted, Images(some, 300))
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
    reset = reset_batch_norm(halfway(first, second), some)
    has = pair_statistics(reset, reset, some, channel_groups(reset, some.shape)).statistics[0]
    assert max(float((has[point].std / target.std - 1).abs().max()) for point, target in wanted.items()) > 0.2


@torch.no_grad()
@pytest.mark.parametrize("network", [SMALL, NARROW], ids=["basic", "bottleneck"])
def test_targets_of_nets_with_batch_norm_are_the_averages_of_batches_normalised_by_themselves(network):
    net, some = resnet(network), Images(smooth_images(90, 33, seed=3), 30)
    trained = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = pair_statistics(net, net, some, channel_groups(net, some.shape)).statistics[0]
    assert all(torch.equal(tensor, trained[name]) for name, tensor in net.state_dict().items())
    seen = []
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        for block in stage:
            seen.append([])
            taken = lambda module, args, y, to=seen[-1]: to.append(torch.var_mean(y.double(), (0, 2, 3)))  # noqa: E731
            block.register_forward_hook(taken)
    net.train()
    for x in some.batches(torch.device("cpu"), even=True):
        net(x)
    assert len(found) == len(seen) == sum(network["layers"])
    for statistics, batches in zip(found.values(), seen, strict=True):
        variances, means = (torch.stack(values).mean(0) for values in zip(*batches, strict=True))
        torch.testing.assert_close(statistics.mean, means, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(statistics.std, variances.sqrt(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_targets_of_nets_with_batch_norm_dont_depend_on_their_trained_statistics():
    net, some = resnet(), Images(smooth_images(90, 33, seed=3), 30)
    other, groups = deepcopy(net), channel_groups(net, some.shape)
    for module in other.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean += 0.5
            module.running_var *= 2
    both = (of.values() for of in pair_statistics(net, other, some, groups).statistics)
    for statistics, same in zip(*both, strict=True):
        assert torch.equal(statistics.mean, same.mean) and torch.equal(statistics.std, same.std)
