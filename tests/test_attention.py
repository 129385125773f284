from copy import deepcopy
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
import torchvision
from conftest import refused
from small_nets import Images, net_of, shuffled, smooth_images
from structures import Attended, Excited, Normed, Tokens, difference, with_statistics
from torch import nn
from torch.nn import functional as F
from torchvision.models import swin_transformer as swins

from relusym.channels.groups import head_order, permute, random_permutations
from relusym.channels.traced import TracedNet, channel_groups
from relusym.matching.cyclic import best_involution
from relusym.matching.match import Pair, assigned, match
from relusym.merging.exact_gcnn import project
from relusym.merging.identities import largest_difference
from relusym.merging.layers import equivariance_errors, group_actions
from relusym.merging.many import orbit_merge
from relusym.merging.merge import flip_merge, merge
from relusym.pixels.grid import grid
from relusym.pixels.transform import check_planted, transformed
from relusym.symmetry import HORIZONTAL_FLIP, QUARTER_TURN, SYMMETRIES

HEADS, CHANNELS = 4, 24


def by_heads(net):
    return {group.name: group for group in channel_groups(net, (3, 32, 32)) if group.heads > 1}


@pytest.mark.parametrize("structure", [Tokens, Attended], ids=lambda structure: structure.__name__)
def test_queries_share_a_group_with_keys_and_a_head_groups_them_with_its_values(structure):
    groups = by_heads(structure())
    matched = {name: group for name, group in groups.items() if group.size == CHANNELS}
    counts = {name: (group.heads, len({p.tensor for p in group.places})) for name, group in matched.items()}
    # weight and bias; for values also the layer that reads them
    by_half = {"[:48]": (HEADS, 2), "[48:]": (HEADS, 3)}
    assert counts == {f"{name}{half}": by_half[half] for name in ("qkv", "attention") for half in by_half}
    for layer in ("qkv", "attention"):
        keys, values = matched[f"{layer}[:48]"], matched[f"{layer}[48:]"]
        assert keys.tied == values.tied and [place.block for place in keys.places] == [2, 2]
    assert matched["qkv[:48]"].tied != matched["attention[:48]"].tied


def test_a_permutation_that_tears_heads_apart_is_refused():
    net = Attended()
    groups = channel_groups(net, (3, 32, 32))
    planted = random_permutations(groups, torch.Generator().manual_seed(0))
    permute(net.state_dict(), groups, planted)
    torn = planted | {"qkv[:48]": planted["qkv[:48]"].roll(1)}
    apart = planted | {"qkv[:48]": planted["qkv[:48]"].reshape(HEADS, -1).roll(1, 0).flatten()}
    for wrong in (torn, apart):
        refused(partial(permute, net.state_dict(), groups, wrong), "tears heads apart, or orders them")


