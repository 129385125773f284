from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from conftest import settings_of
from small_nets import Images, vgg11
from small_training import CPU, train_on

from benchmark import partial_merges, plain, side_by_side, sides
from benchmark.side_by_side import Race, judged
from relusym.data import chiral_shapes
from relusym.data.augmentation import normalise
from relusym.merging.merge import FLIP, PAIR, merge
from relusym.records.files import load_record
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
    torch.testing.assert_close(other.state_dict(), here.state_dict(), rtol=1e-3, atol=1e-5)


@pytest.mark.slow(seconds=1)
@pytest.mark.parametrize("names", [FLIP, PAIR], ids=["flip", "pair"])
@torch.no_grad()
def test_the_plain_merge_finds_the_librarys_permutations_and_accuracies(splits, float32, names):
    images, test = splits
    nets = [vgg11(0)] if names == FLIP else [vgg11(0), vgg11(1)]
    ends = *nets, *([HORIZONTAL_FLIP.transform(vgg11(0))] if names == FLIP else [])
    here = merge(*ends, Images(images.images, 80), Images(test.images, 80), test.labels, names=names)
    permutations, accuracy = plain.merge(nets, images, test, 80, CPU, workers=0)
    pairs = ((torch.tensor(p), torch.tensor(here.permutations[name])) for name, p in permutations.items())
    alike = torch.cat([permutation == other for permutation, other in pairs])
    assert sum(alike) >= side_by_side.AGREE * len(alike)
    # from a single batch, a batch norm's statistics are exact
    assert accuracy == pytest.approx(here.accuracy, abs=1.5 / len(test.labels))


class Canned:
    """A process that immediately returns a prepared result."""

    def __init__(self, seconds, result):
        self.result = lambda: (0, seconds, result)

    def submit(self, function, task, side, given):
        return self


@pytest.fixture
def race(monkeypatch):
    """Run a race on small images between two processes, each with its seconds and its result, and judge its rows."""
    monkeypatch.setattr(side_by_side, "matrix_rate", lambda *how: 1e12)

    def run(method, here, plain, *arguments):
        task = sides.Task(width=1 / 8, train=1000, test=1000, batch_size=50, matched=50)
        rows = getattr(Race([Canned(*here)], [Canned(*plain)], task, cores=1), method)(*arguments)
        return next(judged(rows if isinstance(rows, list) else [rows], "cpu").itertuples())

    return run


@pytest.mark.parametrize("alike, apart, agrees", [(100, 0.0, True), (98, 0.0, False), (100, 0.2, False)])
def test_merges_agree_by_their_permutations_and_accuracies(race, alike, apart, agrees):
    permutation = list(range(100))
    other = permutation[:alike] + permutation[alike:][::-1]
    here = 1.0, ({"conv1": permutation}, {"net": 0.9, "halfway": 0.6})
    plain = 8.0, ({"conv1": other}, {"net": 0.9, "halfway": 0.6 - apart})
    row = race("merge_row", here, plain, "flip merge", (0,))
    assert row.agrees is agrees and (row.ratio, row.reached) == (8.0, True)


@pytest.mark.parametrize(("apart", "agrees"), [(0.01, True), (0.2, False)])
def test_trainings_agree_by_their_accuracies(race, apart, agrees):
    row = race("training_rows", (1.0, 0.9), (2.0, 0.9 - apart))
    assert row.agrees is agrees and (row.ratio, row.reached) == (2.0, False)


def test_the_arithmetic_floor_is_that_of_the_papers_net():
    assert side_by_side.flop_an_image(1.0) == pytest.approx(0.916e9, rel=0.01)


def test_machine_names_become_file_names(monkeypatch):
    assert sides.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert sides.device_name(CPU, 2).endswith("2 cores")
    monkeypatch.setattr(side_by_side, "SIDE", {"cpu": 64})
    assert side_by_side.matrix_rate(CPU, torch.float32, threads=1) > 0


def test_the_grid_is_extrapolated_from_measured_rates():
    paper = settings_of(None, "paper")
    measured = {"training": 100.0, "flip merge": 1.0, "pair merge": 2.0}
    rows, task = [{"what": what, "here": here} for what, here in measured.items()], side_by_side.TASKS["cuda"]
    (row,) = side_by_side.grid_row(paper, task, rows)
    # seven types, of which one has the invariance loss throughout, and two for the last 80% of the epochs; six pairs
    seconds = 100 * (7 + 1 + 2 * 0.8) * 50_000 / 100 + (7 * 1 + 6 * 2) * 50_000 / 10_000
    assert row["here"] == pytest.approx(24 * seconds / 3600)
    assert not judged([row], "cuda")["reached"].item()  # within an hour
    assert side_by_side.grid_row(paper, replace(task, width=0.5), rows) == []


@pytest.mark.slow(seconds=30)
def test_training_and_merges_have_a_row_each_with_ratio_goal_and_agreement(monkeypatch, tmp_path):
    monkeypatch.setattr(side_by_side, "REPEATS", 2)
    task = sides.Task(width=1 / 32, train=100, test=50, batch_size=50, matched=50, folder=tmp_path)
    table = judged(side_by_side.compared_rows(task, nets=1, cores=1), "cpu").set_index("what")
    assert list(table.index) == ["training", "share of the arithmetic floor", "flip merge", "pair merge"]
    assert (table[["here", "plain"]] > 0).all(axis=None)
    for what, row in table.drop("share of the arithmetic floor").iterrows():
        faster = row["here"] / row["plain"] if row["unit"] == "images/s" else row["plain"] / row["here"]
        assert row["ratio"] == pytest.approx(faster) and row["goal"] == side_by_side.GOALS[what]["cpu"]
        assert row["reached"] == (row["ratio"] >= row["goal"]) and isinstance(row["agrees"], bool)


@pytest.mark.slow(seconds=15)
def test_each_cost_of_the_workflow_has_a_row(clone, tmp_path, monkeypatch):
    paper = settings_of(None, "paper")
    side_by_side.clone(clone().folder, tmp_path)
    models = {key: {"seeds": "0-3"} for key in paper.table("table2")}
    planned = side_by_side.snakemake(tmp_path, "--dry-run", "--cores", "1", scale="demo", models=models)
    assert planned > 0 < side_by_side.start_up(tmp_path, "cpu")
    monkeypatch.setattr(side_by_side, "snakemake", lambda folder, *how, **config: float(len(config)))
    monkeypatch.setattr(side_by_side, "start_up", lambda folder, device: 1.0)
    (record,) = tmp_path.glob("results/demo/records/train/*/0.json")  # of the start-up, not the demo
    rows = side_by_side.workflow_rows(tmp_path, "cpu", 1, paper)
    planning = {"dry run of the paper's grid": 1.0, "dry run of ten times the seeds": 2.0}
    demo = {"the demo, from start to end": 2.0}
    demo["useful seconds of the demo's jobs, together"] = load_record(record)["cost"]["seconds"]
    assert {row["what"]: row["here"] for row in rows} == planning | {"start-up of a job": 1.0} | demo
    for row in judged(rows, "cpu").dropna(subset="goal").itertuples():
        assert row.reached == (row.here <= row.goal)


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
