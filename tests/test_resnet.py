"""ResNets: symmetry at even and odd sizes, permuting, matching, batch-norm reset and REPAIR at block outputs."""

import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from relusym.data.augmentation import IMAGENET_MEAN, IMAGENET_STD, normalise, normalise_imagenet
from relusym.merging.activation_matching import match, survey
from relusym.merging.channel_groups import Place, block_outputs, channel_groups, permute, trace
from relusym.merging.merge import flip_merge, halfway, largest_difference, merge
from relusym.merging.repair import repair_blocks, repair_points, reset_batch_norm
from relusym.nets import build
from relusym.nets.resnet import ScaledResNet
from relusym.symmetry import HORIZONTAL_FLIP

SMALL = {"architecture": "resnet", "block": "basic", "layers": [1, 1, 1, 1], "width": 0.25}
NARROW = {"architecture": "resnet", "block": "bottleneck", "layers": [2, 1, 1, 1], "width": 0.125}


def images(count, size, seed=1):
    """Smooth random images, uint8 (count, size, size, 3)."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    fine = nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)
    return (fine * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def lively(net, size=33):
    """The net with batch norms that are those of a trained one: of its data, with weights and biases that vary."""
    torch.manual_seed(7)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.7)
    return reset_batch_norm(net.to(memory_format=torch.channels_last), images(64, size), 64)


def a_net(network=SMALL, seed=0, size=33):
    torch.manual_seed(seed)
    return lively(build(network, 10), size)


# ---- the architecture


def test_at_width_one_the_net_is_torchvisions():
    ours = ScaledResNet("bottleneck", [3, 4, 6, 3]).state_dict()
    theirs = torchvision.models.resnet50().state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: t.shape for n, t in theirs.items()}


def test_three_blocks_a_stage_make_resnet20():
    net = build({"architecture": "cifar_resnet", "blocks": 3}, 10)
    weights = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(weights) + 1 == 20 and [weights[i].shape[0] for i in (0, 7, 13)] == [16, 32, 64]
    assert sum(p.numel() for p in net.parameters()) == 272_474  # 0.27 million, and the shortcuts' 2,752
    seen = []
    net.layer3.register_forward_hook(lambda module, args, output: seen.append(output.shape[1:]))
    assert net.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10) and seen == [(64, 8, 8)]


@pytest.mark.parametrize(("size", "widths"), [(32, [32, 16, 8, 4, 2]), (33, [33, 17, 9, 5, 3])])
def test_small_images_keep_the_parity_of_every_width_that_a_stride_sees(size, widths):
    net, seen = build(SMALL, 10).eval(), []
    for module in net.modules():
        strides = isinstance(module, nn.Conv2d | nn.MaxPool2d) and module.stride in (2, (2, 2))
        if strides and module.kernel_size != (1, 1):  # the shortcut sees what the block sees
            module.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[-1]))
    net(torch.zeros(1, 3, size, size))
    assert seen == widths


@torch.no_grad()
@pytest.mark.parametrize(("size", "equal"), [(225, True), (224, False)])
def test_the_flipped_resnet50_on_flipped_images_is_the_net_at_225_and_not_at_224(size, equal):
    torch.manual_seed(0)
    net = torchvision.models.resnet50(num_classes=10).eval()
    x = normalise_imagenet(images(1, size))
    difference = largest_difference(net(x), HORIZONTAL_FLIP.transform(net)(HORIZONTAL_FLIP.act(x)))
    assert difference < 1e-4 if equal else difference > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("size", [224, 225])
def test_a_permuted_resnet50_keeps_its_logits(size):
    torch.manual_seed(0)
    net = torchvision.models.resnet50(num_classes=10).eval()
    groups = channel_groups(net, (3, size, size))
    permutations = {group.name: torch.randperm(group.size) for group in groups}
    permuted = deepcopy(net)
    permuted.load_state_dict(permute(net.state_dict(), groups, permutations))
    assert not torch.equal(permuted.layer3[2].conv3.weight, net.layer3[2].conv3.weight)
    x = normalise_imagenet(images(1, size))
    assert largest_difference(net(x), permuted(x)) < 1e-4


def test_imagenets_normalisation_is_torchvisions_preset():
    preset = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.transforms()
    torch.testing.assert_close(torch.tensor(IMAGENET_MEAN) / 255, torch.tensor(preset.mean))
    torch.testing.assert_close(torch.tensor(IMAGENET_STD) / 255, torch.tensor(preset.std))


# ---- residual streams


def known_streams(net, last_conv):
    """torchvision's structure: of each stage, the places that its residual stream indexes."""

    def written(conv, norm):
        yield Place(f"{conv}.weight", 0)
        yield from (Place(f"{norm}.{name}", 0) for name in ("weight", "bias", "running_mean", "running_var"))

    streams, open_stream = [], set(written("conv1", "bn1"))
    for stage in range(1, 5):
        layer = getattr(net, f"layer{stage}")
        for i, block in enumerate(layer):
            name = f"layer{stage}.{i}"
            open_stream.add(Place(f"{name}.conv1.weight", 1))
            if block.downsample is not None:  # a new stream begins
                open_stream.add(Place(f"{name}.downsample.0.weight", 1))
                streams.append(open_stream)
                open_stream = set(written(f"{name}.downsample.0", f"{name}.downsample.1"))
            open_stream |= set(written(f"{name}.conv{last_conv}", f"{name}.bn{last_conv}"))
    return [*streams, open_stream | {Place("fc.weight", 1)}]


