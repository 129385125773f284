import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import TINY, Clone, refused
from small_nets import Images, difference_from_equivariant

from relusym import checkpoint
from relusym.beyond import exact_gcnn
from relusym.beyond.exact_gcnn import load
from relusym.channels.traced import channel_groups
from relusym.evaluation.invariance import invariance_error
from relusym.evaluation.metrics import accuracy
from relusym.findings import Table, declared
from relusym.findings.beyond import during_training
from relusym.findings.beyond.exact_gcnn import by_net
from relusym.findings.layout import at_end
from relusym.measuring.loading import test_images as images_to_test_on
from relusym.measuring.merge import MergeJob, measure_record
from relusym.merging.layers import filters_and_matches
from relusym.records.files import load_record, write_record
from relusym.symmetry import HORIZONTAL_FLIP

CPU = torch.device("cpu")
TURNED = {"invariant_to": "quarter_turn"}
# except those with their own scales
APART = {"regime", "identifiability", "identifiability_figure"}
BEYOND = {name for name, finding in declared().items() if finding.is_beyond} - APART
TABLES = {name for name in BEYOND if isinstance(declared()[name], Table)}
TABLES_AND_FIGURES = {*BEYOND, "beyond"}
FINE_TUNING = {"epochs": 1, "learning_rate": 0.002}
SECTIONS = {
    "exact_gcnn": {"from_scratch": ["cnn"], "fine_tuning": FINE_TUNING, "models": ["cnn"]},
    "symmetries": {"models": ["cnn", "noaug"], "images": 60, "seeds": 0},
    "curves": {"models": ["cnn"], "pairs": [["cnn", "cnn"]], "points": 5, "repair_images": 50,
     "seeds": "0-1"},
    "during_training": {"models": ["cnn"], "seeds": 0}, "by_layer": {"models": ["cnn"], "lie_images": 20},
    "universe": {"models": ["cnn"], "seeds": 0}, "invariance_errors": {"models": ["cnn", "noaug"], "seeds": 0},
}  # fmt: skip
CURVES = [f"measure curves {nets}" for nets in ("cnn 0", "cnn 1", "cnn--cnn 0--1")]


@pytest.fixture(scope="module")
def measured(tiny) -> Clone:
    """A clone after `all` and `beyond`."""
    made = tiny()
    noaug = {"table": None, "training": {"augmentation": False}, "data": TURNED}
    made.configure(
        training=TINY["training"] | {"snapshots": [0, 1]},
        models={"cnn": TINY["models"]["cnn"] | {"seeds": "0-1,3"}, "noaug": noaug}, pairs=[["cnn", "cnn"]],
        matchings=["activation", "involution"], figure9=None, beyond=SECTIONS,
    )  # fmt: skip
    made.makes("beyond")
    return made


def test_the_status_of_a_scale_without_nets_of_the_paper_counts_its_measurements(clone):
    lines = clone().makes("status", "--config", "scale=identifiability").splitlines()
    jobs = {
        line.split()[0]: line.split()[1]
        for line in lines
        if "_merge " in line or re.match("train |ident", line)
    }
    assert jobs == {"train": "36", "flip_merge": "0", "pair_merge": "0", "identifiability": "36"}


def record(made: Clone, kind: str, nets: str):
    return load_record(made.record(kind, *nets.split("--")))


def planned(made: Clone, *arguments: str) -> list[str]:
    return [job for job in made.planned(*arguments) if job not in TABLES_AND_FIGURES]


def test_every_table_and_figure_is_there_and_a_second_run_has_nothing_to_do(measured):
    for name in BEYOND:
        stem = measured.folder / "results/tiny" / ("tables" if name in TABLES else "figures") / name
        for ending in (".csv", ".md") if name in TABLES else (".png",):
            assert stem.with_suffix(ending).stat().st_size > 200, name
    assert measured.planned("beyond") == []
    claims = pd.read_csv(measured.folder / "results/tiny/tables/beyond_claims.csv")
    assert claims["question"].nunique() == 7


