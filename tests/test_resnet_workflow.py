"""Tables 3 and 5 as a workflow: what a run makes, what a later one does again, and what is left out with its reason."""

import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import yaml
from relusym.experiments.resnet_settings import ResNetSettings

from relusym import paper_values
from relusym.checkpoint import load_arrays
from relusym.errors import UserError
from relusym.experiments.settings import Settings
from relusym.records import read_record, write_record

RECIPE = {
    "epochs": 1,
    "batch_size": 40,
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 0.0005,
    "schedule": "cosine",
    "warmup_epochs": 0,
    "optimizer": "sgd",
    "sync_batch_norm": False,
}
TINY = {
    "dataset": "scale",
    "seed": 0,
    "network": {"block": "basic", "layers": [1, 1, 1, 1], "width": 0.125},
    "processes": 1,
    "restarts": 0,
    "workers": 0,
    "precision": "float32",
    "save_every": 1,
    "crop_padding": 2,
    "figure9": "old",
    "supervised": RECIPE | {"epochs": 5, "invariance_weight": 0.3},
    "pretraining": RECIPE | {"dimensions": 32, "bottleneck": 8},
    "linear": RECIPE | {"learning_rate": 1.0, "epochs": 3},
    "evaluation": {"resize": None, "images": 200, "invariance_images": 50, "batch_size": 100},
    "rows": {
        "old": {"source": "train", "recipe": "supervised", "image_size": 32, "paper": "torchvision_old"},
        "simsiam_odd": {"source": "train", "recipe": "simsiam", "image_size": 33, "paper": "simsiam_225"},
    },
}
TRAININGS = [
    "resnet_train old supervised",
    "resnet_train simsiam_odd linear",
    "resnet_train simsiam_odd pretraining",
]
MERGES = ["resnet_merge old", "resnet_merge simsiam_odd"]
DATA = "prepare_data generated-600-200-0"
MEASURED = [
    "invariance_error",
    "accuracy",
    "flip_accuracy",
    "halfway_accuracy_no_repair",
    "halfway_accuracy",
    "gcnn_barrier_no_repair",
    "gcnn_barrier",
]


def resnet_of(clone, scale="demo"):
    return yaml.safe_load((clone.folder / "config.yaml").read_text(encoding="utf-8"))["scales"][scale]


@pytest.fixture(scope="module")
def tiny(clone):
    """A function that makes a fresh clone whose scale `tiny` has two rows."""

    def make():
        made = clone()
        scale = resnet_of(made) | {"resnet": TINY}
        scale["data"] |= {"train_images": 600, "test_images": 200}
        made.configure(scale="tiny", device="cpu", scales={"tiny": scale})
        return made

    return make


@pytest.fixture(scope="module")
def finished(tiny):
    made = tiny()
    run = made.snakemake("table3", "table5", "figure9")
    assert run.returncode == 0, run.stdout
    return made


@pytest.fixture
def committed(finished, tiny):
    """A fresh clone with the finished run's committed results: no checkpoints, no data, times as git leaves them."""
    return finished.as_committed(tiny())


def records(clone):
    return clone.folder / "results" / "tiny" / "records"


def test_table_5_has_every_measured_column_of_every_row_and_table_3_its_part(finished):
    folder = finished.folder / "results" / "tiny" / "tables"
    five, three = (pd.read_csv(folder / f"table{number}.csv") for number in (5, 3))
    known = [read_record(path) for path in sorted((records(finished) / "resnet_merge").glob("*.json"))]
    ok = [record["row"] for record in known if record["status"] == "ok"]
    assert len(known) == 2 and "old" in ok
    assert five["method"].tolist() == ok
    assert five[MEASURED].notna().all(axis=None)
    assert five["paper_gcnn_barrier"].notna().all()
    assert three["method"].tolist() == ["old"]
    pd.testing.assert_frame_equal(three, five[five["method"] == "old"].reset_index(drop=True))


