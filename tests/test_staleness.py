"""What is there and what is made again: no result lost, none mixed, none made twice for nothing."""

import copy
import hashlib
import json
import os
import re
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import MODELS, ROOT, Clone, config_of, latest_log, set_to_tiny, settings_of

from relusym import cifar10
from relusym.config.settings import Settings
from relusym.data import image_set
from relusym.errors import UserError
from relusym.records.files import load_record, write_record, write_trained
from relusym.records.fingerprint import differences, fingerprint
from relusym.records.results import Results
from relusym.whole_files import sha256

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
    write_record(path, load_record(path) | changes)


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


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A function that gives what is there of the demo in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda **changes: Results(settings(**changes))


def write_train(results, model="cnn", checkpoint="a" * 64, status="diverged", **inputs):
    """The record of a net, by the name that it is to have."""
    key = results.key("train", (model, 0))
    record = {
        **{"kind": "train", "status": status, "reason": "made up", "model": model, "seed": 0},
        **{"settings": results.jobs[key].settings, "inputs": inputs, "outputs": {"checkpoint": checkpoint}},
        **{"accuracy": None, "history": [], "cost": {}},
    }
    write_record(results.record(key), record)


def write_flip(results, checkpoint="a" * 64):
    """The record of a net's flip merge, and the filters beside it; its key."""
    key = results.key("flip_merge", ("cnn", 0))
    filters = Path(results.filters(key))
    filters.parent.mkdir(parents=True, exist_ok=True)
    filters.write_bytes(b"filters")
    record = {
        **{"kind": "flip_merge", "status": "left_out", "reason": "made up", "model": "cnn", "seed": 0},
        **{"settings": results.jobs[key].settings, "inputs": {"checkpoints": [checkpoint]}, "cost": {}},
        "outputs": {"filters": sha256(filters)},
    }
    write_record(results.record(key), record)
    return key


def test_other_settings_are_another_path_and_the_first_ones_are_still_there(results):
    assert not results().is_there(results().key("flip_merge", ("cnn", 0)))
    key = write_flip(results())
    assert results().is_there(key)
    other = results(training__batch_size=40)
    assert other.key("flip_merge", ("cnn", 0)) != key and not other.is_there(
        other.key("flip_merge", ("cnn", 0))
    )
    assert write_flip(other) != key
    assert results().is_there(key)


def test_a_merge_of_another_checkpoint_or_other_filters_is_not_there_and_keeps_its_file(results):
    key = write_flip(results())
    assert results().is_there(key)  # no train record says which checkpoint it should be
    write_train(results())
    assert results().is_there(key)
    folder = Path(results().record(key)).parent
    write_train(results(), checkpoint="b" * 64)
    before, now = (folder / "0.json").read_bytes(), results()
    assert not now.is_there(key) and now.record(key) == str(folder / "0.1.json")
    write_flip(results(), checkpoint="b" * 64)
    assert results().is_there(key) and (folder / "0.json").read_bytes() == before
    write_train(results())  # the first checkpoint again
    assert results().is_there(key) and results().record(key) == str(folder / "0.json")
    Path(results().filters(key)).write_bytes(b"another merge's")
    assert not results().is_there(key) and results().record(key) == str(folder / "0.2.json")
    Path(f"{results().folder}/filters/{key.partition('/')[2]}.safetensors").unlink()
    assert not results().is_there(key) and results().record(key) == str(folder / "0.json")


def test_a_net_whose_local_file_of_weights_has_changed_is_read_again(results):
    Path("net.pth").write_bytes(b"one")
    local = {"models__old__weights": {"file": "net.pth"}}
    key = results(**local).key("train", ("old", 0))
    write_train(results(**local), "old", files={"net.pth": sha256("net.pth")})
    assert results(**local).is_there(key)
    Path("net.pth").write_bytes(b"other")
    assert not results(**local).is_there(key)
    assert results(**local).record(key).endswith("/0.1.json")
    Path("net.pth").unlink()
    assert results(**local).is_there(key)  # nothing to tell by


