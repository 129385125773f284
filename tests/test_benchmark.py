from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest
import torch
from small_nets import Images, vgg11
from small_training import CPU, train_on

from benchmark import partial_merges, plain, side_by_side, sides
from benchmark.side_by_side import Race, WorkflowCopy
from relusym.data import chiral_shapes
from relusym.data.augmentation import normalise
from relusym.merging.merge import FLIP, PAIR, merge
from relusym.symmetry import HORIZONTAL_FLIP
from relusym.training.recipe import Recipe


@pytest.fixture(scope="module")
def splits():
    return chiral_shapes.generate(80, 60, 0)


@pytest.fixture
def float32(monkeypatch):
    """Both sides compute in the same dtype, so that rounding can't make them differ."""
    monkeypatch.setattr(plain, "autocast", lambda device: nullcontext())


def test_the_plain_images_are_torchvisions_with_the_same_normalisation(splits):
    images, _ = splits
    ((x, y),) = plain.loader(images, 80, 0)
    torch.testing.assert_close(x, normalise(images.images), rtol=0, atol=1e-5)
    assert torch.equal(y, images.labels)


def test_full_batch_steps_of_the_plain_training_are_those_of_the_library(splits, float32):
    images, _ = splits
    recipe = Recipe(epochs=3, batch_size=80, learning_rate=0.05, weight_decay=5e-4, warmup_epochs=1)
    recipe = recipe.but(augmentation=False, precision="float32")
    here, other = vgg11(0), vgg11(0)
    train_on(images, here, recipe)
    plain.train(other, images, recipe, CPU, workers=0)
    assert not torch.equal(here.classifier.weight, vgg11(0).classifier.weight)
    for name, tensor in here.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.slow(seconds=1)
@pytest.mark.parametrize("names", [FLIP, PAIR], ids=["flip", "pair"])
@torch.no_grad()
def test_the_plain_merge_finds_the_librarys_permutations_and_accuracies(splits, float32, names):
    images, test = splits
    ends = vgg11(0), HORIZONTAL_FLIP.transform(vgg11(0)) if names == FLIP else vgg11(1)
    here = merge(*ends, Images(images.images, 80), Images(test.images, 80), test.labels, names=names)
    permutations, accuracy = plain.merge(*ends, names, images, test, 80, CPU, workers=0)
    pairs = ((torch.tensor(p), torch.tensor(here.permutations[name])) for name, p in permutations.items())
    alike = torch.cat([permutation == other for permutation, other in pairs])
    assert sum(alike) >= side_by_side.AGREE * len(alike)
    # from a single batch, a batch norm's statistics are exact
    assert accuracy == pytest.approx(here.accuracy, abs=1.5 / len(test.labels))


class Canned:
    """A side whose processes immediately return prepared results."""

    processes = (None,)

    def __init__(self, seconds, result):
        self.seconds, self.result = seconds, result

    def run(self, function, task, given):
        return self.seconds, [self.result] * len(given)

    def rate(self, task):
        return 1e12


RECIPE = Recipe(epochs=1, batch_size=50, learning_rate=0.1, augmentation=False)
TASK = side_by_side.Task(Path(), "cpu", 1, 0, 1 / 8, RECIPE, 50, 50)


@pytest.mark.parametrize("alike, apart, agrees", [(100, 0.0, True), (98, 0.0, False), (100, 0.2, False)])
def test_merges_agree_by_their_permutations_and_accuracies(alike, apart, agrees):
    permutation = list(range(100))
    other = permutation[:alike] + permutation[alike:][::-1]
    here = Canned(1.0, ({"conv1": permutation}, {"net": 0.9, "halfway": 0.6}))
    plain = Canned(8.0, ({"conv1": other}, {"net": 0.9, "halfway": 0.6 - apart}))
    row = Race(here, plain, TASK, 1000, cores=1, repeats=1).merge_row("flip merge", [{}])
    assert row.agrees is agrees and (row.ratio, row.reached) == (8.0, True)


@pytest.mark.parametrize(("apart", "agrees"), [(0.01, True), (0.2, False)])
def test_trainings_agree_by_their_accuracies(apart, agrees):
    here, plain = Canned(1.0, (0.9, {})), Canned(2.0, (0.9 - apart, {}))
    (row, _), _ = Race(here, plain, TASK, 1000, cores=1, repeats=1).training_rows(1000)
    assert row.agrees is agrees and (row.ratio, row.reached) == (2.0, False)


