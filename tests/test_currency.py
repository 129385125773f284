"""What is current: no result lost, none mixed, none made twice for nothing."""

import copy
import hashlib
import json
import os
import re
import shutil

import pandas as pd
import pytest
import torch
from conftest import MODELS, ROOT, config_of, latest_log, settings_of

from relusym import cifar10
from relusym.config.settings import Settings
from relusym.data import image_set
from relusym.records.currency import difference, stale
from relusym.records.files import read_record, write_record
from relusym.records.results import Results

FLIPS = [f"flip_merge {model} {seed}" for model in MODELS for seed in (0, 1)]
FLIPS += ["flip_merge old 0", "flip_merge simsiam_odd 0"]
RESULT = "results/tiny"


def files_of(folder, *parts):
    """Every file below the parts of a folder, with the hash of its bytes."""
    found = [path for part in parts for path in (folder / part).rglob("*") if path.is_file()]
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def kept(folder):
    return files_of(folder, *(f"{RESULT}/{part}" for part in ("records", "filters", "tables", "figures")))


def set_times(folder, time):
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (time, time))


def change(path, **changes):
    write_record(path, read_record(path) | changes)


def flip_byte(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def settings(**changes):
    """Those of the scale `demo`, or another, with other values of keys."""
    run = {"cifar10": copy.deepcopy(config_of(ROOT)["cifar10"])}
    for key, value in changes.items():
        *path, last = key.split("__")
        at = run
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    return settings_of(**run)


# ---- one record, without Snakemake


def a_record(**changes):
    made = {
        "kind": "flip_merge",
        "status": "ok",
        "settings": settings().flip_merge("cnn"),
        "inputs": {"checkpoints": ["abc"]},
        "outputs": {"filters": "def"},
    }
    return made | changes


def reason(record, wanted=None, checkpoints=("abc",), filters="def"):
    return stale(record, wanted or settings().flip_merge("cnn"), checkpoints=checkpoints, filters=filters)


def test_a_record_made_with_the_wanted_settings_is_current():
    assert reason(a_record()) is None


def test_a_record_that_is_missing_or_of_other_settings_checkpoint_or_filters_says_so():
    other = settings(training__batch_size=40).flip_merge("cnn")
    assert reason(None) == "missing"
    assert reason(a_record(), other) == "made with another trained.0.training.batch_size"
    assert "another checkpoint" in reason(a_record(), checkpoints=["xyz"])
    assert reason(a_record(), checkpoints=[None]) is None  # no train record says which it should be
    assert "filters" in reason(a_record(), filters=None)
    assert "filters" in reason(a_record(), filters="xyz")


def test_a_net_whose_local_file_of_weights_has_changed_is_read_again():
    record = {"kind": "train", "status": "ok", "settings": {}, "inputs": {"files": {"net.pth": "abc"}}}
    assert stale(record, {}, weights={"net.pth": "abc"}) is None
    assert stale(record, {}, weights={"net.pth": "def"}) == "its file of weights net.pth has changed"


def test_a_net_that_could_not_be_had_is_tried_again():
    record = {"kind": "train", "status": "absent", "settings": {"a": 1}, "inputs": {}, "outputs": {}}
    assert stale(record, {"a": 1}) == "what it needs couldn't be had"


def test_a_key_that_is_absent_means_its_default_in_old_records_and_in_new_settings():
    wanted = settings().train("cnn")
    for section, key in (("training", "optimizer"), ("training", "processes"), ("network", "group_convs")):
        old = copy.deepcopy(wanted)
        del old[section][key]
        assert difference(old, wanted) is None and difference(wanted, old) is None
    del old["symmetry"]
    assert difference(old, wanted) is None
    assert difference(old, settings(symmetry="vertical_flip").train("cnn")) == "symmetry"
    merge = settings().pair_merge("cnn", "gcnn")
    del merge["merging"]["matching"]
    assert difference(merge, settings().pair_merge("cnn", "gcnn")) is None


@pytest.mark.parametrize(
    "key",
    [
        "training__save_every",
        "merging__batch_size",
        "models__simsiam_odd__merging__batch_size",
        "models__old__training__workers",
        "models__cnn__name",
        "models__cnn__description",
    ],
)
def test_what_does_not_change_a_result_is_no_part_of_its_settings(key):
    changed = settings(**{key: "other" if "name" in key or "desc" in key else 7})
    for model in ("cnn", "old", "simsiam_odd"):
        assert changed.train(model) == settings().train(model)
        assert changed.flip_merge(model) == settings().flip_merge(model)


def test_other_invariance_images_measure_again_and_train_nothing():
    changed = settings(merging__invariance_images=400)
    assert changed.train("cnn") == settings().train("cnn")  # nor does a training that was cut off start over
    assert changed.flip_merge("cnn") != settings().flip_merge("cnn")
    assert changed.pair_merge("cnn", "gcnn") == settings().pair_merge("cnn", "gcnn")


def test_the_weight_of_a_loss_that_is_off_changes_nothing():
    changed = settings(training__invariance_weight=0.7)
    assert changed.train("cnn") == settings().train("cnn")
    assert changed.train("cnn_inv") != settings().train("cnn_inv")


def test_images_of_another_source_are_prepared_anew_and_a_label_is_no_source():
    laptop = settings(scale="laptop")
    other = settings(scale="laptop", cifar10__root="elsewhere")
    folder = settings(scale="laptop", cifar10__source="folder")
    binary = settings(scale="laptop", cifar10__source="binary")
    names = {one.prepared("cnn") for one in (laptop, other, folder, binary)}
    assert len(names) == 4
    labelled = settings(scale="laptop", cifar10__label="my copy")
    assert labelled.prepared("cnn") == laptop.prepared("cnn") and labelled.label("cnn") == "my copy"


def test_images_that_are_not_prepared_yet_are_told_apart_by_label_but_torchvisions_by_what_they_are(
    tmp_path, monkeypatch
):
    def told(source, digest, **config):
        results = Results(
            settings(scale="laptop", **config), str(tmp_path / "results"), str(tmp_path / "data")
        )
        record = {"inputs": {"source": source, "data": digest}}
        monkeypatch.setattr(
            results, "images_in_use", lambda prepared: (digest, results.record("train", ("cnn", 0)))
        )
        monkeypatch.setattr(results, "read", lambda path: record)
        return results.other_images(results.prepared("cnn"))

    other = "0" * 64
    assert told("my copy", cifar10.DIGEST) is None and told("CIFAR10", cifar10.DIGEST) is None
    assert "other images (CIFAR10?) than this config names (CIFAR10)" in told("CIFAR10", other)
    for source in ("binary", "python", "folder"):
        assert told("CIFAR10", other, cifar10__source=source) is None  # they may be those
        line = told("CIFAR10 as JPEG", other, cifar10__source=source)
        assert "other images (CIFAR10 as JPEG) than this config names (CIFAR10)" in line


# ---- a whole scale


def test_what_does_not_change_a_result_outdates_no_job(copied):
    changes = "training={save_every: 2}", "merging={batch_size: 40}"
    assert copied.planned("--config", *changes) == []
    jobs = copied.planned("--config", "merging={invariance_images: 40}")
    assert set(FLIPS) <= set(jobs)
    assert not any(job.startswith(("train", "pair_merge", "prepare_data")) for job in jobs)


@pytest.mark.parametrize("forced", [["-R", "flip_merge"], ["-F", "table2"], ["--forceall"]])
def test_a_forced_run_in_a_fresh_clone_keeps_every_result_whatever_fails(committed, forced):
    before = kept(committed.folder)
    data = committed.folder / "data/generated-400-200-0.safetensors"
    data.parent.mkdir()
    data.write_bytes(b"torn")
    if forced == ["--forceall"]:  # the images as well are made again, so that something else has to fail
        checkpoints = committed.folder / RESULT / "checkpoints"
        checkpoints.write_bytes(b"no folder")
    run = committed.snakemake(*forced)
    assert run.returncode != 0
    after = kept(committed.folder)
    assert {path: after.get(path) for path in before} == before


def test_a_forced_run_in_a_fresh_clone_does_what_it_was_asked_for(committed):
    record = committed.folder / RESULT / "records/flip_merge/cnn-0.json"
    before = read_record(record)
    run = committed.snakemake("-R", "flip_merge", "--", str(record.relative_to(committed.folder)))
    assert run.returncode == 0, run.stdout
    after = read_record(record)
    assert after["cost"] != before["cost"] and after["barrier"] == before["barrier"]
    assert (committed.folder / RESULT / "checkpoints/cnn-0.safetensors").exists()
    assert not (committed.folder / RESULT / "checkpoints/gcnn-0.safetensors").exists()


def other_images(path):
    def split(seed):
        random = torch.Generator().manual_seed(seed)
        images = torch.randint(256, (400 if seed else 200, 32, 32, 3), generator=random, dtype=torch.uint8)
        return image_set.ImageSet(images, torch.arange(len(images)) % 10, tuple("abcdefghij"))

    path.parent.mkdir(exist_ok=True)
    image_set.save(path, split(1), split(0))


def test_a_run_on_other_images_than_its_records_are_of_ends_in_one_line_before_any_job(committed):
    (committed.folder / RESULT / "records/train/cnn-0.json").unlink()
    other_images(committed.folder / "data/generated-400-200-0.safetensors")
    before = kept(committed.folder)
    line = "were made from other images"
    assert committed.snakemake("--dry-run").stdout.count(line) == 1
    run = committed.snakemake()
    assert run.returncode != 0 and kept(committed.folder) == before
    (told,) = [text for text in run.stdout.splitlines() if line in text and text.startswith("error: ")]
    assert "move results/tiny away" in told and "\nrule train:" not in latest_log(committed.folder)


def test_before_images_are_prepared_records_are_told_apart_by_their_label(committed):
    for path in (committed.folder / RESULT / "records").glob("*/*.json"):
        record = read_record(path)
        if record.get("inputs", {}).get("source"):
            change(path, inputs=record["inputs"] | {"source": "my own"})
    run = committed.snakemake("--dry-run", "table2")
    assert run.returncode == 0 and "made from other images (my own)" in run.stdout
    assert committed.snakemake("table2").returncode == 0  # nothing is mixed
    (committed.folder / RESULT / "records/train/cnn-0.json").unlink()
    run = committed.snakemake("table2")
    assert run.returncode != 0 and "(my own)" in run.stdout
    log = latest_log(committed.folder)
    assert re.search(r"^train +1$", log, re.MULTILINE) and "\nrule train:" not in log  # planned, not begun


def test_a_job_refuses_other_images_than_the_records_beside_it_are_of(committed):
    """As when they have been prepared in this very run, under the label of the others."""
    path = committed.folder / "data/generated-400-200-0.safetensors"
    (committed.folder / RESULT / "records/train/cnn-0.json").unlink()
    results = Results(Settings.of(config_of(committed.folder), [committed.folder / "scales"]))
    record = next(path for path in (committed.folder / RESULT / "records/train").glob("gcnn-0.json"))
    other_images(path)
    from relusym.errors import UserError
    from relusym.measuring.loading import check_images

    with pytest.raises(UserError, match=r"holds other images than record .*gcnn-0\.json"):
        check_images(path, (read_record(record)["inputs"]["data"], str(record)))
    assert results.settings.label("cnn") == read_record(record)["inputs"]["source"]


def test_a_table_never_averages_over_two_sets_of_images(committed):
    record = committed.folder / RESULT / "records/train/cnn-0.json"
    before = (committed.folder / RESULT / "tables/table2.csv").read_bytes()
    change(record, inputs=read_record(record)["inputs"] | {"data": "0" * 64})
    run = committed.snakemake("table2")
    assert run.returncode != 0 and "was made from" in run.stdout
    assert (committed.folder / RESULT / "tables/table2.csv").read_bytes() == before


def test_a_merge_of_another_checkpoint_than_its_train_record_names_is_made_again(copied):
    path = copied.folder / RESULT / "records/flip_merge/gcnn-0.json"
    change(path, inputs=read_record(path)["inputs"] | {"checkpoints": ["0" * 64]})
    jobs = [job for job in copied.planned("table2") if job != "table2"]
    assert jobs == ["flip_merge gcnn 0"]


def test_pieces_that_were_copied_together_with_old_times_are_all_in_the_table(committed):
    records = committed.folder / RESULT / "records"
    piece = [path for kind in ("train", "flip_merge") for path in (records / kind).glob("*-1.json")]
    texts = {path: path.read_bytes() for path in piece}
    for path in piece:
        path.unlink()
    run = committed.snakemake("table2", "--config", "seeds=0")
    assert run.returncode == 0, run.stdout
    table = committed.folder / RESULT / "tables/table2.csv"
    assert (pd.read_csv(table).eval("n + left_out") == 1).all()
    for path, text in texts.items():
        path.write_bytes(text)
        os.utime(path, (1e9, 1e9))
    assert committed.planned("table2") == ["table2"]
    assert committed.snakemake("table2").returncode == 0
    assert (pd.read_csv(table).eval("n + left_out") == 2).all()


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("filters={zero_filter: 0.2}", {"zero_filters", "claims"}),
        ("models={cnn: {name: Plain net}}", {"table1", "table2", "table4", "figure4"}),
        ("models={cnn: {description: A net}}", {"table1"}),
        ("figure9=simsiam_odd", {"figure9"}),
        ("pairs=[[cnn, gcnn]]", {"table4", "comparison"}),
        ("models={old: null} figure9=simsiam_odd", {"table3", "table5", "figure9"}),
    ],
)
def test_tables_and_figures_show_the_present_config_and_nothing_is_measured_for_it(committed, given, shown):
    given = re.split(r" (?=\w+=)", given)
    jobs = set(committed.planned("--config", *given))
    assert shown <= jobs
    assert not any(job.startswith(("train ", "flip_merge ", "pair_merge ", "prepare_data")) for job in jobs)