def test_the_screen_shows_each_table_as_its_page_does(measured):
    for name in TABLES:
        screen = at_end([name], measured.folder / "results/tiny", {"cnn": "CNN"}, columns=1000).splitlines()
        page = (measured.folder / f"results/tiny/tables/{name}.md").read_text(encoding="utf-8").splitlines()
        for row in (line.split("|") for line in page if line.startswith("|") and "---" not in line):
            # numbers are read from the CSV, with ten digits, so that a trailing 5 may be rounded the other way
            words = [cell.strip() for cell in row if not re.search(r"\d[.e]|^\s*$", cell)]
            assert any(all(word in line for word in words) for line in screen), (name, row)


def test_nothing_beyond_the_paper_is_part_of_all(measured):
    jobs = planned(measured)
    assert not [job for job in jobs if job.startswith(("measure", "train"))]
    assert not TABLES_AND_FIGURES & {*measured.planned()}


def test_other_settings_make_one_measurement_again_and_train_nothing(measured):
    assert planned(measured, "beyond", "--config", "beyond={curves: {points: 7}}") == CURVES


def test_a_missing_net_of_an_earlier_epoch_is_trained_again_only_for_that_measurement(measured, tmp_path):
    made = measured.copy(tmp_path / "copy")
    net = made.folder / made.path("checkpoints", "train", "cnn-0")
    (net.parent / "during_training/0-1.safetensors").unlink()
    made.record("during_training", "cnn-0").unlink()
    made.record("by_layer", "cnn-1").unlink()
    assert planned(made, "by_layer") == ["measure by_layer cnn 1"]
    assert planned(made, "during_training") == ["measure during_training cnn 0", "train cnn 0"]
    made.makes("during_training")
    again, before = (record(of, "during_training", "cnn-0") for of in (made, measured))
    assert again["epochs"] == before["epochs"]


def test_records_name_what_was_measured(measured):
    during = record(measured, "during_training", "cnn-0")
    assert [of["epoch"] for of in during["epochs"]] == [0, 1, 3]
    last, flip = during["epochs"][-1], record(measured, "flip_merge", "cnn-0")
    assert (last["accuracy"], last["barrier"]) == (flip["accuracy"]["net"], flip["barrier"]["repaired"])
    assert [*last["equivariance_error"]] == [f"conv{i}" for i in range(1, 9)]
    layers = record(measured, "by_layer", "cnn-0")
    assert layers["barrier_up_to"]["classifier"] == pytest.approx(flip["barrier"]["repaired"], abs=0.03)
    assert [*layers["lie_rotation"]] == [*layers["lie_translation"]] == [*layers["barrier_up_to"]]
    merged = record(measured, "universe", "cnn-0--cnn-1--cnn-3")
    nets = [record(measured, "flip_merge", f"cnn-{i}")["accuracy"]["net"] for i in (0, 1, 3)]
    assert merged["accuracy"] == nets and merged["seeds"] == [0, 1, 3]
    assert merged["merged"]["3"]["mean"] == pytest.approx(sum(nets) / 3) and 0 <= merged["cycles"] <= 1
    curve = record(measured, "curves", "cnn-0")["curve"]
    assert curve["plain"]["accuracy"][2] == pytest.approx(flip["accuracy"]["halfway"], abs=0.011)
    errors = record(measured, "invariance_errors", "noaug-0")["invariance_error"]
    turned = record(measured, "symmetries", "noaug-0")
    assert errors["test"] == turned["symmetries"]["horizontal_flip"]["invariance_error"]
    assert len({*errors.values()}) == 3 and max(errors.values()) < 2 * min(errors.values())
    assert turned["inputs"]["source"] == "generated chiral shapes invariant to the quarter turn, seed 0"
    assert [*turned["symmetries"]] == ["horizontal_flip", "vertical_flip", "quarter_turn"]
    assert turned["symmetries"]["quarter_turn"]["order"] == 4
    pair = record(measured, "curves", "cnn-0--cnn-1")["curve"]["plain"]["accuracy"]
    flips = [record(measured, "flip_merge", f"cnn-{seed}") for seed in (0, 1)]
    assert [pair[0], pair[-1]] == [flip["accuracy"]["net"] for flip in flips]


