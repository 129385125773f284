import copy
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import records
import torch
from conftest import ROOT, Clone, config_of, latest_log, refused, set_keys, set_to_tiny, settings_of

from relusym import cifar10
from relusym.config.models import OF_GENERATED
from relusym.config.sections import Data, Merging, Training
from relusym.data import image_set
from relusym.nets import ARCHITECTURES
from relusym.records.files import load_record, write_record, write_trained
from relusym.records.fingerprint import differences, fingerprint
from relusym.records.results import Results
from relusym.whole_files import sha256

RESULT, IMAGES = "results/tiny", "generated-400-200-0"


def files_of(folder, *parts):
    """The hash of every file below these parts of a folder."""
    paths = [path for part in parts for path in (folder / part).rglob("*") if path.is_file()]
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def kept(folder, *more):
    parts = "records", "filters", "tables", "figures", *more
    return files_of(folder, *(f"{RESULT}/{part}" for part in parts))


def change(path, **changes):
    write_record(path, load_record(path) | changes)


def flip_byte(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def settings(sections=None, **changes):
    """The settings of the scale `demo`, or another, or of one of these sections, with other values of keys."""
    run = {"cifar10": copy.deepcopy(config_of(ROOT)["cifar10"])}
    set_keys(run, {key.replace("__", "."): value for key, value in changes.items()})
    return settings_of(sections, **run)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A function that returns the demo's `Results` in an empty folder, with other values of keys."""
    monkeypatch.chdir(tmp_path)
    return lambda **changes: Results(settings(**changes))


def write_train(results, model="cnn", checkpoint="a" * 64, status="diverged", **inputs):
    """Write the record of a net at its path."""
    key = results.key("train", (model, 0))
    how = {"settings": results.jobs[key].settings, "inputs": inputs, "outputs": {"checkpoint": checkpoint}}
    write_record(results.record(key), records.train(model, 0, None, status, **how))


def write_flip(results, checkpoint="a" * 64):
    """The record of a net's flip merge, and the filters beside it; its key."""
    key = results.key("flip_merge", ("cnn", 0))
    filters = Path(results.filters(key))
    filters.parent.mkdir(parents=True, exist_ok=True)
    filters.write_bytes(b"filters")
    how = {"settings": results.jobs[key].settings, "inputs": {"checkpoints": [checkpoint]}}
    how |= {"outputs": {"filters": sha256(filters)}}
    write_record(results.record(key), records.flip("cnn", 0, status="left_out") | how)
    return key


def test_other_settings_are_another_path_and_the_first_ones_are_still_there(results):
    assert not results().is_there(results().key("flip_merge", ("cnn", 0)))
    key, other = write_flip(results()), results(training__batch_size=40)
    assert results().is_there(key) and not other.is_there(other.key("flip_merge", ("cnn", 0)))
    assert write_flip(other) == other.key("flip_merge", ("cnn", 0)) != key and results().is_there(key)


def test_a_merge_of_another_checkpoint_or_other_filters_is_not_there_and_keeps_its_file(results):
    key = write_flip(results())
    assert results().is_there(key)  # without a train record, any checkpoint is accepted
    write_train(results())
    assert results().is_there(key)
    folder = Path(results().record(key)).parent
    write_train(results(), checkpoint="b" * 64)
    before, now = (folder / "0.json").read_bytes(), results()
    assert not now.is_there(key) and now.record(key) == str(folder / "0.1.json")
    write_flip(results(), checkpoint="b" * 64)
    assert results().is_there(key) and (folder / "0.json").read_bytes() == before
    write_train(results())  # with the first checkpoint again
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
    assert not results(**local).is_there(key) and results(**local).record(key).endswith("/0.1.json")
    Path("net.pth").unlink()
    assert results(**local).is_there(key)  # without the file, there is nothing to compare with


def test_weights_of_another_hash_than_their_address_has_are_read_again_and_no_path_depends_on_it(results):
    def pinned(*ends):
        return results(models__old__weights={"urls": ["https://h/net.pth" + "".join(ends)]})

    key = pinned().key("train", ("old", 0))
    write_train(pinned(), "old", files={"net.pth": "a" * 64})
    assert pinned().is_there(key) and pinned("#sha256=", "A" * 64).is_there(key)
    assert pinned("#sha256=", "b" * 64).record(key).endswith("/0.1.json")
    assert pinned("#sha256=", "b" * 64).settings.models["old"].weights["urls"][0].endswith("b")


def test_a_net_that_was_unavailable_is_tried_again(results):
    write_train(results(), status="absent")
    key = results().key("train", ("cnn", 0))
    assert not results().is_there(key) and results().record(key).endswith("/0.1.json")
    assert Results(settings(), retry=False).is_there(key)
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


def test_a_record_under_another_records_name_is_refused(results):
    key = write_flip(results())
    path = Path(results().record(key))
    shutil.copy(path, path.with_name("1.json"))
    now, other = results(), results().key("flip_merge", ("cnn", 1))
    assert now.is_there(other) and now.load(other) is None and now.is_there(key)  # it isn't overwritten
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
    assert [name for name, *_ in differences(old, other)] == ["symmetry"]
    assert fingerprint(old) != fingerprint(other)
    merge = settings().pair_merge("cnn", "gcnn")
    del merge["merging"]["matching"]
    assert fingerprint(merge) == fingerprint(settings().pair_merge("cnn", "gcnn"))


BARE = {
    "seeds": 0,
    "data": {"dataset": "cifar10"},
    "training": {"epochs": 2, "batch_size": 9, "learning_rate": 0.1},
    "models": {"cnn": {}, "old": {"network": {"architecture": "cifar_resnet"}}},
}
OPTIONS = {"vgg11": "network", "cifar_resnet": "models__old__network"}
SECTIONS = {"data": Data, "training": Training, "merging": Merging} | {
    place: ARCHITECTURES[name].options for name, place in OPTIONS.items()
}
WRITTEN_OUT = [
    (f"{place}__{key}", field.default)
    for place, section in SECTIONS.items()
    for key, field in section.model_fields.items()
    if not field.is_required() and key != "dataset" and key not in OF_GENERATED
]


def test_writing_out_a_default_changes_no_path():
    def keys(**changes):
        return {*Results(settings(BARE, **changes)).jobs}

    left_out = keys()
    assert len(WRITTEN_OUT) > 30
    for key, default in WRITTEN_OUT:
        assert keys(**{key: default}) == left_out, key


def test_numbers_are_distinguished_by_value_and_settings_of_earlier_stages_count():
    assert fingerprint({"network": {"width": 1}}) == fingerprint({"network": {"width": 1.0}})
    assert fingerprint({"network": {"width": 1}}) != fingerprint({"network": {"width": 0.5}})
    assert fingerprint({"start": {"symmetry": "horizontal_flip"}}) == fingerprint({"start": {}})
    assert fingerprint({"start": {"symmetry": "vertical_flip"}}) != fingerprint({"start": {}})
    assert fingerprint({"a": True}) != fingerprint({"a": 1})


def test_the_committed_records_have_their_fingerprints():
    folders = [*(ROOT / "results").glob("*/records/*/*")]
    assert len(folders) > 100
    for folder in folders:
        made_with = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        assert folder.name.rpartition("-")[2] == fingerprint(made_with), folder


FLIPPED = {f"flip_merge {model}" for model in ("cnn", "old", "simsiam_odd")}
JOBS = {
    *FLIPPED, "pair_merge cnn gcnn", *(job.replace("flip_merge", "train") for job in FLIPPED),
    "train cnn_inv",
}  # fmt: skip
CHANGED = {  # key → a value, and the jobs whose results it changes
    **dict.fromkeys(("training__save_every", "merging__batch_size", "models__old__training__workers"),
     (7, set())), "models__simsiam_odd__merging__batch_size": (7, set()),
    **dict.fromkeys(("models__cnn__name", "models__cnn__description"), ("other", set())),
    "merging__invariance_images": (400, FLIPPED),  # and an interrupted training doesn't start over
    "training__invariance_weight": (0.7, {"train cnn_inv"}),  # the other types have no invariance loss
}  # fmt: skip


@pytest.mark.parametrize("key", CHANGED)
def test_a_key_is_only_in_the_settings_of_jobs_whose_results_it_changes(key):
    value, jobs = CHANGED[key]
    changed, before = settings(**{key: value}), settings()

    def of(all_settings, job):
        kind, *models = job.split()
        return getattr(all_settings, kind)(*models)

    assert {job for job in JOBS if of(changed, job) != of(before, job)} == jobs


def test_images_of_another_source_are_prepared_separately_and_a_label_is_no_source():
    sources = {}, {"cifar10__root": "elsewhere"}, {"cifar10__source": "folder"}, {"cifar10__source": "binary"}
    laptop, *others = (settings(scale="laptop", **source) for source in sources)
    assert len({each.prepared("cnn") for each in (laptop, *others)}) == 4
    labelled = settings(scale="laptop", cifar10__label="my copy")
    assert labelled.prepared("cnn") == laptop.prepared("cnn") and labelled.label("cnn") == "my copy"


def test_unprepared_images_differ_by_their_label_but_torchvisions_by_their_content(tmp_path, monkeypatch):
    def line_on(source, digest, **config):
        laptop = settings(scale="laptop", **config)
        results = Results(laptop, str(tmp_path / "results"), str(tmp_path / "data"))
        path = results.record(results.key("train", ("cnn", 0)))
        monkeypatch.setattr(results, "images_in_use", lambda prepared: (digest, path))
        monkeypatch.setattr(results, "load", lambda key: {"inputs": {"source": source, "data": digest}})
        return results.other_images(results.prepared("cnn"))

    other = "0" * 64
    assert line_on("my copy", cifar10.DIGEST) is None and line_on("CIFAR10", cifar10.DIGEST) is None
    assert "other images (CIFAR10?) than this config names (CIFAR10)" in line_on("CIFAR10", other)
    for source in ("binary", "python", "folder"):
        assert line_on("CIFAR10", other, cifar10__source=source) is None  # they may be the same images
        line = line_on("CIFAR10 as JPEG", other, cifar10__source=source)
        assert "other images (CIFAR10 as JPEG) than this config names (CIFAR10)" in line


MEASURED = "train ", "flip_merge ", "pair_merge ", "prepare_data"


def measured(jobs):
    return [job for job in jobs if job.startswith(MEASURED)]


@pytest.mark.parametrize("forced", [["-R", "flip_merge"], ["-F", "table2"], ["--forceall"]])
def test_a_forced_run_in_a_fresh_clone_keeps_every_result_whatever_fails(committed, forced):
    before = kept(committed.folder)
    data = committed.folder / "data/generated-400-200-0.safetensors"
    data.parent.mkdir()
    data.write_bytes(b"torn")
    if forced == ["--forceall"]:  # the images are prepared again, too, so that something else has to fail
        (committed.folder / RESULT / "checkpoints").write_bytes(b"no folder")
    assert committed.snakemake(*forced).returncode != 0
    assert before.items() <= kept(committed.folder).items()


def test_a_forced_run_in_a_fresh_clone_does_what_was_requested_and_outdates_nothing_else(committed):
    record, trained = (committed.record(kind, "cnn-0") for kind in ("flip_merge", "train"))
    before, net = load_record(record), trained.read_bytes()
    committed.makes("-R", "flip_merge", "--", str(record.relative_to(committed.folder)))
    after = load_record(record)
    assert after["cost"] != before["cost"] and after["barrier"] == before["barrier"]
    assert Path(committed.folder, committed.path("checkpoints", "train", "cnn-0")).exists()
    assert not Path(committed.folder, committed.path("checkpoints", "train", "gcnn-0")).exists()
    jobs = committed.planned()  # the net is the same again, and keeps its record
    assert trained.read_bytes() == net and not measured(jobs) and not {"table1", "table4"} & {*jobs}


def other_images(path):
    def split(seed):
        random = torch.Generator().manual_seed(seed)
        images = torch.randint(256, (400 if seed else 200, 32, 32, 3), generator=random, dtype=torch.uint8)
        return image_set.ImageSet(images, torch.arange(len(images)) % 10, tuple("abcdefghij"))

    path.parent.mkdir(exist_ok=True)
    image_set.save(path, split(1), split(0))


def test_a_run_on_other_images_than_those_of_its_records_ends_with_one_line_before_any_job(committed):
    committed.record("train", "cnn-0").unlink()
    other_images(committed.folder / "data/generated-400-200-0.safetensors")
    before, line = kept(committed.folder), "were made from other images"
    dry = committed.makes("--dry-run")
    assert dry.count(line) == 1 and "tables are made" not in dry and "move results/tiny away" in dry
    assert 0 <= dry.find("notice: this run would be stopped before its first job: ") < dry.find("Planned: ")
    lines = committed.fails().splitlines()
    (error,) = [text for text in lines if line in text and text.startswith("error: ")]
    assert kept(committed.folder) == before
    assert "move results/tiny away" in error and "tables are made" not in error
    assert "\nrule train:" not in latest_log(committed.folder)


def test_before_images_are_prepared_records_are_distinguished_by_their_label(committed):
    for path in (committed.folder / RESULT / "records").glob("*/*/[0-9]*.json"):
        inputs = load_record(path).get("inputs", {})
        if inputs.get("source"):
            change(path, inputs=inputs | {"source": "my own"})
    planned, made, nothing = (committed.makes(*how, "table2") for how in (["--dry-run"], [], ["--dry-run"]))
    for output in (planned, made, nothing):  # no images are mixed
        assert output.count("made from other images (my own)") == output.count("tables are made from") == 1
        assert "would be stopped" not in output
    assert "Planned: 1 job" in planned and "Planned" not in nothing
    committed.record("train", "cnn-0").unlink()
    assert "(my own)" in committed.fails("table2")
    log = latest_log(committed.folder)
    assert re.search(r"^train +1$", log, re.MULTILINE) and "\nrule train:" not in log  # planned, not run


def test_a_job_refuses_other_images_than_those_of_the_records_beside_it(committed):
    from relusym.measuring.loading import digest_in_use

    path, record = committed.folder / f"data/{IMAGES}.safetensors", committed.record("train", "gcnn-0")
    committed.record("train", "cnn-0").unlink()
    other_images(path)  # prepared in this run, with the label of the other images
    inputs, line = load_record(record)["inputs"], r"holds other images than record .*gcnn-\w{8}/0\.json"
    refused(lambda: digest_in_use(path, (inputs["data"], str(record))), match=line)
    assert committed.results().settings.label("cnn") == inputs["source"]


def test_records_copied_together_with_old_times_are_all_in_the_table(committed):
    records, table = (committed.folder / RESULT / part for part in ("records", "tables/table2.csv"))
    piece = [path for kind in ("train", "flip_merge") for path in (records / kind).glob("*/1.json")]
    texts = {path: path.read_bytes() for path in piece}
    for path in piece:
        path.unlink()
    committed.makes("table2", "--config", "seeds=0")
    assert (pd.read_csv(table).eval("n + left_out") == 1).all()
    for path, text in texts.items():
        path.write_bytes(text)
        os.utime(path, (1e9, 1e9))
    assert committed.planned("table2") == ["table2"]
    committed.makes("table2", "--config", "seeds=0")  # with all existing records
    assert (pd.read_csv(table).eval("n + left_out") == 2).all() and committed.planned("table2") == []


def test_a_change_to_the_code_of_tables_makes_them_again_and_measures_nothing(committed):
    for note in (committed.folder / RESULT / "notes").iterdir():
        note.rename(note.with_name(note.name.replace(note.stem[-4:], "0000")))  # as after a code change
    jobs = committed.planned()
    assert {"table1", "table2", "table4", "table5", "figure4", "claims"} <= {*jobs} and not measured(jobs)


def test_a_table_that_was_edited_by_hand_is_made_again(committed):
    table = committed.folder / RESULT / "tables/table2.csv"
    before = table.read_bytes()
    table.write_bytes(before.replace(b"cnn", b"CNN"))
    assert committed.planned("table2") == ["table2"]
    committed.makes("table2")
    assert table.read_bytes() == before


def test_the_note_of_a_table_names_the_records_that_it_read(committed):
    folder = committed.folder
    (note,) = (folder / RESULT / "notes").glob("table4-*.sha256")
    lines = [line for line in note.read_text().splitlines() if line.startswith("# ")]
    shell = ["bash", "-c", "echo " + " ".join(line[2:] for line in lines)]
    expanded = subprocess.run(shell, cwd=folder, capture_output=True, text=True).stdout.split()
    paths = (folder / RESULT / "records/pair_merge").rglob("[0-9]*.json")
    pairs = {str(path.relative_to(folder)) for path in paths}
    trained = {path for path in expanded if "/records/train/" in path}
    assert {*expanded} == pairs | trained and len(expanded) == len({*expanded})
    assert all((folder / path).is_file() for path in expanded)
    subprocess.run(["sha256sum", "-c", "--strict", note], cwd=folder, capture_output=True, check=True)


def test_a_start_writes_nothing(tiny):
    made = tiny()
    before = files_of(made.folder, ".")
    made.planned()
    written = {path.parts[:2] for path in files_of(made.folder, ".") if path not in before}
    allowed = ("log", "iocache", "locks", "metadata", "scripts")
    assert written <= {(".snakemake", part) for part in allowed}


@pytest.mark.parametrize("what", ["another seed's", "changed in one byte"])
def test_a_checkpoint_that_its_record_does_not_name_is_refused_by_name(copied, what):
    path, record = copied.path("checkpoints", "train", "cnn-0"), copied.record("flip_merge", "cnn-0")
    if what == "another seed's":
        shutil.copy((copied.folder / path).with_name("1.safetensors"), copied.folder / path)
    else:
        flip_byte(copied.folder / path, -5)
    before = record.read_bytes()
    output = copied.fails("-R", "flip_merge", "--", str(record.relative_to(copied.folder)))
    assert f"checkpoint {path} isn't the one that" in output and record.read_bytes() == before


def test_clocks_decide_nothing(copied):
    for times in (4.07e9, 4.07e9), (1e9, 4.07e9), (4.07e9, 1e9):  # in 2099, or alternately in 2001
        for place, path in enumerate(sorted(files_of(copied.folder, "."))):
            os.utime(copied.folder / path, (times[place % 2],) * 2)
        assert copied.planned() == []
    jobs = copied.planned("--config", "training={batch_size: 20}")
    assert {"train cnn 0", "flip_merge cnn 0", "pair_merge cnn 0 gcnn 0", "table2"} <= {*jobs}
    assert not any(job.startswith("prepare_data") for job in jobs)
    copied.record("pair_merge", "gcnn-0", "gcnn-1").unlink()
    jobs = copied.planned()
    assert "pair_merge gcnn 0 gcnn 1" in jobs and "table4" in jobs
    assert not any(job.startswith("train") for job in jobs)


def test_a_training_whose_record_cannot_be_written_is_not_lost(tiny):
    made = tiny()
    record = made.record("train", "cnn-0")
    its_settings = record.with_name("settings.json")
    its_settings.parent.mkdir(parents=True)
    its_settings.write_text("{}", encoding="utf-8")
    target = str(record.relative_to(made.folder))
    assert "was made with other settings than those in" in made.fails(target)
    (state,) = (made.folder / RESULT / "states").iterdir()
    its_settings.unlink()
    made.makes(target)
    assert load_record(record)["cost"]["earlier_seconds"] > 0 and not state.exists()


def test_a_table_that_fails_leaves_its_older_files(committed):
    before, path = files_of(committed.folder, f"{RESULT}/tables"), committed.record("flip_merge", "cnn-0")
    record = load_record(path)
    assert record["status"] == "ok"
    path.write_text(json.dumps(record | {"invariance_error": None}))
    assert "lacks a number in 'invariance_error'" in committed.fails("table2")
    assert files_of(committed.folder, f"{RESULT}/tables") == before


def test_the_same_records_give_the_same_bytes(committed):
    parts = [f"{RESULT}/{part}" for part in ("tables", "figures", "notes")]
    before = files_of(committed.folder, *parts)
    shutil.rmtree(committed.folder / parts[1])  # for tables, the test of the laptop's tables checks this
    committed.makes()
    assert files_of(committed.folder, *parts) == before


def test_another_setting_and_back_again_finds_the_first_results(committed):
    record = committed.path_of_statement("lemma_e_1")
    before = record.read_bytes()
    other = "theory", "--config", "theory={draws: {lemma_e_1: 201}}"
    assert committed.planned(*other) == ["lemma_e_1", "theory"]
    committed.makes(*other)
    assert record.read_bytes() == before
    assert committed.planned("theory") == ["theory"]  # the table shows the other results
    committed.makes("theory")
    assert committed.planned("theory") == [] and committed.planned(*other) == ["theory"]


def test_a_net_made_from_images_dated_in_the_future_is_kept(copied):
    """Snakemake deletes outputs older than their inputs. Only the record exists: only it is made again."""
    later = time.time() + 600
    for path in files_of(copied.folder, "data"):
        os.utime(copied.folder / path, (later, later))
    copied.record("train", "cnn-0").unlink()
    assert copied.planned("table2") == ["table2", "train cnn 0"]
    Path(copied.folder, copied.path("checkpoints", "train", "cnn-0")).unlink()
    assert copied.planned("table2") == ["table2", "train cnn 0"]
    copied.makes("table2")
    assert copied.record("train", "cnn-0").exists() and copied.planned("table2") == []


def test_an_outdated_file_of_a_table_names_the_target_that_makes_it_again(committed):
    table = f"{RESULT}/tables/table2.csv"
    assert committed.planned(table) == []
    output = committed.fails("--dry-run", table, "--config", "training={batch_size: 20}")
    assert f"error: {table} is out of date; ask for the target table2 to make it again" in output


def test_a_report_of_a_partial_run_shows_that_part(committed, tmp_path):
    tables, report = committed.folder / RESULT / "tables", tmp_path / "report.html"
    for path in [*tables.glob("table4*"), *tables.glob("claims*")]:
        path.unlink()
    committed.makes("--report", str(report))
    assert "tables/table2.html" in report.read_text(encoding="utf-8")


def test_the_summary_calls_no_file_out_of_date(finished):
    run = finished.snakemake("--summary")
    lines = [line.split("\t") for line in run.stdout.splitlines() if line.startswith(RESULT)]
    assert len(lines) > 50 and {line[-1] for line in lines} == {"no update"}


def test_a_second_run_has_nothing_to_do_by_any_trigger_of_snakemake(finished):
    assert finished.planned() == []
    assert finished.planned("--rerun-triggers", "mtime", "params", "input", "code", "software-env") == []


def test_a_checkout_whose_path_has_a_space_and_braces(tmp_path):
    made = set_to_tiny(Clone(tmp_path / "a b{b}"))
    made.makes("lemma_2_2", "figure10")
    assert made.path_of_statement("lemma_2_2").exists() and made.planned("lemma_2_2", "figure10") == []


def test_a_checkout_with_another_library_than_the_installed_one_is_refused(tiny):
    made = tiny()
    path = made.folder / "workflow_scripts/relusym/symmetry.py"
    path.write_text(path.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
    (line,) = [line for line in made.fails("--dry-run").splitlines() if line.startswith("error: ")]
    assert "this Snakefile needs the one beside it: pip install --editable" in line


def test_without_snakemakes_internals_the_same_is_planned_and_done(committed, monkeypatch):
    monkeypatch.setenv("RELUSYM_PUBLIC", "1")
    assert committed.planned() == []
    committed.record("flip_merge", "gcnn-1").unlink()
    jobs = committed.planned("table2")
    assert jobs == ["flip_merge gcnn 1", f"prepare_data {IMAGES}", "table2", "train gcnn 1"]
    committed.path_of_statement("lemma_e_1").unlink()
    committed.makes("theory", "figure10")
    assert committed.planned("theory", "figure10") == []
