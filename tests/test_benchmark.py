"""The benchmark: its plain versions do what the library does, and its table has every row."""

from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest
import torch
from small_training import train_on
from torch import nn

from benchmark import machine, plain_merging, plain_training, side_by_side
from relusym.data import chiral_shapes
from relusym.data.augmentation import normalise
from relusym.merging import merge as merging
from relusym.nets.vgg import VGG11
from relusym.symmetry import HORIZONTAL_FLIP
from relusym.training.recipe import Recipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def splits():
    return chiral_shapes.generate(80, 60, 0)


@pytest.fixture
def float32(monkeypatch):
    """Both sides compute in one type, so that only what they compute can differ."""
    for module in (plain_training, plain_merging):
        monkeypatch.setattr(module, "autocast", lambda device: nullcontext())


def a_net(seed):
    torch.manual_seed(seed)
    net = VGG11(1 / 8, initialization="he")
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            nn.init.uniform_(parameter, 0.5, 1.5)  # no dead channels, which nothing tells apart
    return net.eval()


def test_the_plain_images_are_torchvisions_and_normalised_alike(splits):
    images, _ = splits
    ((x, y),) = plain_training.loader(images, 80, 0)
    torch.testing.assert_close(x, normalise(images.images), rtol=0, atol=1e-5)
    assert torch.equal(y, images.labels)


def test_full_batch_steps_of_the_plain_training_are_those_of_the_library(splits, float32):
    images, _ = splits
    recipe = Recipe(3, 80, 0.05, weight_decay=5e-4, warmup_epochs=1, augmentation=False, precision="float32")
    here, plain = a_net(0), a_net(0)
    train_on(images, here, recipe)
    plain_training.train(plain, images, recipe, CPU, workers=0)
    assert not torch.equal(here.classifier.weight, a_net(0).classifier.weight)
    for name, tensor in here.state_dict().items():
        torch.testing.assert_close(plain.state_dict()[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("pair", [False, True], ids=["flip", "pair"])
@torch.no_grad()
def test_the_plain_merge_finds_the_librarys_permutations_and_accuracies(splits, float32, pair):
    images, test = splits
    first, second = a_net(0), a_net(1) if pair else HORIZONTAL_FLIP.transform(a_net(0))
    here = merging.merge(first, second, images.images, test.images, test.labels, 80)
    permutations, accuracy = plain_merging.merge(first, second, images, test, 80, CPU, workers=0)
    alike = [
        a == b
        for name, found in permutations.items()
        for a, b in zip(found, here.permutations[name], strict=True)
    ]
    assert sum(alike) >= side_by_side.AGREE * len(alike)
    # of one batch, a batch norm's statistics are exact
    assert accuracy == pytest.approx(here.accuracy, abs=1.5 / len(test.labels))


def test_the_arithmetic_floor_is_that_of_the_papers_net():
    assert side_by_side.flop_an_image(1.0) == pytest.approx(0.916e9, rel=0.01)


def test_machines_are_named_for_their_files():
    assert machine.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert machine.device_name(CPU, 2).endswith("2 cores")
    assert machine.matrix_rate(CPU, torch.float32, side=64) > 0


def test_the_grid_is_extrapolated_from_measured_rates():
    paper = {
        "width": 1.0,
        "epochs": 10,
        "images": 1000,
        "seeds": 2,
        "pairs": 3,
        "invariance_from": [None, 0.0, 0.2],
    }
    rows = [
        side_by_side.Row("training", "images/s", 100.0),
        side_by_side.Row("flip merge", "s", 1.0),
        side_by_side.Row("pair merge", "s", 2.0),
    ]
    task = side_by_side.Task(Path(), "cuda", 1, 0, 1.0, None, 500, 500)
    (row,) = side_by_side.grid_row(paper, task, rows)
    assert row.here == pytest.approx(2 * ((1 + 2 + 1.8) * 100 + 2 * (3 * 1 + 3 * 2)) / 3600)
    assert row.reached
    assert side_by_side.grid_row({**paper, "width": 0.5}, task, rows) == []


@pytest.mark.slow
def test_training_and_merges_have_a_row_each_with_ratio_goal_and_agreement():
    how = {
        "nets": 1,
        "width": 1 / 32,
        "train_images": 100,
        "test_images": 50,
        "epochs": 1,
        "batch_size": 50,
        "learning_rate": 0.01,
        "matched_images": 50,
        "merge_batch_size": 50,
    }
    paper = {"width": 1.0, "epochs": 1, "images": 1, "seeds": 1, "pairs": 6, "invariance_from": [None]}
    rows = side_by_side.compared_rows(how, paper, CPU, cores=1, repeats=1)
    table = pd.DataFrame(rows).set_index("what")
    assert list(table.index) == ["training", "share of the arithmetic floor", "flip merge", "pair merge"]
    assert (table[["here", "plain"]] > 0).all(axis=None)
    for what, row in table.drop("share of the arithmetic floor").iterrows():
        faster = row["here"] / row["plain"] if row["unit"] == "images/s" else row["plain"] / row["here"]
        assert row["ratio"] == pytest.approx(faster)
        assert row["goal"] == side_by_side.GOALS[what]["cpu"]
        assert row["reached"] == (row["ratio"] >= row["goal"])
        assert row["agrees"] in (True, False)


@pytest.mark.slow
def test_the_workflows_own_cost_has_a_row_each(pytestconfig):
    rows = side_by_side.workflow_rows(pytestconfig.rootpath, "cpu", 1, repeats=1, demo=False, seeds=1)
    assert [row.what for row in rows] == [
        "dry run of the paper's grid",
        "dry run of ten times the seeds",
        "start-up of a job",
    ]
    assert all(row.here > 0 and row.reached == (row.here <= row.goal) for row in rows)