def test_an_exact_gcnn_is_loaded_from_its_file_only_and_is_exact(measured):
    made = record(measured, "exact_gcnn", "cnn-0")
    data = {**made["settings"]["trained"][0]["data"]}
    test = images_to_test_on(measured.folder / "data/generated-400-200-0.safetensors", data, "images", CPU)
    path = measured.record("exact_gcnn", "cnn-0").relative_to(measured.folder).with_suffix(".safetensors")
    path = Path(measured.folder, str(path).replace("records", "checkpoints"))
    net = load(path, CPU)
    images = Images(test.images, 50)
    assert accuracy(net, images, test.labels) == made["accuracy"]["exact_fine_tuned"]
    assert net.free_parameters == made["parameters"]["exact"] < made["parameters"]["net"]
    assert invariance_error(net, images) < 1e-5 > made["invariance_error"]["exact"]
    assert made["invariance_error"]["net"] > 1e-3
    about = checkpoint.load(path)[1]
    permutations = {name: torch.tensor(of) for name, of in about["permutations"].items()}
    plain = net.to_plain()
    kernels = filters_and_matches(plain, HORIZONTAL_FLIP, channel_groups(plain), permutations)
    assert len(kernels) == 8 and all(torch.equal(*pair) for pair in kernels.values())
    assert made["kernel_constraint"] == 0
    before = torch.arange(3)  # the colour channels stay
    for name, after in zip(kernels, permutations.values(), strict=True):
        conv = plain.get_submodule(name)
        acts = [lambda x, by=by: HORIZONTAL_FLIP.act(x)[:, by] for by in (before, after)]
        assert difference_from_equivariant(conv, torch.randn(2, len(before), 8, 8), *acts) < 1e-5
        before = after
    assert {*made["accuracy"]} >= {"test_time", "fine_tuned_test_time", "from_scratch"}


def test_a_file_that_holds_no_exact_gcnn_is_refused(measured):
    path = measured.folder / measured.path("checkpoints", "train", "cnn-0")
    refused(lambda: load(path, CPU), match="doesn't hold an exact GCNN")


@pytest.fixture
def copied_net(measured, tmp_path):
    """A copy of a net's checkpoints and train record, and the other arguments of a `MergeJob`."""
    net, trained = measured.path("checkpoints", "train", "cnn-0"), measured.record("train", "cnn-0")
    shutil.copytree((measured.folder / net).parent, tmp_path / "checkpoints")
    shutil.copytree(trained.parent, tmp_path / "records")
    files = {
        "checkpoints": [tmp_path / "checkpoints/0.safetensors"], "trained": [tmp_path / "records/0.json"],
        "data": measured.folder / "data/generated-400-200-0.safetensors", "beside": tmp_path / "made",
    }  # fmt: skip
    settings = record(measured, "during_training", "cnn-0")["settings"]
    names = {"names": [("cnn", 0)], "settings": settings}
    return tmp_path, names | files | {"label": "images", "batch_size": 50, "device": CPU}


def test_a_net_of_an_earlier_epoch_that_its_record_does_not_name_is_refused(copied_net):
    folder, how = copied_net
    kept = folder / "checkpoints/during_training"
    shutil.copy(kept / "0-0.safetensors", kept / "0-1.safetensors")
    line = r"0-1\.safetensors isn't the net that the train record of cnn-0 names"
    refused(lambda: measure_record("during_training", MergeJob(**how)), match=line)


@pytest.mark.parametrize("learnt", ["diverged", "nothing"])
def test_only_a_mixture_that_learns_nothing_is_left_out(copied_net, measured, monkeypatch, learnt):
    def trained(net, recipe, job, name):
        if name == "mixture" and learnt == "diverged":
            return None
        if name == "mixture":
            for parameter in net.parameters():
                torch.nn.init.zeros_(parameter)
        return net.eval()

    monkeypatch.setattr(exact_gcnn, "trained", trained)
    settings = record(measured, "exact_gcnn", "cnn-0")["settings"]
    made = measure_record("exact_gcnn", MergeJob(**copied_net[1] | {"settings": settings}))
    assert made["accuracy"]["from_scratch"] is None and made["accuracy"]["exact_fine_tuned"] > 0
    assert by_net([made])["from_scratch"].isna().all()


def test_a_net_that_is_left_out_is_not_measured(copied_net):
    folder, how = copied_net
    path = folder / "records/0.json"
    write_record(path, load_record(path) | {"status": "diverged"})
    left_out = measure_record("during_training", MergeJob(**how))
    assert (left_out["status"], left_out["reason"]) == ("left_out", "cnn-0 is diverged")
    assert "epochs" not in left_out and during_training.by_epoch([left_out]).empty