def test_random_permutations_move_heads_and_the_channels_within():
    groups = list(by_heads(Attended()).values())
    permutations = random_permutations(groups, torch.Generator().manual_seed(0))
    for group in groups:
        heads = head_order(permutations[group.name], HEADS)
        assert (heads == heads[:, :1]).all() and heads[:, 0].tolist() != list(range(HEADS))
        within = permutations[group.name].reshape(HEADS, -1) % (group.size // HEADS)
        assert (within.sort(1).values == torch.arange(group.size // HEADS)).all()
        assert len({tuple(row) for row in within.tolist()}) == HEADS


class Kind(nn.Module):
    """Self-attention of a kind, on 16 tokens of 24 channels."""

    def __init__(self, kind):
        super().__init__()
        self.patches, self.kind = nn.Conv2d(3, CHANNELS, 8, 8), kind
        keys = {"grouped": 2, "one_key": 1}.get(kind, HEADS)
        self.q, self.k, self.v = (nn.Linear(CHANNELS, 6 * heads) for heads in (HEADS, keys, keys))
        self.out, self.head = nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, 10)
        self.norm = nn.LayerNorm(6)
        self.scale, self.talk = nn.Parameter(torch.randn(HEADS, 1, 1)), nn.Linear(HEADS, HEADS)

    def heads(self, x):
        if self.kind == "strided":  # a head's channels aren't contiguous
            return x.unflatten(-1, (6, -1)).permute(0, 3, 1, 2)
        return x.unflatten(-1, (-1, 6)).transpose(1, 2)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = (self.heads(layer(x)) for layer in (self.q, self.k, self.v))
        if self.kind == "grouped":
            k, v = (of.repeat_interleave(2, 1) for of in (k, v))
        if self.kind == "normed":
            q, k = self.norm(q), F.normalize(k, dim=-1)
        if self.kind == "shared":
            v = k + v
        scores = q @ k.transpose(-2, -1)
        if self.kind == "scaled":
            scores = scores * self.scale.exp()
        if self.kind == "talking":
            scores = self.talk(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = torch.softmax(scores, -1) @ v
        y = y.permute(0, 2, 3, 1) if self.kind == "strided" else y.transpose(1, 2)
        return self.head(x + self.out(y.flatten(2))).mean(1)


@pytest.mark.parametrize("kind", [
    "plain", "grouped", "one_key", "normed", "shared", "scaled", "talking", "strided",
])  # fmt: skip
def test_permuted_attention_of_every_kind_computes_the_same(kind):
    torch.manual_seed(0)
    error, moved = difference(with_statistics(Kind(kind)))
    assert error < 1e-10 and moved > 10


@pytest.mark.parametrize("kind", ["plain", "scaled", "strided"])
def test_heads_are_unconstrained_where_nothing_ties_them(kind):
    groups = by_heads(Kind(kind))
    assert sorted(group.size for group in groups.values() if group.size > HEADS) == [CHANNELS, CHANNELS]
    assert {group.heads for group in groups.values()} == {HEADS}
    assert len({of.tied for of in groups.values()}) == 1
    scaled = [group for group in groups.values() if "scale" in {place.tensor for place in group.places}]
    assert len(scaled) == (kind == "scaled")


@net_of(lambda layer: {
    "patches": nn.Conv2d(3, CHANNELS, 4, 4), "attention": layer(CHANNELS, [4, 4], [2, 2], HEADS),
    "head": nn.Linear(CHANNELS, 10),
})  # fmt: skip
def Window(self, x):
    x = self.patches(x).permute(0, 2, 3, 1)
    return self.head((x + self.attention(x)).mean((1, 2)))


@pytest.mark.parametrize("layer", [swins.ShiftedWindowAttention, swins.ShiftedWindowAttentionV2])
def test_parameters_of_a_head_of_a_shifted_window_are_permuted_with_it(layer):
    torch.manual_seed(0)
    net = Window(layer)
    groups = by_heads(net)
    whole = [place.tensor for group in groups.values() if group.size == HEADS for place in group.places]
    known = {
        swins.ShiftedWindowAttention: ["attention.relative_position_bias_table"],
        swins.ShiftedWindowAttentionV2: ["attention.logit_scale", "attention.cpb_mlp.2.weight"],
    }
    assert sorted(whole) == sorted(known[layer]) and difference(with_statistics(net))[0] < 1e-10


def test_no_factors_are_admitted_for_parameters_of_heads_which_no_output_shows():
    traced = TracedNet(Window(swins.ShiftedWindowAttention))
    shown = {group.name for group in traced.groups if group.node}
    assert len(shown) < len(traced.groups) and traced.admits(-1.0) <= shown


@torch.no_grad()
@pytest.mark.parametrize("matching", ["activation", "weight"])
@pytest.mark.parametrize(
    "build", [Attended, partial(Window, swins.ShiftedWindowAttention), partial(Window, swins.ShiftedWindowAttentionV2)],
    ids=["attended", "window", "window_v2"],
)  # fmt: skip
def test_planted_heads_are_found(build, matching):
    torch.manual_seed(0)
    net = with_statistics(build()).float()
    groups = channel_groups(net, (3, 32, 32))
    other, planted = shuffled(net, groups)
    for parameter in other.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=1e-3 * float(parameter.abs().mean()))
    merged = merge(net, other, Images(smooth_images(60), 30), matching=matching)
    for group in groups:
        if group.heads > 1:
            assert merged.permutations[group.name] == planted[group.name].argsort().tolist(), group.name
    assert merged.accuracy["halfway"] > 0.9


def test_heads_are_matched_by_the_best_total_of_their_channels():
    groups = [group for group in by_heads(Attended()).values() if group.name.startswith("qkv")]
    planted = random_permutations(groups, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(4)
    tables = {}
    for name, permutation in planted.items():
        noise = torch.rand(CHANNELS, CHANNELS, generator=generator, dtype=torch.float64)
        tables[name] = 0.4 * noise
        tables[name][torch.arange(CHANNELS), permutation] += 0.5
    # the pair of channels with the highest correlation, but in heads that don't match
    first = planted["qkv[:48]"]
    tables["qkv[:48]"][0, first[CHANNELS // HEADS]] = 1.5
    matched = match("activation", Pair(({}, {}), groups, tables, generator))
    assert all(torch.equal(permutation, planted[name]) for name, permutation in matched.permutations.items())
    assert matched.permutations.keys() == planted.keys()
    alone = [replace(group, heads=1, tied=None) for group in groups]
    greedy = match("activation", Pair(({}, {}), alone, tables, generator)).permutations["qkv[:48]"]
    assert greedy.tolist() != first.tolist()


@torch.no_grad()
@pytest.mark.parametrize("structure", [Attended, Excited, Normed], ids=lambda structure: structure.__name__)
def test_a_planted_involution_of_heads_is_found(structure):
    torch.manual_seed(0)
    images = Images(smooth_images(60), 30)
    traced = TracedNet(with_statistics(structure()).float(), images.shape)
    # drawn at random, but heads don't stay if they can be swapped
    tables = {group.name: torch.rand(group.size, group.size).double()
              - torch.eye(group.heads).repeat_interleave(group.size // group.heads, 0)
              .repeat_interleave(group.size // group.heads, 1) for group in traced.groups}  # fmt: skip
    planted = assigned(traced.groups, tables, best_involution)
    heads = [head_order(planted[group.name], group.heads)[:, 0] for group in traced.groups if group.heads > 1]
    assert heads and any(not torch.equal(order, torch.arange(len(order))) for order in heads)
    net = project(traced, HORIZONTAL_FLIP, traced.groups, planted)
    merged = flip_merge(net, images, matching="involution")
    for group in traced.groups:
        if group.heads > 1:
            assert merged.permutations[group.name] == planted[group.name].tolist(), group.name
    x = images.first(60, torch.device("cpu"))
    for form in (net, merged.nets["halfway"]):
        torch.testing.assert_close(form(x), form(x.flip(-1)), rtol=1e-4, atol=1e-4)


def test_permutations_of_order_four_are_refused_for_heads_in_one_line():
    net, images = with_statistics(Attended()).float(), Images(smooth_images(20), 20)
    given = net, QUARTER_TURN, images, images, torch.zeros(20).long()
    line = "not of order 4 for nets with attention heads, group norms or grouped"
    refused(lambda: orbit_merge(*given, matching="cyclic"), match=line)


def swin(block, window=4):
    torch.manual_seed(0)
    merging = swins.PatchMerging if block is swins.SwinTransformerBlock else swins.PatchMergingV2
    how = {"num_classes": 10, "block": block, "downsample_layer": merging}
    net = torchvision.models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [window, window], **how)
    for name, parameter in net.named_parameters():
        nn.init.normal_(parameter, 1.0 * ("norm" in name and "weight" in name), 0.3)
    return net.eval()


@torch.no_grad()
@pytest.mark.parametrize("symmetry", SYMMETRIES.values(), ids=SYMMETRIES)
@pytest.mark.parametrize("block", [swins.SwinTransformerBlock, swins.SwinTransformerBlockV2])
def test_a_transformed_swin_transformer_on_transformed_images_computes_the_same(block, symmetry):
    net, x = swin(block).double(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert grid(net.float(), (3, 64, 64), symmetry).symmetric
    net = net.double()
    # its table of positions has one entry per axis
    if block is swins.SwinTransformerBlockV2 and symmetry.order == 4:
        refused(lambda: transformed(net, symmetry, (3, 64, 64)), match="symmetry quarter_turn")
        return
    assert largest_difference(net(x), transformed(net, symmetry, (3, 64, 64))(symmetry.act(x))) < 1e-10
    assert largest_difference(net(x), net(symmetry.act(x))) > 1e-3


class WrittenOut(swins.ShiftedWindowAttention):
    """As in timm and Hugging Face: windows in the batch dimension, and a mask that separates rolled pixels."""

    by_function = False

    def forward(self, x):
        (_, height, width, channels), window = x.shape, self.window_size[0]
        shift = self.shift_size[0] if window < height else 0
        x = F.pad(torch.roll(x, (-shift, -shift), (1, 2)), (0, 0, 0, 0, 0, 0))  # to whole windows
        x = self.windows(x).flatten(1, 2)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        table = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        mask = table.view(window**2, window**2, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        if shift:
            region = torch.zeros(1, height, width, 1, dtype=x.dtype)
            for rows in (slice(0, -window), slice(-window, -shift), slice(-shift, None)):
                for columns in (slice(0, -window), slice(-window, -shift), slice(-shift, None)):
                    region[:, rows, columns] = region.max() + 1
            region = self.windows(region).flatten(1)
            apart = -100.0 * (region[:, None] != region[:, :, None]).to(x.dtype)
            mask = mask + apart[:, None].repeat(len(x) // len(apart), 1, 1, 1)
        if self.by_function:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(x.dtype))
        else:
            x = torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1) + mask, -1) @ v
        x = self.proj(x.transpose(1, 2).reshape(-1, window, window, channels))
        x = x.view(-1, height // window, width // window, window, window, channels).transpose(2, 3)
        return torch.roll(x.reshape(-1, height, width, channels), (shift, shift), (1, 2))

    def windows(self, x):
        (_, height, width, channels), window = x.shape, self.window_size[0]
        x = x.view(-1, height // window, window, width // window, window, channels)
        return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, window, window, channels)


class ByFunction(WrittenOut):
    by_function = True


@cache
def transformed_swin(window, size, symmetry):
    """Torchvision's layer, transformed; with windows of 7 pixels, this takes five seconds on a core."""
    return transformed(swin(swins.SwinTransformerBlock, window), symmetry, (3, size, size)).state_dict()


@torch.no_grad()
@pytest.mark.parametrize("kind", [WrittenOut, ByFunction])
@pytest.mark.parametrize("window", [4, 7])
def test_windowed_attention_written_out_is_transformed_as_torchvisions(kind, window):
    net = swin(swins.SwinTransformerBlock, window)
    size, written = (64, deepcopy(net)) if window == 4 else (112, deepcopy(net))
    for layer in written.modules():
        if isinstance(layer, swins.ShiftedWindowAttention):
            layer.__class__ = kind
    x = torch.randn(2, 3, size, size)
    assert largest_difference(net(x), written(x)) < 1e-4
    traced = TracedNet(written, (3, size, size))
    for symmetry in SYMMETRIES.values():
        here, there = transformed_swin(window, size, symmetry), transformed(traced, symmetry).state_dict()
        for (name, first), other in zip(here.items(), there.values(), strict=True):
            assert torch.equal(first, other), name
        fits = grid(traced, traced.image_shape, symmetry)
        if window == 4:
            assert fits.symmetric and check_planted(traced, symmetry) < 1e-12
        else:  # windows are shifted by 3 of 7 pixels, so that mirrored windows differ
            assert {(of.stride, of.size) for of in fits.misfits} == {(7, 28), (7, 14)}
            assert check_planted(traced, symmetry) is None
    plain = channel_groups(net, (3, size, size))
    assert [group.size for group in traced.groups] == [group.size for group in plain]


@torch.no_grad()
def test_a_table_of_positions_that_a_mask_fixes_is_refused():
    net = swin(swins.SwinTransformerBlock)
    for layer in net.modules():
        if isinstance(layer, swins.ShiftedWindowAttention):
            layer.__class__ = WrittenOut
    window = net.features[1][0].attn
    plain = window.windows
    window.windows = lambda x: plain(x * torch.linspace(1, 2, x.shape[2])[:, None].to(x))
    line = "combines pixels in a way that doesn't commute with horizontal_flip"
    refused(lambda: transformed(net, HORIZONTAL_FLIP, (3, 64, 64)), match=line)


@pytest.mark.slow(seconds=5)
def test_windows_shifted_by_less_than_half_are_misfits():
    fit = grid(swin(swins.SwinTransformerBlock, 7), (3, 112, 112), HORIZONTAL_FLIP)
    assert {(misfit.layer, misfit.stride, misfit.size) for misfit in fit.misfits} == {
        ("shifted_window_attention in features.1.1.attn", 7, 28),
        ("shifted_window_attention in features.3.1.attn", 7, 14),
    }
    assert fit.next_size is None
    odd = grid(swin(swins.SwinTransformerBlock), (3, 36, 36), HORIZONTAL_FLIP)  # 9 patches per side
    misfits = {(misfit.layer, misfit.stride, misfit.size, misfit.left_over) for misfit in odd.misfits}
    assert ("_patch_merging_pad in features.2", 2, 9, -1) in misfits


@pytest.mark.slow(seconds=1)
@pytest.mark.parametrize("block", [swins.SwinTransformerBlock, swins.SwinTransformerBlockV2])
def test_every_layer_of_a_swin_transformer_has_an_equivariance_error_or_a_reason(block):
    net, images = swin(block), Images(smooth_images(12, 64), 6)
    merged = flip_merge(net, images)
    groups = channel_groups(net, images.shape)
    errors, _ = equivariance_errors(net, images, HORIZONTAL_FLIP, groups, merged.permutations)
    unknown = group_actions(net, HORIZONTAL_FLIP, images.shape, groups)[1]
    assert errors.keys() | unknown.keys() == {group.name for group in groups}
    known = "what they compute doesn't depend on the image", "they are numbers of heads, and no activations"
    assert unknown and set(unknown.values()) <= set(known)
    # in each of four blocks: queries with keys, values, both layers of the MLP; in each of two stages: the stream
    assert len(errors) == 14


@torch.no_grad()
def test_a_layers_error_is_measured_on_its_map_of_tokens():
    net, images = swin(swins.SwinTransformerBlock), Images(smooth_images(12, 64), 6)
    groups = {group.name: group for group in channel_groups(net, images.shape)}
    [name] = [name for name, group in groups.items() if name.endswith("3.1.mlp.0")]
    permutations = {name: torch.arange(group.size) for name, group in groups.items()}
    errors, _ = equivariance_errors(net, images, HORIZONTAL_FLIP, list(groups.values()), permutations)
    seen = []
    net.features[3][1].mlp[1].register_forward_hook(lambda module, args, output: seen.append(output))
    x = images.first(12, torch.device("cpu"))
    net(x), net(x.flip(-1))
    here, there = seen[0], seen[1].flip(2)  # (B, H, W, C)
    assert errors[name]["identity"] == pytest.approx(float((here - there).norm() / here.norm()), rel=1e-4)
