import math
from copy import deepcopy
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torchvision
from small_nets import NARROW, Images, answers, net_of, resnet, shuffled, smooth_images, vgg11
from structures import BETWEEN, Between, InPlace, Tied
from torch import nn

from relusym.channels.traced import TracedNet, channel_groups
from relusym.data.augmentation import normalise
from relusym.evaluation.invariance import invariance_error
from relusym.evaluation.metrics import MEASURED, evaluate
from relusym.merging import partial
from relusym.merging.aligned import joint_statistics
from relusym.merging.layers import (
    ErrorShares,
    convs,
    equivariance_errors,
    filters_and_matches,
    group_actions,
    kernel_constraint,
    layers,
)
from relusym.merging.merge import flip_merge, merge
from relusym.merging.partial import partial_merges, parts
from relusym.pixels import transform
from relusym.reporting.exact import exact
from relusym.reporting.report import Unfinished, report
from relusym.symmetry import HORIZONTAL_FLIP, QUARTER_TURN, SYMMETRIES

IMAGES = Images(smooth_images(60), 25)
SMALL = [smooth_images(40, 16).permute(0, 3, 1, 2) / 255]


def measured(net, images=IMAGES, symmetry=HORIZONTAL_FLIP, **options):
    merged = flip_merge(net, images, symmetry=symmetry)
    groups = channel_groups(net, images.shape)
    sources = ErrorShares(groups)
    options |= {"compared": sources.add}
    errors, invariance = equivariance_errors(net, images, symmetry, groups, merged.permutations, **options)
    shares = sources.shares()
    return merged, layers(groups, merged.permutations, merged.similarity, errors, shares), invariance


@net_of(lambda: {
    "stem": nn.Conv2d(3, 8, 3, padding=1), "pooled": nn.Conv2d(8, 6, 1), "head": nn.Linear(6, 4),
})  # fmt: skip
def Turned(self, x):
    """A pool on a map whose axes are exchanged, so that the map after it has its columns as rows."""
    x = nn.functional.max_pool2d(self.stem(x).relu().transpose(2, 3), 3, 1, 1)
    return self.head(self.pooled(x).relu().mean((2, 3)))


def test_a_layers_error_is_measured_where_its_pixels_are_or_the_reason_is_noted():
    torch.manual_seed(0)
    for net in (Between(*BETWEEN["means along axes"]), Turned()):
        made = exact(net.eval(), SMALL).plain
        whole = report(made, SMALL, matching="involution", partial_images=0)
        errors = {layer.name: layer.equivariance["matched"] for layer in whole.layers}
        assert all(error < 1e-5 for name, error in errors.items() if name != "pooled")
        noted = "pooled: their pixels move in an unknown way" in " ".join(whole.notes)
        assert noted == ("pooled" in errors)


def test_a_report_checks_where_pixels_move_once(monkeypatch):
    checked = Mock(wraps=transform._wrong)
    monkeypatch.setattr(transform, "_wrong", checked)
    notes = report(Turned().eval(), SMALL, partial_images=0).notes
    assert "pooled: their pixels move in an unknown way" in " ".join(notes) and checked.call_count == 1


@pytest.mark.parametrize("symmetry", SYMMETRIES.values(), ids=SYMMETRIES)
def test_a_gcnns_layers_are_equivariant_only_with_the_matched_permutation(symmetry):
    net = vgg11(group_convs=8, symmetry=symmetry)
    merged, per_layer, invariance = measured(net, symmetry=symmetry)
    for layer in per_layer:
        assert layer.equivariance["matched"] < 1e-5 and layer.correlation > 0.99
        assert min(layer.equivariance["identity"], layer.equivariance["random"]) > 0.3
        orders = (layer.fixed, layer.swapped, layer.longer)
        assert orders == ((0, layer.channels, 0) if symmetry.order == 2 else (0, 0, layer.channels))
    groups = channel_groups(net)
    permutations = {name: torch.tensor(permutation) for name, permutation in merged.permutations.items()}
    of_convs = convs(net, symmetry, groups, permutations)
    assert [conv.kernel_constraint for conv in of_convs] == [0] * 8
    assert all(conv.kernel_constraint > 0.5 for conv in convs(net, symmetry, groups, drawn(groups)))
    assert [conv.group for conv in of_convs] == [layer.name for layer in per_layer] and invariance < 1e-5


