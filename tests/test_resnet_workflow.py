from collections import Counter

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, scale_of, settings_of
from records import MEASURED

from relusym import paper_values
from relusym.checkpoint import load_arrays
from relusym.records.files import load_record

ROWS = ("old", "simsiam_odd")


def merges(clone):
    return [load_record(clone.record("flip_merge", f"{row}-0")) for row in ROWS]


def test_table_5_has_every_measured_column_of_every_row_and_table_3_its_part(finished):
    folder = finished.folder / "results" / "tiny" / "tables"
    five, three = (pd.read_csv(folder / f"table{number}.csv") for number in (5, 3))
    known = merges(finished)
    ok = [record["model"] for record in known if record["status"] == "ok"]
    assert len(known) == 2 and "old" in ok and five["method"].tolist() == ok
    assert five[MEASURED].notna().all(axis=None) and five["paper_gcnn_barrier"].notna().all()
    assert three["method"].tolist() == ["old"]
    pd.testing.assert_frame_equal(three, five[five["method"] == "old"].reset_index(drop=True))


def test_figure_9_is_drawn_from_small_arrays_without_a_checkpoint(finished, committed):
    figures = finished.folder / "results" / "tiny" / "figures"
    assert (figures / "figure9.png").read_bytes().startswith(b"\x89PNG")
    arrays, about = load_arrays(finished.folder / finished.path("filters", "flip_merge", "old-0"))
    assert arrays["conv1"].shape == (2, 8, 3, 7, 7) and about["status"] == "ok"
    stream = merges(finished)[0]["permutations"]["layer1.0.conv2"]
    filters, matches = arrays["conv1"]  # the stem writes to the first blocks' residual stream
    assert np.array_equal(matches, filters[stream][..., ::-1])
    (committed.folder / "results" / "tiny" / "figures" / "figure9.png").unlink()
    assert committed.planned("figure9") == ["figure9"]


def test_at_the_even_size_the_flipped_net_is_another_and_at_the_odd_one_it_is_not(finished):
    for record in merges(finished):
        if record["status"] == "ok":
            difference = record["checks"]["flipped_net_on_flipped_images"]
            assert difference > 1e-2 if record["model"] == "old" else difference < 1e-4


NOTICE = (
    "notice: ImageNet is not at data/imagenet/train: set imagenet.root to the folder with train/ and val/; "
)
NOTICE += "until then the rows of Tables 3 and 5 are left out"


def with_imagenet(folder):
    """Folders as ImageNet has them, and what names them on the command line."""
    for split in ("train", "val"):
        (folder / split).mkdir()
    return f"imagenet={{root: {folder}}}"


def test_at_the_paper_scale_a_dry_run_lists_every_job_of_all_ten_rows_and_names_the_key(clone, tmp_path):
    fresh = clone()
    run = fresh.snakemake("--dry-run", "table3", "table5", "--config", "scale=paper")
    assert [line for line in run.stdout.splitlines() if "ImageNet" in line] == [NOTICE]
    assert fresh.planned("table3", "table5", "--config", "scale=paper") == ["table3", "table5"]
    config = ("--config", "scale=paper", with_imagenet(tmp_path))
    rows = set(paper_values.table(5)["method"])
    # the paper names no source of BYOL's weights
    jobs = fresh.planned("table3", "table5", *config)
    rules = Counter(job.split()[0] for job in jobs)
    assert {job.split()[1] for job in jobs if job.startswith("flip_merge")} == rows - {"byol"}
    assert rules["flip_merge"] == 9 and rules["train"] == 9 + 1 and rules["weights"] == 5
    assert rules["prepare_data"] == 2 and rules["table3"] == rules["table5"] == 1
    (tmp_path / "byol.pth").touch()
    file = f"models={{byol: {{weights: {{file: {tmp_path}/byol.pth}}}}}}"
    rules = Counter(job.split()[0] for job in fresh.planned("table3", "table5", *config, file))
    assert rules["flip_merge"] == 10 and rules["train"] == 10 + 1 and rules["weights"] == 6
    variant = ", ".join(f"{row}: {{data: {{resize: 232}}}}" for row in rows)
    variant = f"models={{{variant}}}"
    prepared = [job for job in fresh.planned("table5", *config, variant) if job.startswith("prepare_data")]
    assert len(prepared) == 2 and all("-232-22" in job and job.endswith("-5000-0") for job in prepared)


