"""Measurements beyond the paper, on nets of which the answer is known."""

from dataclasses import replace

import pytest
import torch
from small_nets import Images, answers, smooth_images, vgg11
from torch import nn

from relusym.channels.traced import channel_groups
from relusym.data.augmentation import normalise
from relusym.data.chiral_shapes import SHAPES, draw, generate, render
from relusym.data.image_set import save, subset
from relusym.errors import UserError
from relusym.evaluation.invariance import Averaged
from relusym.evaluation.metrics import MEASURED, evaluate
from relusym.measuring.merge import MergeJob
from relusym.merging.aligned import align
from relusym.merging.exact_gcnn import exact_gcnn, orbits, project
from relusym.merging.layers import equivariance_errors
from relusym.merging.merge import curve, flip_merge
from relusym.merging.orbit import orbit_merge
from relusym.merging.partial import parts, prefix_barriers
from relusym.nets.tied import TiedNet
from relusym.nets.vgg import VGG11
from relusym.randomness import generator
from relusym.symmetry import HORIZONTAL_FLIP, QUARTER_TURN, SYMMETRIES

IMAGES = Images(smooth_images(60), 25)


@pytest.fixture(scope="module")
def net():
    return vgg11()


def test_images_to_repair_on_are_a_seeded_choice_that_begins_that_of_the_images_to_merge_on(tmp_path):
    path, (train, test) = tmp_path / "images", generate(60, 10, 0)
    save(path, train, test)
    data = {"dataset": "generated", "train_images": None, "seed": 3, "size": None}
    settings = {"trained": [{"data": data}], "merging": {"images": 50}}
    job = MergeJob([("cnn", 0)], settings, [], [], path, "shapes", 25, torch.device("cpu"))
    assert torch.equal(job.images.pixels, subset(train, 50, 3).images)
    assert torch.equal(job.choice(30).pixels, job.images.pixels[:30])
    assert job.choice(None) is job.images
    with pytest.raises(UserError, match="61 images are asked for"):
        job.choice(61)


@pytest.fixture(scope="module")
def labels(net):
    return answers(net, IMAGES)


@pytest.fixture(scope="module")
def aligned(net):
    return align(net, HORIZONTAL_FLIP.transform(net), IMAGES, order=2)


@pytest.fixture(scope="module")
def merged(net, labels):
    return flip_merge(net, IMAGES, IMAGES, labels)


# ---- scores


