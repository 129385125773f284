"""Matching with signs and scales, redundant channels, two towers; the claims, and the whole run."""

import itertools
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, refused, settings_of
from records import identifiable
from small_nets import Images, conv_net, net_of, shuffled, smooth_images, vgg11
from torch import nn

from relusym.channels.groups import rescale
from relusym.channels.redundancy import EDITS, reduced, redundant, towers
from relusym.channels.traced import TracedNet, channel_groups
from relusym.evaluation.invariance import Averaged, Ensemble
from relusym.findings.beyond import identifiability
from relusym.findings.evidence import HELD, NOT_HELD, OPEN, UNTESTED
from relusym.merging.aligned import joint_statistics
from relusym.merging.merge import flip_merge, merge
from relusym.merging.repair import reset_batch_norm
from relusym.nets.vgg import ACTIVATIONS, VGG11
from relusym.records.fields import problem
from relusym.reporting.report import report
from relusym.symmetry import HORIZONTAL_FLIP

CPU = torch.device("cpu")
ALL = {f"conv{i}" for i in range(1, 9)}


@pytest.fixture(scope="module")
def images():
    return Images(smooth_images(200), 100)


@torch.no_grad()
def a_net(activation="relu", pooling="average", batch_norm=False):
    torch.manual_seed(0)
    net = VGG11(1 / 8, 0, 10, None, "he", batch_norm, activation, pooling)
    for layer in net.features:
        if isinstance(layer, torch.nn.Conv2d):
            # average pools reduce activations, and matching counts small ones as dead; tanh must not saturate
            layer.weight *= 1 if activation == "tanh" else 2
            torch.nn.init.normal_(layer.bias, std=0.3)
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            torch.nn.init.normal_(layer.bias, std=0.3)
    return reset_batch_norm(net, Images(smooth_images(64), 64)) if batch_norm else net.eval()


def planted(net, admitted, factors):
    """The net with permuted channels, those of the `admitted` groups multiplied by random factors from `factors`."""
    groups = channel_groups(net)
    other, order = shuffled(net, groups)
    draw = torch.Generator().manual_seed(3)
    chosen = {
        group.name: factors[torch.randint(len(factors), (group.size,), generator=draw)]
        for group in groups
        if group.name in admitted
    }
    other.load_state_dict(rescale(other.state_dict(), groups, chosen))
    return other, order, chosen


# ---- the factors that activations and pools allow


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_signs_pass_odd_activations_and_pools_and_scales_pass_homogeneous_ones(activation, pooling):
    net = TracedNet(a_net(activation, pooling))
    signed = {"average": ALL, "max": {"conv3", "conv5", "conv7"}}[pooling]  # these aren't followed by a pool
    assert net.admits(-1.0) == (signed if activation == "tanh" else set())
    assert net.admits(2.0) == (ALL if activation in ("relu", "leaky_relu") else set())
    assert all(group.node.startswith(f"features_{activation}") for group in net.groups)


@net_of(lambda: {
    "first": nn.Parameter(torch.randn(3, 16)), "second": nn.Parameter(torch.randn(16, 16)), "head": nn.Linear(16, 4)
})  # fmt: skip
def Products(self, x):
    """Channels written along the second dimension of weights, where `rescale` takes them to be read."""
    return self.head(torch.relu(torch.relu(x.mean((2, 3)) @ self.first) @ self.second))


def test_channels_that_rescaling_multiplies_the_other_way_round_get_no_scales():
    torch.manual_seed(0)
    net = TracedNet(Products().eval(), (3, 8, 8))
    assert len(net.groups) == 2 and net.admits(2.0) == set()