def test_a_change_to_the_code_of_tables_makes_them_again_and_measures_nothing(committed):
    for note in (committed.folder / RESULT / "made_from").iterdir():
        first, *rest = note.read_text().splitlines(keepends=True)
        note.write_text("".join([first[:-2] + "x\n", *rest]))  # as after other code
    jobs = set(committed.planned())
    assert {"table1", "table2", "table4", "table5", "figure4", "claims"} <= jobs
    assert not any(job.startswith(("train ", "flip_merge ", "pair_merge ", "prepare_data")) for job in jobs)


def test_a_table_that_was_edited_by_hand_is_made_again(committed):
    table = committed.folder / RESULT / "tables/table2.csv"
    before = table.read_bytes()
    table.write_bytes(before.replace(b"cnn", b"CNN"))
    assert committed.planned("table2") == ["table2"]
    assert committed.snakemake("table2").returncode == 0 and table.read_bytes() == before


def test_a_start_writes_nothing(tiny):
    made = tiny()
    before = files_of(made.folder, ".")
    made.planned()
    after = files_of(made.folder, ".")
    assert {path for path in after if path not in before and path.parts[0] != ".snakemake"} == set()
    ours = [
        path for path in after if path.parts[0] == ".snakemake" and path.parts[1] not in ("log", "iocache")
    ]
    assert [path for path in ours if path.parts[1] not in ("locks", "metadata", "scripts")] == []