@pytest.mark.parametrize(
    ("name", "last_conv"), [("resnet18", 2), ("resnet34", 2), ("resnet50", 3), ("wide_resnet50_2", 3)]
)
def test_residual_streams_are_those_of_torchvisions_resnets(name, last_conv):
    net = getattr(torchvision.models, name)()
    groups = {frozenset(group.places) for group in channel_groups(net, (3, 64, 64))}
    streams = known_streams(net, last_conv)
    assert len(streams) == (5 if last_conv == 3 else 4)
    for stream in streams:
        assert frozenset(stream) in groups
    blocks = sum(len(getattr(net, f"layer{stage}")) for stage in range(1, 5))
    assert len(groups) == len(streams) + blocks * (last_conv - 1)


def test_block_outputs_are_the_relus_behind_the_additions():
    names = [node.name for node in block_outputs(trace(build(NARROW, 10)))]
    assert names == [
        "layer1_0_relu_2",
        "layer1_1_relu_2",
        "layer2_0_relu_2",
        "layer3_0_relu_2",
        "layer4_0_relu_2",
    ]


@torch.no_grad()
def test_a_planted_permutation_in_a_resnet50_is_recovered_exactly():
    torch.manual_seed(0)
    some = images(48, 65)
    net = torchvision.models.resnet50(num_classes=10).to(memory_format=torch.channels_last)
    net = reset_batch_norm(net, some, 48)
    groups = channel_groups(net, (3, 65, 65))
    random = torch.Generator().manual_seed(5)
    planted = {group.name: torch.randperm(group.size, generator=random) for group in groups}
    shuffled = deepcopy(net)
    shuffled.load_state_dict(permute(net.state_dict(), groups, planted))
    found = match(survey(net, shuffled, some, groups, 48).correlation).permutations
    assert len(found) == 37
    for name, permutation in planted.items():
        assert torch.equal(found[name], permutation.argsort()), name


# ---- batch-norm reset and REPAIR