@pytest.mark.parametrize(("pooling", "batch_norm"), [("average", False), ("average", True), ("max", False)])
@torch.no_grad()
def test_planted_permutations_and_signs_are_found_exactly_and_leave_no_barrier(images, pooling, batch_norm):
    net = a_net("tanh", pooling, batch_norm)
    admitted = TracedNet(net).admits(-1.0)
    other, order, signs = planted(net, admitted, torch.tensor([-1.0, 1.0]))
    x = images.first(100, CPU)
    torch.testing.assert_close(other(x), net(x), rtol=0, atol=1e-4)
    merged = merge(net, other, images, matching="signed_activation")
    for name, permutation in order.items():
        back = permutation.argsort()
        assert merged.permutations[name] == back.tolist()
        if name in admitted:
            assert torch.equal(merged.aligned.factors[name].float(), signs[name][back]), name
    torch.testing.assert_close(merged.nets["halfway"](x), net(x), rtol=0, atol=1e-4)
    with_itself = merge(net, net, images, matching="identity")
    assert merged.barrier["halfway"] == 0 and merged.barrier == with_itself.barrier
    repaired = [each.nets["repaired"](x) for each in (merged, with_itself)]
    torch.testing.assert_close(*repaired, rtol=0, atol=1e-3)
    statistics = merged.aligned.statistics
    for name, here in statistics[0].items():
        torch.testing.assert_close(here.mean, statistics[1][name].mean, rtol=0, atol=1e-3)
    # permutations without factors don't recover it
    assert merge(net, other, images).barrier["halfway"] > 0.1


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@torch.no_grad()
def test_planted_permutations_and_scales_are_found_exactly(images, activation):
    net = a_net(activation)
    other, order, scales = planted(net, ALL, torch.tensor([0.25, 1.0, 3.0]))
    deviations = joint_statistics([net, net], images, channel_groups(net)).deviations
    x = images.first(100, CPU)
    merged = merge(net, other, images, matching="scaled_activation")
    for name, permutation in order.items():
        back = permutation.argsort()
        assert merged.permutations[name] == back.tolist()
        alive = deviations[name][0] > 0.01  # dead channels have no scale
        wanted, factors = (each[alive] for each in (1 / scales[name][back], merged.aligned.factors[name]))
        assert alive.float().mean() > 0.9
        torch.testing.assert_close(factors.float(), wanted, rtol=1e-3, atol=0)
    torch.testing.assert_close(merged.nets["halfway"](x), net(x), rtol=1e-3, atol=1e-2)
    by_permutation = merge(net, other, images)
    assert by_permutation.permutations == merged.permutations
    assert not torch.allclose(by_permutation.nets["halfway"](x), net(x), rtol=0.05, atol=0.05)


REFUSED = [*itertools.product(["signed_activation"], ["relu", "leaky_relu", "gelu"])]
REFUSED += itertools.product(["scaled_activation"], ["gelu", "tanh"])


@pytest.mark.parametrize("matching, activation", REFUSED)
def test_signs_and_scales_are_refused_where_the_activation_has_none(images, matching, activation):
    line = f"matching {matching}: (negating|scaling) channels"
    refused(lambda: flip_merge(a_net(activation), images, matching=matching), match=line)


def test_matching_with_factors_is_refused_where_factors_would_be_lost(images):
    line = "matching signed_activation: not for reports"
    refused(lambda: report(a_net("tanh"), images, matching="signed_activation"), match=line)
    line = "merging.matching: 'signed_activation' given; allowed is one of activation, weight"
    refused(lambda: settings_of(scale="demo", merging={"matching": "signed_activation"}), match=line)


# ---- redundant channels


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("edit", EDITS)
@torch.no_grad()
def test_redundant_channels_change_nothing_and_are_all_detected(images, edit, activation):
    net, x = a_net(activation), images.first(100, CPU)
    wide = redundant(net, channel_groups(net), edit, torch.Generator().manual_seed(1))
    groups = channel_groups(wide)
    added = sum(group.size for group in groups) - sum(group.size for group in channel_groups(net))
    assert added == sum(group.size for group in channel_groups(net)) // (1 if edit == "split" else 4)
    largest = float(net(x).abs().max())
    torch.testing.assert_close(wide(x), net(x), rtol=0, atol=1e-5 * largest)
    again, gone = reduced(wide, groups)
    assert sum(gone.values()) == added
    torch.testing.assert_close(again.state_dict(), net.state_dict(), rtol=0, atol=1e-5)


@torch.no_grad()
def test_channels_that_are_dead_on_the_images_are_pruned_if_listed():
    net = a_net()
    groups = channel_groups(net)
    net.features.conv2.bias[3] = -1e4
    silent = {group.name: torch.zeros(group.size, dtype=torch.bool) for group in groups}
    silent["conv2"][3] = True
    assert sum(reduced(net, groups)[1].values()) == 0
    pruned, gone = reduced(net, groups, silent)
    assert gone == {name: int(name == "conv2") for name in silent}
    x = torch.randn(8, 3, 32, 32)
    torch.testing.assert_close(pruned(x), net(x))
    silent["conv2"][:] = True
    refused(lambda: reduced(net, groups, silent), match="group conv2: no channel of it does anything")


@torch.no_grad()
def test_an_equivariant_net_stays_equivariant_with_dead_and_split_channels_but_not_with_some_twice(images):
    gcnn = vgg11(group_convs=8)
    groups, barriers = channel_groups(gcnn), {}
    for edit in EDITS:
        wide = redundant(gcnn, groups, edit, torch.Generator().manual_seed(1))
        barriers[edit] = flip_merge(wide, images).barrier["repaired"]
    assert barriers["silent"] == barriers["unread"] == barriers["split"] == 0
    assert barriers["duplicated"] > 0.05