def test_weights_of_another_hash_than_their_address_ends_with_are_read_again_and_no_path_depends_on_it(
    results,
):
    def pinned(*ends):
        return results(models__old__weights={"urls": ["https://h/net.pth" + "".join(ends)]})

    key = pinned().key("train", ("old", 0))
    write_train(pinned(), "old", files={"net.pth": "a" * 64})
    assert pinned().is_there(key) and pinned("#sha256=", "A" * 64).is_there(key)
    assert pinned("#sha256=", "b" * 64).record(key).endswith("/0.1.json")
    assert pinned("#sha256=", "b" * 64).settings.models["old"].weights["urls"][0].endswith("b")


def test_a_net_that_could_not_be_had_is_tried_again(results):
    write_train(results(), status="absent")
    key = results().key("train", ("cnn", 0))
    assert not results().is_there(key) and results().record(key).endswith("/0.1.json")
    results_of_a_job = Results(settings(), retry=False)
    assert results_of_a_job.is_there(key)
    path = results().record(key)
    write_trained(path, load_record(path.replace("0.1", "0")) | {"status": "diverged"})
    assert [each.name for each in sorted(Path(path).parent.iterdir())] == ["0.1.json", "settings.json"]
    assert results().is_there(key)


def test_a_net_that_comes_out_the_same_keeps_its_record(results):
    write_train(results())
    path = results().record(results().key("train", ("cnn", 0)))
    before, record = Path(path).read_bytes(), load_record(path)
    write_trained(path, record | {"cost": {"seconds": 7.0}})
    assert Path(path).read_bytes() == before
    write_trained(path, record | {"outputs": {"checkpoint": "b" * 64}})
    assert load_record(path)["outputs"] == {"checkpoint": "b" * 64}


def test_a_record_under_another_ones_name_is_refused(results):
    key = write_flip(results())
    path = Path(results().record(key))
    shutil.copy(path, path.with_name("1.json"))
    now, other = results(), results().key("flip_merge", ("cnn", 1))
    assert now.is_there(other) and now.load(other) is None and now.is_there(key)  # nothing is written over it
    (line,) = now.broken.values()
    assert re.search(r"1\.json is of flip_merge/cnn-\w{8}/0, not of flip_merge/cnn-\w{8}/1", line)


def test_a_key_at_its_default_changes_no_path_and_an_absent_one_means_it():
    wanted = settings().train("cnn")
    for section, key in (("training", "optimizer"), ("training", "processes"), ("network", "group_convs")):
        old = copy.deepcopy(wanted)
        del old[section][key]
        assert fingerprint(old) == fingerprint(wanted) and not [*differences(old, wanted)]
        assert not [*differences(wanted, old)]
    del old["symmetry"]
    assert fingerprint(old) == fingerprint(wanted)
    other = settings(symmetry="vertical_flip").train("cnn")
    assert [*differences(old, other)] == ["symmetry"] and fingerprint(old) != fingerprint(other)
    merge = settings().pair_merge("cnn", "gcnn")
    del merge["merging"]["matching"]
    assert fingerprint(merge) == fingerprint(settings().pair_merge("cnn", "gcnn"))


def test_numbers_are_told_apart_by_value_and_settings_of_earlier_stages_count():
    assert fingerprint({"network": {"width": 1}}) == fingerprint({"network": {"width": 1.0}})
    assert fingerprint({"network": {"width": 1}}) != fingerprint({"network": {"width": 0.5}})
    assert fingerprint({"start": {"symmetry": "horizontal_flip"}}) == fingerprint({"start": {}})
    assert fingerprint({"start": {"symmetry": "vertical_flip"}}) != fingerprint({"start": {}})
    assert fingerprint({"a": True}) != fingerprint({"a": 1})