@pytest.mark.parametrize("what", ["another seed's", "changed in one byte"])
def test_a_checkpoint_that_its_record_does_not_name_is_refused_by_name(copied, what):
    checkpoints = copied.folder / RESULT / "checkpoints"
    path = checkpoints / "cnn-0.safetensors"
    if what == "another seed's":
        shutil.copy(checkpoints / "cnn-1.safetensors", path)
    else:
        flip_byte(path, -5)
    record = copied.folder / RESULT / "records/flip_merge/cnn-0.json"
    before = record.read_bytes()
    run = copied.snakemake("-R", "flip_merge", "--", f"{RESULT}/records/flip_merge/cnn-0.json")
    assert run.returncode != 0 and record.read_bytes() == before
    assert f"checkpoint {RESULT}/checkpoints/cnn-0.safetensors isn't the one that" in run.stdout


def test_prepared_images_that_have_changed_in_one_byte_are_refused_by_name(copied):
    flip_byte(copied.folder / "data/generated-400-200-0.safetensors", -5)
    run = copied.snakemake("-R", "flip_merge", "--", f"{RESULT}/records/flip_merge/cnn-0.json")
    assert run.returncode != 0
    assert "data/generated-400-200-0.safetensors isn't what was prepared" in run.stdout


@pytest.mark.parametrize("time", [2e9, 4.07e9], ids=["2033", "2099"])
def test_clocks_decide_nothing(copied, time):
    set_times(copied.folder, time)
    assert copied.planned() == []
    jobs = copied.planned("--config", "training={batch_size: 20}")
    assert "train cnn 0" in jobs and "flip_merge cnn 0" in jobs and "table2" in jobs
    (copied.folder / RESULT / "records/pair_merge/gcnn-0--gcnn-1.json").unlink()
    jobs = copied.planned()
    assert "pair_merge gcnn 0 gcnn 1" in jobs and "table4" in jobs
    assert not any(job.startswith("train") for job in jobs)