@torch.no_grad()
def test_a_net_with_split_channels_is_merged_into_the_same_net(images):
    net, x = vgg11(), images.first(100, CPU)
    wide = redundant(net, channel_groups(net), "split", torch.Generator().manual_seed(1))
    one, other = (flip_merge(each, images).nets["halfway"](x) for each in (net, wide))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-3 * float(one.abs().max()))


def test_layers_whose_channels_cannot_be_added_to_are_refused():
    net = conv_net(torch.nn.Flatten(), torch.nn.Linear(8 * 900, 4))
    net[1] = torch.nn.PReLU(8)
    line = "layer 1: channels of a PReLU can't be added or taken away here"
    refused(lambda: redundant(net, channel_groups(net), "split", torch.Generator()), match=line)


@torch.no_grad()
def test_two_towers_are_the_averaged_net_and_equivariant_by_swapping_if_they_may(images):
    net, x = vgg11(), images.first(100, CPU)
    flipped = HORIZONTAL_FLIP.transform(net)
    both, apart = towers(net, flipped, channel_groups(net)), Ensemble(net, flipped)
    for made in (both, apart):
        torch.testing.assert_close(made(x), Averaged(net, HORIZONTAL_FLIP)(x), rtol=0, atol=1e-5)
    swapped, separate = flip_merge(both, images), flip_merge(apart, images)
    assert swapped.barrier == {"halfway": 0, "repaired": 0}
    for permutation in swapped.permutations.values():
        half = len(permutation) // 2
        assert permutation == [(i + half) % len(permutation) for i in range(len(permutation))]
    assert len(separate.permutations) == 2 * len(swapped.permutations) and separate.barrier["repaired"] > 0.05


@torch.no_grad()
def test_duplicates_of_duplicates_keep_their_share_of_the_output():
    net = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.ReLU(), nn.Conv2d(8, 4, 8), nn.Flatten())
    for i in (1, 2):  # the last is like the second, but not like the first
        net[0].weight[i] = net[0].weight[0] * (1 + 0.8e-4 * i)
    net[0].weight[0:3].abs_()
    x = torch.rand(4, 3, 8, 8)
    fewer, gone = reduced(net, channel_groups(net, (3, 8, 8)))
    assert gone == {"0": 2}
    torch.testing.assert_close(fewer(x), net(x), rtol=1e-3, atol=1e-3)


# ---- claims, from records constructed with a known answer

SEEDS, NOISE = range(60, 64), np.array([-1, 1, -0.5, 0.5]) * 1e-3
MODELS = [f"{activation}{loss}" for activation in identifiability.ACTIVATIONS for loss in ("", "_inv")]
MODELS += ["gcnn"]
SELECTION = {"models": MODELS, "names": {"relu": "ReLU"}, "notes": []}


def record(model, seed, good):
    """Barriers as the claims expect, or the opposite."""
    at = 0.04 if model.endswith("_inv") == good else 0.08
    if model == "gcnn":
        at = 0.0
    if model == "gelu_inv":
        at += 0.02 if good else -0.01
    if model in ("leaky_inv", "gelu_inv", "tanh_inv") and not good:
        at += 0.1 + 0.01 * (model == "tanh_inv")
    step = 0.02 if good else -0.02
    larger = identifiability.ACTIVATIONS.get(model.removesuffix("_inv"))
    higher = {
        "duplicated": step, "unread": step * (model != "gcnn" or not good), "split": 0.02 - max(step, 0),
    }  # fmt: skip
    barriers = {
        "activation": at, **({larger: at} if larger == "activation" else {}),
        **({larger: at - step} if larger == "signed_activation" else {}),
        **({larger: at - 0.02 * (not good)} if larger == "scaled_activation" else {}),
        **({edit: at + more for edit, more in higher.items()}), "silent": at + 0.02 * (not good),
        "towers": 0.02 * (not good), "towers_apart": step + 0.02 * (not good),
    }  # fmt: skip
    if model == "gcnn" and not good:
        barriers["unread"] = 0.02
    for place, name in enumerate(barriers):
        barriers[name] += np.roll(NOISE, place)[seed - SEEDS[0]]
    return identifiable(model, seed, barriers)


def records(good, seeds=SEEDS):
    return [record(model, seed, good) for model, seed in itertools.product(MODELS, seeds)]