def test_figure_9_is_drawn_from_small_arrays_without_a_checkpoint(finished, committed):
    figures = finished.folder / "results" / "tiny" / "figures"
    assert (figures / "figure9.png").read_bytes().startswith(b"\x89PNG")
    assert (figures / "figure9.pdf").read_bytes().startswith(b"%PDF")
    arrays, about = load_arrays(finished.folder / "results" / "tiny" / "filters" / "resnet_old.safetensors")
    assert arrays["conv1"].shape == (2, 8, 3, 7, 7) and about["status"] == "ok"
    stream = read_record(records(finished) / "resnet_merge" / "old.json")["permutations"]["layer1.0.conv2"]
    filters, matches = arrays["conv1"]  # the stem writes to the first blocks' residual stream
    assert np.array_equal(matches, filters[stream][..., ::-1])
    (committed.folder / "results" / "tiny" / "figures" / "figure9.png").unlink()
    assert committed.planned("figure9") == ["figure9"]


def test_at_the_even_size_the_flipped_net_is_another_and_at_the_odd_one_it_is_not(finished):
    for record in (read_record(path) for path in (records(finished) / "resnet_merge").glob("*.json")):
        if record["status"] == "ok":
            difference = record["checks"]["flipped_net_on_flipped_images"]
            assert difference > 1e-2 if record["row"] == "old" else difference < 1e-4


def test_a_second_run_and_a_fresh_clone_have_nothing_to_train(finished, committed):
    assert finished.planned("table3", "table5") == []
    shutil.rmtree(committed.folder / "results" / "tiny" / "tables")
    assert committed.planned("table3", "table5") == ["table3", "table5"]


def test_a_missing_record_reruns_its_row_and_no_other(committed):
    (records(committed) / "resnet_merge" / "simsiam_odd.json").unlink()
    jobs = committed.planned("table3", "table5")
    assert jobs == sorted([DATA, MERGES[1], *TRAININGS[1:], "table3", "table5"])


def test_another_recipe_of_the_linear_layer_leaves_the_pretraining(finished):
    change = "scales={tiny: {resnet: {linear: {epochs: 5}}}}"
    jobs = finished.planned("table3", "table5", "--config", change)
    assert jobs == sorted([MERGES[1], TRAININGS[1], "table5"])


def test_other_images_to_match_on_measure_again_and_train_nothing(finished):
    change = "scales={tiny: {resnet: {evaluation: {images: 150}}}}"
    jobs = finished.planned("table3", "table5", "--config", change)
    assert jobs == sorted([*MERGES, "table3", "table5"])


def test_at_the_paper_scale_a_dry_run_lists_every_job_of_all_ten_rows_and_names_the_key(clone):
    fresh = clone()
    run = fresh.snakemake("--dry-run", "table3", "table5", "--config", "scale=paper")
    notices = [line for line in run.stdout.splitlines() if "ImageNet" in line]
    assert len(notices) == 1 and "set imagenet.root" in notices[0]
    jobs = fresh.planned("table3", "table5", "--config", "scale=paper")
    rules = Counter(job.split()[0] for job in jobs)
    assert rules["resnet_merge"] == 10 and rules["resnet_train"] == 5 and rules["resnet_weights"] == 6
    assert rules["prepare_imagenet"] == 2 and rules["table3"] == rules["table5"] == 1
    variant = "scales={paper: {resnet: {evaluation: {resize: 232}}}}"
    jobs = fresh.planned("table5", "--config", "scale=paper", variant)
    assert "prepare_imagenet 232 224 5000 0" in jobs and "prepare_imagenet 232 225 5000 0" in jobs


