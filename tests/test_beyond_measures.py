from copy import deepcopy

import pytest
import torch
from conftest import refused
from small_nets import Images, answers, orbit, smooth_images, vgg11
from torch import nn

from relusym.beyond.declaration import Job
from relusym.data.augmentation import normalise
from relusym.data.chiral_shapes import generate
from relusym.data.image_set import save, subset
from relusym.evaluation.invariance import Averaged
from relusym.evaluation.metrics import MEASURED, evaluate
from relusym.measuring.merge import MergeJob
from relusym.merging.aligned import align
from relusym.merging.many import orbit_merge
from relusym.merging.merge import curve, flip_merge
from relusym.symmetry import HORIZONTAL_FLIP, QUARTER_TURN

IMAGES = Images(smooth_images(60), 25)


@pytest.fixture(scope="module")
def net():
    return vgg11()


def test_images_to_repair_on_are_the_first_of_the_seeded_subset_to_merge_on(tmp_path):
    path, (train, test) = tmp_path / "images", generate(60, 10, 0)
    save(path, train, test)
    data = {"dataset": "generated", "train_images": None, "seed": 3, "size": None}
    settings = {"trained": [{"data": data}], "merging": {"images": 50}}
    job = MergeJob([("cnn", 0)], settings, [], [], path, "shapes", 25, torch.device("cpu"))
    assert torch.equal(job.images.pixels, subset(train, 50, 3).images)
    assert torch.equal(job.choice(30).pixels, job.images.pixels[:30]) and len(job.choice(None).pixels) == 60
    refused(lambda: job.choice(61), match="61 images are asked for")


@pytest.fixture(scope="module")
def labels(net):
    return answers(net, IMAGES)


@pytest.fixture(scope="module")
def merged(net, labels):
    return flip_merge(net, IMAGES, IMAGES, labels)


def test_scores_are_accuracy_and_loss_and_over_orientations_those_of_the_mean_logits(net, labels):
    x = normalise(IMAGES.pixels)
    labels = labels.roll(1)
    with torch.no_grad():
        for symmetry in (None, HORIZONTAL_FLIP, QUARTER_TURN):
            views = symmetry.powers(x) if symmetry else x[None]
            logits = torch.stack([net(view) for view in views]).mean(0)
            averaged = Averaged(net, symmetry) if symmetry else net
            scores = evaluate(averaged, IMAGES, labels, MEASURED).means()
            assert scores["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
            loss = float(nn.functional.cross_entropy(logits, labels))
            assert scores["loss"] == pytest.approx(loss, rel=1e-4)


def test_a_curve_has_its_nets_at_the_ends_and_the_merge_in_the_middle(net, labels, merged):
    aligned = align(net, HORIZONTAL_FLIP.transform(net), IMAGES, order=2)
    curves = curve(aligned, IMAGES, IMAGES, labels, 5)
    for way, middle in {"plain": "halfway", "repaired": "repaired"}.items():
        accuracy = curves[way]["accuracy"]
        assert len(accuracy) == len(curves[way]["loss"]) == 5
        assert (accuracy[0], accuracy[-1]) == (merged.accuracy["net"], merged.accuracy["flipped"])
        assert accuracy[2] == pytest.approx(merged.accuracy[middle], abs=1 / 60)
        loss = evaluate(merged.nets[middle], IMAGES, labels, MEASURED).means()["loss"]
        assert curves[way]["loss"][2] == pytest.approx(loss, rel=1e-4)


def test_without_labels_curves_and_orbits_measure_agreement_with_the_net_on_any_batches(net, labels, merged):
    batches = list(normalise(IMAGES.pixels).split(25))
    unlabelled, labelled = (curve(merged.aligned, batches, batches, those, 3) for those in (None, labels))
    assert unlabelled == labelled and unlabelled["plain"]["accuracy"][1] < 1
    symmetry = HORIZONTAL_FLIP.name
    unlabelled, labelled = (orbit_merge(net, symmetry, batches, batches, those) for those in (None, labels))
    assert unlabelled == labelled and unlabelled.accuracy["orbit"] < 1


def test_an_orbit_merge_leaves_the_nets_mode_and_refuses_what_a_flip_merge_does(net):
    net = deepcopy(net).train()
    orbit_merge(net, HORIZONTAL_FLIP, IMAGES, IMAGES, None)
    assert all(module.training for module in net.modules())
    how = {"images": IMAGES, "test_images": IMAGES, "labels": None}
    refused(
        lambda: orbit_merge(net, HORIZONTAL_FLIP, **how, matching="weight", starts=0), match="starts: 0 given"
    )
    refused(lambda: orbit_merge(deepcopy(net).half(), HORIZONTAL_FLIP, **how), match="give net.float()")


def test_over_the_orbit_of_a_flip_the_merge_is_that_with_the_flipped_self(net, labels, merged):
    merged_orbit = orbit_merge(net, HORIZONTAL_FLIP, IMAGES, IMAGES, labels)
    assert merged_orbit.barrier["whole"] == merged_orbit.barrier["pairwise"]
    assert merged_orbit.barrier["pairwise"] == pytest.approx(merged.barrier["repaired"], abs=0.02)
    assert merged_orbit.barrier["whole_no_repair"] == pytest.approx(merged.barrier["halfway"], abs=0.02)
    ends = (merged.accuracy["net"] + merged.accuracy["flipped"]) / 2
    assert merged_orbit.accuracy["orbit"] == pytest.approx(ends)


@torch.no_grad()
def test_the_merged_net_of_an_orbit_and_its_targets_are_the_mean_of_all_its_nets(net, labels, monkeypatch):
    nets, merged = orbit(net, QUARTER_TURN), []

    def repaired(traced, targets, images):
        merged.append((traced.net, targets))
        return traced.net, {}

    monkeypatch.setattr("relusym.merging.merge.repaired", repaired)
    orbit_merge(net, QUARTER_TURN, IMAGES, IMAGES, labels, matching="identity")
    states = [each.state_dict() for each in nets]
    targets = [align(net, each, IMAGES, matching="identity").statistics[1] for each in nets]
    for (mean, aims), count in zip(merged, (2, 4), strict=True):
        for name, tensor in mean.state_dict().items():
            torch.testing.assert_close(tensor, sum(state[name] for state in states[:count]) / count)
        for name, aim in aims.items():
            torch.testing.assert_close(aim.std, sum(of[name].std for of in targets[:count]) / count)


def test_a_measurements_job_has_every_attribute_that_a_measurement_may_read():
    read = {*Job.__annotations__, *(name for name in vars(Job) if name in ("as_plain", "snapshot", "choice"))}
    assert len(read) == 16 and read <= {*dir(MergeJob), *MergeJob.__dataclass_fields__}