def frame(several):
    return identifiability.frame({"identifiability": several}, SELECTION)


def test_claims_hold_on_data_with_their_effect_and_not_on_data_with_the_opposite():
    claims = 24
    good, bad = frame(records(True)), frame(records(False))
    assert set(good["verdict"][:claims]) == {HELD}, good[["claim", "verdict"]][:claims].to_string()
    assert {*bad["verdict"][:claims]} == {NOT_HELD}
    assert good["verdict"][claims:].isna().all() and good["p_value"][claims:].isna().all()
    alone = frame(records(True, seeds=[60]))["verdict"][:claims]
    assert {*alone} == {UNTESTED}
    assert len(frame([])) == claims


def test_each_type_and_variant_has_its_mean_below_the_claims():
    described = frame(records(True)).set_index("claim")
    assert described.loc["ReLU, permutations: barrier", "effect"] == pytest.approx(0.08, abs=1e-6)
    assert described.loc["gcnn, some channels twice: barrier", "effect"] == pytest.approx(0.02, abs=1e-6)
    assert described.loc[described["verdict"].isna(), "effect_size"].isna().all()  # of a mean, there is none


def test_claims_on_identical_nets_are_settled_at_the_required_level():
    random, significant = np.random.default_rng(0), []
    for _ in range(60):
        several = records(True)
        for made in several:
            for measured in made["variants"].values():
                measured["barrier"]["repaired"] = 0.05 + 0.01 * random.normal()
        nets = identifiability.by_net(several)
        claims = [of for text, of in identifiability.claims(nets, str) if "by less than" not in text]
        significant += [evidence.p_value < 0.05 for evidence in claims]
    assert 0.02 < np.mean(significant) < 0.08
    assert OPEN in {*frame(several)["verdict"]}


def test_the_figure_has_every_net_and_variant():
    drawing, numbers = identifiability.draw({"identifiability": records(True)}, SELECTION)
    assert len(numbers) == sum(len(each["variants"]) for each in records(True))
    above, below = drawing.axes
    assert above.get_yticklabels()[0].get_text() == "ReLU"
    assert len(below.get_yticklabels()) == len(MODELS) * 6
    assert identifiability.draw({"identifiability": []}, SELECTION)[1].empty


def test_a_record_that_contradicts_itself_is_refused():
    made = record("relu", 60, True)
    assert problem(made) is None
    wrong = deepcopy(made)
    wrong["variants"]["towers"]["barrier"]["repaired"] += 0.1
    assert "by equation (4) of the accuracies" in problem(wrong)
    del made["variants"]["split"]
    assert "allowed are those of the settings" in problem(made)


# ---- the whole run


@pytest.mark.workflow
@pytest.mark.slow(seconds=60)
def test_one_command_makes_everything_from_images_to_table_and_figure(tiny):
    made = tiny()
    cnn = TINY["models"]["cnn"] | {"table": None}
    loss = {"training": {"invariance_from": 0.0}}
    made.configure(
        network=TINY["network"] | {"pooling": "average"},
        models={"relu_inv": cnn | loss, "tanh": cnn | {"name": "tanh", "network": {"activation": "tanh"}},
         "gelu": cnn | {"name": "GELU", "network": {"activation": "gelu"}}}, pairs=[], figure9=None,
        beyond={
         "identifiability": {**{"models": ["relu_inv", "tanh", "gelu"], "redundant": ["relu_inv"]},
          **{"towers": ["relu_inv"], "images": 60}}},
    )  # fmt: skip
    targets = ("identifiability", "identifiability_figure")
    made.makes(*targets)
    stem = made.folder / "results/tiny/tables/identifiability"
    table = pd.read_csv(f"{stem}.csv")
    assert (table["verdict"].notna()).sum() == 24
    assert (made.folder / "results/tiny/figures/identifiability_figure.png").stat().st_size > 1000
    numbers = pd.read_csv(made.folder / "results/tiny/figures/identifiability_figure.csv")
    of_relu = numbers[(numbers["model"] == "relu_inv") & (numbers["seed"] == 0)].set_index("variant")
    assert [*of_relu.index] == [name for name in identifiability.VARIANTS if name != "signed_activation"]
    assert of_relu.loc["towers", "barrier"] == 0
    for edit in EDITS:
        assert of_relu.loc[f"{edit}_reduced", "gone"] > 0
        barriers = of_relu.loc[[f"{edit}_reduced", "activation"], "barrier"]
        assert barriers.iloc[0] == pytest.approx(barriers.iloc[1])
    assert not made.planned(*targets)