@torch.no_grad()
def test_errors_are_ratios_of_norms_of_a_layers_activations():
    net = vgg11()
    merged, per_layer, invariance = measured(net)
    x = normalise(IMAGES.pixels)
    first = nn.Sequential(*list(net.features)[:2])  # the first conv and its ReLU
    here, there = first(x), first(x.flip(-1)).flip(-1)
    known = {"matched": merged.permutations["conv1"], "identity": range(8)}
    for way, permutation in known.items():
        expected = (here - there[:, list(permutation)]).norm() / here.norm()
        assert per_layer[0].equivariance[way] == pytest.approx(float(expected), rel=1e-4)
    assert invariance == pytest.approx(invariance_error(net, IMAGES), rel=1e-5)


def test_layers_are_measured_on_the_first_images_and_invariance_on_all():
    net = vgg11()
    few = Images(IMAGES.pixels[:25], 25)
    errors, invariance = [], []
    groups = channel_groups(net)
    permutations = flip_merge(net, IMAGES).permutations
    for images, most in ((IMAGES, 25), (few, None), (IMAGES, None), (Images(IMAGES.pixels, 20), 25)):
        both = equivariance_errors(net, images, HORIZONTAL_FLIP, groups, permutations, most=most)
        errors.append(both[0]["conv3"]["matched"])
        invariance.append(both[1])
    assert errors[0] == errors[1] != errors[2] and invariance[0] == invariance[2] != invariance[1]
    assert errors[3] == pytest.approx(errors[0], rel=1e-5) != errors[2]  # also if 25 ends within a batch


def test_zero_filters_are_counted():
    net = vgg11()
    with torch.no_grad():
        net.features.conv2.weight[[3, 5]] *= 1e-3
    groups = channel_groups(net)
    identity = {group.name: torch.arange(group.size) for group in groups}
    kernels = convs(net, HORIZONTAL_FLIP, groups, identity)
    assert [conv.zero_filters for conv in kernels] == [0, 2, 0, 0, 0, 0, 0, 0]
    assert kernels[1].filters == 16 and kernels[0].kernel_constraint == pytest.approx(math.sqrt(2), rel=0.3)