def test_scores_are_accuracy_and_loss_and_over_orientations_those_of_the_mean_of_the_logits(net, labels):
    x = normalise(IMAGES.pixels)
    labels = labels.roll(1)
    with torch.no_grad():
        for symmetry in (None, HORIZONTAL_FLIP, QUARTER_TURN):
            views = symmetry.powers(x) if symmetry else x[None]
            logits = torch.stack([net(view) for view in views]).mean(0)
            one = Averaged(net, symmetry) if symmetry else net
            found = evaluate(one, IMAGES, labels, MEASURED)[0]
            assert found["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
            assert found["loss"] == pytest.approx(
                float(nn.functional.cross_entropy(logits, labels)), rel=1e-4
            )


# ---- curves


def test_a_curve_has_its_nets_at_the_ends_and_the_merge_in_the_middle(aligned, labels, merged):
    found = curve(aligned, IMAGES, IMAGES, labels, 5)
    for way, middle in {"plain": "halfway", "repaired": "repaired"}.items():
        accuracy = found[way]["accuracy"]
        assert len(accuracy) == len(found[way]["loss"]) == 5
        assert (accuracy[0], accuracy[-1]) == (merged.accuracy["net"], merged.accuracy["flipped"])
        assert accuracy[2] == pytest.approx(merged.accuracy[middle], abs=1 / 60)
    assert found["plain"]["loss"] != found["repaired"]["loss"]


# ---- over the whole orbit


def test_over_the_orbit_of_a_flip_the_merge_is_that_with_the_flipped_self(net, labels, merged):
    found = orbit_merge(net, HORIZONTAL_FLIP, IMAGES, IMAGES, labels)
    assert found.barrier["whole"] == found.barrier["pairwise"]
    assert found.barrier["pairwise"] == pytest.approx(merged.barrier["repaired"], abs=0.02)
    assert found.barrier["whole_no_repair"] == pytest.approx(merged.barrier["halfway"], abs=0.02)
    ends = (merged.accuracy["net"] + merged.accuracy["flipped"]) / 2
    assert found.accuracy["orbit"] == pytest.approx(ends)


@pytest.mark.slow(seconds=1)
def test_a_gcnn_of_quarter_turns_has_no_barrier_over_its_orbit_of_four_and_another_net_has():
    gcnn = vgg11(group_convs=8, symmetry=QUARTER_TURN)
    found = orbit_merge(gcnn, QUARTER_TURN, IMAGES, IMAGES, answers(gcnn, IMAGES))
    assert all(abs(barrier) < 0.02 for barrier in found.barrier.values())
    net = vgg11()
    other = orbit_merge(net, QUARTER_TURN, IMAGES, IMAGES, answers(net, IMAGES))
    assert other.barrier["whole"] > 0.05 and other.barrier["whole"] != other.barrier["pairwise"]


@torch.no_grad()
def test_the_merged_net_of_an_orbit_and_its_targets_are_the_mean_of_all_its_nets(net, labels, monkeypatch):
    nets = [net]
    for _ in range(3):
        nets.append(QUARTER_TURN.transform(nets[-1]))
    merged = []
    monkeypatch.setattr(
        "relusym.merging.orbit.repaired",
        lambda traced, targets, images: [merged.append((traced.net, targets)) or traced.net],
    )
    orbit_merge(net, QUARTER_TURN, IMAGES, IMAGES, labels, matching="identity")
    states = [one.state_dict() for one in nets]
    targets = [align(net, one, IMAGES, matching="identity").statistics[1] for one in nets]
    for (mean, aims), count in zip(merged, (2, 4), strict=True):
        for name, tensor in mean.state_dict().items():
            torch.testing.assert_close(tensor, sum(state[name] for state in states[:count]) / count)
        for name, aim in aims.items():
            torch.testing.assert_close(aim.std, sum(of[name].std for of in targets[:count]) / count)


# ---- by layer


@torch.no_grad()
def test_equivariance_errors_are_the_quotient_of_the_norms_of_a_layers_activations(net, aligned):
    errors, _ = equivariance_errors(net, IMAGES, HORIZONTAL_FLIP, aligned.groups, aligned.permutations)
    found = {name: ways["matched"] for name, ways in errors.items()}
    assert [*found] == [group.name for group in aligned.groups]
    x, first = normalise(IMAGES.pixels), nn.Sequential(*list(net.features)[:2])
    here, there = first(x), first(x.flip(-1)).flip(-1)[:, aligned.permutations["conv1"]]
    assert found["conv1"] == pytest.approx(float((here - there).norm() / here.norm()), rel=1e-4)


@pytest.mark.parametrize("symmetry", [HORIZONTAL_FLIP, QUARTER_TURN], ids=lambda symmetry: symmetry.name)
def test_a_gcnns_layers_are_equivariant(symmetry):
    net = vgg11(group_convs=8, symmetry=symmetry)
    aligned = align(net, symmetry.transform(net), IMAGES, order=symmetry.order)
    errors, _ = equivariance_errors(net, IMAGES, symmetry, aligned.groups, aligned.permutations)
    assert len(errors) == 8 and max(ways["matched"] for ways in errors.values()) < 1e-5


@pytest.mark.slow(seconds=1)
def test_all_layers_merged_are_the_whole_merge_and_none_that_differs_costs_nothing(aligned, labels, merged):
    found = prefix_barriers(aligned, IMAGES, IMAGES, labels)
    assert [*found] == [*(f"features.conv{i}" for i in range(1, 9)), "classifier"]
    assert found["classifier"] == pytest.approx(merged.barrier["repaired"], abs=0.02)
    same = replace(aligned, second=aligned.first, statistics=(aligned.statistics[0],) * 2)
    assert all(abs(barrier) < 0.02 for barrier in prefix_barriers(same, IMAGES, IMAGES, labels).values())


def test_a_norm_goes_with_the_layer_before_it():
    found = parts(VGG11(1 / 8, batch_norm=True))
    modules = list(dict.fromkeys(key.rpartition(".")[0] for key in found[0].tensors))
    assert modules == ["features.conv1", "features.norm1"] and len(found) == 9


# ---- tied nets


def involutions(net):
    groups = channel_groups(net)
    return groups, {g.name: torch.arange(g.size).reshape(-1, 2).flip(1).flatten() for g in groups}


def test_a_step_of_a_tied_net_is_the_ordinary_nets_step_projected():
    """With momentum and weight decay."""
    net = vgg11()
    groups, permutations = involutions(net)
    plain = project(net, HORIZONTAL_FLIP, groups, permutations)
    tied = exact_gcnn(net, HORIZONTAL_FLIP, groups, permutations)
    x, labels = normalise(IMAGES.pixels[:20]), torch.arange(20) % 10
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
        own, free, halved = (
            float(getattr(one.features, layer).weight.detach().var()) for one in (net, drawn, projected)
        )
        assert free == pytest.approx(own, rel=0.02)
        assert halved == pytest.approx(own / 2, rel=0.02)


# ---- generated images of another symmetry


@pytest.mark.parametrize("symmetry", SYMMETRIES.values(), ids=lambda symmetry: symmetry.name)
def test_generated_images_are_moved_by_each_power_of_their_symmetry_as_often(symmetry):
    labels = torch.arange(10).repeat(200)
    scenes = draw(labels, generator(0, "a test"), symmetry)
    n, p = len(labels), 1 / symmetry.order
    counts = scenes.power.bincount(minlength=symmetry.order).double()
    assert len(counts) == symmetry.order and ((counts - n * p).abs() < 4 * (n * p * (1 - p)) ** 0.5).all()
    few = replace(scenes, **{name: of[:50] for name, of in vars(scenes).items()})
    images = render(few, symmetry)
    moved = render(replace(few, power=(few.power + 1) % symmetry.order), symmetry)
    assert torch.equal(moved, symmetry.act(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def test_images_that_are_invariant_to_nothing_stand_upright():
    free, flipped = (generate(60, 10, 0, symmetry)[0].images for symmetry in (None, HORIZONTAL_FLIP))
    as_drawn = (free == flipped).flatten(1).all(1)
    mirrored = (free == flipped.flip(2)).flatten(1).all(1)
    assert (as_drawn ^ mirrored).all() and 15 < as_drawn.sum() < 45


def test_no_class_turned_is_another():
    drawn = {name: torch.tensor([[c == "#" for c in row] for row in d.split()]) for name, d in SHAPES.items()}
    for name, one in drawn.items():
        for other, shape in drawn.items():
            for symmetry in SYMMETRIES.values():
                turned = symmetry.powers(one)[1:]
                assert name == other or not any(torch.equal(power, shape) for power in turned)