def test_the_committed_records_have_their_fingerprints():
    """Which hold for good: a record whose path changed would be made again."""
    folders = [*(ROOT / "results").glob("*/records/*/*")]
    assert len(folders) > 100
    for folder in folders:
        made_with = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        assert folder.name.rpartition("-")[2] == fingerprint(made_with), folder


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
    def line_on(source, digest, **config):
        results = Results(
            settings(scale="laptop", **config), str(tmp_path / "results"), str(tmp_path / "data")
        )
        record = {"inputs": {"source": source, "data": digest}}
        path = results.record(results.key("train", ("cnn", 0)))
        monkeypatch.setattr(results, "images_in_use", lambda prepared: (digest, path))
        monkeypatch.setattr(results, "load", lambda key: record)
        return results.other_images(results.prepared("cnn"))

    other = "0" * 64
    assert line_on("my copy", cifar10.DIGEST) is None and line_on("CIFAR10", cifar10.DIGEST) is None
    assert "other images (CIFAR10?) than this config names (CIFAR10)" in line_on("CIFAR10", other)
    for source in ("binary", "python", "folder"):
        assert line_on("CIFAR10", other, cifar10__source=source) is None  # they may be those
        line = line_on("CIFAR10 as JPEG", other, cifar10__source=source)
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
    record = committed.record("flip_merge", "cnn-0")
    before = load_record(record)
    run = committed.snakemake("-R", "flip_merge", "--", str(record.relative_to(committed.folder)))
    assert run.returncode == 0, run.stdout
    after = load_record(record)
    assert after["cost"] != before["cost"] and after["barrier"] == before["barrier"]
    assert Path(committed.folder, committed.path("checkpoints", "train", "cnn-0")).exists()
    assert not Path(committed.folder, committed.path("checkpoints", "train", "gcnn-0")).exists()


def other_images(path):
    def split(seed):
        random = torch.Generator().manual_seed(seed)
        images = torch.randint(256, (400 if seed else 200, 32, 32, 3), generator=random, dtype=torch.uint8)
        return image_set.ImageSet(images, torch.arange(len(images)) % 10, tuple("abcdefghij"))

    path.parent.mkdir(exist_ok=True)
    image_set.save(path, split(1), split(0))


def test_a_run_on_other_images_than_its_records_are_of_ends_in_one_line_before_any_job(committed):
    committed.record("train", "cnn-0").unlink()
    other_images(committed.folder / "data/generated-400-200-0.safetensors")
    before = kept(committed.folder)
    line = "were made from other images"
    assert committed.snakemake("--dry-run").stdout.count(line) == 1
    run = committed.snakemake()
    assert run.returncode != 0 and kept(committed.folder) == before
    (error,) = [text for text in run.stdout.splitlines() if line in text and text.startswith("error: ")]
    assert "move results/tiny away" in error and "\nrule train:" not in latest_log(committed.folder)


def test_before_images_are_prepared_records_are_told_apart_by_their_label(committed):
    for path in (committed.folder / RESULT / "records").glob("*/*/[0-9]*.json"):
        record = load_record(path)
        if record.get("inputs", {}).get("source"):
            change(path, inputs=record["inputs"] | {"source": "my own"})
    run = committed.snakemake("--dry-run", "table2")
    assert run.returncode == 0 and "made from other images (my own)" in run.stdout
    assert committed.snakemake("table2").returncode == 0  # nothing is mixed
    committed.record("train", "cnn-0").unlink()
    run = committed.snakemake("table2")
    assert run.returncode != 0 and "(my own)" in run.stdout
    log = latest_log(committed.folder)
    assert re.search(r"^train +1$", log, re.MULTILINE) and "\nrule train:" not in log  # planned, not begun


def test_a_job_refuses_other_images_than_the_records_beside_it_are_of(committed):
    """As when they have been prepared in this very run, under the label of the others."""
    path = committed.folder / "data/generated-400-200-0.safetensors"
    committed.record("train", "cnn-0").unlink()
    results = Results(Settings.of(config_of(committed.folder), [committed.folder / "scales"]))
    record = committed.record("train", "gcnn-0")
    other_images(path)
    from relusym.measuring.loading import digest_in_use

    with pytest.raises(UserError, match=r"holds other images than record .*gcnn-\w{8}/0\.json"):
        digest_in_use(path, (load_record(record)["inputs"]["data"], str(record)))
    assert results.settings.label("cnn") == load_record(record)["inputs"]["source"]


def test_a_table_never_averages_over_two_sets_of_images(committed):
    record = committed.record("train", "cnn-0")
    before = (committed.folder / RESULT / "tables/table2.csv").read_bytes()
    change(record, inputs=load_record(record)["inputs"] | {"data": "0" * 64})
    run = committed.snakemake("table2")
    assert run.returncode != 0 and "was made from" in run.stdout
    assert (committed.folder / RESULT / "tables/table2.csv").read_bytes() == before


def test_a_merge_of_another_checkpoint_than_its_train_record_names_is_made_again(copied):
    path = copied.record("flip_merge", "gcnn-0")
    change(path, inputs=load_record(path)["inputs"] | {"checkpoints": ["0" * 64]})
    jobs = [job for job in copied.planned("table2") if job != "table2"]
    assert jobs == ["flip_merge gcnn 0"]