def test_what_is_not_at_hand_is_left_out_with_its_reason_and_tried_again(clone, tmp_path):
    fresh = clone()
    given = resnet_of(fresh, "paper")
    keep = {row: given["resnet"]["rows"][row] for row in ("torchvision_old_inv", "byol")}
    given["resnet"]["rows"] = keep
    fresh.configure(scale="paper", device="cpu", scales={"paper": given})
    run = fresh.snakemake("table3", "table5")
    assert run.returncode == 0, run.stdout
    tables = fresh.folder / "results" / "paper" / "tables"
    notes = (tables / "table5.md").read_text(encoding="utf-8")
    assert "- byol is left out: ImageNet is not at data/imagenet/train: set imagenet.root" in notes
    assert len(pd.read_csv(tables / "table5.csv")) == 0
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    jobs = fresh.planned("table5", "--config", f"imagenet={{root: {tmp_path}}}")
    assert "resnet_train torchvision_old_inv supervised" in jobs and "resnet_merge byol" in jobs
    again = fresh.snakemake("table5")
    assert "Nothing to be done" in again.stdout, again.stdout  # for the same reason


# ---- without Snakemake


@pytest.fixture
def paper(clone):
    config = yaml.safe_load((clone().folder / "config.yaml").read_text(encoding="utf-8"))
    return config | {"scale": "paper"}


def rows_of(config):
    return ResNetSettings.of(Settings.of(config))


def test_the_papers_ten_rows_ship_and_table_3_is_seven_of_them(paper):
    resnets, five = rows_of(paper), paper_values.table(5)
    assert list(resnets.rows) == five["method"].tolist()
    assert resnets.in_table3 == five[five["in_table3"] == "yes"]["method"].tolist()
    for _, row in five.iterrows():
        shown = resnets.shown(row["method"])
        assert shown["image_size"] == row["image_size"] and shown["paper"] == row["method"]
        for flag in ("trained_by_authors", "self_supervised"):
            assert shown[flag] == (row[flag] == "yes")


def test_a_local_file_goes_before_any_other_source_and_makes_an_eleventh_row(paper, tmp_path):
    (tmp_path / "net.pth").touch()
    rows = paper["scales"]["paper"]["resnet"]["rows"]
    rows["mine"] = {"source": "file", "file": str(tmp_path / "net.pth"), "image_size": 224}
    rows["torchvision_old_inv"]["file"] = str(tmp_path / "net.pth")
    rows["byol"]["file"] = str(tmp_path / "none.pth")
    paper["imagenet"]["root"] = str(tmp_path)
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    resnets = rows_of(paper)
    assert len(resnets.rows) == 11 and resnets.absent("mine") is None
    assert resnets.stages("torchvision_old_inv") == () and resnets.stages("torchvision_old_225") == (
        "supervised",
    )
    assert (
        resnets.absent("byol")
        == f"the checkpoint {tmp_path}/none.pth is missing: set scales.paper.resnet.rows.byol.file"
    )
    assert resnets.paper_row("mine") is None and "mine" not in resnets.in_table3


@pytest.mark.parametrize(
    ("key", "given", "told"),
    [
        ("rows.dino.urls", None, "rows.dino"),
        (
            "rows.old",
            {"source": "train", "image_size": 224},
            "rows.old: the source train needs the key 'recipe'",
        ),
        ("rows.byol.layout", "mine", "'mine' given; allowed is one of auto, plain, module"),
        ("rows.byol.paper", "boyl", "rows.byol.paper: the paper's Table 5 has no row 'boyl'"),
        ("rows.byol.sorce", "file", "unknown key 'sorce'"),
        ("processes", 3, "supervised.batch_size: 256 can't be shared evenly by 3 processes"),
        ("evaluation.resize", 200, "evaluation.resize: 200 given; a crop of 224 pixels"),
        ("supervised.schedule", "steps", "'steps' given; allowed is one of step, cosine, linear"),
    ],
)
def test_a_bad_setting_of_a_row_is_told_in_one_line(paper, key, given, told):
    at = paper["scales"]["paper"]["resnet"]
    *path, last = key.split(".")
    for part in path:
        at = at[part]
    at[last] = given
    with pytest.raises(UserError) as error:
        rows_of(paper)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_records_of_resnets_are_read_back_whole(tmp_path):
    write_record(tmp_path / "a.json", {"kind": "resnet_merge", "status": "ok", "row": "a"})
    with pytest.raises(UserError, match="lacks the field 'settings'"):
        read_record(tmp_path / "a.json")