class Basis(nn.Module):
    """A layer of filters that swap, are in a rotated basis, or are random, and a classifier that reads them."""

    def __init__(self, kind, channels=8):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 5, padding=2, bias=False)
        self.basis, self.head = nn.Conv2d(channels, channels, 1, bias=False), nn.Linear(channels, 10)
        if kind != "random":
            self.conv.weight[channels // 2 :] = self.conv.weight[: channels // 2].flip(-1)
        rotation = torch.linalg.qr(torch.randn(channels, channels))[0]
        weight = rotation if kind == "rotated" else torch.eye(channels)
        self.basis.weight.copy_(weight[:, :, None, None])

    def forward(self, x):
        return self.head(self.basis(self.conv(x)).abs().mean((2, 3)))


SHARES = {"swapped": (1, 0, 0), "rotated": (None, None, 0), "random": (0, 0.1, 0.9)}


@torch.no_grad()
@pytest.mark.parametrize(("kind", "expected"), SHARES.items())
def test_errors_are_attributed_to_swaps_to_another_basis_or_to_no_symmetry(kind, expected):
    torch.manual_seed(0)
    net = Basis(kind)
    noise = torch.randint(256, (60, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    _, per_layer, _ = measured(net, Images(noise, 25))
    (shares,) = (layer.shares for layer in per_layer if "basis" in layer.name)
    assert sum(shares.values()) == pytest.approx(1)
    for share, value in zip(shares.values(), expected, strict=True):
        tolerance = 1e-3 if value in (0, 1) and kind != "random" else 0.1
        assert value is None or share == pytest.approx(value, abs=tolerance)
    if kind == "rotated":
        assert shares["linear"] > 0.4 > shares["swap"] + 0.05


def test_errors_of_a_gcnns_layers_are_due_to_swaps_and_invariant_layers_have_none():
    net = vgg11(group_convs=8)
    _, per_layer, _ = measured(net)
    for layer in per_layer:
        assert layer.shares == pytest.approx({"swap": 1, "linear": 0, "rest": 0}, abs=2e-3)
    with torch.no_grad():  # every filter is its own mirror image
        for layer in net.features:
            if isinstance(layer, nn.Conv2d):
                layer.weight.copy_((layer.weight + layer.weight.flip(-1)) / 2)
    _, per_layer, invariance = measured(net)
    assert invariance < 1e-5 and all(set(layer.shares.values()) == {None} for layer in per_layer)


def test_parts_have_every_tensor_once_and_norms_are_in_their_layers_part():
    net = resnet()
    net_parts = parts(net)
    assert sorted(key for part in net_parts for key in part.tensors) == sorted(net.state_dict())
    assert [part.name for part in net_parts][:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    assert {key.split(".")[0] for key in net_parts[0].tensors} == {"conv1", "bn1"}
    blocks = [f"layer{stage}.0" for stage in range(1, 5)]
    assert [part.name for part in parts(net, most=6)] == ["conv1", *blocks, "fc"]
    assert [part.name for part in parts(net, most=3)][1] == "layer1"  # there are no coarser parts


@pytest.mark.slow(seconds=1)
@pytest.mark.parametrize("net, loss, accuracy", [  # REPAIR recomputes batch norms' statistics
    (vgg11, 1e-4, 0), (lambda: resnet(size=32), 0.03, 0.1),
], ids=["vgg11", "resnet"])  # fmt: skip
def test_merging_a_net_with_its_permuted_copy_fails_at_no_layer(net, loss, accuracy):
    net = net()
    permuted = merge(net, shuffled(net, channel_groups(net))[0], IMAGES).nets["permuted"]
    for part in partial_merges(net, permuted, IMAGES, IMAGES, None):
        for barriers in (part.prefix, part.leave_one_out):
            assert abs(barriers["loss"]) < loss and abs(barriers["accuracy"]) <= accuracy


@pytest.mark.slow(seconds=2)
@pytest.mark.parametrize("net", [vgg11, lambda: resnet(size=32)], ids=["vgg11", "resnet"])
def test_merging_all_parts_is_the_whole_merge(net):
    net = net()
    merged = flip_merge(net, IMAGES)
    shares = []
    nets = merged.nets["net"], merged.nets["permuted"]
    merges = partial_merges(*nets, IMAGES, IMAGES, merged.labels, progress=shares.append)
    assert [merge.part for merge in merges] == [part.name for part in parts(net)]
    for metric in MEASURED:
        assert merges[-1].prefix[metric] == pytest.approx(merged.barriers[metric]["repaired"], abs=0.02)
        # leaving out the last part equals the prefix without it
        assert merges[-1].leave_one_out[metric] == merges[-2].prefix[metric]
    assert shares == sorted(shares) and len(shares) > 2 and shares[-1] == 1


def transformer():
    net = torchvision.models.VisionTransformer(32, 8, 2, 4, 24, 48, num_classes=10)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net


def two_nets(kind):
    if kind in (vgg11, resnet):
        return [kind(seed=seed, **({} if kind is vgg11 else {"size": 32})) for seed in (0, 1)]
    nets = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        nets.append(kind().eval())
    return nets


@pytest.mark.slow(seconds=8)
@pytest.mark.parametrize("kind, same, held", [  # nets with batch norm hold one batch at a time anyway
    (vgg11, False, True), (vgg11, True, False), (resnet, True, True), (resnet, False, True),
    (InPlace, False, False), (InPlace, True, True), (transformer, False, True), (transformer, True, False),
])  # fmt: skip
def test_partial_merges_with_shared_parts_equal_those_run_one_by_one(kind, same, held, monkeypatch):
    monkeypatch.setattr("relusym.merging.repair.HELD_BYTES", 2**30 if held else 0)
    first, second = two_nets(kind)
    images = Images(smooth_images(30), 12)
    test = images if same else Images(smooth_images(20, seed=2), 8)
    before = deepcopy(first.state_dict())
    shared = partial_merges(first, second, images, test, None)
    torch.testing.assert_close(first.state_dict(), before, rtol=0, atol=0)
    nets = partial_nets(first, second, images)
    assert nets.apart
    labels = answers(first, test)
    ends = [evaluate(net, test, labels, MEASURED).means() for net in (first, second)]
    losses = set()
    for (way, number), chosen in nets.which():
        means = evaluate(nets.merged(chosen), test, labels, MEASURED).means()
        for metric, means_of in MEASURED.items():
            plain = means_of.absolute_barrier(sum(end[metric] for end in ends) / 2, means[metric])
            assert getattr(shared[number], way)[metric] == pytest.approx(plain, rel=1e-4, abs=1e-5)
        losses |= {round(means["loss"], 4)}
    assert len(losses) == 2 * len(nets.parts) - 1  # leaving out the last part equals the prefix


def partial_nets(first, second, images):
    traced = TracedNet(first)
    statistics = joint_statistics([traced, traced.copied(second)], images, []).statistics
    return partial.PartialMerges(traced, second, statistics, images)


@torch.no_grad()
def test_parts_that_share_a_tensor_are_merged_one_by_one():
    first, second = two_nets(Tied)
    nets = partial_nets(first, second, IMAGES)
    assert not nets.apart
    merged = nets.merged({1})  # the part with the weight's first name
    mean = (first.first.weight + second.first.weight) / 2
    assert merged.second.weight is merged.first.weight and torch.allclose(merged.first.weight, mean)
    plain = evaluate(merged, IMAGES, answers(first, IMAGES), MEASURED).means()
    kept = partial.Kept()
    partial_merges(first, second, IMAGES, IMAGES, answers(first, IMAGES), kept=kept)
    alone = evaluate(nets.merged({0, 1}), IMAGES, answers(first, IMAGES), MEASURED).means()
    assert kept["prefix", 1] == pytest.approx(alone, rel=1e-5)
    assert kept["prefix", 1]["loss"] != plain["loss"]


@pytest.mark.slow(seconds=2)
def test_interrupted_partial_merges_with_batch_norm_resume_at_a_batch(tmp_path, monkeypatch):
    monkeypatch.setattr("relusym.reporting.report.SAVE_S", 0)
    (first, second), images, read = two_nets(resnet), Images(smooth_images(30), 10), []
    run = partial._Branches.run
    monkeypatch.setattr(partial._Branches, "run", lambda self, x: read.append(len(x)) or run(self, x))
    how = first, second, images, images, None
    whole = partial_merges(*how)
    assert len(read) == 3 + 3  # batches for the statistics, and to measure

    def interrupt(done):
        if done > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        partial_merges(*how, kept=Unfinished(tmp_path / "kept", [], ""), progress=interrupt)
    for other, batches in (("", 1 + 3), ("other", 3 + 3)):
        read.clear()
        assert partial_merges(*how, kept=Unfinished(tmp_path / "kept", [], other)) == whole
        assert len(read) == batches


@torch.no_grad()
def test_the_only_layer_that_differs_is_where_merging_fails():
    net = vgg11()
    other, _ = shuffled(net, [])
    torch.manual_seed(1)
    weight = other.features.conv5.weight
    weight.copy_(torch.randn_like(weight) * net.features.conv5.weight.std())
    merges = {merge.part: merge for merge in partial_merges(net, other, IMAGES, IMAGES, None)}
    before, after = merges["features.conv4"].prefix["loss"], merges["features.conv5"].prefix["loss"]
    assert after > before + 0.05
    others = [merge.leave_one_out["loss"] for name, merge in merges.items() if name != "features.conv5"]
    assert merges["features.conv5"].leave_one_out["loss"] < min(others) - 0.05


@net_of(lambda last: {
    "conv": nn.Conv2d(3, 8, 8, 8), "token": nn.Parameter(torch.randn(1, 1, 8)), "mix": nn.Linear(8, 8), "last": last,
    "head": nn.Linear(8, 10),
})  # fmt: skip
def Sorted(self, x):
    """A net of tokens from an equivariant convolution, with a class token, in several layouts."""
    x = self.conv(x)
    if self.last:  # (B, H, W, C)
        return self.head(self.mix(x.permute(0, 2, 3, 1)).relu().mean((1, 2)))
    x = torch.cat([self.token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1)
    return self.head(self.mix(x).relu().mean(1))


@torch.no_grad()
@pytest.mark.parametrize("last", [False, True], ids=["tokens", "channels_last"])
@pytest.mark.parametrize("symmetry", [HORIZONTAL_FLIP, QUARTER_TURN], ids=lambda symmetry: symmetry.name)
def test_tokens_are_moved_like_their_pixels(last, symmetry):
    torch.manual_seed(0)
    net = Sorted(last)
    twin = net.conv.weight[:4]  # channels and their transformed ones
    net.conv.weight.copy_(torch.cat([twin, symmetry.act(twin)]) if symmetry.order == 2 else net.conv.weight)
    merged, per_layer, _ = measured(net, symmetry=symmetry)
    x = normalise(IMAGES.pixels)
    back = symmetry.inverse(x)

    def tokens(of):
        return net.mix(net.conv(of).permute(0, 2, 3, 1)).relu().permute(0, 3, 1, 2)

    whole, there = tokens(x), symmetry.act(tokens(back))
    class_token = net.mix(net.token[0, 0]).relu()
    [layer] = [of for of in per_layer if of.name == "mix"]
    for way, permutation in {"matched": merged.permutations["mix"], "identity": list(range(8))}.items():
        squares, norm = (whole - there[:, permutation]).square().sum(), whole.square().sum()
        if not last:
            squares += len(x) * (class_token - class_token[permutation]).square().sum()
            norm += len(x) * class_token.square().sum()
        assert layer.equivariance[way] == pytest.approx(float((squares / norm).sqrt()), rel=1e-4)


def test_every_layer_of_a_transformer_has_an_equivariance_error():
    torch.manual_seed(0)
    net = transformer()
    _, per_layer, _ = measured(net)
    assert len(per_layer) > 6 and all(layer.equivariance["matched"] is not None for layer in per_layer)
    assert any(layer.equivariance["matched"] > 0.1 for layer in per_layer)
    assert group_actions(net, HORIZONTAL_FLIP, (3, 32, 32), channel_groups(net))[1] == {}


def drawn(groups):
    generator = torch.Generator().manual_seed(0)
    return {group.name: torch.randperm(group.size, generator=generator) for group in groups}


def test_filters_of_a_vgg11_are_flipped_and_permuted_at_both_ends_except_rgb():
    net = vgg11().to(memory_format=torch.channels_last)
    groups = channel_groups(net)
    permutations = drawn(groups)
    before = None
    for name, (psi, match) in filters_and_matches(net, HORIZONTAL_FLIP, groups, permutations).items():
        kernel = net.get_submodule(name).weight.detach().numpy()
        after = permutations[name.split(".")[1]].numpy()
        expected = kernel[after, ..., ::-1]
        expected = expected if before is None else expected[:, before]
        assert np.array_equal(psi.numpy(), kernel) and np.array_equal(match.numpy(), expected)
        fails = np.linalg.norm(expected - kernel) / np.linalg.norm(kernel)
        assert kernel_constraint(psi, match) == pytest.approx(fails, rel=1e-5)
        before = after


def test_filters_of_a_resnet_are_permuted_by_the_streams_that_they_read_and_write():
    net = resnet(NARROW)
    groups = channel_groups(net, (3, 33, 33))
    permutations = drawn(groups)
    kernels = filters_and_matches(net, HORIZONTAL_FLIP, groups, permutations)
    assert list(kernels) == [name for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)]
    # each conv: the groups that it writes and reads
    for name, writes, reads in (
        ("conv1", "conv1", None), ("layer1.0.conv1", "layer1.0.conv1", "conv1"),
        ("layer1.0.conv3", "layer1.1.conv3", "layer1.0.conv2"),
        ("layer1.1.conv1", "layer1.1.conv1", "layer1.1.conv3"),
        ("layer2.0.downsample.0", "layer2.0.downsample.0", "layer1.1.conv3"),
    ):  # fmt: skip
        psi, match = kernels[name]
        expected = psi.flip(-1)[permutations[writes]]
        assert torch.equal(match, expected if reads is None else expected[:, permutations[reads]]), name


def test_filters_of_a_depthwise_conv_are_permuted_once():
    net = torchvision.models.mobilenet_v2(width_mult=0.25)
    groups = channel_groups(net, (3, 32, 32))
    permutations = drawn(groups)
    psi, match = filters_and_matches(net, HORIZONTAL_FLIP, groups, permutations)["features.1.conv.0.0"]
    (group,) = (g for g in groups if any("features.1.conv.0.0" in p.tensor for p in g.places))
    assert psi.shape[1] == 1 and torch.equal(match, psi.flip(-1)[permutations[group.name]])


@net_of(lambda: {
    "patch": nn.Conv2d(12, 8, 3, padding=1), "columns": nn.Conv2d(72, 6, 1), "head": nn.Linear(6, 4),
})  # fmt: skip
def Patches(self, x):
    """Convolutions that read the pixels of patches, and of neighbourhoods, as channels."""
    x = self.patch(nn.functional.pixel_unshuffle(x, 2)).relu()
    columns = nn.functional.unfold(x, 3, padding=1).view(len(x), 72, *x.shape[2:])
    return self.head(self.columns(columns).relu().mean((2, 3)))


def test_kernels_that_read_pixels_as_channels_are_flipped_with_their_pixels():
    torch.manual_seed(0)
    made = exact(Patches().eval(), SMALL).plain
    whole = report(made, SMALL, matching="involution", partial_images=0)
    assert whole.merged.barrier["halfway"] == 0 and whole.invariance_error < 1e-5
    assert [conv.name for conv in whole.convs] == ["patch", "columns"]
    assert all(conv.kernel_constraint < 1e-6 for conv in whole.convs)