def test_pieces_that_were_copied_together_with_old_times_are_all_in_the_table(committed):
    records = committed.folder / RESULT / "records"
    piece = [path for kind in ("train", "flip_merge") for path in (records / kind).glob("*/1.json")]
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
    assert committed.snakemake("table2", "--config", "seeds=0").returncode == 0  # of all that is there
    assert (pd.read_csv(table).eval("n + left_out") == 2).all() and committed.planned("table2") == []


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
    for note in (committed.folder / RESULT / "notes").iterdir():
        note.rename(note.with_name(note.name.replace(note.stem[-4:], "0000")))  # as after other code
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
    path = copied.folder / copied.path("checkpoints", "train", "cnn-0")
    if what == "another seed's":
        shutil.copy(path.with_name("1.safetensors"), path)
    else:
        flip_byte(path, -5)
    record = copied.record("flip_merge", "cnn-0")
    before = record.read_bytes()
    run = copied.snakemake("-R", "flip_merge", "--", copied.path("records", "flip_merge", "cnn-0"))
    assert run.returncode != 0 and record.read_bytes() == before
    assert f"checkpoint {path.relative_to(copied.folder)} isn't the one that" in run.stdout


@pytest.mark.parametrize("time", [2e9, 4.07e9], ids=["2033", "2099"])
def test_clocks_decide_nothing(copied, time):
    set_times(copied.folder, time)
    assert copied.planned() == []
    jobs = copied.planned("--config", "training={batch_size: 20}")
    assert {"train cnn 0", "flip_merge cnn 0", "pair_merge cnn 0 gcnn 0", "table2"} <= {*jobs}
    assert not any(job.startswith("prepare_data") for job in jobs)
    copied.record("pair_merge", "gcnn-0", "gcnn-1").unlink()
    jobs = copied.planned()
    assert "pair_merge gcnn 0 gcnn 1" in jobs and "table4" in jobs
    assert not any(job.startswith("train") for job in jobs)


def test_what_was_there_stays_until_its_successor_is_whole(copied):
    """A changed setting, and a run that fails: record and checkpoint of the old setting are as they were."""
    parts = [f"{RESULT}/{part}" for part in ("records", "checkpoints", "filters", "tables")]
    before = files_of(copied.folder, *parts)
    flip_byte(copied.folder / "data/generated-400-200-0.safetensors", -5)
    run = copied.snakemake("--config", "training={batch_size: 20}")
    line = "data/generated-400-200-0.safetensors isn't what was prepared"
    assert run.returncode != 0 and line in run.stdout
    after = files_of(copied.folder, *parts)
    assert {path: after.get(path) for path in before} == before


def test_a_table_that_fails_leaves_its_older_files(committed):
    before = files_of(committed.folder, f"{RESULT}/tables")
    path = committed.record("flip_merge", "cnn-0")
    record = load_record(path)
    assert record["status"] == "ok"
    path.write_text(json.dumps(record | {"invariance_error": None}))
    run = committed.snakemake("table2")
    assert run.returncode != 0 and "lacks a number in 'invariance_error'" in run.stdout
    assert files_of(committed.folder, f"{RESULT}/tables") == before


def test_the_same_records_give_the_same_bytes(committed):
    parts = [f"{RESULT}/{part}" for part in ("tables", "figures", "notes")]
    before = files_of(committed.folder, *parts)
    shutil.rmtree(committed.folder / parts[1])  # of tables, it is held of those of `laptop`
    run = committed.snakemake()
    assert run.returncode == 0, run.stdout
    after = files_of(committed.folder, *parts)
    assert after == before


# ---- another setting and back, dates, forced jobs, parts, other folders


def test_another_setting_and_back_again_finds_the_first_results(committed):
    record = committed.path_of_statement("lemma_e_1")
    before = record.read_bytes()
    other = "theory={draws: {lemma_e_1: 201}}"
    assert committed.planned("theory", "--config", other) == ["lemma_e_1", "theory"]
    assert committed.snakemake("theory", "--config", other).returncode == 0
    assert record.read_bytes() == before
    assert committed.planned("theory") == ["theory"]  # the table shows the others
    assert committed.snakemake("theory").returncode == 0
    assert committed.planned("theory") == []
    assert committed.planned("theory", "--config", other) == ["theory"]