def test_what_was_there_stays_until_its_successor_is_whole(copied):
    """A changed setting, and a run that fails: record and checkpoint of the old setting are as they were."""
    parts = [f"{RESULT}/{part}" for part in ("records", "checkpoints", "filters", "tables")]
    before = files_of(copied.folder, *parts)
    flip_byte(copied.folder / "data/generated-400-200-0.safetensors", -5)
    run = copied.snakemake("--config", "training={batch_size: 20}")
    assert run.returncode != 0 and "isn't what was prepared" in run.stdout
    after = files_of(copied.folder, *parts)
    assert {path: after.get(path) for path in before} == before


def test_a_table_that_fails_leaves_its_older_files(committed):
    before = files_of(committed.folder, f"{RESULT}/tables")
    path = committed.folder / RESULT / "records/flip_merge/cnn-0.json"
    record = read_record(path)
    assert record["status"] == "ok"
    path.write_text(json.dumps(record | {"invariance_error": None}))
    run = committed.snakemake("table2")
    assert run.returncode != 0 and "lacks a number in 'invariance_error'" in run.stdout
    assert files_of(committed.folder, f"{RESULT}/tables") == before


def test_the_same_records_give_the_same_bytes_and_seconds_are_not_benchmarked(committed):
    parts = [f"{RESULT}/{part}" for part in ("tables", "figures", "made_from")]
    before = files_of(committed.folder, *parts)
    shutil.rmtree(committed.folder / parts[1])  # of tables, it is held of those of `laptop`
    run = committed.snakemake()
    assert run.returncode == 0, run.stdout
    after = files_of(committed.folder, *parts)
    assert after == before
    kinds = {path.name for path in (committed.folder / RESULT / "benchmarks").iterdir()}
    assert kinds == {"train", "flip_merge", "pair_merge"}