def test_the_arithmetic_floor_is_that_of_the_papers_net():
    assert side_by_side.flop_an_image(1.0) == pytest.approx(0.916e9, rel=0.01)


def test_machine_names_become_file_names():
    assert sides.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert sides.device_name(CPU, 2).endswith("2 cores")
    assert sides.matrix_rate(CPU, torch.float32, side=64) > 0


def test_the_grid_is_extrapolated_from_measured_rates():
    paper = {"width": 1.0, "epochs": 10, "images": 1000, "seeds": 2, "pairs": 3}
    paper |= {"invariance_from": [None, 0.0, 0.2]}
    measured = ("training", "images/s", 100.0), ("flip merge", "s", 1.0), ("pair merge", "s", 2.0)
    rows = [side_by_side.Row(*row) for row in measured]
    task = side_by_side.Task(Path(), "cuda", 1, 0, 1.0, None, 500, 500)
    (row,) = side_by_side.grid_row(paper, task, rows)
    assert row.here == pytest.approx(2 * ((1 + 2 + 1.8) * 100 + 2 * (3 * 1 + 3 * 2)) / 3600)
    assert row.reached and side_by_side.grid_row({**paper, "width": 0.5}, task, rows) == []


@pytest.mark.slow(seconds=30)
def test_training_and_merges_have_a_row_each_with_ratio_goal_and_agreement():
    how = {
        "nets": 1, "width": 1 / 32, "train_images": 100, "test_images": 50, "epochs": 1, "batch_size": 50,
        "learning_rate": 0.01, "matched_images": 50, "merge_batch_size": 50,
    }  # fmt: skip
    paper = {"width": 1.0, "epochs": 1, "images": 1, "seeds": 1, "pairs": 6, "invariance_from": [None]}
    rows = side_by_side.compared_rows(how, paper, CPU, cores=1, repeats=1)
    table = pd.DataFrame(rows).set_index("what")
    assert list(table.index) == ["training", "share of the arithmetic floor", "flip merge", "pair merge"]
    assert (table[["here", "plain"]] > 0).all(axis=None)
    for what, row in table.drop("share of the arithmetic floor").iterrows():
        faster = row["here"] / row["plain"] if row["unit"] == "images/s" else row["plain"] / row["here"]
        assert row["ratio"] == pytest.approx(faster) and row["goal"] == side_by_side.GOALS[what]["cpu"]
        assert row["reached"] == (row["ratio"] >= row["goal"]) and isinstance(row["agrees"], bool)


@pytest.mark.slow(seconds=15)
def test_each_cost_of_the_workflow_has_a_row(clone, tmp_path, monkeypatch):
    folder = clone().folder
    copy = WorkflowCopy(folder, tmp_path)
    assert copy.dry_run("demo", "0-3") > 0 < copy.start_up("cpu")
    for method in ("dry_run", "start_up"):
        monkeypatch.setattr(WorkflowCopy, method, lambda self, *how: float(len(how)))
    rows = side_by_side.workflow_rows(folder, "cpu", 1, repeats=1, demo=False, seeds=1)
    planning = {"dry run of the paper's grid": 1.0, "dry run of ten times the seeds": 2.0}
    assert {row.what: row.here for row in rows} == planning | {"start-up of a job": 1.0}
    assert all(row.reached == (row.here <= row.goal) for row in rows)


@pytest.mark.slow(seconds=5)
def test_partial_merges_are_those_of_nets_run_one_by_one(capsys):
    partial_merges.main("vgg11", 4, 3, 32)
    name, size, parts, images, *_, peak, apart = capsys.readouterr().out.strip(" |\n").split(" | ")
    assert (name, size, parts, images) == ("vgg11", "32", "9", "4")
    assert 0.1 < float(peak) < 8 and float(apart) < partial_merges.AGREE


def test_the_benchmarks_lite0_is_b0_without_squeeze_and_excitation_and_with_relu6():
    net = partial_merges.efficientnet_lite0()
    kinds = {type(module).__name__ for module in net.modules()}
    assert "ReLU6" in kinds and not kinds & {"SiLU", "SqueezeExcitation"}
    assert sum(parameter.numel() for parameter in net.parameters()) == 4_652_008  # timm's efficientnet_lite0