@pytest.mark.parametrize("time", [1e9, 4e9], ids=["older", "in the future"])
def test_a_record_of_another_date_outdates_nothing(committed, time):
    for path in (committed.record("train", "cnn-0"), committed.record("flip_merge", "gcnn-1")):
        os.utime(path, (time, time))
    assert committed.planned() == []


def test_a_net_made_on_images_of_the_future_is_kept(copied):
    """Snakemake deletes what is older than what it was made from."""
    set_times(copied.folder / "data", time.time() + 600)
    Path(copied.folder, copied.path("checkpoints", "train", "cnn-0")).unlink()
    copied.record("train", "cnn-0").unlink()
    assert copied.planned("table2") == ["table2", "train cnn 0"]
    run = copied.snakemake("table2")
    assert run.returncode == 0, run.stdout
    assert copied.record("train", "cnn-0").exists() and copied.planned("table2") == []


def test_a_record_whose_checkpoint_is_there_is_made_again_alone(copied):
    copied.record("train", "cnn-0").unlink()
    assert copied.planned("table2") == ["table2", "train cnn 0"]


def test_a_net_that_is_trained_again_for_a_merge_outdates_no_other(committed):
    committed.record("pair_merge", "cnn-0", "gcnn-0").unlink()
    assert committed.snakemake("table4").returncode == 0
    jobs = committed.planned()
    assert not any(job.startswith(("train ", "flip_merge ", "pair_merge ", "prepare_data")) for job in jobs)
    assert "table2" not in jobs and "table1" not in jobs  # its record is as it was


def test_a_file_of_a_table_of_an_earlier_state_names_the_target_that_makes_it_again(committed):
    table = f"{RESULT}/tables/table2.csv"
    assert committed.planned(table) == []
    run = committed.snakemake("--dry-run", table, "--config", "training={batch_size: 20}")
    assert run.returncode != 0 and f"error: {table} shows an earlier state; its target table2" in run.stdout


def test_a_report_of_a_part_of_a_run_shows_that_part(committed, tmp_path):
    tables = committed.folder / RESULT / "tables"
    for path in [*tables.glob("table4*"), *tables.glob("claims*")]:
        path.unlink()
    report = tmp_path / "report.html"
    run = committed.snakemake("--report", str(report))
    assert run.returncode == 0, run.stdout
    assert "tables/table2.html" in report.read_text(encoding="utf-8")


def test_the_summary_says_of_no_file_that_it_is_out_of_date(finished):
    run = finished.snakemake("--summary")
    lines = [line.split("\t") for line in run.stdout.splitlines() if line.startswith(RESULT)]
    assert len(lines) > 50 and {line[-1] for line in lines} == {"no update"}


def test_a_second_run_has_nothing_to_do_by_any_trigger_of_snakemake(finished):
    assert finished.planned() == []
    assert finished.planned("--rerun-triggers", "mtime", "params", "input", "code", "software-env") == []


def test_a_checkout_whose_path_has_a_space_and_braces(tmp_path):
    made = set_to_tiny(Clone(tmp_path / "a b{b}"))
    run = made.snakemake("lemma_2_2", "figure10")
    assert run.returncode == 0, run.stdout
    assert made.path_of_statement("lemma_2_2").exists() and made.planned("lemma_2_2", "figure10") == []


def test_a_checkout_with_another_library_than_the_installed_one_says_so(tiny):
    made = tiny()
    path = made.folder / "workflow_scripts/relusym/symmetry.py"
    path.write_text(path.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
    run = made.snakemake("--dry-run")
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("error: ")]
    assert run.returncode != 0 and "this Snakefile needs the one beside it: pip install --editable" in line


def test_without_snakemakes_inside_the_same_is_planned_and_done(committed, monkeypatch):
    monkeypatch.setenv("RELUSYM_PUBLIC", "1")
    assert committed.planned() == []
    committed.record("flip_merge", "gcnn-1").unlink()
    jobs = committed.planned("table2")
    assert jobs == ["flip_merge gcnn 1", "prepare_data generated-400-200-0", "table2", "train gcnn 1"]
    run = committed.snakemake("table2")
    assert run.returncode == 0, run.stdout
    assert committed.planned("table2") == []