@torch.no_grad()
def test_reset_batch_norms_hold_the_statistics_of_the_images():
    net, some = a_net(), images(90, 33, seed=3)
    reset = reset_batch_norm(net, some, 30)
    first = net.conv1(normalise(some)).permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(reset.bn1.running_mean, first.mean(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reset.bn1.running_var, first.var(1), rtol=0.05, atol=1e-4)
    assert not torch.allclose(net.bn1.running_mean, reset.bn1.running_mean, atol=1e-3)
    assert not reset.training


def goals_of(first, second, some):
    found = survey(first, second, some, channel_groups(first, (3, 33, 33)), 100)
    return {point: has.halfway(found.statistics[1][point]) for point, has in found.statistics[0].items()}


@torch.no_grad()
@pytest.mark.parametrize("network", [SMALL, NARROW])
def test_repair_meets_its_goals_at_every_block_output(network):
    first, second, some = a_net(network, 0), a_net(network, 1), images(300, 33)
    goals = goals_of(first, second, some)
    assert list(goals) == list(repair_points(trace(first)).values())
    between = halfway(first, second)
    repaired = repair_blocks(between, goals, some, batch_size=300)
    modules, outputs = dict(repaired.named_modules()), {}
    for point in goals:
        modules[f"{point}_repair"].register_forward_hook(
            lambda module, args, output, point=point: outputs.__setitem__(point, output.double())
        )
    repaired(normalise(some))
    for point, goal in goals.items():
        std, mean = torch.std_mean(outputs[point], (0, 2, 3))
        torch.testing.assert_close(mean, goal.mean, rtol=0.01, atol=0.01)
        torch.testing.assert_close(std, goal.std, rtol=0.02, atol=0.01)


@torch.no_grad()
def test_resetting_alone_misses_repairs_goals():
    first, second, some = a_net(SMALL, 0), a_net(SMALL, 1), images(200, 33)
    goals = goals_of(first, second, some)
    reset = reset_batch_norm(halfway(first, second), some, 200)
    has = survey(reset, reset, some, channel_groups(reset, (3, 33, 33)), 100).statistics[0]
    assert max(float((has[point].std / goal.std - 1).abs().max()) for point, goal in goals.items()) > 0.2


@torch.no_grad()
def test_a_resnet_merged_with_a_permuted_copy_is_itself_with_and_without_repair():
    net, some = a_net(), images(200, 33)
    groups = channel_groups(net, (3, 33, 33))
    random = torch.Generator().manual_seed(5)
    shuffled = deepcopy(net)
    planted = {group.name: torch.randperm(group.size, generator=random) for group in groups}
    shuffled.load_state_dict(permute(net.state_dict(), groups, planted))
    truth = net(normalise(some)).argmax(1)
    merged = merge(net, shuffled, some, some, truth, 100)
    assert merged.accuracy["first"] == merged.accuracy["second"] == merged.accuracy["halfway"] == 1
    assert set(merged.accuracy) == {"first", "second", "halfway", "reset", "repaired"}
    assert set(merged.barrier) == {"halfway", "reset", "repaired"}
    assert merged.accuracy["reset"] > 0.9 and merged.accuracy["repaired"] > 0.9


@torch.no_grad()
def test_a_flip_merge_at_an_odd_size_reports_checks_that_hold():
    merged = flip_merge(a_net(), images(60, 33), images(60, 33), torch.arange(60) % 10, 30)
    assert max(merged.checks.values()) < 1e-4
    even = flip_merge(a_net(size=32), images(60, 32), images(60, 32), torch.arange(60) % 10, 30)
    assert even.checks["flipped_net_on_flipped_images"] > 1e-2


PEAK = """
import resource, sys, torch
from relusym.merging.activation_matching import survey
from relusym.data.augmentation import normalise
from relusym.merging.channel_groups import channel_groups, trace
from relusym.merging.lockstep import Lockstep
from relusym.nets import build

torch.set_num_threads(1)
torch.set_grad_enabled(False)
net = {"architecture": "resnet", "block": "bottleneck", "layers": [1, 1, 1, 1], "width": 0.25}
first, second = (build(net, 10).eval().to(memory_format=torch.channels_last) for _ in range(2))
images = torch.randint(0, 256, (128, 224, 224, 3), dtype=torch.uint8)
groups = channel_groups(first, (3, 224, 224))
if sys.argv[1] == "matching":
    survey(first, second, images, groups, 128)
else:
    for batch in images.split(128):
        x = normalise(batch)
        Lockstep([trace(first), trace(second)]).run([x, x], lambda node, outputs: None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, sum(8 * g.size**2 for g in groups))
"""


def test_matching_takes_at_most_a_fifth_more_memory_than_plain_inference():
    scripts = Path(__file__).parents[1] / "workflow_scripts"
    peaks = {}
    for what in ("plain", "matching"):
        command, surroundings = [sys.executable, "-c", PEAK, what], {"PYTHONPATH": str(scripts)}
        run = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=True)
        peaks[what], tables = map(int, run.stdout.split())
    assert peaks["plain"] > 7e8  # activations, and not the libraries, are what is measured
    assert peaks["matching"] <= 1.2 * peaks["plain"] + tables