def test_what_is_not_at_hand_is_left_out_with_its_reason_and_tried_again(clone, tmp_path):
    fresh = clone()
    given = scale_of(fresh.folder, "paper")["models"]
    models = {row: model for row, model in given.items() if model.get("table") != "table5"}
    models |= {row: given[row] for row in ("torchvision_old_inv", "byol")}
    fresh.configure(scale="paper", device="cpu", models=models, figure9=None)
    run = fresh.snakemake("table3", "table5")
    assert run.returncode == 0, run.stdout
    tables = fresh.folder / "results" / "paper" / "tables"
    notes = (tables / "table5.md").read_text(encoding="utf-8")
    assert "- BYOL is left out: ImageNet is not at data/imagenet/train: set imagenet.root" in notes
    assert len(pd.read_csv(tables / "table5.csv")) == 0
    (tmp_path / "byol.pth").touch()
    byol = f"models={{byol: {{weights: {{file: {tmp_path}/byol.pth}}}}}}"
    jobs = fresh.planned("table5", "--config", with_imagenet(tmp_path), byol)
    assert "train torchvision_old_inv 0" in jobs and "flip_merge byol 0" in jobs
    again = fresh.snakemake("table5")
    assert "Nothing to be done" in again.stdout, again.stdout  # for the same reason


def test_a_net_whose_download_fails_is_left_out_with_its_reason_and_so_is_its_merge(clone):
    fresh = clone()
    given = scale_of(fresh.folder, "demo")["models"]
    models = {row: model for row, model in given.items() if model.get("table") != "table5"}
    models["gone"] = given["old"] | {"weights": {"urls": ["http://127.0.0.1:9/gone.pth"]}}
    fresh.configure(scale="demo", models=models, figure9=None)
    run = fresh.snakemake("table5")
    assert run.returncode == 0, run.stdout
    results = fresh.folder / "results" / "demo"
    merge = load_record(fresh.record("flip_merge", "gone-0", scale="demo"))
    assert (merge["status"], merge["reason"]) == ("left_out", "gone-0 is absent")
    notes = (results / "tables" / "table5.md").read_text(encoding="utf-8")
    assert "http://127.0.0.1:9/gone.pth can't be downloaded" in notes


@pytest.fixture
def paper():
    return scale_of(ROOT, "paper")


def test_the_papers_ten_rows_ship_and_table_3_is_seven_of_them(paper):
    settings, five = settings_of(paper, "paper"), paper_values.table(5)
    assert settings.table("table5") == five["method"].tolist()
    assert settings.in_table3 == five[five["in_table3"] == "yes"]["method"].tolist()
    for _, row in five.iterrows():
        shown = settings.shown(row["method"])
        assert shown["image_size"] == row["image_size"] and shown["paper"] == row["method"]
        for flag in ("trained_by_authors", "self_supervised"):
            assert shown[flag] == (row[flag] == "yes")


def test_a_local_file_goes_before_any_other_source_and_makes_an_eleventh_row(paper, tmp_path):
    (tmp_path / "net.pth").touch()
    rows, file = paper["models"], str(tmp_path / "net.pth")
    rows["mine"] = rows["byol"] | {"name": "Mine", "weights": {"file": file}}
    rows["torchvision_old_inv"]["weights"] = {"file": file}
    rows["torchvision_old"]["weights"]["file"] = file
    imagenet = {"root": str(tmp_path)}
    with_imagenet(tmp_path)
    settings = settings_of(paper, "paper", imagenet=imagenet)
    reason = "no checkpoint is at hand: set models.byol.weights.file to a local file"
    assert settings.absent == {"byol": reason}
    rows["byol"]["weights"]["file"] = str(tmp_path / "none.pth")
    settings = settings_of(paper, "paper", imagenet=imagenet)
    assert len(settings.table("table5")) == 11
    for row in ("mine", "torchvision_old_inv", "torchvision_old"):
        assert settings.train(row)["weights"] == {"file": file, "layout": "auto"}
        assert settings.models[row].recipe == [] and settings.models[row].training_ids == [row]
    assert settings.models["torchvision_old_225"].recipe == ["training"]
    reason = f"the checkpoint {tmp_path}/none.pth is missing: set models.byol.weights.file"
    assert settings.absent == {"byol": reason}
    assert settings.paper_row("mine") is None and "mine" not in settings.in_table3
